"""Task scores as a table for people: models side by side, their average, and what pruning retained.

The average is the plain mean over tasks, as in the paper's tables 1 and 2; "retained" is its ratio
to the dense model's (table 2). Percent appears because this is for people; records hold fractions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tyr.events import TaskScore

if TYPE_CHECKING:
    from rich.table import Table

Scores = Mapping[str, TaskScore]
CAPTION = "Accuracy in % ± standard error; retained: share of the dense model's average."


def average(scores: Scores) -> TaskScore:
    """Mean over tasks, each counting the same, of at least one task.

    The standard error takes the tasks as independent samples.
    """
    values = list(scores.values())
    metrics = sorted({score.metric for score in values})
    return TaskScore(
        metric="/".join(metrics),
        value=sum(score.value for score in values) / len(values),
        stderr=math.sqrt(sum(score.stderr**2 for score in values)) / len(values),
        examples=sum(score.examples for score in values),
        chance=sum(score.chance for score in values) / len(values),
    )


def retained(scores: Scores, dense: Scores) -> float | None:
    """Average over the dense model's on the same tasks, a fraction; None when there is none."""
    if not dense or scores.keys() != dense.keys():
        return None
    theirs = average(dense).value
    return average(scores).value / theirs if theirs else None


def score_lines(models: Mapping[str, Scores]) -> tuple[list[str], list[list[str]]]:
    """Column titles and cells: one line per task, then the average and the share retained.

    Args:
        models: name to scores, in the order of the columns; `dense` is what others are compared to.
    """
    models = {name: scores for name, scores in models.items() if scores}
    every = {task: score for scores in models.values() for task, score in scores.items()}
    lines = [
        [*_facts(task, score), *(_cell(scores.get(task)) for scores in models.values())]
        for task, score in every.items()
    ]
    means = [average(scores) for scores in models.values()]
    if len(every) > 1:
        lines.append(["average", "", f"{100 * average(every).chance:.0f}", *map(_cell, means)])
    if dense := models.get("dense"):
        shares = [retained(scores, dense) for scores in models.values()]
        cells = ["-" if share is None else f"{100 * share:.0f} %" for share in shares]
        lines.append(["retained", "", "", *cells])
    return ["task", "n", "chance", *models], lines


def score_table(models: Mapping[str, Scores]) -> Table:
    """The same for a terminal; at three models it fits 80 columns."""
    from rich.table import Table

    titles, lines = score_lines(models)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for index, title in enumerate(titles):
        table.add_column(title, justify="right" if index else "left", overflow="fold")
    for line in lines:
        table.add_row(*line, style="bold" if line[0] == "average" else "")
    return table


def _facts(task: str, score: TaskScore) -> list[str]:
    """What does not depend on the model."""
    label = task if score.metric == "acc" else f"{task} ({score.metric})"
    return [label, str(score.examples), f"{100 * score.chance:.0f}"]


def _cell(score: TaskScore | None) -> str:
    return "-" if score is None else f"{100 * score.value:.1f} ± {100 * score.stderr:.1f}"
