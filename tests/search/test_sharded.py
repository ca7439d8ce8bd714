"""Losses of a population, shared between processes, against those of one process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ranks import joined, results
from tests.search.test_population import OBJECTIVES, evaluator, offspring
from tests.tolerance import assert_close
from tyr.model.decoder import Decoder
from tyr.processes import ALONE, ProcessGroup
from tyr.search.evolution import EvolutionarySearch, SearchState
from tyr.search.ledger import Evaluator
from tyr.search.mutation import Levels
from tyr.search.population import PopulationLosses
from tyr.search.selection import Sample
from tyr.search.sharded import ShardedEvaluator
from tyr.sparsity import LevelGrid
from tyr.supernet.store import SupernetStore

WHOLE = Sample(torch.arange(5), 12)
REASON = "float32 forwards in batches of another size; a mean of means weighed by tokens is exact"


class Recording:
    """An evaluator that notes what it was asked."""

    def __init__(self, local: Evaluator) -> None:
        self._local = local
        self.num_sequences, self.length = local.num_sequences, local.length
        self.asked: list[tuple[int, int]] = []

    def evaluate(self, candidates: Sequence[Levels], sample: Sample) -> PopulationLosses:
        self.asked.append((len(candidates), len(sample.rows)))
        return self._local.evaluate(candidates, sample)


# Every objective and both sizes; the other pairs are slow tests.
PAIRS = [("kd_logits", 3), ("kd_hidden", 2), ("perplexity", 2)]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param(name, size, marks=[pytest.mark.slow] * ((name, size) not in PAIRS))
        for name in OBJECTIVES
        for size in (2, 3)
    ],
)
def test_shared_losses_are_those_of_one_process(
    name: str, size: int, decoder: Decoder, store: SupernetStore, grid: LevelGrid, text: Tensor
) -> None:
    objective = OBJECTIVES[name][0]
    local = evaluator(decoder, store, text, objective=objective)
    candidates = offspring(grid, 7)
    samples = [WHOLE, Sample(torch.tensor([1, 4]), 12), Sample(torch.tensor([3]), 5)]

    def body(processes: ProcessGroup) -> list[list[float]]:
        averages = objective.averages_sequences
        shared = ShardedEvaluator(local, processes, by_sequence=averages)
        return [shared.evaluate(candidates, sample).losses for sample in samples]

    first, *others = results(joined(body, size))
    assert all(losses == first for losses in others), "every process has the same bits"
    for sample, losses in zip(samples, first, strict=True):
        expected = local.evaluate(candidates, sample).losses
        assert_close(losses, expected, tolerance=1e-5, reason=REASON)


@pytest.mark.parametrize(
    ("by_sequence", "rows", "asked"),
    [(True, 5, [(3, 3), (3, 2)]), (True, 1, [(2, 1), (1, 1)]), (False, 5, [(2, 5), (1, 5)])],
)
def test_work_is_shared_by_sequences_where_they_suffice_else_by_candidates(
    by_sequence: bool,
    rows: int,
    asked: list[tuple[int, int]],
    decoder: Decoder,
    store: SupernetStore,
    grid: LevelGrid,
    text: Tensor,
) -> None:
    candidates = offspring(grid, 3)

    def body(processes: ProcessGroup) -> list[tuple[int, int]]:
        local = Recording(evaluator(decoder, store, text))
        shared = ShardedEvaluator(local, processes, by_sequence=by_sequence)
        shared.evaluate(candidates, Sample(torch.arange(rows), 12))
        return local.asked

    assert results(joined(body)) == [[one] for one in asked]


def test_a_process_without_a_candidate_only_listens(
    decoder: Decoder, store: SupernetStore, text: Tensor
) -> None:
    local = evaluator(decoder, store, text)

    def body(processes: ProcessGroup) -> PopulationLosses:
        shared = ShardedEvaluator(local, processes, by_sequence=False)
        return shared.evaluate([(0,) * 6], WHOLE)

    expected = local.evaluate([(0,) * 6], WHOLE)
    assert results(joined(body, 3)) == [expected] * 3


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_search_of_two_processes_finds_what_one_finds(
    name: str, decoder: Decoder, store: SupernetStore, grid: LevelGrid, text: Tensor
) -> None:
    objective = OBJECTIVES[name][0]
    search = EvolutionarySearch(
        objective, generations=3, offspring=6, stages=[[12, 3], [24, 2], [60, 1]]
    )

    def run(evaluate: Evaluator) -> SearchState:
        return search.run(
            evaluate,
            grid,
            state=SearchState(0, (0,) * 6),
            seed=0,
            iteration=0,
            on_generation=lambda state, event: None,
        )

    local = evaluator(decoder, store, text, objective=objective)

    def body(processes: Any) -> SearchState:
        averages = objective.averages_sequences
        return run(ShardedEvaluator(local, processes, by_sequence=averages))

    alone = run(local)
    first, second = results(joined(body))
    assert first == second
    assert (first.parent, first.sample_key) == (alone.parent, alone.sample_key)
    assert_close(first.loss, alone.loss, tolerance=1e-5, reason=REASON)
    assert body(ALONE).parent == alone.parent
