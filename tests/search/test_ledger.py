from __future__ import annotations

from collections.abc import Sequence

import torch

from tyr.search.archive import Evaluation, KeepAll, NoArchive
from tyr.search.ledger import Ledger
from tyr.search.mutation import Levels
from tyr.search.population import PopulationLosses
from tyr.search.selection import Sample

ONE, TWO = Sample(torch.tensor([0, 1]), 4), Sample(torch.tensor([0, 2]), 4)
A, B, C = (0, 0), (1, -1), (-1, 1)


class Counting:
    """Numbers every loss it gives."""

    num_sequences = 3
    length = 4

    def __init__(self) -> None:
        self.asked: list[list[Levels]] = []

    def evaluate(self, candidates: Sequence[Levels], sample: Sample) -> PopulationLosses:
        before = sum(map(len, self.asked))
        self.asked.append(list(candidates))
        losses = [float(before + i) for i in range(len(candidates))]
        return PopulationLosses(losses, len(candidates))


def test_an_archive_never_asks_for_an_allocation_twice_on_the_same_tokens() -> None:
    evaluator = Counting()
    ledger = Ledger(evaluator, KeepAll())
    assert ledger.evaluate([A, B, A], ONE) == [0, 1, 0]
    assert ledger.evaluate([C, B], ONE) == [2, 1]
    assert ledger.evaluate([A, B], ONE) == [0, 1]
    assert ledger.evaluate([A], TWO) == [3]
    assert evaluator.asked == [[A, B], [C], [A]]
    assert ledger.archive_hits == 1 + 1 + 2
    assert ledger.evaluated_tokens == 4 * 8
    assert ledger.dense_sublayer_evaluations == 4 * 2


def test_an_archive_knows_earlier_generations() -> None:
    evaluator = Counting()
    ledger = Ledger(evaluator, KeepAll(), [Evaluation(A, ONE.key(), -1.0)])
    assert ledger.evaluate([A, B], ONE) == [-1, 0]
    assert evaluator.asked == [[B]]
    assert ledger.evaluations == [Evaluation(B, ONE.key(), 0.0)], "only what is new"


def test_without_an_archive_all_is_measured_again() -> None:
    evaluator = Counting()
    ledger = Ledger(evaluator, NoArchive(), [Evaluation(A, ONE.key(), -1.0)])
    ledger.evaluate([A, A], ONE)
    ledger.evaluate([A], ONE)
    assert evaluator.asked == [[A, A], [A]]
    assert ledger.archive_hits == 0
    assert ledger.evaluated_tokens == 3 * 8
