"""The cheapest choice of levels with a given sum, by trying all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product


def cheapest_by_trying_all(options: Sequence[Mapping[int, float]], total: int) -> float:
    """The least cost of one level per sublayer that add up to `total`."""
    return min(
        sum(costs[level] for costs, level in zip(options, levels, strict=True))
        for levels in product(*options)
        if sum(levels) == total
    )
