"""The voice of the command line: where the run is, and at the end the table and the files.

On a terminal a live board; otherwise plain lines, a few per stage, for log files. It prints, and so
belongs last among the callbacks, when the files it names exist. It records nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tyr.callbacks.clock import recorded_seconds
from tyr.callbacks.latency import LATENCY_FILE
from tyr.callbacks.plan import Plan
from tyr.callbacks.planned import read_plan, time_sentence
from tyr.callbacks.results import format_perplexity, format_seconds, verdict
from tyr.errors import ConfigError
from tyr.evaluate.scores import average
from tyr.events import (
    Callback,
    EvaluationFinished,
    GenerationFinished,
    RunFinished,
    RunStarted,
    StageFinished,
    StageStarted,
    StartRound,
    SublayerPruned,
)

if TYPE_CHECKING:
    from rich.console import Console

    from tyr.callbacks.live import LiveRegion

# In the order a reader wants them; the exported model comes first.
RESULT_FILES = {
    "gguf": "model.gguf",
    "report": "report.html",
    "metrics": "metrics.csv",
    "summary": "summary.json",
    "latency": LATENCY_FILE,
}


class Progress(Callback):
    """Shows a run on the console.

    Args:
        lines_per_stage: lines about the steps of a stage when the output is not a terminal.
        console: where to print; a rich console on stdout when not given.
        now: a monotonic clock, seconds.
    """

    def __init__(
        self,
        lines_per_stage: int = 4,
        *,
        console: Console | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        if lines_per_stage < 0:
            raise ConfigError(
                f"callbacks.progress.lines_per_stage must be at least 0, got {lines_per_stage}"
            )
        self._lines_per_stage = lines_per_stage
        self._given_console, self._now = console, now
        self._console: Console | None = None
        self._live: LiveRegion | None = None
        self._plan = Plan(0, 0)
        self._headline, self._begin = "", 0.0
        self._start_seconds = 0.0  # of the rounds before a search's first generation

    def on_run_start(self, event: RunStarted) -> None:
        from rich.console import Console

        self._console = self._given_console or Console(highlight=False)
        self._begin = self._now()
        blocks = event.units.num_blocks
        self._plan = Plan(event.iterations, 2 * blocks, resumed=event.resumed)
        rounds = f", {event.iterations} iterations" if event.iterations else ""
        continued = ", continued" if event.resumed else ""
        self._headline = (
            f"tyr: {event.model_name}, {blocks} blocks, sparsity {event.sparsity:g}"
            f"{rounds}{continued}"
        )
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._start_live(self._console)
        else:
            self._say(self._headline)

    def on_stage_start(self, event: StageStarted) -> None:
        self._plan.start(event)
        if self._live is None and self._plan.current is not None:
            unit = {"supernet": "sublayers", "search": "generations", "finish": "sublayers"}
            steps = f", {event.steps} {unit.get(event.stage, 'steps')}" if event.steps > 1 else ""
            self._say(f"{self._plan.title(self._plan.current)}{steps}")

    def on_sublayer_pruned(self, event: SublayerPruned) -> None:
        error = f", error {event.errors[0]:.2e}" if 0 in event.errors else ""
        if self._plan.counts_sublayers:  # an evaluation that prunes counts models
            seconds = None if event.resumed else event.seconds
            self._step(f"{event.sublayer.name}{error}", seconds=seconds)

    def on_start_round(self, event: StartRound) -> None:
        self._start_seconds += event.seconds
        which = f", round {event.round + 1}/{event.rounds}" if event.rounds > 1 else ""
        losses = f"loss {event.parent_loss:.5g} to {event.best_loss:.5g}"
        detail = f"start{which}: {event.changes} changes measured, {losses}"
        self._plan.note(detail)
        if self._live is None:
            self._say(f"  {detail}")

    def on_generation_end(self, event: GenerationFinished) -> None:
        detail = f"best loss {event.best_loss:.5g}"
        of = (event.generation + 1, event.generations)
        typical = event.seconds - self._start_seconds  # generations to come have no start
        self._step(detail, of=of, seconds=typical)
        self._start_seconds = 0.0

    def on_evaluation_end(self, event: EvaluationFinished) -> None:
        perplexity = format_perplexity(event.row.perplexity)
        detail = f"{event.name}: perplexity {perplexity}, KL {event.row.kl:.4f}"
        if event.row.tasks:
            detail += f", tasks {100 * average(event.row.tasks).value:.1f} %"
        if self._live is None:
            self._say(f"  {detail}")
        else:
            self._step(detail)

    def on_stage_end(self, event: StageFinished) -> None:
        self._plan.finish(event)
        if self._live is None:
            title = self._plan.title((event.stage, event.iteration))
            self._say(f"{title}: done in {format_seconds(event.seconds)}")

    def on_run_end(self, event: RunFinished) -> None:
        self._stop_live()
        if self._console is None:
            return
        from tyr.callbacks.display import final_table, task_table

        self._console.print()
        self._console.print(final_table(event.rows))
        if (tasks := task_table(event.rows)) is not None:
            self._console.print()
            self._console.print(tasks)
        self._console.print()
        self._console.print(
            verdict(event.rows, searched=event.allocation != event.uniform), markup=False
        )
        run_dir = Path(event.run_dir)
        seconds = recorded_seconds(run_dir) or dict(event.seconds)
        if (planned := read_plan(run_dir)) is not None and "total" in seconds:
            self._console.print(time_sentence(planned, seconds), markup=False)
        files = {"model": event.export_dir} | {k: run_dir / f for k, f in RESULT_FILES.items()}
        for name, path in files.items():
            if path is not None and path.exists():
                self._console.print(f"  {name:8} {_short(path)}", markup=False, soft_wrap=True)

    def on_run_error(self, error: BaseException) -> None:
        self._stop_live()

    def _step(
        self, detail: str, *, of: tuple[int, int] | None = None, seconds: float | None = None
    ) -> None:
        if self._plan.current is None:
            return
        self._plan.step(detail, of=of, seconds=seconds)
        stage = self._plan.stages[self._plan.current]
        if self._live is None and self._is_due(stage.done, stage.steps):
            self._say(f"  {stage.done}/{stage.steps}  {detail}")

    def _is_due(self, done: int, steps: int) -> bool:
        """Whether this step crosses one of the stage's evenly spaced marks."""
        lines = self._lines_per_stage
        return steps > 1 and lines * done // steps > lines * (done - 1) // steps

    def _say(self, text: str) -> None:
        if self._console is not None:
            elapsed = format_seconds(self._now() - self._begin)
            self._console.print(f"[{elapsed:>7}] {text}", markup=False, soft_wrap=True)

    def _start_live(self, console: Console) -> None:
        from tyr.callbacks.display import board
        from tyr.callbacks.live import LiveRegion

        self._live = LiveRegion(
            console, lambda: board(self._plan, self._headline, self._now() - self._begin)
        )
        self._live.start()

    def _stop_live(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def _short(path: Path) -> str:
    """Relative to the working directory when it is below it, as the user would type it."""
    absolute = path.absolute()
    here = Path.cwd()
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute)
