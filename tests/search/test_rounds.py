"""The start in rounds: what it measures, what it chooses, and how it pools what it measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.references.all_shifts import within
from tests.references.pooled_by_repeating import increment_between
from tests.search.test_start import GOAL, PARENT, Additive, Repelling
from tyr.errors import ConfigError
from tyr.search.mutation import Levels
from tyr.search.rounds import RoundsStart, pooled_increments
from tyr.search.selection import Sample
from tyr.search.start import DynamicStart

WIDE = ((-4, 4),) * 8


class Coupled(Additive):
    """Blocks in a row pull at each other, and samples disagree about single sublayers."""

    def loss(self, levels: Levels) -> float:
        blocks = [sum(levels[i : i + 2]) for i in range(0, len(levels), 2)]
        return super().loss(levels) + sum(abs(a + b) ** 1.5 for a, b in pairwise(blocks))

    def evaluate(self, candidates: Sequence[Levels], sample: Sample) -> list[float]:
        losses = super().evaluate(candidates, sample)
        tilt = torch.Generator().manual_seed(int(sample.rows[0]))
        weights = torch.randn(len(PARENT), generator=tilt).tolist()
        return [
            loss + sum(w * level for w, level in zip(weights, levels, strict=True))
            for levels, loss in zip(candidates, losses, strict=True)
        ]


def fresh_draws() -> Callable[[int], Sample]:
    """Another sample each time, of 32 tokens for stage 0 and twice as many for the next."""
    first = count()
    return lambda stage: Sample(next(first) + torch.arange(2 ** (stage + 1)), 16)


def test_rounds_arrive_where_one_within_the_radius_cannot() -> None:
    once = RoundsStart(rounds=1).find(Additive().evaluate, PARENT, WIDE, draw=fresh_draws())
    assert max(abs(level) for level in once) <= 2
    twice = RoundsStart(rounds=2).find(Additive().evaluate, PARENT, WIDE, draw=fresh_draws())
    assert twice == GOAL != once


def test_each_round_measures_the_changes_near_its_parent_and_checks_on_more_tokens() -> None:
    text = Coupled()
    RoundsStart(rounds=3).find(text.evaluate, PARENT, WIDE, draw=fresh_draws())
    assert [tokens for _, tokens in text.calls] == [32, 64] * 3
    choices, parents = [PARENT], {PARENT}
    for (singles, _), (optima, _) in zip(text.calls[::2], text.calls[1::2], strict=True):
        parent = singles[0]
        parents.add(parent)
        assert parent == optima[0]
        assert parent in choices
        choices = optima
        apart = [[abs(a - b) for a, b in zip(s, parent, strict=True)] for s in singles[1:]]
        assert all(sum(steps) == max(steps) <= 2 for steps in apart)
        assert len(set(singles)) == len(singles)
        assert len(singles) == 1 + sum(min(4, e + 2) - max(-4, e - 2) for e in parent)
        new = [o for o in optima if o not in parents]
        assert all(max(abs(a - b) for a, b in zip(o, parent, strict=True)) <= 2 for o in new)
        assert len(set(optima)) == len(optima) <= 4 + len(parents)
        assert set(optima) >= parents, "earlier parents compete again"


def test_the_budget_and_the_bounds_are_kept_in_every_round() -> None:
    bounds = ((0, 1), (-4, 4), (-1, 0), (0, 0), (-2, 2), (-1, 2), (-1, 4), (-1, 1))
    text = Coupled()
    start = RoundsStart(rounds=4).find(text.evaluate, PARENT, bounds, draw=fresh_draws())
    for optima, _ in text.calls[1::2]:
        assert all(within(levels, bounds) for levels in optima)
        assert {(sum(o[0::2]), sum(o[1::2])) for o in optima} == {(0, 0)}
    assert start in text.calls[-1][0]


def test_a_round_never_ends_worse_than_it_began_on_the_tokens_it_checks() -> None:
    text = Coupled()
    start = RoundsStart(rounds=5).find(text.evaluate, PARENT, WIDE, draw=fresh_draws())
    parents = [singles[0] for singles, _ in text.calls[::2]]
    checks = zip(count(1, 2), text.calls[1::2], [*parents[1:], start], strict=False)
    for first_row, (optima, _), chosen in checks:
        losses = text.evaluate(optima, Sample(first_row + torch.arange(4), 16))
        assert losses[optima.index(chosen)] == min(losses) <= losses[0]


def test_without_noise_rounds_never_lose_and_reach_as_far_as_one_over_all_levels() -> None:
    text = Additive()
    found = [
        text.loss(RoundsStart(rounds=n).find(text.evaluate, PARENT, WIDE, draw=fresh_draws()))
        for n in (1, 2, 3)
    ]
    assert found == sorted(found, reverse=True)
    whole = DynamicStart().find(text.evaluate, PARENT, WIDE, draw=fresh_draws())
    assert found[-1] <= text.loss(whole)


def test_the_same_draws_give_the_same_start() -> None:
    first, second = (
        RoundsStart().find(Coupled().evaluate, PARENT, WIDE, draw=fresh_draws()) for _ in range(2)
    )
    assert first == second


def test_where_increments_do_not_add_up_the_parent_is_kept() -> None:
    start = RoundsStart().find(Repelling().evaluate, PARENT, ((-1, 1),) * 8, draw=fresh_draws())
    assert start == PARENT


MEASURED = st.dictionaries(st.integers(-3, 3), st.integers(-20, 20), min_size=1, max_size=7)


@given(st.lists(MEASURED, min_size=1, max_size=4), st.integers(-3, 3), st.data())
def test_pooled_increments_are_those_of_listing_every_step(
    measured: list[dict[int, int]], at: int, data: st.DataObject
) -> None:
    weights = [data.draw(st.integers(0, 3)) for _ in measured]
    known = [{level: float(x) for level, x in one.items()} for one in measured]
    (found,) = pooled_increments([[one] for one in known], weights, (at,))
    slow = {level: increment_between(known, weights, at, level) for level in range(-4, 5)}
    expected = {level: x for level, x in slow.items() if x is not None}
    assert found == pytest.approx(expected)


def test_a_discount_of_zero_forgets_earlier_rounds() -> None:
    old, new = [{0: 0.0, 1: 5.0, 2: 7.0}], [{0: -1.0, 1: 0.0}]
    assert pooled_increments([old, new], [0.0, 1.0], (1,)) == [{0: -1.0, 1: 0.0}]
    assert pooled_increments([old, new], [0.5, 1.0], (1,))[0] == pytest.approx(
        {0: -(0.5 * 5 + 1) / 1.5, 1: 0, 2: 2}
    )


@pytest.mark.parametrize(
    "settings", [{"rounds": 0}, {"radius": 0}, {"stage": -1}, {"check_stage": -1}, {"discount": 2}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="start needs rounds >= 1, radius >= 1"):
        RoundsStart(**settings)


def test_the_newest_round_weighs_most_in_the_optima() -> None:
    parent = (0, 0, 0, 0)  # budgets are kept among sublayers of a kind: every second one
    flat, still = {-1: 0.0, 0: 0.0, 1: 0.0}, {0: 0.0}
    before = [{-1: 3.0, 0: 0.0, 1: -3.0}, still, flat, still]
    now = [{-1: -2.0, 0: 0.0, 1: 2.0}, still, flat, still]
    start = RoundsStart(radius=1, discount=0.5)
    assert start._optima([before, now], parent) == [(-1, 0, 1, 0)]
    assert start._optima([now, before], parent) == [(1, 0, -1, 0)]


def test_optima_go_as_far_as_the_radius_while_steps_are_worth_their_price() -> None:
    gain = {-2: 9.0, -1: 4.0, 0: 0.0, 1: -4.0, 2: -7.0}
    free, still = dict.fromkeys(gain, 0.0), {0: 0.0}
    found = RoundsStart(radius=2)._optima([[gain, still, free, still]], (0, 0, 0, 0))
    assert found[0] == (1, 0, -1, 0), "the nearest first"
    assert (2, 0, -2, 0) in found


def test_a_price_leaves_changes_that_gain_next_to_nothing() -> None:
    much = {-2: 0.0, -1: 0.0, 0: 0.0, 1: -4.0, 2: -8.0}
    free = dict.fromkeys(much, 0.0)
    little, still = {**free, 1: -0.001}, {0: 0.0}
    increments = [much, still, free, still, little, still, free, still]
    found = RoundsStart(radius=2)._optima([increments], (0,) * 8)
    places = [levels[::2] for levels in found]
    assert any(levels[:2] == (2, -2) and levels[2:] == (0, 0) for levels in places)
    assert any(levels[2] == 1 for levels in places), "and without a price it is made"
