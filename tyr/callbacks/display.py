"""What `Progress` shows, as rich renderables: the board of a running run and the final table.

Nothing here listens to events or decides when to draw; `plan.py` holds the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tyr.callbacks.plan import Plan, Progressed, Remaining, Slot
from tyr.callbacks.results import (
    format_count,
    format_megabytes,
    format_perplexity,
    format_ratio,
    format_seconds,
    result_lines,
)
from tyr.evaluate.scores import CAPTION, score_table
from tyr.events import EvaluationRow

_MARKS = {"waiting": "·", "earlier": "✓", "running": "→", "done": "✓"}
_MOST_ITERATIONS = 4


def board(plan: Plan, headline: str, elapsed_seconds: float) -> RenderableType:
    """One line per stage: mark, title, bar or duration, detail; below, elapsed and remaining."""
    table = Table.grid(padding=(0, 1))
    table.add_column(min_width=1, no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(width=18)
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    for slot in _shown(plan):
        stage = plan.stages[slot]
        style = "dim" if stage.state == "waiting" else ""
        table.add_row(
            Text(_MARKS[stage.state], style="green" if stage.state == "done" else style),
            Text(plan.title(slot), style=style),
            _middle(stage),
            Text(_detail(slot, stage), style="dim"),
        )
    times = f"elapsed {format_seconds(elapsed_seconds)}"
    if any(stage.state in ("waiting", "running") for stage in list(plan.stages.values())):
        times += f", {remaining_text(plan.remaining())}"
    return Group(Text(headline, style="bold"), table, Text(times, style="dim"))


def remaining_text(remaining: Remaining) -> str:
    """`about 2:10 left`, or a lower bound while a stage is not measured yet."""
    if not remaining.complete and remaining.seconds < 1:
        return "time left not known yet"
    bound = "about" if remaining.complete else "more than"
    return f"{bound} {format_seconds(remaining.seconds)} left"


def final_table(rows: Mapping[str, EvaluationRow]) -> Table:
    """Dense, uniform, tyr and variants; ratios are to dense. Fits 80 columns."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("", overflow="fold")
    for title in ("perplexity", "ratio", "KL (nats)", "params", "ratio", "size (MB)", "ratio"):
        table.add_column(title, justify="right", no_wrap=True)
    for line in result_lines(rows):
        row = line.row
        table.add_row(
            Text(line.name, style="bold" if line.name == "tyr" else ""),
            format_perplexity(row.perplexity),
            format_ratio(line.perplexity_ratio),
            f"{row.kl:.4f}",
            format_count(row.parameters),
            format_ratio(line.parameters_ratio),
            format_megabytes(row.bytes),
            format_ratio(line.bytes_ratio),
        )
    return table


def task_table(rows: Mapping[str, EvaluationRow]) -> RenderableType | None:
    """Scores per task in the same order, or nothing when no tasks were asked."""
    scores = {line.name: line.row.tasks for line in result_lines(rows)}
    if not any(scores.values()):
        return None
    return Group(score_table(scores), Text(CAPTION, style="dim"))


def _detail(slot: Slot, stage: Progressed) -> str:
    """A search ends with its loss; which sublayer a finished pass pruned last tells nothing."""
    return "" if stage.state == "done" and slot[0] in ("supernet", "finish") else stage.detail


def _middle(stage: Progressed) -> RenderableType:
    if stage.state == "running" and stage.steps > 1:
        return ProgressBar(total=stage.steps, completed=min(stage.done, stage.steps), width=18)
    if stage.state == "done":
        return Text(format_seconds(stage.seconds), style="dim")
    return Text({"earlier": "done earlier", "running": "running"}.get(stage.state, ""), style="dim")


def _shown(plan: Plan) -> list[Slot]:
    """All stages; of many iterations only those around the current one."""
    slots = list(plan.stages)
    if plan.iterations <= _MOST_ITERATIONS:
        return slots
    reached = [slot[1] or 0 for slot in slots if plan.stages[slot].state != "waiting"]
    current = max(reached, default=0)
    return [(name, t) for name, t in slots if t is None or abs(t - current) <= 1]
