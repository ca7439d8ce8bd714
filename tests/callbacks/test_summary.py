"""summary.json holds the final numbers and the accumulated cost."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from tyr.callbacks import Summary
from tyr.events import EvaluationRow, StageFinished


def read(run: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run.run_dir / "summary.json").read_text())
    return content


def test_the_summary_holds_every_row_and_the_cost(
    run: Any, rows: dict[str, EvaluationRow], play: Callable[..., None]
) -> None:
    play([Summary()], run.events())
    content = read(run)
    for name in ("dense", "uniform", "tyr"):
        assert content[name] == asdict(rows[name])
    assert content["variants"] == {"tyr_supernet": asdict(rows["tyr_supernet"])}
    assert content["seconds"]["supernet"] == pytest.approx(4.8)
    assert content["seconds"]["search"] == pytest.approx(2.0)
    assert "search-1" not in content["seconds"]
    assert content["peak_rss_bytes"] == 123_456_789
    assert content["removed_units"] == {"attn": 48, "ffn": 2688}
    assert content["sparsity"] == 0.5
    assert content["allocation"] == run.allocation(1, 3).as_dict()
    assert content["export"] == "model"


def test_a_resumed_run_counts_the_time_of_the_process_before(
    run: Any, play: Callable[..., None]
) -> None:
    events = run.middle()
    cut = [isinstance(event, StageFinished) for event in events].index(True) + 1
    first = Summary()
    play([first], [run.started(), *events[:cut]])
    first.on_run_error(KeyboardInterrupt())
    play([Summary()], [run.started(resumed=True), *events[cut:], run.finished()])
    assert read(run)["seconds"]["dense"] == 1.5


def test_a_model_that_was_not_evaluated_is_null_and_an_export_elsewhere_is_absolute(
    run: Any, play: Callable[..., None], tmp_path: Path
) -> None:
    end = replace(run.finished(), rows={}, export_dir=tmp_path / "elsewhere")
    play([Summary()], [run.started(), end])
    assert read(run)["tyr"] is None
    assert read(run)["export"] == (tmp_path / "elsewhere").as_posix()
    play([Summary()], [run.started(), replace(end, export_dir=None)])
    assert read(run)["export"] is None


def test_an_error_before_the_start_is_survived() -> None:
    Summary().on_run_error(RuntimeError())
