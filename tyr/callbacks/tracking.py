"""Metrics of a run: a CSV file beside its results, and Weights & Biases.

metrics.csv holds one row per event, first column `event`; cells that do not apply are empty, nested
values are JSON. Losses are as the objective reports them, `iteration` and `generation` are 0-based.

    stage       iteration, stage, name (label), seconds (summed over resumed processes, without the
                part of a stage that was killed: durations.json has that)
    sublayer    iteration (empty in a finishing pass), stage, sublayer, name (label), seconds,
                errors {level: relative reconstruction error}
    start       iteration, name (round/rounds), seconds, changes, best_loss, parent_loss, where the
                search has a computed start
    generation  iteration, generation, generations, seconds, evaluated_tokens, sublayer_evaluations,
                dense_sublayer_evaluations, best_loss, parent_loss, stages [{num_tokens, candidates,
                best, mean}], allocation {kind: removed units per block}; with the options that save
                tokens also screened, raced_out, archive_hits, surrogate_rank_correlation
    search      iteration, best_loss, allocation
    evaluation  name, perplexity, kl (nats per token), parameters, backbone_parameters, bytes, tasks
                {task: {metric, value, stderr, examples, chance}}

wandb is imported here only, and only when a run starts.
"""

from __future__ import annotations

import logging
import math
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyr.callbacks.metrics import (
    ALLOCATION_IMAGE,
    RESULT_TABLE,
    STEP_OF,
    evaluation_metrics,
    generation_metrics,
    stage_losses_key,
    stage_metrics,
    start_metrics,
    sublayer_metrics,
)
from tyr.callbacks.metrics_file import METRICS_FILE, MetricsFile
from tyr.callbacks.results import result_lines
from tyr.callbacks.rows import (
    evaluation_row,
    generation_row,
    row_key,
    search_row,
    stage_row,
    start_row,
    sublayer_row,
)
from tyr.callbacks.wandb_mode import check_mode, resolve_mode
from tyr.errors import ConfigError
from tyr.events import (
    Callback,
    EvaluationFinished,
    GenerationFinished,
    RunFinished,
    RunStarted,
    SearchFinished,
    StageFinished,
    StageName,
    StageStarted,
    StartRound,
    SublayerPruned,
)
from tyr.files import read_record, write_json
from tyr.sparsity import Allocation

if TYPE_CHECKING:
    import wandb

WANDB_STATE_FILE = "wandb.json"
INIT_TIMEOUT_SECONDS = 30.0

logger = logging.getLogger(__name__)


class CsvMetrics(Callback):
    """Writes run_dir/metrics.csv, one row per event, on disk before the next step begins."""

    def __init__(self) -> None:
        self._file: MetricsFile | None = None
        self._stage: StageStarted | None = None

    @property
    def file(self) -> MetricsFile:
        """The file of the run under way."""
        assert self._file is not None, "on_run_start comes first"
        return self._file

    def on_run_start(self, event: RunStarted) -> None:
        self._stage = None
        self._file = MetricsFile(Path(event.run_dir) / METRICS_FILE, keep=event.resumed)

    def on_stage_start(self, event: StageStarted) -> None:
        self._stage = event

    def on_sublayer_pruned(self, event: SublayerPruned) -> None:
        row = sublayer_row(event, self._stage)
        # Read back on resume, it has no errors: never let it replace the row that does.
        if not (event.resumed and row_key(row) in self.file.rows):
            self.file.put(row)

    def on_start_round(self, event: StartRound) -> None:
        self.file.put(start_row(event))

    def on_generation_end(self, event: GenerationFinished) -> None:
        self.file.put(generation_row(event))

    def on_search_end(self, event: SearchFinished) -> None:
        self.file.put(search_row(event))

    def on_evaluation_end(self, event: EvaluationFinished) -> None:
        self.file.put(evaluation_row(event))

    def on_stage_end(self, event: StageFinished) -> None:
        row = stage_row(event, self._stage)
        if known := self.file.rows.get(row_key(row)):
            row["seconds"] = repr(float(known["seconds"]) + event.seconds)
        self.file.put(row)


class WandbTracking(Callback):
    """Sends the run to Weights & Biases, or keeps it in run_dir/wandb until `wandb sync`.

    Offline unless a login is found (WANDB_API_KEY, or netrc) or WANDB_MODE says otherwise. A
    resumed run continues the same W&B run: its id, its step, and the last generation and round of a
    start that were logged are in run_dir/wandb.json. Nothing is written to the terminal.

    Args:
        project: W&B project.
        name: name of the run; None takes the name of the run directory.
        mode: `auto`, `online`, `offline` or `disabled`; WANDB_MODE wins over it.
        heatmap_every: generations between two images of the allocation; rendering one takes about
            0.15 s. The end of every search has one too.

    Raises:
        ConfigError: wandb is not installed, or an argument is out of range.
    """

    def __init__(
        self,
        project: str = "tyr",
        name: str | None = None,
        *,
        mode: str = "auto",
        heatmap_every: int = 10,
    ) -> None:
        check_mode(mode, "logger.wandb.mode")
        if heatmap_every < 1:
            raise ConfigError(f"logger.wandb.heatmap_every must be at least 1, got {heatmap_every}")
        if find_spec("wandb") is None:
            raise ConfigError(
                "logger=wandb needs the wandb package, which is not installed: "
                "`pip install wandb`, or choose logger=csv"
            )
        self.project, self.name, self.mode = project, name, mode
        self.heatmap_every = heatmap_every
        self._run: wandb.Run | None = None
        self._start: RunStarted | None = None
        self._stage: StageName = "supernet"
        self._shown: Allocation | None = None
        self._state_path = Path()
        self._state: dict[str, Any] = {}

    def on_run_start(self, event: RunStarted) -> None:
        run_dir = Path(event.run_dir)
        self._start = event
        self._state_path = run_dir / WANDB_STATE_FILE
        self._state = read_record(self._state_path) if event.resumed else {}
        self._run = self._open(run_dir, event)
        self._state = {"step": 0, "last": [-1, -1], **self._state, "id": self._run.id}
        write_json(self._state_path, self._state)
        for pattern, step in STEP_OF.items():
            self._run.define_metric(pattern, step_metric=step)

    def on_stage_start(self, event: StageStarted) -> None:
        self._stage = event.stage

    def on_sublayer_pruned(self, event: SublayerPruned) -> None:
        if self._start is not None and not event.resumed:
            num_sublayers = 2 * self._start.units.num_blocks
            self._log(dict(sublayer_metrics(event, self._stage, num_sublayers)))

    def on_start_round(self, event: StartRound) -> None:
        if self._is_new("last_round", [event.iteration, event.round]):
            self._log(dict(start_metrics(event)))

    def on_generation_end(self, event: GenerationFinished) -> None:
        if not self._is_new("last", [event.iteration, event.generation]):
            return
        metrics: dict[str, Any] = dict(generation_metrics(event))
        for index, stage in enumerate(event.stages):
            if losses := [loss for loss in stage.losses if math.isfinite(loss)]:
                metrics[stage_losses_key(index)] = self._wandb().Histogram(losses)
        if (event.generation + 1) % self.heatmap_every == 0:
            metrics |= self._image(event.allocation)
        self._log(metrics)

    def on_search_end(self, event: SearchFinished) -> None:
        if image := self._image(event.allocation):
            self._log(image)

    def on_evaluation_end(self, event: EvaluationFinished) -> None:
        if self._run is not None:
            self._run.summary.update(evaluation_metrics(event))

    def on_stage_end(self, event: StageFinished) -> None:
        self._log(dict(stage_metrics(event)))

    def on_run_end(self, event: RunFinished) -> None:
        columns = ["model", "perplexity", "kl", "parameters", "bytes", "perplexity_ratio"]
        table = self._wandb().Table(columns=columns)
        for line in result_lines(event.rows):
            row = line.row
            ratio = line.perplexity_ratio
            table.add_data(line.name, row.perplexity, row.kl, row.parameters, row.bytes, ratio)
        self._log({RESULT_TABLE: table})
        self._close(0)

    def on_run_error(self, error: BaseException) -> None:
        self._close(1)

    def _wandb(self) -> Any:
        import wandb

        return wandb

    def _open(self, run_dir: Path, event: RunStarted) -> wandb.Run:
        wandb, mode = self._wandb(), resolve_mode(self.mode)
        if mode == "online":
            try:
                return self._init(run_dir, event, mode)
            except wandb.errors.Error as error:
                logger.warning("W&B cannot be reached, tracking offline instead: %s", error)
                mode = "offline"
        return self._init(run_dir, event, mode)

    def _init(self, run_dir: Path, event: RunStarted, mode: str) -> wandb.Run:
        run_dir.mkdir(parents=True, exist_ok=True)
        run: wandb.Run = self._wandb().init(
            project=self.project,
            name=self.name or run_dir.name,
            dir=str(run_dir),
            id=self._state.get("id"),
            # An offline run is continued by its id alone: `wandb sync` joins the parts.
            resume="allow" if mode == "online" else None,
            mode=mode,
            reinit="finish_previous",
            config={**event.config, "environment": dict(event.environment)},
            settings=self._wandb().Settings(
                silent=True, console="off", init_timeout=INIT_TIMEOUT_SECONDS
            ),
        )
        return run

    def _is_new(self, kind: str, position: list[int]) -> bool:
        """Whether this was not logged before the run was killed; noted with the next `_log`."""
        new: bool = position > self._state.get(kind, [-1, -1])
        if new:
            self._state[kind] = position
        return new

    def _log(self, metrics: dict[str, Any]) -> None:
        if self._run is None:
            return
        self._run.log(metrics, step=self._state["step"])
        self._state["step"] += 1
        write_json(self._state_path, self._state)

    def _image(self, removed: Allocation) -> dict[str, Any]:
        """The allocation's heatmap under its key; nothing when it is the last one shown."""
        from tyr.callbacks.figure_style import pixels
        from tyr.callbacks.figures import draw_allocation

        assert self._start is not None, "on_run_start comes first"
        if removed == self._shown:
            return {}
        self._shown = removed
        figure = draw_allocation(removed, self._start.units, annotated=False)
        return {ALLOCATION_IMAGE: self._wandb().Image(pixels(figure))}

    def _close(self, exit_code: int) -> None:
        if self._run is not None:
            self._run.finish(exit_code=exit_code)
            self._run = None
