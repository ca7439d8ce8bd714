"""What stages hold, and how several processes share it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tyr.cost import Shape
from tyr.data import SplitSizes
from tyr.footprint import NOTHING, Held
from tyr.holding import (
    Workload,
    activation_bytes,
    beside,
    calibration_share,
    held_to_measure,
    held_to_prune,
    held_to_search,
    larger,
    logit_bytes,
)
from tyr.processes import OneProcess
from tyr.search.counts import Call
from tyr.supernet.accumulation import ExpectationAccumulation
from tyr.supernet.builder import shard
from tyr.supernet.settings import SupernetSettings

SHAPE = Shape(64, 4, 8, 4, 8, 128, 256)
SIZES = SplitSizes(
    sequence_length=32, calibration_tokens=6400, search_tokens=1024, evaluation_tokens=1024
)
ONE = Workload(SHAPE, SIZES, 2, 4, "cpu")
TWO = replace(ONE, processes=2)
SETTINGS = SupernetSettings(ExpectationAccumulation(), batch_tokens=64, feature_bytes=10**9)


class FirstOf(OneProcess):
    """The first of several processes, whose share is the largest."""

    def __init__(self, size: int) -> None:
        self.size = size

    def share(self, sequences: torch.Tensor) -> torch.Tensor:
        return sequences.tensor_split(self.size)[0]


@pytest.mark.parametrize("windows", [1, 2, 5, 16, 33, 100])
@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("batch_tokens", [10, 64, 1000])
def test_the_first_process_s_calibration_share_is_what_the_builder_deals(
    windows: int, processes: int, batch_tokens: int
) -> None:
    sizes = replace(SIZES, calibration_tokens=32 * windows)
    tokens = torch.arange(32 * windows).view(windows, 32)
    dealt = shard(tokens, batch_tokens, FirstOf(processes)).numel()
    assert calibration_share(sizes, batch_tokens, processes) == dealt


def test_only_the_first_process_solves_and_each_has_its_share_of_the_text() -> None:
    alone, shared = (
        held_to_prune(load, SETTINGS, [1.0, 0.5], corrected=False) for load in (ONE, TWO)
    )
    assert shared.states == alone.states / 2 == 3200 * 64 * 4
    assert alone.working - shared.working == 3200 * 128 * 4  # features of the widest sublayer
    assert shared.others is not None
    assert shared.others.states == shared.states
    assert shared.others.working < shared.working


def test_a_start_s_many_candidates_count_where_they_hold_most() -> None:
    def held(*calls: Call, load: Workload = ONE, by_sequence: bool = True) -> Held:
        return held_to_search(
            load, calls, [1.0, 0.5], batch_tokens=64, observed=0, by_sequence=by_sequence
        )

    stage, start = Call(16, 128, 32, 16 * 128, 0.8), Call(65, 64, 32, 65 * 64, 0.6)
    more = (66 * 64 - 17 * 128) * 64 * 4
    assert held(stage, start).working - held(stage).working == more
    halves = [held(start, load=TWO, by_sequence=shared).working for shared in (True, False)]
    saved = [held(start).working - half for half in halves]
    smaller = [
        activation_bytes(SHAPE, tokens, 4) + logit_bytes(SHAPE, tokens, "cpu")
        for tokens in (64, 32)
    ]
    assert saved[0] == 66 * 32 * 64 * 4 + smaller[0] - smaller[1]
    assert saved[1] == 32 * 64 * 64 * 4  # the larger half: 33 of 65 candidates
    assert held(start, load=TWO).states == held(start).states  # the whole text's


def test_one_process_measures_while_the_others_hold_nothing_new() -> None:
    held = held_to_measure(ONE, pruned=0.5)
    assert held.others is NOTHING
    assert held.sliced == 0.5 * 4 * SHAPE.block_parameters * 4


def test_states_from_an_earlier_stage_are_in_every_process() -> None:
    held = beside(Held(5, states=7, others=Held(1, states=2)), 100)
    assert held == Held(5, states=107, others=Held(1, states=102))
    assert beside(Held(5), 3) == Held(5, states=3)


def test_of_two_things_one_after_the_other_the_larger_counts() -> None:
    prune = Held(50, states=60, others=Held(20, states=60))
    measure = Held(5, states=0, walking=90, sliced=8, others=NOTHING)
    both = larger(prune, measure)
    assert both == Held(50, states=60, walking=30, sliced=8, others=Held(20, states=60))
    assert larger(Held(1), Held(2)) == Held(2)
