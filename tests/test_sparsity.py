from __future__ import annotations

import itertools
import re
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tyr.budget import check_sparsity, even_spread, unit_budget
from tyr.errors import ConfigError
from tyr.layout import FREE, Layout
from tyr.sparsity import (
    KINDS,
    Allocation,
    LevelGrid,
    SublayerId,
    UnitCounts,
    budget_notes,
    level_steps,
    sparsity_of,
    stream_order,
    uniform_allocation,
)

sparsities = st.decimals(0, "0.9999", places=4).map(float)
layouts = st.builds(Layout, st.sampled_from([1, 2, 7, 16]), st.booleans())


def allowed(units: UnitCounts, layout: Layout = FREE) -> list[range]:
    """Numbers of units every sublayer may lose, in stream order."""
    order = stream_order(units.num_blocks)
    return [layout.removable(s.kind, s.block, units[s]) for s in order]


@st.composite
def aligned_models(draw: st.DrawFn) -> tuple[UnitCounts, Layout]:
    """Units of a model of equally wide blocks, and a layout under which each can keep something."""
    layout, blocks = draw(layouts), draw(st.integers(1, 8))
    heads, width = draw(st.integers(1, 16)), draw(st.integers(layout.ffn_alignment, 90))
    return UnitCounts((heads,) * blocks, (width,) * blocks), layout


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
    centre = Allocation.from_stream([draw(st.sampled_from(r)) for r in allowed(units)])
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


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.7, 50, float("nan")])
def test_a_sparsity_outside_its_range_is_refused(sparsity: float) -> None:
    with pytest.raises(ConfigError, match=r"must be in \[0, 1\), got"):
        check_sparsity(sparsity)
    with pytest.raises(ConfigError, match=r"must be in \[0, 1\), got"):
        uniform_allocation(sparsity, UnitCounts((4,), (4,)))


@given(unit_counts(), sparsities)
def test_a_uniform_allocation_meets_the_budget_or_says_how_far_it_can_go(
    units: UnitCounts, sparsity: float
) -> None:
    try:
        removed = uniform_allocation(sparsity, units)
    except ConfigError as error:
        assert unit_budget(sparsity, units.total["attn"]) == units.total["attn"]
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
        most = allowed(grid.units)[sublayer.index][-1]
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


def outcome(sparsity: float, units: UnitCounts, layout: Layout) -> Allocation | str:
    """The uniform allocation, or why there is none."""
    try:
        return uniform_allocation(sparsity, units, layout)
    except ConfigError as error:
        return str(error)


@given(aligned_models(), sparsities)
def test_an_aligned_uniform_allocation_is_legal_even_and_as_near_as_possible(
    model: tuple[UnitCounts, Layout], sparsity: float
) -> None:
    units, layout = model
    removed = outcome(sparsity, units, layout)
    ranges = allowed(units, layout)
    for kind, legal in (("attn", ranges[0::2]), ("ffn", ranges[1::2])):
        asked = unit_budget(sparsity, units.total[kind])
        granule = layout.granule(kind)
        least, most = sum(r[0] for r in legal), sum(r[-1] for r in legal)
        if not isinstance(removed, str):
            assert all(gone in r for gone, r in zip(removed.of(kind), legal, strict=True))
            assert max(removed.of(kind)) - min(removed.of(kind)[1:] or (999,)) <= granule
            nearest = min(range(least, most + 1, granule), key=lambda b: abs(b - asked))
            assert abs(removed.total[kind] - asked) == abs(nearest - asked) <= granule // 2
            continue
        if least - granule // 2 <= asked <= most + granule // 2:
            continue  # the other kind is why
        assert f"of {units.total[kind]} {kind} units" in removed or "attn units" in removed
        return
    assert not isinstance(removed, str), removed


@given(aligned_models(), sparsities)
def test_a_refused_sparsity_comes_with_one_that_is_taken(
    model: tuple[UnitCounts, Layout], sparsity: float
) -> None:
    units, layout = model
    refused = outcome(sparsity, units, layout)
    assume(isinstance(refused, str))
    offered = re.search(r"ask for at (?:most|least) ([\d.e-]+)", str(refused))
    if offered is None:
        assert "no sparsity is reachable for both kinds" in str(refused)
        assert all(isinstance(outcome(step / 200, units, layout), str) for step in range(200)), (
            "there is one after all"
        )
    else:
        uniform_allocation(float(offered[1]), units, layout)


@given(unit_counts(), sparsities, st.integers(0, 3))
def test_the_free_layout_is_the_arithmetic_of_a_single_unit(
    units: UnitCounts, sparsity: float, iteration: int
) -> None:
    most = UnitCounts((units.attn[0] - 1, *units.attn[1:]), units.ffn)
    removed = outcome(sparsity, units, FREE)
    if isinstance(removed, str):
        return
    for kind in KINDS:
        budget = unit_budget(sparsity, units.total[kind])
        assert removed.of(kind) == even_spread(budget, most.of(kind))
    steps = level_steps(0.5, iteration, units)
    first = {kind: min(units.of(kind)) / 2 for kind in KINDS}
    assert steps == {kind: max(1, int(first[kind] / 2**iteration)) for kind in KINDS}
    grid = LevelGrid(units, removed, steps)
    for sublayer in stream_order(units.num_blocks):
        counts = {e: removed[sublayer] + e * steps[sublayer.kind] for e in range(-4, 5)}
        within = {e: count for e, count in counts.items() if 0 <= count <= most[sublayer]}
        assert grid.levels(sublayer) == within


@given(aligned_models(), sparsities, st.integers(0, 3), st.sampled_from([0.125, 0.25, 0.5]))
def test_every_level_of_an_aligned_grid_is_legal_and_none_is_missing(
    model: tuple[UnitCounts, Layout], sparsity: float, iteration: int, interval: float
) -> None:
    units, layout = model
    centre = outcome(sparsity, units, layout)
    assume(not isinstance(centre, str))
    granules = {kind: Fraction(min(units.of(kind)), layout.granule(kind)) for kind in KINDS}
    assume(all(interval * count >= Fraction(1, 2) for count in granules.values()))
    steps = level_steps(interval, iteration, units, layout)
    assert all(step % layout.granule(kind) == 0 < step for kind, step in steps.items())
    grid = LevelGrid(units, centre, steps, layout=layout)
    for sublayer, legal in zip(stream_order(units.num_blocks), allowed(units, layout), strict=True):
        levels = grid.levels(sublayer)
        assert list(levels) == list(range(min(levels), max(levels) + 1))
        assert (min(levels), max(levels)) == grid.bounds()[sublayer.index]
        kept = [units[sublayer] - gone for gone in levels.values()]
        if sublayer.kind == "ffn":
            assert all(count % layout.ffn_alignment == 0 for count in kept)
        if not layout.allow_empty:
            assert min(kept) >= layout.granule(sublayer.kind)
        beyond = [min(levels) - 1, max(levels) + 1]
        for level in (e for e in beyond if abs(e) <= grid.half_width):
            assert centre[sublayer] + level * steps[sublayer.kind] not in legal


STORIES = UnitCounts((4,) * 5, (172,) * 5)
PORTABLE = Layout(ffn_alignment=32, allow_empty=False)


def test_a_width_that_is_no_multiple_gives_up_its_remainder_first() -> None:
    removed = uniform_allocation(0.5, STORIES, PORTABLE)
    assert {172 - gone for gone in removed.ffn} == {64, 96}
    grid = LevelGrid(STORIES, removed, level_steps(0.125, 0, STORIES, PORTABLE), layout=PORTABLE)
    kept = [172 - gone for gone in grid.levels(SublayerId(0, "ffn")).values()]
    assert kept == [160, 128, 96, 64, 32]
    assert grid.as_dict()["layout"] == {
        "ffn_alignment": 32,
        "allow_empty": False,
        "equal_blocks": False,
    }


def test_a_budget_that_alignment_rounds_is_told() -> None:
    removed = uniform_allocation(0.5, STORIES, PORTABLE)
    [note] = budget_notes(0.5, STORIES, removed)
    assert re.search(r"asks for 430 of 860 ffn units; .* is 444 \(0.5163\)", note)
    assert budget_notes(0.5, STORIES, uniform_allocation(0.5, STORIES)) == []


@pytest.mark.parametrize(
    ("sparsity", "message"),
    [
        (0.0, r"at least 60 must go; ask for at least 0.0698 \(with supernet.ffn_alignment=32, "),
        (0.95, r"removes 19 of 20 attn units, but at most 15 can go; ask for at most 0.75"),
    ],
)
def test_a_sparsity_beyond_the_layout_is_refused(sparsity: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        uniform_allocation(sparsity, STORIES, PORTABLE)


def test_widths_that_share_no_sparsity_with_the_heads_are_said_to() -> None:
    units = UnitCounts((1,) * 4, (40,) * 4)  # the head must stay, and 15 neurons must go
    with pytest.raises(ConfigError, match="removes 2 of 4 attn units.*no sparsity is reachable"):
        uniform_allocation(0.5, units, Layout(ffn_alignment=25, allow_empty=False))


def test_an_interval_finer_than_half_an_alignment_is_refused_with_one_that_works() -> None:
    with pytest.raises(ConfigError, match="finer than 32 ffn units.*172.*use at least 0.0931"):
        level_steps(0.09, 0, UnitCounts((32,), (172,)), PORTABLE)
    assert level_steps(0.0931, 0, UnitCounts((32,), (172,)), PORTABLE)["ffn"] == 32


EQUAL = Layout(equal_blocks=True)


@given(
    st.integers(1, 8), st.integers(1, 8), st.integers(1, 120), sparsities, st.sampled_from([1, 8])
)
def test_equal_blocks_are_equal_or_the_nearest_sparsities_are_named(
    blocks: int, heads: int, width: int, sparsity: float, alignment: int
) -> None:
    assume(width >= alignment)
    units = UnitCounts((heads,) * blocks, (width,) * blocks)
    layout = Layout(ffn_alignment=alignment, equal_blocks=True)
    removed = outcome(sparsity, units, layout)
    if isinstance(removed, str):
        offers = re.findall(
            r"[\d.e-]+", removed.partition("nearest reachable: ")[2].partition(" (")[0]
        )
        assert 1 <= len(offers) <= 2 or "no sparsity is reachable" in removed
        assert [float(offer) for offer in offers] == sorted(map(float, offers))
        for offer in offers:
            assert float(offer) != sparsity
            taken = uniform_allocation(float(offer), units, layout)
            assert len(set(taken.attn)) == len(set(taken.ffn)) == 1
        return
    assert len(set(removed.attn)) == len(set(removed.ffn)) == 1
    assert removed.attn[0] < heads
    assert removed.ffn[0] < width
    assert (width - removed.ffn[0]) % alignment == 0
    if alignment == 1:
        assert budget_notes(sparsity, units, removed) == []


@pytest.mark.parametrize(
    ("sparsity", "units", "nearest"),
    [
        (0.3, UnitCounts((8,) * 32, (14336,) * 32), "0.25 and 0.375"),  # Llama-3.1-8B
        (0.3, STORIES, "0.25 and 0.5"),
        (0.9, STORIES, "0.75"),
        (0.3, UnitCounts((3,) * 8, (100,) * 8), "0 and 0.33"),
    ],
)
def test_the_sparsities_named_are_the_heads_own_fractions(
    sparsity: float, units: UnitCounts, nearest: str
) -> None:
    with pytest.raises(ConfigError, match=f"the nearest reachable: {nearest} \\(with"):
        uniform_allocation(sparsity, units, EQUAL)


def test_equal_blocks_need_blocks_of_one_width() -> None:
    with pytest.raises(ConfigError, match=r"equally wide, got \[8, 16\] ffn units"):
        uniform_allocation(0.5, UnitCounts((4, 4), (8, 16)), EQUAL)
