"""Keeps run_dir/allocation.json current: what is removed from every sublayer, as far as known.

Written after each search and at the end of the run. It is for readers and tools; the state a run
resumes from is the pipeline's own.
"""

from __future__ import annotations

from pathlib import Path

from tyr.events import Callback, RunFinished, RunStarted, SearchFinished
from tyr.files import read_record, write_json
from tyr.sparsity import KINDS, Allocation, sparsity_of

ALLOCATION_FILE = "allocation.json"


class Checkpoint(Callback):
    """Writes allocation.json: model, asked sparsity, and units, removed and sparsity per block.

    `iteration` (0-based) and `loss` are those of the last search, null when there was none; `final`
    is true once the run has ended.
    """

    def __init__(self) -> None:
        self._start: RunStarted | None = None
        self._origin: dict[str, object] = {"iteration": None, "loss": None}

    def on_run_start(self, event: RunStarted) -> None:
        self._start = event
        path = Path(event.run_dir) / ALLOCATION_FILE
        known = read_record(path) if event.resumed else {}
        self._origin = {key: known.get(key) for key in ("iteration", "loss")}

    def on_search_end(self, event: SearchFinished) -> None:
        self._origin = {"iteration": event.iteration, "loss": event.loss}
        self._write(event.allocation, final=False)

    def on_run_end(self, event: RunFinished) -> None:
        self._write(event.allocation, final=True)

    def _write(self, removed: Allocation, *, final: bool) -> None:
        start = self._start
        assert start is not None, "on_run_start comes first"
        content = {
            "model": start.model_name,
            "asked_sparsity": start.sparsity,
            "final": final,
            **self._origin,
            "units": start.units.as_dict(),
            "removed": removed.as_dict(),
            "sparsity": {kind: sparsity_of(removed, start.units, kind) for kind in KINDS},
        }
        write_json(Path(start.run_dir) / ALLOCATION_FILE, content)
