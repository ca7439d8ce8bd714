"""Draws a finished run into run_dir/figures: the allocation, the search, the calibration errors.

Everything is drawn once, at the end, from what the run reported and, after a resume, from what
metrics.csv remembers. A figure without data (no search, no errors) is not written.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tyr.callbacks.figure_style import FORMATS, save
from tyr.callbacks.figures import (
    draw_allocation,
    draw_calibration_error,
    draw_search,
    draw_sparsity_by_block,
)
from tyr.callbacks.history import History
from tyr.events import (
    Callback,
    GenerationFinished,
    RunFinished,
    RunStarted,
    SublayerPruned,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES_DIR = "figures"
# In the order a reader wants them.
FIGURE_NAMES = ("allocation", "sparsity_by_block", "search", "calibration_error")


class SparsityHeatmap(Callback):
    """Writes every figure of `FIGURE_NAMES` as PNG and SVG when the run ends."""

    def __init__(self) -> None:
        self.history = History()
        self._model_name = ""

    def on_run_start(self, event: RunStarted) -> None:
        self.history = History.begin(event)
        self._model_name = event.model_name
        for name in FIGURE_NAMES:  # of an earlier run here: the new one may not draw them all
            for suffix in FORMATS:
                (Path(event.run_dir) / FIGURES_DIR / f"{name}.{suffix}").unlink(missing_ok=True)

    def on_sublayer_pruned(self, event: SublayerPruned) -> None:
        self.history.record(event)

    def on_generation_end(self, event: GenerationFinished) -> None:
        self.history.record(event)

    def on_run_end(self, event: RunFinished) -> None:
        for name, figure in self._draw(event):
            save(figure, Path(event.run_dir) / FIGURES_DIR / name)

    def _draw(self, event: RunFinished) -> Iterator[tuple[str, Figure]]:
        title = f"Units removed from every sublayer, {self._model_name}"
        yield "allocation", draw_allocation(event.allocation, event.units, title)
        allocations = {"uniform": event.uniform}
        for iteration, removed in sorted(self.history.searched.items()):
            allocations[f"iteration {iteration + 1}"] = removed
        if not self.history.searched:
            allocations["allocation"] = event.allocation
        yield "sparsity_by_block", draw_sparsity_by_block(event.units, allocations)
        if self.history.generations:
            yield "search", draw_search(self.history.generations)
        if self.history.errors:
            errors = self.history.errors
            yield "calibration_error", draw_calibration_error(event.units.num_blocks, errors)
