"""A start computed in rounds: small changes are measured, and solved for, around each parent.

One knapsack over all levels goes wrong where increments do not add up: an optimum three steps away
is mostly worse than one two steps away. So each round measures only the levels near its parent,
moves no sublayer further than that, and the next round measures again around what it chose.
Increments of earlier rounds count less, for they were measured around another parent. What a
measurement is not sure of looks like a gain (the winner's curse), so optima with a price on every
step are measured too. Beyond the paper; `tyr/search/start.py` has the single round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tyr.errors import ConfigError
from tyr.events import Round, silent
from tyr.search.knapsack import best_within, distance, priced_optima, single_changes
from tyr.search.mutation import Bounds, Levels
from tyr.search.selection import best_indices
from tyr.search.start import Draw, Evaluate, Report, single_increments

# Of the gain per step of the free optimum: steps worth less than this are not taken.
_PRICES = (1.0, 0.5)


class RoundsStart:
    """Knapsack optima within a radius, measured anew around each round's choice.

    Args:
        rounds: how many.
        radius: most steps that a sublayer moves in a round, and that are measured.
        stage: index of the stage whose tokens measure the changes.
        check_stage: index of the stage whose tokens compare the optima with their parent.
        discount: weight of a round's increments in the next round; the round's own count 1.

    Raises:
        ConfigError: out of range.
    """

    def __init__(
        self,
        rounds: int = 3,
        radius: int = 2,
        stage: int = 0,
        check_stage: int = 1,
        discount: float = 0.5,
    ) -> None:
        if min(rounds, radius) < 1 or min(stage, check_stage) < 0 or not 0 <= discount <= 1:
            raise ConfigError(
                f"start needs rounds >= 1, radius >= 1, stage >= 0, check_stage >= 0 and discount "
                f"in [0, 1]; got {rounds}, {radius}, {stage}, {check_stage} and {discount}"
            )
        self.rounds = rounds
        self.radius = radius
        self.stage = stage
        self.check_stage = check_stage
        self.discount = discount

    def find(
        self,
        evaluate: Evaluate,
        parent: Levels,
        bounds: Bounds,
        *,
        draw: Draw,
        report: Report = silent,
    ) -> Levels:
        """See `Start.find`."""
        measured: list[Sequence[Mapping[int, float]]] = []
        parents = [parent]
        for number in range(self.rounds):
            changes = single_changes(parent, bounds)
            near = [levels for levels in changes if distance(levels, parent) <= self.radius]
            measured.append(single_increments(evaluate, parent, near, sample=draw(self.stage)))
            # Earlier parents compete again: what a check chose by luck, the next may take back.
            entrants = list(dict.fromkeys([*parents, *self._optima(measured, parent)]))
            checked = evaluate(entrants, draw(self.check_stage))
            best = best_indices(checked, 1)[0]  # the parent comes first, so it wins ties
            report(Round(number, self.rounds, len(near), checked[0], checked[best]))
            parent = entrants[best]
            parents = list(dict.fromkeys([parent, *parents]))
        return parent

    def _optima(
        self, measured: Sequence[Sequence[Mapping[int, float]]], parent: Levels
    ) -> list[Levels]:
        """Optima by all rounds so far: one step away, and within the radius at several prices."""
        weights = [self.discount**age for age in reversed(range(len(measured)))]
        increments = pooled_increments(measured, weights, parent)
        nearest = best_within(increments, parent, reach=1)
        priced = priced_optima(increments, parent, reach=self.radius, prices=_PRICES)
        return [levels for levels in dict.fromkeys([nearest, *priced]) if levels != parent]


def pooled_increments(
    measured: Sequence[Sequence[Mapping[int, float]]], weights: Sequence[float], parent: Levels
) -> list[dict[int, float]]:
    """Per sublayer, level to loss increment from the parent's level, by several measurements.

    Measurements around different parents share their steps from one level to the next, so those are
    averaged, and summed up again from the parent's level as far as there is no gap.

    Args:
        measured: per measurement and sublayer, level to increment from any level of its own.
        weights: per measurement; those of weight 0 say nothing.
        parent: levels of increment 0.
    """
    pooled = []
    for place, at in enumerate(parent):
        steps = _mean_steps([increments[place] for increments in measured], weights)
        pooled.append({at: 0.0, **_walk(steps, at, up=True), **_walk(steps, at, up=False)})
    return pooled


def _mean_steps(
    increments: Sequence[Mapping[int, float]], weights: Sequence[float]
) -> dict[int, float]:
    """Level to the weighted mean of the increments from it to the next."""
    sums: dict[int, float] = {}
    totals: dict[int, float] = {}
    for known, weight in zip(increments, weights, strict=True):
        for level in known:
            if level + 1 in known and weight > 0:
                step = known[level + 1] - known[level]
                sums[level] = sums.get(level, 0.0) + weight * step
                totals[level] = totals.get(level, 0.0) + weight
    return {level: total / totals[level] for level, total in sums.items()}


def _walk(steps: Mapping[int, float], at: int, *, up: bool) -> dict[int, float]:
    """Level to the sum of steps on the way to it, in one direction."""
    found: dict[int, float] = {}
    level, total = at, 0.0
    while (level if up else level - 1) in steps:
        total += steps[level] if up else -steps[level - 1]
        level += 1 if up else -1
        found[level] = total
    return found
