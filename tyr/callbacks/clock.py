"""How long every stage took over all processes of a run, killed ones included.

durations.json beside the metrics holds the finished seconds and those of the stage under way; it is
replaced after every step, so a kill loses at most one step's time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tyr.events import StageFinished, StageStarted
from tyr.files import UNRECORDED, read_json, write_json

DURATIONS_FILE = "durations.json"


class StageClock:
    """Accumulates seconds per stage and iteration, across resumes.

    Args:
        run_dir: where durations.json lives.
        resumed: whether to continue the durations found there.
        now: a monotonic clock, seconds.
    """

    def __init__(
        self, run_dir: Path, *, resumed: bool, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = run_dir / DURATIONS_FILE
        self._now = now
        self._before = _read(self._path) if resumed else {}
        self._finished: dict[str, float] = {}
        self._running: tuple[str, float] | None = None
        self._begin = now()

    def start(self, event: StageStarted) -> None:
        """A stage begins."""
        self._running = (_key(event), self._now())
        self.tick()

    def finish(self, event: StageFinished) -> None:
        """A stage ended; its own measurement counts, not this clock's."""
        key = _key(event)
        self._finished[key] = self._finished.get(key, 0.0) + event.seconds
        self._running = None
        self.tick()

    def tick(self) -> None:
        """Put the durations so far on disk."""
        write_json(self._path, self.seconds())

    def seconds(self) -> dict[str, float]:
        """Seconds by `stage` or `stage/iteration`, and `total` from start to now."""
        seconds = dict(self._before)
        for key, spent in self._finished.items():
            seconds[key] = seconds.get(key, 0.0) + spent
        if self._running is not None:
            key, since = self._running
            seconds[key] = seconds.get(key, 0.0) + self._now() - since
        seconds["total"] = self._before.get("total", 0.0) + self._now() - self._begin
        return seconds


def by_stage(seconds: dict[str, float]) -> dict[str, float]:
    """Sum the iterations of a stage: `search/0` and `search/1` become `search`; total is last."""
    sums: dict[str, float] = {}
    for key, spent in seconds.items():
        if key != "total":
            stage = key.split("/")[0]
            sums[stage] = sums.get(stage, 0.0) + spent
    return {**sums, "total": seconds.get("total", sum(sums.values()))}


def recorded_seconds(run_dir: Path) -> dict[str, float]:
    """Seconds by stage as durations.json has them; empty when nothing recorded them."""
    recorded = _read(run_dir / DURATIONS_FILE)
    return by_stage(recorded) if recorded else {}


def _read(path: Path) -> dict[str, float]:
    return read_json(path, _seconds, without=UNRECORDED) or {}


def _seconds(content: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(spent) for key, spent in content.items()}


def _key(event: StageStarted | StageFinished) -> str:
    return event.stage if event.iteration is None else f"{event.stage}/{event.iteration}"
