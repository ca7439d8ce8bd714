"""Where an iteration's search starts: at the centre, as in the paper, or at a computed allocation.

The computed start measures every (sublayer, level) pair alone, all others as in the parent, and
takes the level vector whose increments add up to the least: a multiple-choice knapsack per kind,
solved exactly in integers, so the budget of each kind is conserved to the unit. Increments of
several sublayers do not quite add up, so optima within growing distances of the parent are measured
together with the parent, and the best of them is the start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from tyr.errors import ConfigError
from tyr.events import Round, silent
from tyr.search.knapsack import best_within, changed_place, farthest, single_changes
from tyr.search.mutation import Bounds, Levels
from tyr.search.selection import Sample, best_indices

Evaluate = Callable[[Sequence[Levels], Sample], list[float]]
Draw = Callable[[int], Sample]
Report = Callable[[Round], None]


class Start(Protocol):
    """Chooses the first parent of an iteration."""

    def find(
        self,
        evaluate: Evaluate,
        parent: Levels,
        bounds: Bounds,
        *,
        draw: Draw,
        report: Report = silent,
    ) -> Levels:
        """The parent to start from.

        Args:
            evaluate: losses of level vectors on a sample.
            parent: the centre of the grid.
            bounds: lowest and highest level of every sublayer.
            draw: a sample with the tokens of the stage with this index.
            report: called after each round.
        """


class CentreStart:
    """The paper's: the allocation that the last iteration ended with."""

    def find(
        self,
        evaluate: Evaluate,
        parent: Levels,
        bounds: Bounds,
        *,
        draw: Draw,
        report: Report = silent,
    ) -> Levels:
        """The parent itself."""
        return parent


class DynamicStart:
    """The best allocation of a dynamic programme over measured single-sublayer losses.

    Args:
        stage: index of the stage whose tokens measure the pairs; differences to the parent on the
            same positions vary much less than losses, so few tokens do.
        check_stage: index of the stage whose tokens compare the optima.

    Raises:
        ConfigError: an index is negative.
    """

    def __init__(self, stage: int = 0, check_stage: int = 1) -> None:
        if min(stage, check_stage) < 0:
            raise ConfigError(
                f"start needs stage >= 0 and check_stage >= 0, got {stage} and {check_stage}"
            )
        self.stage = stage
        self.check_stage = check_stage

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
        singles = single_changes(parent, bounds)
        increments = single_increments(evaluate, parent, singles, sample=draw(self.stage))
        optima = [parent]
        for reach in range(1, 1 + farthest(parent, bounds)):
            optimum = best_within(increments, parent, reach=reach)
            if optimum not in optima:
                optima.append(optimum)
        checked = evaluate(optima, draw(self.check_stage))
        best = best_indices(checked, 1)[0]  # the parent comes first, so it wins ties
        report(Round(0, 1, len(singles), checked[0], checked[best]))
        return optima[best]


def single_increments(
    evaluate: Evaluate, parent: Levels, singles: Sequence[Levels], *, sample: Sample
) -> list[dict[int, float]]:
    """Per sublayer, level to measured loss increment; the parent's level is 0.

    Args:
        evaluate: losses of level vectors on a sample.
        parent: levels that the others differ from.
        singles: level vectors that differ from it in one sublayer.
        sample: the positions, the same for all.
    """
    losses = evaluate([parent, *singles], sample)
    increments: list[dict[int, float]] = [{level: 0.0} for level in parent]
    for levels, loss in zip(singles, losses[1:], strict=True):
        place = changed_place(levels, parent)
        increments[place][levels[place]] = loss - losses[0]
    return increments
