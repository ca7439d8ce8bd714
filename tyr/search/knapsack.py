"""The allocation with the least sum of loss increments, exactly, in integers.

A multiple-choice knapsack per kind: one level per sublayer, and the levels of a kind keep their
sum, so the budget is conserved to the unit. Solved by a dynamic programme over sublayers and sums.
Beyond the paper; whether increments add up is for the caller to check.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tyr.search.mutation import Bounds, Levels
from tyr.sparsity import KINDS


def single_changes(parent: Levels, bounds: Bounds) -> list[Levels]:
    """Every level vector that differs from the parent in one sublayer; they break the budget."""
    return [
        (*parent[:place], level, *parent[place + 1 :])
        for place, (low, high) in enumerate(bounds)
        for level in range(low, high + 1)
        if level != parent[place]
    ]


def farthest(parent: Levels, bounds: Bounds) -> int:
    """Most steps that any sublayer can move from the parent."""
    return max(max(e - low, high - e) for e, (low, high) in zip(parent, bounds, strict=True))


def distance(levels: Levels, parent: Levels) -> int:
    """Steps from the parent, over all sublayers."""
    return sum(abs(a - b) for a, b in zip(levels, parent, strict=True))


def changed_place(levels: Levels, parent: Levels) -> int:
    """The first sublayer whose level is not the parent's."""
    return next(i for i, (a, b) in enumerate(zip(levels, parent, strict=True)) if a != b)


def best_within(
    increments: Sequence[Mapping[int, float]],
    parent: Levels,
    *,
    reach: int,
    step_cost: float = 0.0,
) -> Levels:
    """The least sum of increments with every level at most `reach` steps from the parent's.

    Args:
        increments: per sublayer in stream order, level to loss increment; the parent's level is 0.
        parent: its levels; each kind keeps their sum.
        reach: most steps from the parent, per sublayer.
        step_cost: added for every step away from the parent.
    """
    found = list(parent)
    for offset in range(len(KINDS)):
        places = range(offset, len(parent), len(KINDS))
        options = [
            {
                level: cost + step_cost * abs(level - parent[i])
                for level, cost in increments[i].items()
                if abs(level - parent[i]) <= reach
            }
            for i in places
        ]
        chosen = cheapest_levels(options, total=sum(parent[i] for i in places))
        for place, level in zip(places, chosen, strict=True):
            found[place] = level
    return tuple(found)


def priced_optima(
    increments: Sequence[Mapping[int, float]],
    parent: Levels,
    *,
    reach: int,
    prices: Sequence[float],
) -> list[Levels]:
    """Different optima for several prices of a step, in their order, and last the free one.

    The further an optimum lies, the more of its gain is the increments' error (the winner's curse),
    so a price buys a nearer one. The parent is none of them.

    Args:
        increments: per sublayer in stream order, level to loss increment; the parent's level is 0.
        parent: its levels; each kind keeps their sum.
        reach: most steps from the parent, per sublayer.
        prices: in gains per step of the free optimum.
    """
    free = best_within(increments, parent, reach=reach)
    steps = distance(free, parent)
    if steps == 0:
        return []
    gain = -sum(increments[place][level] for place, level in enumerate(free)) / steps
    costs = [price * gain for price in prices]
    optima = [best_within(increments, parent, reach=reach, step_cost=cost) for cost in costs]
    return [levels for levels in dict.fromkeys([*optima, free]) if levels != parent]


def cheapest_levels(options: Sequence[Mapping[int, float]], *, total: int) -> tuple[int, ...]:
    """One level per sublayer, adding up to `total`, at the least cost: an exact knapsack.

    Costs are compared as they add up from the first sublayer on; equal ones go to the smaller
    levels. Time grows with sublayers x distinct sums x levels.

    Args:
        options: per sublayer, level to cost.
        total: what the levels must add up to; some choice must.
    """
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for costs in options:
        reached: dict[int, tuple[float, tuple[int, ...]]] = {}
        for at, (cost, chosen) in best.items():
            for level, increment in costs.items():
                new = (cost + increment, (*chosen, level))
                if at + level not in reached or new < reached[at + level]:
                    reached[at + level] = new
        best = reached
    return best[total][1]
