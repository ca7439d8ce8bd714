"""metrics.csv holds every fact once, whatever a kill left behind."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tyr.callbacks import CsvMetrics
from tyr.callbacks.metrics_file import METRICS_FILE, MetricsFile, read_rows
from tyr.callbacks.rows import COLUMNS, Row, generation_row, row_key
from tyr.errors import ResumeError
from tyr.events import StageStarted


def without_stages(rows: list[Row]) -> dict[tuple[str, ...], Row]:
    """Stage rows add up over processes; every other row must be the same."""
    return {row_key(row): row for row in rows if row["event"] != "stage"}


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(share=st.floats(0, 1), again=st.integers(0, 30))
def test_a_file_cut_anywhere_is_completed_by_the_resumed_run(
    run: Any, play: Callable[..., None], share: float, again: int
) -> None:
    path = run.run_dir / METRICS_FILE
    play([CsvMetrics()], [run.started(), *run.middle()])
    whole, content = without_stages(read_rows(path)), path.read_bytes()

    path.write_bytes(content[: round(share * len(content))])
    known = len(read_rows(path))
    # The resumed run reports what is missing, and some of what is already there; a stage that is
    # continued starts again.
    todo, reported = [], 0
    for event in run.middle():
        reported += not isinstance(event, StageStarted)
        if isinstance(event, StageStarted) or reported > known - again:
            todo.append(event)
    play([CsvMetrics()], [run.started(resumed=True), *todo])

    assert without_stages(read_rows(path)) == whole
    assert len(read_rows(path)) == len(path.read_text().splitlines()) - 1


def test_a_generation_that_comes_again_replaces_its_row(run: Any) -> None:
    file = MetricsFile(run.run_dir / METRICS_FILE, keep=False)
    file.put(generation_row(run.generation(0, 0)))
    file.put(generation_row(run.generation(0, 1)))
    file.put(generation_row(replace(run.generation(0, 0), seconds=9.0)))
    rows = read_rows(file.path)
    assert [(row["generation"], row["seconds"]) for row in rows] == [("0", "9.0"), ("1", "0.25")]


def test_a_last_line_without_newline_is_dropped_even_if_it_parses(run: Any) -> None:
    file = MetricsFile(run.run_dir / METRICS_FILE, keep=False)
    file.put(generation_row(run.generation(0, 0)))
    file.put(generation_row(run.generation(0, 1)))
    file.path.write_text(file.path.read_text().rstrip("\n"))
    MetricsFile(file.path, keep=True)
    assert [row["generation"] for row in read_rows(file.path)] == ["0"]
    assert file.path.read_text().endswith("\n")


def test_a_new_run_does_not_keep_the_rows_of_the_old_one(run: Any) -> None:
    path = run.run_dir / METRICS_FILE
    MetricsFile(path, keep=False).put(generation_row(run.generation(0, 0)))
    MetricsFile(path, keep=False)
    assert path.read_text() == ",".join(COLUMNS) + "\n"


def test_a_file_of_another_version_is_refused_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    path.write_text("event,loss\ngeneration,1\n")
    with pytest.raises(ResumeError, match="move the file away"):
        MetricsFile(path, keep=True)
    assert path.read_text() == "event,loss\ngeneration,1\n"
