"""What a run has done so far, as the figures and the report need it.

The same rows feed it live and from metrics.csv after a resume, so a continued run draws what an
uninterrupted one draws. Without a metrics file (`logger=none`) a resumed run knows only what
happened since.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tyr.callbacks.metrics_file import METRICS_FILE, read_rows
from tyr.callbacks.rows import Row, generation_row, sublayer_row
from tyr.events import GenerationFinished, RunStarted, SublayerPruned
from tyr.sparsity import Allocation

LevelErrors = dict[int, float]


@dataclass(frozen=True)
class GenerationPoint:
    """One generation, as plotted and as tabled."""

    seconds: float
    evaluated_tokens: int
    sublayer_evaluations: int
    dense_sublayer_evaluations: int
    best_loss: float
    parent_loss: float
    allocation: Allocation


@dataclass
class History:
    """Facts of a run, each once.

    Args:
        generations: (iteration, generation) to its numbers.
        errors: iteration to sublayer name to level to relative reconstruction error.
    """

    generations: dict[tuple[int, int], GenerationPoint] = field(default_factory=dict)
    errors: dict[int, dict[str, LevelErrors]] = field(default_factory=dict)

    @classmethod
    def begin(cls, event: RunStarted) -> History:
        """Empty for a new run; what metrics.csv remembers for a resumed one."""
        path = Path(event.run_dir) / METRICS_FILE
        return cls.from_rows(read_rows(path) if event.resumed and path.exists() else [])

    @classmethod
    def from_rows(cls, rows: Iterable[Row]) -> History:
        """History of a list of rows."""
        history = cls()
        for row in rows:
            history.add(row)
        return history

    @property
    def searched(self) -> dict[int, Allocation]:
        """Iteration to the allocation of its last generation, which is what its search found.

        Taken from the generations because a run killed right after the last one continues with the
        next iteration and never reports the end of this search.
        """
        return {t: self.generations[t, g].allocation for t, g in sorted(self.generations)}

    def record(self, event: GenerationFinished | SublayerPruned) -> None:
        """Take a live event."""
        if isinstance(event, GenerationFinished):
            self.add(generation_row(event))
        else:
            self.add(sublayer_row(event, None))

    def add(self, row: Row) -> None:
        """Take a row; a later row with the same key wins, other events are ignored."""
        if row["event"] == "generation":
            position = int(row["iteration"]), int(row["generation"])
            self.generations[position] = _generation_point(row)
        elif row["event"] == "sublayer" and row["iteration"]:
            self._add_errors(row)

    def _add_errors(self, row: Row) -> None:
        errors = {int(level): error for level, error in json.loads(row["errors"]).items()}
        if errors:  # a sublayer read back on resume has none: keep what was measured
            self.errors.setdefault(int(row["iteration"]), {})[row["sublayer"]] = errors


def _generation_point(row: Row) -> GenerationPoint:
    return GenerationPoint(
        seconds=float(row["seconds"]),
        evaluated_tokens=int(row["evaluated_tokens"]),
        sublayer_evaluations=int(row["sublayer_evaluations"]),
        dense_sublayer_evaluations=int(row["dense_sublayer_evaluations"]),
        best_loss=float(row["best_loss"]),
        parent_loss=float(row["parent_loss"]),
        allocation=Allocation.from_dict(json.loads(row["allocation"])),
    )
