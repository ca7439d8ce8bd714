"""What a search has measured in this iteration, and whether it may be used again.

Every loss is that of one level vector on one sample; both identify it exactly. The paper's search
keeps none of them but the parent's last. Nothing here survives an iteration: the next supernet has
other structures.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from tyr.search.mutation import Levels

SampleKey = tuple[int, ...]  # `Sample.key()`
Known = dict[tuple[Levels, SampleKey], float]


@dataclass(frozen=True)
class Evaluation:
    """One loss.

    Args:
        levels: the candidate.
        sample: key of the positions.
        loss: mean over them.
    """

    levels: Levels
    sample: SampleKey
    loss: float


class Archive(Protocol):
    """Decides which losses are used again."""

    keeps: bool

    def known(self, evaluations: Iterable[Evaluation]) -> Known:
        """Losses that need not be measured again."""


class NoArchive:
    """The paper's: a candidate that comes again is evaluated again."""

    keeps = False

    def known(self, evaluations: Iterable[Evaluation]) -> Known:
        """Nothing."""
        return {}


class KeepAll:
    """No allocation is evaluated twice on the same tokens.

    It pays where samples come again: with nested samples, or when a stage uses the whole search
    text. With samples drawn anew only duplicates within a generation are saved.
    """

    keeps = True

    def known(self, evaluations: Iterable[Evaluation]) -> Known:
        """Everything."""
        return {(one.levels, one.sample): one.loss for one in evaluations}
