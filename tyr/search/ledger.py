"""Evaluates the candidates of one generation and keeps its account."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tyr.events import StageLosses
from tyr.search.archive import Archive, Evaluation, NoArchive
from tyr.search.mutation import Levels
from tyr.search.population import PopulationLosses
from tyr.search.racing import Selection
from tyr.search.selection import Sample


class Evaluator(Protocol):
    """Scores level vectors; `PopulationEvaluator`, or a slow twin in tests."""

    @property
    def num_sequences(self) -> int:
        """Sequences of the search text."""

    @property
    def length(self) -> int:
        """Positions per sequence."""

    def evaluate(self, candidates: Sequence[Levels], sample: Sample) -> PopulationLosses:
        """Loss of every candidate on the sample."""


class Ledger:
    """Account of one generation.

    Args:
        evaluator: scores level vectors.
        archive: which losses are used again.
        earlier: evaluations of the iteration so far.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        archive: Archive | None = None,
        earlier: Sequence[Evaluation] = (),
    ) -> None:
        self._evaluator = evaluator
        self._archive = archive or NoArchive()
        self._known = self._archive.known(earlier)
        self.evaluated_tokens = 0
        self.sublayer_evaluations = 0
        self.dense_sublayer_evaluations = 0
        self.archive_hits = 0
        self.raced_out = 0
        self.stages: list[StageLosses] = []
        self.evaluations: list[Evaluation] = []

    def evaluate(self, candidates: Sequence[Levels], sample: Sample) -> list[float]:
        """Losses of the candidates on the sample; only what is not known is measured and paid."""
        key = sample.key()
        if not self._archive.keeps:
            return self._measure(candidates, sample)
        missing = list(dict.fromkeys(c for c in candidates if (c, key) not in self._known))
        self.archive_hits += len(candidates) - len(missing)
        if missing:
            losses = self._measure(missing, sample)
            self._known.update(zip(((c, key) for c in missing), losses, strict=True))
        return [self._known[candidate, key] for candidate in candidates]

    def close_stage(self, selection: Selection) -> None:
        """Enter a stage's outcome."""
        self.raced_out += selection.raced_out
        measured = sorted(selection.losses[selection.known :])
        self.stages.append(StageLosses(selection.num_tokens, tuple(measured)))

    def _measure(self, candidates: Sequence[Levels], sample: Sample) -> list[float]:
        result = self._evaluator.evaluate(candidates, sample)
        self.evaluated_tokens += len(candidates) * sample.num_tokens
        self.sublayer_evaluations += result.sublayer_evaluations
        self.dense_sublayer_evaluations += sum(len(levels) for levels in candidates)
        key = sample.key()
        self.evaluations += [
            Evaluation(levels, key, loss)
            for levels, loss in zip(candidates, result.losses, strict=True)
        ]
        return result.losses
