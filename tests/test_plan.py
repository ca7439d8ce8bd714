"""`python -m tyr.plan`, and the plan that a run stores."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli import plan_cli
from tyr.ceilings import Ceilings
from tyr.model.architecture import unit_counts
from tyr.model.loading import PretrainedModel
from tyr.plan_table import amount, duration
from tyr.sparsity import uniform_allocation
from tyr.supernet.accumulation import ExpectationAccumulation
from tyr.supernet.settings import SupernetSettings


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (2.5e12, "2.5 TB"), (999_900, "1 MB")],
)
def test_amounts_have_decimal_prefixes(value: float, text: str) -> None:
    assert amount(value, "B") == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (59.9, "59.9 s"), (90, "1.5 min"), (5400, "1.5 h"), (1e8, "1,157 days")],
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
    assert "while supernet 2 is built beside the one before it" in outcome.out
    assert "…" not in outcome.out, "cells are cut off in 80 columns"
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_plan_tells_what_pruning_consists_of(capsys: pytest.CaptureFixture[str]) -> None:
    positions = {}
    for target, streams in {"self": 1, "corrected": 2}.items():
        outcome = plan_cli(capsys, f"target={target}")
        assert outcome.status == 0, outcome.err
        lines = outcome.out.splitlines()
        names = [line[:15].strip() for line in lines]
        first = names.index("supernet")
        assert names[first + 1 : first + 5] == ["forward", "Hessians", "inverses", "greedy steps"]
        rows = [lines[first + row].split() for row in range(3)]  # the stage and two of its parts
        assert {tuple(row[2:4]) for row in rows} == {tuple(rows[0][2:4])}
        positions[streams] = float(rows[0][2])
    assert positions[2] == pytest.approx(2 * positions[1])


def test_a_plan_refuses_what_a_run_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = plan_cli(capsys, "sparsity=2")
    assert outcome.status == 2
    assert outcome.err.startswith("tyr: sparsity must be in [0, 1)")


@pytest.fixture(autouse=True)
def ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here looks at rates."""
    rates = Ceilings(compute=1e9, solve=1e9, bandwidth=1e9)
    monkeypatch.setattr("tyr.ceilings.measure_ceilings", lambda *_: rates)


def tiny_bounds() -> tuple[tuple[int, int], ...]:
    """Levels of the built-in model in the first iteration."""
    units = unit_counts(PretrainedModel("built-in").configuration(), "head")
    settings = SupernetSettings(ExpectationAccumulation())
    return settings.grid(uniform_allocation(0.5, units), units, 0).bounds()


def test_the_plan_of_a_fast_search_has_its_start_and_fewer_offspring(
    capsys: pytest.CaptureFixture[str],
) -> None:
    outcome = plan_cli(capsys, "experiment=fast", "start=dynamic", "search.generations=7")
    assert outcome.status == 0, outcome.err
    lines = [line.split() for line in outcome.out.splitlines()]
    rows = {" ".join(line[:2]): line[2:] for line in lines if line}
    # Each level of the ten sublayers alone, 512 tokens; four optima and the parent, 2,048; twice.
    singles = 1 + sum(high - low for low, high in tiny_bounds())
    assert rows["start 2"][:2] == amount(2 * (singles * 512 + 5 * 2048), "").split()
    # A quarter of 24 offspring, but at least the 8 survivors, on 512 tokens, 14 times.
    assert rows["stage 1"][:3] == ["14", "57.3", "k"]
    assert "racing and archive" in outcome.out


@pytest.mark.parametrize("model", ["tiny", "random"])  # schedules: two CPU cores', paper's
def test_a_fast_search_evaluates_fewer_tokens_than_the_one_it_replaces(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = []
    for words in [(), ("experiment=fast",)]:
        outcome = plan_cli(capsys, f"model={model}", *words)
        assert outcome.status == 0, outcome.err
        [row] = [line.split() for line in outcome.out.splitlines() if line.startswith(" search ")]
        tokens.append(float(row[2]) * {"k": 1e3, "M": 1e6}[row[3]])
    whole, fast = tokens
    assert fast < whole


def test_a_plan_without_generations_has_one_supernet_and_no_search(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = "search.generations=0", "finish=supernet", "evaluator=latency"
    outcome = plan_cli(capsys, *words)
    assert outcome.status == 0, outcome.err
    rows = {line.split()[0]: line.split()[1:] for line in outcome.out.splitlines() if line.strip()}
    assert "search" not in rows
    assert rows["supernet"][0] == "1"
    assert rows["finish"] == ["1", "0.0", "s"]
    assert "beside the one before it" not in outcome.out
    assert "Distinct" not in rows
    assert "only perplexity is counted" in outcome.out


def test_the_plan_of_two_processes_adds_their_memory_up(
    capsys: pytest.CaptureFixture[str],
) -> None:
    outcome = plan_cli(capsys, "trainer.devices=2", "trainer.accelerator=cpu")
    assert outcome.status == 0, outcome.err
    assert "by all 2 processes on this machine" in " ".join(outcome.out.split())
    outcome = plan_cli(capsys, "trainer.devices=999", "trainer.accelerator=cpu")
    assert outcome.status == 2
    assert "999 processes share" in outcome.err


def test_a_baseline_that_is_not_measured_is_not_planned(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tokens = {}
    for word in ("true", "false"):
        outcome = plan_cli(capsys, f"evaluator.uniform_baseline={word}", "finish.compare=false")
        assert outcome.status == 0, outcome.err
        [row] = [line.split() for line in outcome.out.splitlines() if "evaluation" in line]
        tokens[word] = row[2:4]
    assert tokens["true"] != tokens["false"]
