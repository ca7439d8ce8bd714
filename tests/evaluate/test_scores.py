"""Averages, and the table that people see."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import pytest
from rich.console import Console

from tests.tolerance import FLOAT64, assert_close
from tyr.evaluate.scores import average, retained, score_lines, score_table
from tyr.events import TaskScore

ARC = TaskScore("acc", 0.5, 0.03, 100, 0.25)
BLIMP = TaskScore("acc", 0.8, 0.04, 300, 0.5)
DENSE = {"arc_easy": ARC, "blimp": BLIMP}
PRUNED = {"arc_easy": replace(ARC, value=0.4), "blimp": replace(BLIMP, value=0.64)}


def test_every_task_counts_the_same() -> None:
    mean = average(DENSE)
    assert_close(mean.value, 0.65, tolerance=FLOAT64, reason="four sums")
    assert_close(mean.stderr, math.hypot(0.03, 0.04) / 2, tolerance=FLOAT64, reason="four sums")
    assert (mean.metric, mean.examples, mean.chance) == ("acc", 400, 0.375)


def test_what_is_retained_is_the_ratio_of_the_averages() -> None:
    share = retained(PRUNED, DENSE)
    assert share is not None
    assert_close(share, 0.8, tolerance=FLOAT64, reason="four sums")


@pytest.mark.parametrize(
    ("pruned", "dense"),
    [
        ({}, {}),
        (PRUNED, {}),
        (PRUNED, {"arc_easy": ARC}),
        ({"blimp": BLIMP}, {"blimp": replace(BLIMP, value=0.0)}),
    ],
)
def test_nothing_is_retained_of_nothing(
    pruned: dict[str, TaskScore], dense: dict[str, TaskScore]
) -> None:
    assert retained(pruned, dense) is None


def test_the_table_puts_models_side_by_side() -> None:
    titles, lines = score_lines({"dense": DENSE, "uniform": {}, "tyr": PRUNED})
    assert titles == ["task", "n", "chance", "dense", "tyr"]
    assert lines == [
        ["arc_easy", "100", "25", "50.0 ± 3.0", "40.0 ± 3.0"],
        ["blimp", "300", "50", "80.0 ± 4.0", "64.0 ± 4.0"],
        ["average", "", "38", "65.0 ± 2.5", "52.0 ± 2.5"],
        ["retained", "", "", "100 %", "80 %"],
    ]


def test_one_task_has_no_average_and_without_a_dense_model_nothing_is_retained() -> None:
    other = replace(ARC, metric="acc_norm")
    assert score_lines({"model": {"arc_easy": other}})[1] == [
        ["arc_easy (acc_norm)", "100", "25", "50.0 ± 3.0"]
    ]


def test_four_models_fit_a_terminal() -> None:
    scores = {"arc_challenge": ARC}
    models = dict.fromkeys(("dense", "uniform", "tyr", "tyr_supernet"), scores)
    text = io.StringIO()
    Console(file=text, width=80).print(score_table(models))
    rows = text.getvalue().splitlines()
    assert len(rows) == 3
    assert all(row.count("±") in (0, 4) for row in rows)
