"""What the options of a search report reaches metrics.csv and the tracker."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tyr.callbacks.metrics import generation_metrics, start_metrics
from tyr.callbacks.rows import generation_row, row_key, start_row
from tyr.events import StartRound

OPTIONS = ("screened", "raced_out", "archive_hits", "surrogate_rank_correlation")


def test_what_the_options_did_is_recorded(run: Any) -> None:
    event = replace(
        run.generation(0, 0),
        screened=250,
        raced_out=0,
        archive_hits=3,
        surrogate_rank_correlation=-0.25,
    )
    row, metrics = generation_row(event), generation_metrics(event)
    assert [row[name] for name in OPTIONS] == ["250", "0", "3", "-0.25"]
    assert [metrics[f"search/{name}"] for name in OPTIONS] == [250, 0, 3, -0.25]


def test_a_search_without_options_records_none_of_them(run: Any) -> None:
    event = run.generation(0, 0)
    row, metrics = generation_row(event), generation_metrics(event)
    assert [row[name] for name in OPTIONS] == [""] * 4
    assert not {f"search/{name}" for name in OPTIONS} & metrics.keys()


def test_the_rounds_of_a_start_are_rows_of_their_own() -> None:
    first = StartRound(
        iteration=1, round=0, rounds=3, changes=64, parent_loss=0.5, best_loss=0.25, seconds=2.0
    )
    row, metrics = start_row(first), start_metrics(first)
    assert (row["event"], row["name"]) == ("start", "1/3")
    assert [row[name] for name in ("iteration", "changes", "parent_loss", "best_loss")] == [
        *("1", "64", "0.5", "0.25")
    ]
    assert metrics["start/step"] == 3
    assert metrics["start/best_loss"] == 0.25
    assert row_key(row) != row_key(start_row(replace(first, round=1)))
