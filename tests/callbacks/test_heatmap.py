"""The figures of a run are all there, also after a resume."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tyr.callbacks import CsvMetrics, SparsityHeatmap, figure_style
from tyr.callbacks.heatmap import FIGURE_NAMES
from tyr.events import SearchFinished


def drawn(run: Any) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run.run_dir / "figures").iterdir()}


def test_every_figure_is_written_as_png_and_svg(run: Any, play: Callable[..., None]) -> None:
    run = replace(run, blocks=3)  # tests/callbacks/test_figures.py draws larger ones
    play([SparsityHeatmap()], run.events())
    assert set(drawn(run)) == {f"{name}.{s}" for name in FIGURE_NAMES for s in ("png", "svg")}


def test_a_resumed_run_draws_what_an_uninterrupted_one_draws(
    run: Any, play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figure_style, "FORMATS", ["svg"])  # half the time of both
    # It was killed between its last generation and the report of the search's end.
    run = replace(run, blocks=3)
    play([CsvMetrics(), SparsityHeatmap()], run.events())
    whole = drawn(run)
    events = run.middle()
    cut = [isinstance(event, SearchFinished) for event in events].index(True)
    play([CsvMetrics(), SparsityHeatmap()], [run.started(), *events[:cut]])
    play(
        [CsvMetrics(), SparsityHeatmap()],
        [run.started(resumed=True), *events[cut + 1 :], run.finished()],
    )
    assert drawn(run) == whole


def test_a_run_without_search_draws_only_the_allocation(
    run: Any, play: Callable[..., None]
) -> None:
    run = replace(run, iterations=0, blocks=3)
    (run.run_dir / "figures").mkdir(parents=True)
    (run.run_dir / "figures" / "search.svg").write_text("of an earlier run in the same place")
    play([SparsityHeatmap()], [run.started(), replace(run.finished(), allocation=run.uniform)])
    assert {name.split(".")[0] for name in drawn(run)} == {"allocation", "sparsity_by_block"}
