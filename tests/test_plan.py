"""`python -m tyr.plan`, and the plan that a run stores."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli import plan_cli
from tyr.plan_table import amount, duration


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (2.5e12, "2.5 TB")]
)
def test_amounts_have_decimal_prefixes(value: float, text: str) -> None:
    assert amount(value, "B") == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (59.9, "59.9 s"), (90, "1.5 min"), (5400, "1.5 h"), (1e8, "1,157.4 days")],
)
def test_durations_have_a_fitting_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_plan_names_every_stage_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = plan_cli(capsys, "iterations=3")
    assert outcome.status == 0, outcome.err
    for stage in ("dense", "supernet", "search", "finish", "evaluation"):
        assert stage in outcome.out
    assert "Distinct trie nodes" in outcome.out
    assert "At once" in outcome.out
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_plan_refuses_what_a_run_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = plan_cli(capsys, "sparsity=2")
    assert outcome.status == 2
    assert outcome.err.startswith("tyr: sparsity must be in [0, 1)")
