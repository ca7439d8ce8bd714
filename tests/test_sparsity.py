from __future__ import annotations

import itertools
import re
from decimal import ROUND_HALF_UP, Decimal

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tyr.errors import ConfigError
from tyr.sparsity import (
    KINDS,
    Allocation,
    LevelGrid,
    SublayerId,
    UnitCounts,
    check_sparsity,
    even_spread,
    exact_fraction,
    level_steps,
    removable_units,
    sparsity_of,
    stream_order,
    uniform_allocation,
    unit_budget,
)

counts = st.lists(st.integers(1, 40), min_size=1, max_size=10)
sparsities = st.decimals(0, "0.9999", places=4).map(float)


@st.composite
def unit_counts(draw: st.DrawFn) -> UnitCounts:
    """Units of a model whose blocks may differ."""
    blocks = draw(st.integers(1, 8))
    same_length = st.lists(st.integers(1, 40), min_size=blocks, max_size=blocks)
    return UnitCounts(tuple(draw(same_length)), tuple(draw(same_length)))


@st.composite
def level_grids(draw: st.DrawFn) -> LevelGrid:
    """A grid around any allocation that a model may have."""
    units = draw(unit_counts())
    most = removable_units(units)
    centre = Allocation.from_stream([draw(st.integers(0, limit)) for limit in most])
    steps = {kind: draw(st.integers(1, 12)) for kind in KINDS}
    return LevelGrid(units, centre, steps, half_width=draw(st.integers(0, 5)))


def test_stream_order_is_attention_then_ffn_of_each_block() -> None:
    names = [sublayer.name for sublayer in stream_order(2)]
    assert names == ["000.attn", "000.ffn", "001.attn", "001.ffn"]
    assert [sublayer.index for sublayer in stream_order(2)] == [0, 1, 2, 3]


@given(unit_counts())
def test_unit_counts_survive_the_stream_and_the_dictionary(units: UnitCounts) -> None:
    assert UnitCounts.from_stream(list(units)) == units
    assert UnitCounts.from_dict(units.as_dict()) == units
    assert sum(units.total.values()) == sum(units)


def test_unit_counts_need_both_kinds_for_every_block() -> None:
    with pytest.raises(ConfigError, match="2 for attn and 1 for ffn"):
        UnitCounts((1, 2), (3,))


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


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.7, 50, float("nan")])
def test_a_sparsity_outside_its_range_is_refused(sparsity: float) -> None:
    with pytest.raises(ConfigError, match=r"must be in \[0, 1\), got"):
        check_sparsity(sparsity)
    with pytest.raises(ConfigError, match=r"must be in \[0, 1\), got"):
        uniform_allocation(sparsity, UnitCounts((4,), (4,)))


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


@given(unit_counts(), sparsities)
def test_a_uniform_allocation_meets_the_budget_or_says_how_far_it_can_go(
    units: UnitCounts, sparsity: float
) -> None:
    try:
        removed = uniform_allocation(sparsity, units)
    except ConfigError as error:
        assert unit_budget(sparsity, units.total["attn"]) > removable_units(units).total["attn"]
        reachable = re.search(r"ask for at most ([\d.e-]+)", str(error))
        assert reachable is not None
        uniform_allocation(float(reachable[1]), units)
        return
    for kind in KINDS:
        assert removed.total[kind] == unit_budget(sparsity, units.total[kind])
        assert all(0 <= n <= u for n, u in zip(removed.of(kind), units.of(kind), strict=True))
    assert removed.attn[0] < units.attn[0]


def test_block_0_keeps_an_attention_unit_at_any_sparsity() -> None:
    removed = uniform_allocation(0.96, UnitCounts((4,) * 8, (10,) * 8))
    assert removed.attn == (3, 4, 4, 4, 4, 4, 4, 4)
    assert removed.total["ffn"] == 77


def test_a_sparsity_that_would_empty_all_attention_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"0.99 is not reachable.*at most 7 can go.*0.875"):
        uniform_allocation(0.99, UnitCounts((4, 4), (100, 100)))


def test_the_fractions_for_plots_are_per_block() -> None:
    units = UnitCounts((4, 8), (10, 10))
    assert sparsity_of(Allocation((1, 4), (5, 0)), units, "attn") == [0.25, 0.5]
    assert sparsity_of(Allocation((1, 4), (5, 0)), units, "ffn") == [0.5, 0.0]


@given(level_grids())
def test_levels_are_equally_spaced_within_range_and_hold_the_centre(grid: LevelGrid) -> None:
    for sublayer in stream_order(grid.units.num_blocks):
        levels = grid.levels(sublayer)
        assert levels[0] == grid.centre[sublayer]
        assert list(levels) == list(range(min(levels), max(levels) + 1))
        removed = list(levels.values())
        step = grid.step[sublayer.kind]
        assert all(b - a == step for a, b in itertools.pairwise(removed))
        most = removable_units(grid.units)[sublayer]
        assert removed[0] >= 0
        assert removed[-1] <= most
        # no level that would fit is missing
        if len(levels) <= 2 * grid.half_width:
            assert removed[0] - step < 0 or removed[-1] + step > most
        assert -grid.half_width <= min(levels) <= max(levels) <= grid.half_width


@given(level_grids(), st.data())
def test_one_step_between_sublayers_of_a_kind_conserves_the_budget(
    grid: LevelGrid, data: st.DataObject
) -> None:
    assume(grid.units.num_blocks >= 2)
    kind = data.draw(st.sampled_from(KINDS))
    places = [s.index for s in stream_order(grid.units.num_blocks) if s.kind == kind]
    giver, taker = data.draw(st.permutations(places))[:2]
    levels = [0] * (2 * grid.units.num_blocks)
    levels[giver] -= 1
    levels[taker] += 1
    assert grid.allocation(levels).total == grid.centre.total


def test_the_paper_s_nine_levels_reach_from_nothing_to_everything() -> None:
    units = UnitCounts((32,) * 2, (14336,) * 2)
    centre = uniform_allocation(0.5, units)
    steps = level_steps(0.125, 0, units)
    grid = LevelGrid(units, centre, steps)
    assert steps == {"attn": 4, "ffn": 1792}
    assert list(grid.levels(SublayerId(1, "attn")).values()) == list(range(0, 33, 4))
    assert list(grid.levels(SublayerId(1, "ffn")).values()) == list(range(0, 14337, 1792))
    # block 0 cannot lose its last head, so its sparsest level does not exist
    assert list(grid.levels(SublayerId(0, "attn"))) == list(range(-4, 4))
    assert grid.bounds() == ((-4, 3), (-4, 4), (-4, 4), (-4, 4))


def test_the_grid_of_the_next_iteration_may_centre_on_any_level() -> None:
    units = UnitCounts((32,), (64,))
    first = LevelGrid(units, uniform_allocation(0.5, units), level_steps(0.125, 0, units))
    for level in range(*first.bounds()[1]):
        centre = first.allocation([0, level])
        second = LevelGrid(units, centre, level_steps(0.125, 1, units))
        assert second.levels(SublayerId(0, "ffn"))[0] == centre.ffn[0]


def test_the_interval_halves_every_iteration_down_to_one_unit() -> None:
    units = UnitCounts((32,) * 2, (14336,) * 2)
    steps = [level_steps(0.125, iteration, units) for iteration in range(5)]
    assert [step["attn"] for step in steps] == [4, 2, 1, 1, 1]
    assert [step["ffn"] for step in steps] == [1792, 896, 448, 224, 112]


def test_a_step_is_counted_on_the_narrowest_block() -> None:
    assert level_steps(0.125, 0, UnitCounts((32, 16), (80, 800))) == {"attn": 2, "ffn": 10}


@given(st.integers(8, 20_000))
def test_nine_levels_of_an_eighth_fit_around_half(width: int) -> None:
    units = UnitCounts((width,) * 2, (width,) * 2)
    grid = LevelGrid(units, uniform_allocation(0.5, units), level_steps(0.125, 0, units))
    assert len(grid.levels(SublayerId(1, "attn"))) >= 8 + (width % 2 == 0)


@pytest.mark.parametrize("interval", [0, -0.1, 0.6, float("nan")])
def test_an_interval_outside_its_range_is_refused(interval: float) -> None:
    with pytest.raises(ConfigError, match=r"supernet.interval must be in \(0, 0.5\]"):
        level_steps(interval, 0, UnitCounts((8,), (8,)))


def test_an_interval_finer_than_half_a_unit_is_refused_with_one_that_works() -> None:
    units = UnitCounts((3,), (100,))
    with pytest.raises(ConfigError, match="finer than one attn unit.*use at least 0.1667"):
        level_steps(0.1, 0, units)
    assert level_steps(0.1667, 0, units)["attn"] == 1
