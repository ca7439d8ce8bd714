from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.references.all_shifts import one_shift_away, up_to_shifts, within
from tyr.layout import Layout
from tyr.randomness import derive_generator
from tyr.search import mutation
from tyr.search.mutation import Bounds, Levels, donors_by_kind, mutate, shift
from tyr.sparsity import LevelGrid, UnitCounts, level_steps, uniform_allocation


@st.composite
def places(draw: st.DrawFn, *, blocks: int = 8) -> tuple[Levels, Bounds]:
    """Bounds as a grid makes them (0 always exists), and levels anywhere within."""
    count = 2 * draw(st.integers(1, blocks))
    bounds = [(draw(st.integers(-4, 0)), draw(st.integers(0, 4))) for _ in range(count)]
    levels = tuple(draw(st.integers(low, high)) for low, high in bounds)
    return levels, bounds


def sums(levels: Levels) -> tuple[int, int]:
    """Sum of levels per kind: attention at even places."""
    return sum(levels[0::2]), sum(levels[1::2])


@given(places(), st.integers(0, 1000), st.integers(1, 8))
def test_a_mutation_conserves_both_budgets_and_stays_within_bounds(
    place: tuple[Levels, Bounds], seed: int, max_shifts: int
) -> None:
    levels, bounds = place
    rng = derive_generator(seed)
    for _ in range(4):
        mutated = mutate(levels, bounds, rng, max_shifts=max_shifts)
        assert sums(mutated) == sums(levels)
        assert within(mutated, bounds)
        levels = mutated


@given(places(blocks=3), st.integers(0, 1000))
def test_a_shift_is_one_of_those_that_brute_force_finds(
    place: tuple[Levels, Bounds], seed: int
) -> None:
    levels, bounds = place
    legal = one_shift_away(levels, bounds)
    shifted = shift(levels, bounds, derive_generator(seed))
    assert shifted in legal if legal else shifted == levels


@given(places(blocks=3), st.integers(0, 1000))
def test_a_mutation_is_one_of_those_that_brute_force_finds(
    place: tuple[Levels, Bounds], seed: int
) -> None:
    levels, bounds = place
    legal = up_to_shifts(levels, bounds, 2)
    mutated = mutate(levels, bounds, derive_generator(seed), max_shifts=2)
    assert mutated in legal if legal else mutated == levels


@given(places())
def test_a_legal_shift_is_known_exactly_when_brute_force_finds_one(
    place: tuple[Levels, Bounds],
) -> None:
    levels, bounds = place
    assert bool(donors_by_kind(levels, bounds)) == bool(one_shift_away(levels, bounds))


def test_every_legal_shift_is_drawn_sooner_or_later() -> None:
    levels, bounds = (0, -1, 1, 0, -1, 1), [(-1, 1)] * 6
    rng = derive_generator(0)
    drawn = {shift(levels, bounds, rng) for _ in range(400)}
    assert drawn == one_shift_away(levels, bounds)


def test_every_mutation_of_two_shifts_is_drawn_sooner_or_later() -> None:
    levels, bounds = (0, 0, 0, 0), [(-1, 1)] * 4
    rng = derive_generator(0)
    drawn = {mutate(levels, bounds, rng, max_shifts=2) for _ in range(600)}
    assert drawn == up_to_shifts(levels, bounds, 2)


@pytest.mark.parametrize(
    ("levels", "bounds"),
    [
        ((0, 0), [(-4, 4)] * 2),  # one block: no partner
        ((4, 4, 4, 4), [(-4, 4)] * 4),  # everything as sparse as it can be
        ((-4, -4, -4, -4), [(-4, 4)] * 4),  # everything as dense as it can be
        ((0,) * 6, [(0, 0)] * 6),  # a single level
        ((1, 1, 0, 0), [(0, 1), (0, 1), (0, 0), (0, 0)]),  # donors without takers
        ((0, 0, 1, 1), [(0, 1), (0, 1), (1, 1), (1, 1)]),  # takers without donors
    ],
)
def test_without_a_legal_shift_a_mutation_changes_nothing_and_ends(
    levels: Levels, bounds: Bounds
) -> None:
    assert donors_by_kind(levels, bounds) == []
    assert mutate(levels, bounds, derive_generator(0)) == levels


def test_a_kind_without_shifts_leaves_all_of_them_to_the_other() -> None:
    levels, bounds = (4, 0, 4, 0), [(-4, 4)] * 4
    rng = derive_generator(0)
    for _ in range(50):
        mutated = shift(levels, bounds, rng)
        assert mutated[0::2] == (4, 4)
        assert mutated[1::2] in {(-1, 1), (1, -1)}


def test_both_kinds_are_shifted_equally_often() -> None:
    levels, bounds = (0,) * 8, [(-4, 4)] * 8
    rng = derive_generator(0)
    attention = sum(shift(levels, bounds, rng)[0::2] != (0,) * 4 for _ in range(1000))
    assert 430 < attention < 570  # 500 expected, standard deviation 16


def test_the_number_of_shifts_is_the_smaller_of_two_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: Counter[int] = Counter()

    def counting(levels: Levels, bounds: Bounds, rng: object) -> Levels:
        return (levels[0] + 1,)

    monkeypatch.setattr(mutation, "shift", counting)
    rng = derive_generator(0)
    for _ in range(4000):
        counted[mutate((0,), [(0, 0)], rng, max_shifts=4)[0]] += 1
    assert set(counted) == {1, 2, 3, 4}
    for shifts, expected in ((1, 7 / 16), (2, 5 / 16), (3, 3 / 16), (4, 1 / 16)):
        assert abs(counted[shifts] / 4000 - expected) < 0.03


@given(places(), st.integers(0, 100))
def test_the_same_generator_draws_the_same_mutation(
    place: tuple[Levels, Bounds], seed: int
) -> None:
    first, second = (mutate(*place, derive_generator(seed)) for _ in range(2))
    assert first == second


@st.composite
def grids(draw: st.DrawFn) -> LevelGrid:
    """The first or second grid of a model under some layout."""
    layout = Layout(draw(st.sampled_from([1, 4, 32])), allow_empty=draw(st.booleans()))
    blocks, width = draw(st.integers(1, 6)), draw(st.integers(100, 200))
    units = UnitCounts((draw(st.integers(4, 32)),) * blocks, (width,) * blocks)
    centre = uniform_allocation(draw(st.sampled_from([0.25, 0.5, 0.6])), units, layout)
    steps = level_steps(0.25, draw(st.integers(0, 2)), units, layout)
    return LevelGrid(units, centre, steps, layout=layout)


@given(grids(), st.integers(0, 1000))
def test_mutants_of_any_layout_meet_its_budget_widths_and_minima(
    grid: LevelGrid, seed: int
) -> None:
    rng, bounds = derive_generator(seed), grid.bounds()
    levels: Levels = (0,) * len(bounds)
    for _ in range(6):
        levels = mutate(levels, bounds, rng)
        removed = grid.allocation(levels)
        assert removed.total == grid.centre.total
        kept = UnitCounts.from_stream(
            [most - gone for most, gone in zip(grid.units, removed, strict=True)]
        )
        assert min(kept) >= 0
        assert kept.attn[0] >= 1
        assert all(width % grid.layout.ffn_alignment == 0 for width in kept.ffn)
        if not grid.layout.allow_empty:
            assert min(kept.attn) >= 1
            assert min(kept.ffn) >= grid.layout.ffn_alignment
