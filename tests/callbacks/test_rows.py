"""What the options of a search report reaches metrics.csv and the tracker."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tyr.callbacks.metrics import generation_metrics
from tyr.callbacks.rows import generation_row

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
