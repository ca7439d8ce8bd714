"""Sparsity shifts: the mutation of the search (Section 2.4, A.3).

One shift makes one sublayer a step denser and another *of the same kind* a step sparser, so the
budget of each kind is conserved exactly. Shifts are drawn from the legal ones: there is no
rejection loop that could spin.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tyr.sparsity import KINDS

# A level vector holds one level per sublayer in stream order: attention at even places.
Levels = tuple[int, ...]
Bounds = Sequence[tuple[int, int]]


def draw(count: int, rng: torch.Generator) -> int:
    """A uniform integer in [0, count)."""
    return int(torch.randint(count, (), generator=rng))


def donors_by_kind(levels: Levels, bounds: Bounds) -> list[tuple[list[int], list[int]]]:
    """For each kind with a legal shift: sublayers that can become denser, and sparser."""
    legal = []
    for offset in range(len(KINDS)):
        places = range(offset, len(levels), len(KINDS))
        sparser = [i for i in places if levels[i] < bounds[i][1]]
        denser = [i for i in places if levels[i] > bounds[i][0] and (set(sparser) - {i})]
        if denser:
            legal.append((denser, sparser))
    return legal


def shift(levels: Levels, bounds: Bounds, rng: torch.Generator) -> Levels:
    """One sparsity shift; the same levels if none is legal."""
    legal = donors_by_kind(levels, bounds)
    if not legal:
        return levels
    denser, sparser = legal[draw(len(legal), rng)]
    donor = denser[draw(len(denser), rng)]
    takers = [i for i in sparser if i != donor]
    taker = takers[draw(len(takers), rng)]
    moved = list(levels)
    moved[donor] -= 1
    moved[taker] += 1
    return tuple(moved)


def mutate(levels: Levels, bounds: Bounds, rng: torch.Generator, *, max_shifts: int = 4) -> Levels:
    """min(U{1..max}, U{1..max}) shifts: small steps are likelier (EvoPress's schedule).

    Args:
        levels: level of every sublayer.
        bounds: lowest and highest level of every sublayer.
        rng: CPU generator.
        max_shifts: most shifts in one mutation.
    """
    for _ in range(1 + min(draw(max_shifts, rng), draw(max_shifts, rng))):
        levels = shift(levels, bounds, rng)
    return levels
