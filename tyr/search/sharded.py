"""Evaluates a population with several processes: each takes sequences, or candidates.

Sequences are shared when there are enough of them and the loss is a mean over sequences; the parts
then add up, weighed by their tokens. Otherwise candidates are shared, and each loss is exactly the
one a single process computes, but the trie of each process holds fewer common prefixes. All
processes end with the same losses, so they go on to take the same decisions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import torch

from tyr.processes import Processes
from tyr.search.ledger import Evaluator
from tyr.search.mutation import Levels
from tyr.search.population import PopulationLosses
from tyr.search.selection import Sample


class ShardedEvaluator:
    """This process's part of an evaluation, and what comes of all parts.

    Args:
        local: evaluates in this process; must know the whole search text.
        processes: who shares the work.
        by_sequence: whether a loss is a mean over sequences of equal length.
    """

    def __init__(self, local: Evaluator, processes: Processes, *, by_sequence: bool) -> None:
        self._local = local
        self._processes = processes
        self._by_sequence = by_sequence

    @property
    def num_sequences(self) -> int:
        """Sequences of the search text."""
        return self._local.num_sequences

    @property
    def length(self) -> int:
        """Positions per sequence."""
        return self._local.length

    def evaluate(self, candidates: Sequence[Levels], sample: Sample) -> PopulationLosses:
        """See `tyr.search.ledger.Evaluator.evaluate`."""
        if self._by_sequence and len(sample.rows) >= self._processes.size:
            return self._share_sequences(candidates, sample)
        return self._share_candidates(candidates, sample)

    def _share_sequences(self, candidates: Sequence[Levels], sample: Sample) -> PopulationLosses:
        rows = self._processes.share(sample.rows)
        mine = self._local.evaluate(candidates, Sample(rows, sample.length))
        parts = self._processes.gather([loss * len(rows) for loss in mine.losses])
        totals = zip(*parts, strict=True)
        return replace(mine, losses=[math.fsum(part) / len(sample.rows) for part in totals])

    def _share_candidates(self, candidates: Sequence[Levels], sample: Sample) -> PopulationLosses:
        indices = self._processes.share(torch.arange(len(candidates))).tolist()
        mine = PopulationLosses([], 0)
        if indices:
            mine = self._local.evaluate([candidates[index] for index in indices], sample)
        parts = self._processes.gather((mine.losses, mine.sublayer_evaluations))
        losses = list(chain.from_iterable(part for part, _ in parts))
        return replace(mine, losses=losses, sublayer_evaluations=sum(nodes for _, nodes in parts))
