from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from tests.references.all_shifts import within
from tyr.errors import ConfigError
from tyr.events import Round
from tyr.search.mutation import Levels
from tyr.search.selection import Sample
from tyr.search.start import CentreStart, DynamicStart

GOAL = (3, -4, 1, 0, -2, 2, -2, 2)  # both kinds sum to zero
PARENT = (0,) * 8


class Additive:
    """Loss without a model: squared distance to the goal, which is a sum over sublayers."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[Levels], int]] = []

    def evaluate(self, candidates: Sequence[Levels], sample: Sample) -> list[float]:
        self.calls.append((list(candidates), sample.num_tokens))
        return [self.loss(levels) for levels in candidates]

    def loss(self, levels: Levels) -> float:
        return float(sum((a - b) ** 2 for a, b in zip(levels, GOAL, strict=True)))


class Repelling(Additive):
    """Every sublayer alone gains by moving, but two that moved together lose more."""

    def loss(self, levels: Levels) -> float:
        moved = sum(level != 0 for level in levels)
        return 10.0 - moved + 5.0 * max(0, moved - 1)


def draw(stage: int) -> Sample:
    return Sample(torch.arange(2 ** (stage + 1)), 16)


def test_the_centre_is_the_parent_and_costs_nothing() -> None:
    text = Additive()
    assert CentreStart().find(text.evaluate, PARENT, ((-4, 4),) * 8, draw=draw) == PARENT
    assert not text.calls


def test_the_start_is_the_best_allocation_where_losses_add_up() -> None:
    text = Additive()
    assert DynamicStart().find(text.evaluate, PARENT, ((-4, 4),) * 8, draw=draw) == GOAL


def test_every_pair_is_measured_once_alone_and_the_optima_on_more_tokens() -> None:
    text = Additive()
    DynamicStart().find(text.evaluate, PARENT, ((-4, 4),) * 8, draw=draw)
    (singles, few), (optima, many) = text.calls
    assert (few, many) == (32, 64)
    assert singles[0] == optima[0] == PARENT
    assert len(set(singles)) == len(singles) == 1 + 8 * 8
    assert all(sum(level != 0 for level in levels) <= 1 for levels in singles)
    assert 2 <= len(optima) <= 5  # at most one for each distance from the parent


def test_a_round_is_reported_with_what_it_gained() -> None:
    text, rounds = Additive(), list[Round]()
    start = DynamicStart().find(
        text.evaluate, PARENT, ((-4, 4),) * 8, draw=draw, report=rounds.append
    )
    (only,) = rounds
    assert (only.round, only.rounds, only.changes) == (0, 1, 8 * 8)
    assert (only.parent_loss, only.best_loss) == (text.loss(PARENT), text.loss(start))


def test_the_start_keeps_the_bounds_of_a_layout_and_the_budget() -> None:
    bounds = ((0, 1), (-4, 4), (-1, 0), (0, 0), (-2, 2), (-1, 2), (-1, 4), (-1, 1))
    start = DynamicStart().find(Additive().evaluate, PARENT, bounds, draw=draw)
    assert within(start, bounds)
    assert (sum(start[0::2]), sum(start[1::2])) == (0, 0)
    assert Additive().loss(start) < Additive().loss(PARENT)


def test_where_increments_do_not_add_up_the_parent_is_kept() -> None:
    start = DynamicStart().find(Repelling().evaluate, PARENT, ((-1, 1),) * 8, draw=draw)
    assert start == PARENT


def test_a_negative_stage_is_refused() -> None:
    with pytest.raises(ConfigError, match="start needs stage >= 0 and check_stage >= 0"):
        DynamicStart(stage=-1)
