from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tyr.budget import (
    Reach,
    even_spread,
    exact_fraction,
    nearest_sparsities,
    overlap,
    unit_budget,
)
from tyr.errors import ConfigError

counts = st.lists(st.integers(1, 40), min_size=1, max_size=10)
sparsities = st.decimals(0, "0.9999", places=4).map(float)


def test_a_sparsity_is_read_as_the_decimal_that_was_written() -> None:
    assert exact_fraction(0.3) * 10 == 3
    assert exact_fraction(1e-05) * 100_000 == 1
    assert exact_fraction(0.1 + 0.2) != exact_fraction(0.3)  # the sum was written with an error


@pytest.mark.parametrize(
    ("sparsity", "units", "removed"),
    [
        (0.1 + 0.2, 10, 3),
        (0.145, 100, 15),  # in binary 14.499999999999998
        (0.15, 10, 2),
        (0.575, 1000, 575),  # in binary 574.9999999999999
        (0.375, 48, 18),  # 6 heads x 8 blocks
        (0.5, 4 * 14336, 2 * 14336),
        (0.0, 32, 0),
    ],
)
def test_a_budget_rounds_half_up_in_exact_arithmetic(
    sparsity: float, units: int, removed: int
) -> None:
    assert unit_budget(sparsity, units) == removed


@given(sparsities, st.integers(0, 2_000_000))
def test_a_budget_is_what_decimal_arithmetic_gives(sparsity: float, units: int) -> None:
    exact = (Decimal(repr(sparsity)) * units).quantize(Decimal(1), rounding=ROUND_HALF_UP)
    assert unit_budget(sparsity, units) == int(exact)


@given(counts, st.data())
def test_an_even_spread_is_exact_within_capacity_and_as_even_as_possible(
    removable: list[int], data: st.DataObject
) -> None:
    budget = data.draw(st.integers(0, sum(removable)))
    removed = even_spread(budget, removable)
    assert sum(removed) == budget
    assert all(0 <= gone <= most for gone, most in zip(removed, removable, strict=True))
    could_give_more = [gone for gone, most in zip(removed, removable, strict=True) if gone < most]
    if could_give_more:
        assert max(removed) <= min(could_give_more) + 1


def test_what_a_full_block_cannot_give_is_taken_from_the_others_evenly() -> None:
    assert even_spread(10, [1, 10, 10, 10]) == (1, 3, 3, 3)


def test_extra_units_go_to_evenly_spaced_blocks() -> None:
    assert even_spread(18, [6] * 8) == (2, 2, 2, 3, 2, 2, 2, 3)


def test_more_than_is_removable_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot remove 5 units: only 4"):
        even_spread(5, [2, 2])


def test_a_budget_between_two_that_can_be_met_is_rounded_half_up_or_refused() -> None:
    rounding = Reach(range(12, 77, 32), 100, rounds=True)  # 12, 44, 76
    asked = {-4: 12, -5: None, 12: 12, 27: 12, 28: 44, 60: 76, 92: 76, 93: None}
    assert {budget: rounding.nearest(budget) for budget in asked} == asked
    exact = Reach(range(0, 21, 5), 20, rounds=False)
    assert [exact.nearest(budget) for budget in (0, 4, 5, 20, 21)] == [0, None, 5, 20, None]


@given(st.integers(0, 60), st.integers(0, 30), st.integers(1, 9), st.booleans(), sparsities)
def test_the_windows_hold_the_sparsities_whose_budget_is_in_reach(
    first: int, steps: int, step: int, rounds: bool, sparsity: float
) -> None:
    reach = Reach(range(first, first + step * steps + 1, step), 400, rounds=rounds)
    exact = exact_fraction(sparsity)
    inside = any(low <= exact <= high for low, high in reach.windows())
    near_an_edge = abs((exact * 400) % 1 - Fraction(1, 2)) < Fraction(2, 1000)
    assert near_an_edge or inside == (reach.nearest(unit_budget(sparsity, 400)) is not None)


def test_the_overlap_of_windows_is_what_both_hold() -> None:
    left = [(Fraction(0), Fraction(2)), (Fraction(3), Fraction(5))]
    right = [(Fraction(1), Fraction(4)), (Fraction(5), Fraction(6))]
    assert overlap(left, right) == [(1, 2), (3, 4), (5, 5)]
    assert overlap(left, []) == []


def test_the_coarser_kind_decides_which_sparsities_are_nearest() -> None:
    heads = Reach(range(0, 21, 5), 20, rounds=False)
    neurons = Reach(range(0, 861, 5), 860, rounds=False)
    assert nearest_sparsities(Fraction(3, 10), [heads, neurons]) == [0.25, 0.5]
    assert nearest_sparsities(Fraction(9, 10), [neurons, heads]) == [0.75, 1.0]
