"""Writes run_dir/summary.json when a run ends: every number of its final table, and what it cost.

Seconds are those of all processes that worked on the run, killed ones included (`clock.py`); the
peak memory is the last process's.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from tyr.budget import unit_budget
from tyr.callbacks.clock import StageClock, by_stage
from tyr.callbacks.planned import read_plan
from tyr.callbacks.results import MAIN_ROWS
from tyr.evaluate.scores import average, retained
from tyr.events import (
    Callback,
    EvaluationRow,
    GenerationFinished,
    RunFinished,
    RunStarted,
    StageFinished,
    StageStarted,
    SublayerPruned,
)
from tyr.files import write_json

SUMMARY_FILE = "summary.json"


class Summary(Callback):
    """Writes summary.json.

    Keys: `model`, `sparsity`, `asked_units` per kind; `dense`, `uniform`, `tyr` (null when not
    evaluated) and `variants`, each with perplexity, kl, parameters, backbone_parameters, bytes and
    tasks (task to metric, value, stderr, examples, chance), and when tasks were asked their
    `average` and the share of the dense model's that is `retained`; `seconds` per stage and in
    `total`; `planned`, the seconds per stage and the bytes of memory that plan.json foresaw;
    `peak_rss_bytes`; `removed_units` per kind, which a layout may have rounded; `allocation`;
    `export` relative to the run directory; `command`.
    """

    def __init__(self) -> None:
        self._start: RunStarted | None = None
        self._clock: StageClock | None = None

    def on_run_start(self, event: RunStarted) -> None:
        self._start = event
        self._clock = StageClock(Path(event.run_dir), resumed=event.resumed)

    def on_stage_start(self, event: StageStarted) -> None:
        self.clock.start(event)

    def on_sublayer_pruned(self, event: SublayerPruned) -> None:
        self.clock.tick()

    def on_generation_end(self, event: GenerationFinished) -> None:
        self.clock.tick()

    def on_stage_end(self, event: StageFinished) -> None:
        self.clock.finish(event)

    def on_run_error(self, error: BaseException) -> None:
        if self._clock is not None:
            with suppress(OSError):  # a full disk may be the error being reported
                self._clock.tick()

    def on_run_end(self, event: RunFinished) -> None:
        self.clock.tick()
        write_json(Path(event.run_dir) / SUMMARY_FILE, self._content(event))

    @property
    def clock(self) -> StageClock:
        """The clock of the run under way."""
        assert self._clock is not None, "on_run_start comes first"
        return self._clock

    def _content(self, event: RunFinished) -> dict[str, object]:
        start = self._start
        assert start is not None, "on_run_start comes first"
        dense = event.rows.get("dense")
        rows = {name: _row(row, dense) for name, row in event.rows.items()}
        planned = read_plan(Path(event.run_dir))
        return {
            "model": start.model_name,
            "sparsity": start.sparsity,
            "asked_units": {
                kind: unit_budget(start.sparsity, total)
                for kind, total in start.units.total.items()
            },
            **{name: rows.get(name) for name in MAIN_ROWS},
            "variants": {name: row for name, row in rows.items() if name not in MAIN_ROWS},
            "seconds": by_stage(self.clock.seconds()),
            "planned": None if planned is None else asdict(planned),
            "peak_rss_bytes": event.peak_rss_bytes,
            "removed_units": dict(event.removed_units) or event.allocation.total,
            "allocation": event.allocation.as_dict(),
            "export": _relative(event.export_dir, Path(event.run_dir)),
            "command": start.command,
        }


def _row(row: EvaluationRow, dense: EvaluationRow | None) -> dict[str, object]:
    if not row.tasks:
        return asdict(row)
    share = None if dense is None else retained(row.tasks, dense.tasks)
    return {**asdict(row), "average": asdict(average(row.tasks)), "retained": share}


def _relative(path: Path | None, base: Path) -> str | None:
    if path is None:
        return None
    path, base = path.absolute(), base.absolute()
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else path.as_posix()
