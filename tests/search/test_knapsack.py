from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.references.all_allocations import cheapest_by_trying_all
from tests.references.all_shifts import within
from tyr.search.knapsack import (
    best_within,
    cheapest_levels,
    distance,
    farthest,
    priced_optima,
    single_changes,
)

COSTS = st.dictionaries(st.integers(-3, 3), st.integers(-20, 20), min_size=1, max_size=5)


@given(st.lists(COSTS, min_size=1, max_size=5), st.data())
def test_the_dynamic_programme_finds_what_trying_all_finds(
    options: list[dict[int, int]], data: st.DataObject
) -> None:
    total = sum(data.draw(st.sampled_from(sorted(costs))) for costs in options)
    costs: list[dict[int, float]] = [{k: float(v) for k, v in one.items()} for one in options]
    levels = cheapest_levels(costs, total=total)
    assert sum(levels) == total
    assert all(level in one for level, one in zip(levels, costs, strict=True))
    found = sum(one[level] for level, one in zip(levels, costs, strict=True))
    assert found == cheapest_by_trying_all(costs, total)


@given(st.data())
def test_an_optimum_keeps_the_budget_of_each_kind_the_bounds_and_the_reach(
    data: st.DataObject,
) -> None:
    count = 2 * data.draw(st.integers(1, 3))
    bounds = [(data.draw(st.integers(-3, 0)), data.draw(st.integers(0, 3))) for _ in range(count)]
    parent = tuple(data.draw(st.integers(low, high)) for low, high in bounds)
    increments: list[dict[int, float]] = [
        {
            level: 0.0 if level == e else float(data.draw(st.integers(-9, 9)))
            for level in range(low, high + 1)
        }
        for e, (low, high) in zip(parent, bounds, strict=True)
    ]
    reach = data.draw(st.integers(0, 4))
    found = best_within(increments, parent, reach=reach)
    assert within(found, bounds)
    assert (sum(found[0::2]), sum(found[1::2])) == (sum(parent[0::2]), sum(parent[1::2]))
    assert max(abs(a - b) for a, b in zip(found, parent, strict=True)) <= reach
    gain = sum(increments[i][level] for i, level in enumerate(found))
    assert gain <= 0
    priced = best_within(increments, parent, reach=reach, step_cost=1000.0)
    assert priced == parent


def test_a_price_per_step_keeps_optima_nearer() -> None:
    increments: list[dict[int, float]] = [
        {-1: -1.0, 0: 0.0, 1: 2.0},
        {0: 0.0},
        {-1: 3.0, 0: 0.0, 1: -4.0},
        {0: 0.0},
        {-1: -3.0, 0: 0.0, 1: 2.5},
        {0: 0.0},
        {-1: 9.0, 0: 0.0, 1: 0.5},
        {0: 0.0},
    ]
    parent = (0,) * 8
    assert best_within(increments, parent, reach=1) == (-1, 0, 1, 0, -1, 0, 1, 0)
    near = best_within(increments, parent, reach=1, step_cost=1.0)
    assert near == (0, 0, 1, 0, -1, 0, 0, 0)
    assert distance(near, parent) == 2


def test_priced_optima_are_different_ones_nearest_first_and_never_the_parent() -> None:
    increments: list[dict[int, float]] = [
        {-1: -9.0, 0: 0.0},
        {0: 0.0},
        {0: 0.0, 1: 1.0},
        {0: 0.0},
        {-1: -3.0, 0: 0.0},
        {0: 0.0},
        {0: 0.0, 1: 2.0},
        {0: 0.0},
    ]
    parent = (0,) * 8  # the free optimum gains 9 in 4 steps
    free, near = (-1, 0, 1, 0, -1, 0, 1, 0), (-1, 0, 1, 0, 0, 0, 0, 0)
    prices = (100.0, 1.0, 0.9, 0.1)
    assert priced_optima(increments, parent, reach=1, prices=prices) == [near, free]
    assert priced_optima(increments, parent, reach=1, prices=()) == [free]
    assert priced_optima([{0: 0.0}] * 8, parent, reach=1, prices=prices) == []


def test_single_changes_are_every_other_level_of_every_sublayer() -> None:
    bounds = ((-1, 2), (0, 0), (0, 1))
    singles = single_changes((0, 0, 1), bounds)
    assert singles == [(-1, 0, 1), (1, 0, 1), (2, 0, 1), (0, 0, 0)]
    assert farthest((0, 0, 1), bounds) == 2


def test_levels_that_cannot_add_up_are_a_fault_of_the_caller() -> None:
    with pytest.raises(KeyError):
        cheapest_levels([{0: 0.0, 1: 1.0}], total=5)
