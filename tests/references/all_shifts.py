"""Every level vector that sparsity shifts can reach, by trying all pairs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

from tyr.search.mutation import Bounds, Levels


def one_shift_away(levels: Levels, bounds: Bounds) -> set[Levels]:
    """All results of one legal shift between two sublayers of a kind."""
    reached = set()
    for donor, taker in permutations(range(len(levels)), 2):
        if donor % 2 != taker % 2:
            continue
        moved = list(levels)
        moved[donor] -= 1
        moved[taker] += 1
        if within(moved, bounds):
            reached.add(tuple(moved))
    return reached


def up_to_shifts(levels: Levels, bounds: Bounds, count: int) -> set[Levels]:
    """All results of one to `count` legal shifts."""
    reached: set[Levels] = set()
    frontier = {levels}
    for _ in range(count):
        frontier = {end for start in frontier for end in one_shift_away(start, bounds)}
        reached |= frontier
    return reached


def within(levels: Sequence[int], bounds: Bounds) -> bool:
    """Whether every level exists."""
    return all(low <= level <= high for level, (low, high) in zip(levels, bounds, strict=True))
