"""Screens offspring before stage one: a ridge regression predicts their losses.

A candidate's loss is taken as the sum of one increment per sublayer and level (and, if asked for, a
product term per pair of sublayers), learned from every evaluation of the iteration so far. Many
more offspring are drawn than are evaluated: the most promising ones, and a share chosen at random
so that the regression goes on learning where it is wrong. It never decides what survives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tyr.errors import ConfigError
from tyr.search.archive import Evaluation
from tyr.search.increments import fit_increments
from tyr.search.mutation import Levels
from tyr.search.selection import best_indices


@dataclass(frozen=True)
class Proposal:
    """Offspring that will be evaluated.

    Args:
        candidates: their levels.
        screened: how many more were drawn.
        predictions: losses foretold, up to a constant; empty when nothing is foretold.
    """

    candidates: list[Levels]
    screened: int = 0
    predictions: tuple[float, ...] = ()


class Surrogate(Protocol):
    """Chooses which offspring are evaluated."""

    learns: bool  # from the evaluations of earlier generations

    def propose(
        self,
        draw: Callable[[], Levels],
        offspring: int,
        *,
        least: int,
        evaluations: Sequence[Evaluation],
        rng: torch.Generator,
    ) -> Proposal:
        """Draw offspring and keep those worth evaluating.

        Args:
            draw: one mutation of the parent.
            offspring: how many the paper would evaluate.
            least: how many must be kept: the survivors of the first stage.
            evaluations: of this iteration so far.
            rng: CPU generator.
        """


class NoSurrogate:
    """The paper's: everything that is drawn is evaluated."""

    learns = False

    def propose(
        self,
        draw: Callable[[], Levels],
        offspring: int,
        *,
        least: int,
        evaluations: Sequence[Evaluation],
        rng: torch.Generator,
    ) -> Proposal:
        """See `Surrogate.propose`."""
        return Proposal([draw() for _ in range(offspring)])


class LinearSurrogate:
    """Additive increments per sublayer and level, by ridge regression.

    Args:
        drawn: offspring drawn for each one that the paper would draw.
        evaluated: of the paper's number of offspring, the fraction that is evaluated.
        random_share: of those, the fraction that is chosen at random.
        pairwise: whether products of two sublayers' levels have a weight of their own.

    Raises:
        ConfigError: out of range.
    """

    learns = True

    def __init__(
        self,
        drawn: int = 8,
        evaluated: float = 0.25,
        random_share: float = 0.25,
        pairwise: bool = False,
    ) -> None:
        if drawn < 1 or not 0 < evaluated <= 1 or not 0 <= random_share <= 1:
            raise ConfigError(
                f"surrogate needs drawn >= 1, evaluated in (0, 1] and random_share in [0, 1], got "
                f"{drawn}, {evaluated} and {random_share}"
            )
        self.drawn = drawn
        self.evaluated = evaluated
        self.random_share = random_share
        self.pairwise = pairwise

    def propose(
        self,
        draw: Callable[[], Levels],
        offspring: int,
        *,
        least: int,
        evaluations: Sequence[Evaluation],
        rng: torch.Generator,
    ) -> Proposal:
        """See `Surrogate.propose`."""
        number = max(least, round(self.evaluated * offspring))
        drawn = [draw() for _ in range(max(number, self.drawn * offspring))]
        pool = list(dict.fromkeys(drawn))
        model = fit_increments(evaluations, pairwise=self.pairwise)
        if model is None:
            return Proposal(drawn[:number], len(drawn) - number)
        foretold = model.predict(pool)
        seen = {one.levels for one in evaluations}
        chosen = self._choose(foretold, [levels in seen for levels in pool], number, rng)
        return Proposal(
            [pool[i] for i in chosen],
            len(drawn) - len(chosen),
            tuple(foretold[i] for i in chosen),
        )

    def _choose(
        self, foretold: Sequence[float], seen: Sequence[bool], number: int, rng: torch.Generator
    ) -> list[int]:
        """Indices to evaluate: unseen before seen, the most promising first, then random ones."""
        order = best_indices(foretold, len(foretold))
        order.sort(key=lambda index: seen[index])  # stable: seen ones go behind
        best = order[: number - round(self.random_share * number)]
        rest = order[len(best) :]
        fresh = [i for i in rest if not seen[i]]
        rest = fresh if len(fresh) >= number - len(best) else rest
        dealt = torch.randperm(len(rest), generator=rng).tolist()
        return best + [rest[i] for i in dealt[: number - len(best)]]


def rank_correlation(predictions: Sequence[float], losses: Sequence[float]) -> float | None:
    """Spearman's; ties share their mean rank. None when one side does not vary."""
    if len(predictions) < 3:
        return None
    first, second = (ranks(torch.tensor(v, dtype=torch.float64)) for v in (predictions, losses))
    if float(first.std()) == 0 or float(second.std()) == 0:
        return None
    return float(torch.corrcoef(torch.stack([first, second]))[0, 1])


def ranks(values: Tensor) -> Tensor:
    """(n,): rank of each value from 1, float64; equal values share the mean of theirs."""
    _, place, count = values.unique(return_inverse=True, return_counts=True)
    ends = count.cumsum(0).double()
    means: Tensor = ends - (count.double() - 1) / 2
    return means[place]
