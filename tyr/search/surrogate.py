"""Screens offspring before stage one: a ridge regression predicts their losses.

A candidate's loss is taken as the sum of one increment per sublayer and level (and, if asked for, a
product term per pair of sublayers), learned from every evaluation of the iteration so far. Many
more offspring are drawn than are evaluated: the most promising ones, and a share chosen at random
so that the regression goes on learning where it is wrong. Some places go to the best allocations by
the regression itself, at several distances from the parent. It never decides what survives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tyr.errors import ConfigError
from tyr.search.archive import Evaluation
from tyr.search.increments import Increments, fit_increments
from tyr.search.knapsack import changed_place, farthest, priced_optima, single_changes
from tyr.search.mutation import Bounds, Levels
from tyr.search.selection import best_indices

# Prices of a step for the regression's own optima, in gains per step of its free one.
_PRICES = tuple(2.0**power for power in range(3, -2, -1))


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


@dataclass(frozen=True)
class Demand:
    """What a generation asks for.

    Args:
        parent: levels of the parent.
        bounds: lowest and highest level of every sublayer.
        offspring: how many the paper would evaluate.
        least: how many must be evaluated: the survivors of the first stage.
        evaluations: of this iteration so far.
    """

    parent: Levels
    bounds: Bounds
    offspring: int
    least: int
    evaluations: Sequence[Evaluation]


class Surrogate(Protocol):
    """Chooses which offspring are evaluated."""

    learns: bool  # from the evaluations of earlier generations

    def propose(
        self, demand: Demand, draw: Callable[[], Levels], *, rng: torch.Generator
    ) -> Proposal:
        """Draw offspring and keep those worth evaluating.

        Args:
            demand: what the generation asks for.
            draw: one mutation of the parent.
            rng: CPU generator.
        """


class NoSurrogate:
    """The paper's: everything that is drawn is evaluated."""

    learns = False

    def propose(
        self, demand: Demand, draw: Callable[[], Levels], *, rng: torch.Generator
    ) -> Proposal:
        """See `Surrogate.propose`."""
        return Proposal([draw() for _ in range(demand.offspring)])


class LinearSurrogate:
    """Additive increments per sublayer and level, by ridge regression.

    Args:
        drawn: offspring drawn for each one that the paper would draw.
        evaluated: of the paper's number of offspring, the fraction that is evaluated.
        random_share: of those, the fraction that is chosen at random.
        optimal_share: of those, the fraction that may be best allocations by the regression.
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
        optimal_share: float = 0.25,
        pairwise: bool = False,
    ) -> None:
        if drawn < 1 or not 0 < evaluated <= 1:
            raise ConfigError(
                f"surrogate needs drawn >= 1 and evaluated in (0, 1], got {drawn} and {evaluated}"
            )
        if min(random_share, optimal_share) < 0 or random_share + optimal_share > 1:
            raise ConfigError(
                f"surrogate needs random_share and optimal_share not negative and together at most "
                f"1, got {random_share} and {optimal_share}"
            )
        self.drawn = drawn
        self.evaluated = evaluated
        self.random_share = random_share
        self.optimal_share = optimal_share
        self.pairwise = pairwise

    def propose(
        self, demand: Demand, draw: Callable[[], Levels], *, rng: torch.Generator
    ) -> Proposal:
        """See `Surrogate.propose`."""
        number = max(demand.least, round(self.evaluated * demand.offspring))
        drawn = [draw() for _ in range(max(number, self.drawn * demand.offspring))]
        model = fit_increments(demand.evaluations, pairwise=self.pairwise)
        if model is None:
            return Proposal(drawn[:number], len(drawn) - number)
        seen = {one.levels for one in demand.evaluations}
        optima = [levels for levels in model_optima(model, demand) if levels not in seen]
        optima = optima[: round(self.optimal_share * number)]
        pool = list(dict.fromkeys(levels for levels in drawn if levels not in optima))
        places = number - len(optima)
        best = max(0, places - round(self.random_share * number))
        chosen = [*optima, *self._choose(pool, model, seen, best, places, rng)]
        foretold = tuple(model.predict(chosen))
        return Proposal(chosen, len(drawn) + len(optima) - len(chosen), foretold)

    def _choose(
        self,
        pool: Sequence[Levels],
        model: Increments,
        seen: set[Levels],
        best: int,
        places: int,
        rng: torch.Generator,
    ) -> list[Levels]:
        """Unseen before seen, the `best` most promising first, then random ones."""
        if not pool:
            return []
        order = best_indices(model.predict(pool), len(pool))
        order.sort(key=lambda index: pool[index] in seen)  # stable: seen ones go behind
        promising, rest = order[:best], order[best:]
        fresh = [i for i in rest if pool[i] not in seen]
        rest = fresh if len(fresh) >= places - best else rest
        dealt = torch.randperm(len(rest), generator=rng).tolist()
        return [pool[i] for i in [*promising, *(rest[i] for i in dealt[: places - best])]]


def model_optima(model: Increments, demand: Demand) -> list[Levels]:
    """The best allocations by the model for several prices of a step, nearest first."""
    parent, bounds = demand.parent, demand.bounds
    singles = single_changes(parent, bounds)
    at_parent, *foretold = model.predict([parent, *singles])
    increments: list[dict[int, float]] = [{level: 0.0} for level in parent]
    for levels, loss in zip(singles, foretold, strict=True):
        place = changed_place(levels, parent)
        increments[place][levels[place]] = loss - at_parent
    return priced_optima(increments, parent, reach=farthest(parent, bounds), prices=_PRICES)


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
