"""The plan beside the clock, where a user reads it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tyr.callbacks import HtmlReport, Progress, Summary
from tyr.callbacks.planned import memory_sentence, read_plan, time_sentence, times_planned

PLAN = {
    "stages": [{"name": "dense", "seconds": 0.5}, {"name": "search", "seconds": 4.0}],
    "seconds": 4.5,
    "memory_bytes": 73.7e6,
}


def write_plan(run_dir: Path) -> None:
    run_dir.mkdir(parents=True)
    (run_dir / "plan.json").write_text(json.dumps(PLAN))


def test_a_run_without_a_plan_has_nothing_planned(tmp_path: Path) -> None:
    assert read_plan(tmp_path) is None
    assert times_planned(3.0, None) == "-"


def test_a_plan_with_parts_missing_is_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({"stages": [{"name": "dense"}]}))
    assert read_plan(tmp_path) is None
    assert "plan.json is damaged: going on without what it recorded" in caplog.text


def test_the_sentences_name_both_sides(tmp_path: Path) -> None:
    write_plan(tmp_path / "run")
    planned = read_plan(tmp_path / "run")
    assert planned is not None
    told = time_sentence(planned, {"dense": 1.0, "total": 9.0})
    assert told == "Planned 4.5 s for the products alone, took 9.0 s (2.0x)."
    assert "734 MB, libraries included" in memory_sentence(planned, 734_000_000)
    assert "work 73.7 MB" in memory_sentence(planned, 734_000_000)


def test_terminal_report_and_summary_show_planned_against_measured(
    run: Any, play: Callable[..., None]
) -> None:
    write_plan(run.run_dir)
    with (run.run_dir / "terminal").open("w") as stream:
        progress = Progress(console=Console(file=stream, width=80))
        play([Summary(), HtmlReport(), progress], run.events())
    told = (run.run_dir / "terminal").read_text()
    assert re.search(r"^Planned 4\.5 s for the products alone, took .* \(.*x\)\.$", told, re.M)
    page = (run.run_dir / "report.html").read_text("utf-8")
    assert "<th>planned</th><th>ratio</th>" in page
    assert re.search(r"<td>dense evaluation</td><td>1\.5 s</td><td>.*?</td><td>0\.5 s</td>", page)
    assert "<td>3.0x</td>" in page
    assert "planned for model, hidden states and work 73.7 MB" in page
    assert "what the run was planned to cost" in page
    summary = json.loads((run.run_dir / "summary.json").read_text())
    assert summary["planned"]["seconds"] == {"dense": 0.5, "search": 4.0, "total": 4.5}
