"""Racing: a stage ends for a candidate as soon as it is clear that it will not survive (F-race).

A stage's tokens are dealt into chunks. After each chunk, every candidate behind the survivors so
far is compared with the last of them on the chunks that both have seen: a one-sided paired test
(tyr/search/paired.py) whose level is divided by the number of looks and of possible rivals. So the
candidate that is truly best leaves a stage by mistake with at most the configured probability,
whichever rival it is compared with and whenever. Chunks that chose the candidates earlier in the
generation (nested samples) count in their losses, not in the tests, unless they were cut shorter
then: whole sequences are pieces of their own. Those of earlier generations do testify, also where a
stage takes the same text each time: the parent was chosen on them and looks better than it is, so
that more of its equals are lost than configured (experiments/LOG.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from tyr.errors import ConfigError
from tyr.search.mutation import Levels
from tyr.search.paired import paired_p_values
from tyr.search.samples import Extent
from tyr.search.selection import Sample, best_indices, sample_key

Evaluate = Callable[[Sequence[Levels], Sample], list[float]]

_LEAST_SEQUENCES = 4
_SHORTEST = 64  # positions of a sequence below which its loss says little


@dataclass(frozen=True)
class Selection:
    """What a stage decided.

    Args:
        losses: one per candidate; of one that left early, the leader's loss plus the mean
            difference to it on the chunks it saw.
        survivors: indices of the candidates that go on, best first.
        sample_key: positions that the first survivor's loss was measured on.
        num_tokens: positions of the stage.
        raced_out: candidates that left early.
        known: losses at the front that an earlier generation measured.
    """

    losses: list[float]
    survivors: list[int]
    sample_key: tuple[int, ...]
    num_tokens: int
    raced_out: int = 0
    known: int = 0


class Racing(Protocol):
    """Carries out a stage."""

    races: bool  # whether candidates can leave before the end of a stage

    def extent(self, num_tokens: int, length: int, num_sequences: int) -> Extent:
        """How a stage of `num_tokens` uses a text of `num_sequences` of `length`."""

    def select(
        self,
        evaluate: Evaluate,
        candidates: Sequence[Levels],
        pieces: Sequence[Sample],
        *,
        survivors: int,
        first_loss: float | None = None,
    ) -> Selection:
        """Choose the candidates that go on.

        Args:
            evaluate: losses of level vectors on a sample.
            candidates: those that entered; ties go to the earlier.
            pieces: the stage's positions; all but the last piece chose the candidates.
            survivors: how many go on.
            first_loss: loss of the first candidate on all pieces, when it is known.
        """


class NoRacing:
    """The paper's: every candidate sees all tokens of the stage."""

    races = False

    def extent(self, num_tokens: int, length: int, num_sequences: int) -> Extent:
        """Whole sequences."""
        return Extent(num_tokens, length)

    def select(
        self,
        evaluate: Evaluate,
        candidates: Sequence[Levels],
        pieces: Sequence[Sample],
        *,
        survivors: int,
        first_loss: float | None = None,
    ) -> Selection:
        """See `Racing.select`."""
        known = [] if first_loss is None else [first_loss]
        new = candidates[len(known) :]
        parts = [evaluate(new, piece) for piece in pieces]
        losses = known + (parts[0] if len(parts) == 1 else _means(parts, pieces))
        return Selection(
            losses,
            best_indices(losses, survivors),
            sample_key(pieces),
            _tokens(pieces),
            known=len(known),
        )


class SequentialRacing:
    """Candidates leave when a sequential paired test says that they will not survive.

    Args:
        error_rate: most probability that a stage loses its truly best candidate.
        chunks: into how many parts a stage's own tokens are dealt, where it has as many sequences.
            Each is one call of the evaluator, which reads the structures anew.

    Raises:
        ConfigError: out of range.
    """

    races = True

    def __init__(self, error_rate: float = 0.05, chunks: int = 8) -> None:
        if not 0 < error_rate < 1 or chunks < 1:
            raise ConfigError(
                f"racing needs error_rate in (0, 1) and chunks >= 1, got {error_rate} and {chunks}"
            )
        self.error_rate = error_rate
        self.chunks = chunks

    def extent(self, num_tokens: int, length: int, num_sequences: int) -> Extent:
        """Starts of more sequences where a stage has fewer than four whole ones to race on."""
        wanted = min(self.chunks, _LEAST_SEQUENCES, num_sequences, num_tokens // _SHORTEST)
        return Extent(num_tokens, min(length, num_tokens // max(1, wanted)))

    def select(
        self,
        evaluate: Evaluate,
        candidates: Sequence[Levels],
        pieces: Sequence[Sample],
        *,
        survivors: int,
        first_loss: float | None = None,
    ) -> Selection:
        """See `Racing.select`; the first candidate races too, whether or not its loss is known."""
        # Earlier pieces are cut as they were in their own stage, so that an archive knows them.
        chunks = [chunk for piece in pieces for chunk in piece.split(self.chunks)]
        own = len(pieces[-1].split(self.chunks))
        # Copies of one candidate are one entrant: their equal losses would look like knowledge.
        numbers: dict[Levels, int] = {}
        entrants = [numbers.setdefault(levels, len(numbers)) for levels in candidates]
        distinct = list(numbers)
        race = _Race(entrants, survivors, self._level(len(distinct), own))
        for number, chunk in enumerate(chunks):
            if race.decided and number and len(distinct) > 1:  # one alone is measured to the end
                break
            running = [distinct[i] for i in race.running]
            fresh = number >= len(chunks) - own
            race.see(evaluate(running, chunk), chunk.num_tokens, tested=fresh)
            if number < len(chunks) - 1:
                race.drop_the_hopeless()
        return race.result(chunks)

    def _level(self, candidates: int, chunks: int) -> float:
        """Level of one test: Bonferroni over looks (from the second chunk on) and rivals."""
        return self.error_rate / (max(1, chunks - 2) * max(1, candidates - 1))


class _Race:
    """Losses of one stage as they come in.

    Args:
        entrants: per candidate, the distinct one that it is, numbered in order of appearance.
        survivors: how many candidates go on, copies counted.
        level: significance of one test.
    """

    def __init__(self, entrants: Sequence[int], survivors: int, level: float) -> None:
        self._entrants = entrants
        self._copies = Counter(entrants)
        self.running = list(self._copies)
        self._survivors = survivors
        self._level = level
        self._losses: list[dict[int, float]] = []  # per chunk, candidate to loss
        self._tokens: list[int] = []
        self._tested: list[bool] = []

    def see(self, losses: Sequence[float], num_tokens: int, *, tested: bool) -> None:
        """Take the losses of the running candidates on one chunk."""
        self._losses.append(dict(zip(self.running, losses, strict=True)))
        self._tokens.append(num_tokens)
        self._tested.append(tested)

    @property
    def decided(self) -> bool:
        """Whether all that still run go on."""
        return sum(self._copies[i] for i in self.running) <= self._survivors

    def drop_the_hopeless(self) -> None:
        """Take candidates out whose difference to the last survivor so far is significant."""
        chosen = [c for c, tested in enumerate(self._tested) if tested]
        if len(chosen) < 2 or self.decided:
            return
        order = self._ranked(chosen)
        places = list(accumulate(self._copies[i] for i in order))
        last = next(i for i, taken in enumerate(places) if taken >= self._survivors)
        rival, behind = order[last], order[last + 1 :]
        if not behind:  # only copies of the last survivor are too many
            return
        differences = torch.tensor(
            [[self._losses[c][i] - self._losses[c][rival] for i in behind] for c in chosen],
            dtype=torch.float64,
        )  # (chunks, candidates behind)
        p_values = paired_p_values(differences, self._weights(chosen))
        gone = {i for i, p in zip(behind, p_values.tolist(), strict=True) if p < self._level}
        self.running = [i for i in self.running if i not in gone]

    def result(self, chunks: Sequence[Sample]) -> Selection:
        """Rank those still running by all chunks they saw."""
        seen = list(range(len(self._losses)))
        means = {i: self._mean(i, seen) for i in self.running}
        finished = [place for place, i in enumerate(self._entrants) if i in means]
        finished.sort(key=lambda place: means[self._entrants[place]])  # stable: ties to the earlier
        leader = self._entrants[finished[0]]
        losses = [means[leader] + self._behind(i, leader) for i in self._entrants]
        return Selection(
            losses,
            finished[: self._survivors],
            sample_key(chunks[: len(seen)]),
            _tokens(chunks),
            raced_out=len(losses) - len(finished),
        )

    def _behind(self, candidate: int, leader: int) -> float:
        """Mean difference to the leader on the chunks that the candidate saw."""
        seen = [c for c, losses in enumerate(self._losses) if candidate in losses]
        return self._mean(candidate, seen) - self._mean(leader, seen)

    def _ranked(self, chunks: Sequence[int]) -> list[int]:
        """Running candidates, lowest mean on these chunks first; ties go to the earlier."""
        means = [self._mean(i, chunks) for i in self.running]
        return [self.running[place] for place in best_indices(means, len(means))]

    def _mean(self, candidate: int, chunks: Sequence[int]) -> float:
        total = sum(self._tokens[c] for c in chunks)
        return sum(self._losses[c][candidate] * self._tokens[c] for c in chunks) / total

    def _weights(self, chunks: Sequence[int]) -> Tensor:
        return torch.tensor([self._tokens[c] for c in chunks], dtype=torch.float64)


def _means(parts: Sequence[Sequence[float]], pieces: Sequence[Sample]) -> list[float]:
    """Loss of every candidate on all pieces, the mean of theirs by positions.

    For `kd_hidden`, a ratio of sums, that is near its value on all of them together.
    """
    total = _tokens(pieces)
    weights = [piece.num_tokens / total for piece in pieces]
    return [
        sum(w * loss for w, loss in zip(weights, losses, strict=True))
        for losses in zip(*parts, strict=True)
    ]


def _tokens(pieces: Sequence[Sample]) -> int:
    return sum(piece.num_tokens for piece in pieces)
