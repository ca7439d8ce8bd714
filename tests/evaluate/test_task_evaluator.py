"""`evaluator=lm_eval_local` in a whole run: task scores beside perplexity, dense beside pruned."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from tests.cli import run_cli
from tests.evaluate.task_files import write_rows, write_task_files
from tests.model_zoo import VOCABULARY, random_tokens, zoo_decoder
from tests.tiny import save_random_model
from tyr.evaluate.perplexity import PerplexityEvaluator
from tyr.evaluate.task_evaluator import from_files
from tyr.rundir import RunDirectory

pytest.importorskip("lm_eval", reason="extra: eval")
pytestmark = pytest.mark.usefixtures("templates")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task_files(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A one-block random model with the built-in tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    return save_random_model(folder, blocks=1, heads=4, kv_heads=2, neurons=32)


def test_tasks_come_beside_what_was_measured_before(folder: Path) -> None:
    decoder, windows = zoo_decoder("llama"), random_tokens(4, 8)
    assert int(windows.max()) < VOCABULARY
    evaluator = from_files(folder, ["blimp", "arc_easy"], uniform_baseline=False)
    assert evaluator.uniform_baseline is False
    quality = evaluator.evaluate(decoder, windows, reference=decoder)
    plain = PerplexityEvaluator().evaluate(decoder, windows, reference=decoder)
    assert (quality.perplexity, quality.kl) == (plain.perplexity, plain.kl)
    assert list(quality.tasks) == ["blimp", "arc_easy"]
    assert plain.tasks == {}


def test_a_run_records_and_shows_tasks(
    folder: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    words = [
        *("model=local", f"model.path={model_dir}", "debug=fast", "logger=csv", "iterations=0"),
        *("sparsity=0.5", "evaluator=lm_eval_local", f"evaluator.data_dir={folder}"),
        *(
            "evaluator.tasks=[blimp,arc_easy]",
            "evaluator.limit=8",
            f"run_dir={run_dir}",
            "~callbacks.heatmap",
        ),
    ]
    outcome = run_cli(capsys, *words)
    assert outcome.status == 0, outcome.err
    summary = json.loads((run_dir / "summary.json").read_text())
    for name in ("dense", "uniform", "tyr"):
        tasks = summary[name]["tasks"]
        assert tasks["arc_easy"]["examples"] == 8
        assert tasks["blimp"]["stderr"] > 0
        assert summary[name]["perplexity"] > 0
        mean = (tasks["arc_easy"]["value"] + tasks["blimp"]["value"]) / 2
        assert summary[name]["average"]["value"] == pytest.approx(mean)
    assert summary["dense"]["retained"] == 1.0
    assert "arc_easy" in outcome.out
    assert "retained" in outcome.out
    [row] = [
        row
        for row in csv.DictReader((run_dir / "metrics.csv").open())
        if row["event"] == "evaluation" and row["name"] == "tyr"
    ]
    assert json.loads(row["tasks"]) == summary["tyr"]["tasks"]
    assert "arc_easy" in (run_dir / "report.html").read_text()
    assert "| arc_easy |" in (run_dir / "model" / "README.md").read_text()
    again = RunDirectory(run_dir).evaluations()["tyr"]
    assert again.tasks["blimp"].value == summary["tyr"]["tasks"]["blimp"]["value"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "evaluator.data_dir must be given"),
        ("evaluator.data_dir=nowhere", "data_dir=nowhere does not exist"),
        ("evaluator.data_dir={bad}", "line 2 has no field 'gold'"),
        ("evaluator.data_dir={good} evaluator.tasks=[piqqa]", r"did you mean piqa\?"),
        ("evaluator.data_dir={good} evaluator.limit=1", "limit must be at least 2"),
        ("evaluator.data_dir={good} evaluator.limt=3", r"did you mean evaluator.limit\?"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    words: str,
    message: str,
    folder: Path,
    model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    row = {"query": "w20", "choices": ["w21", "w22"], "gold": 0}
    write_rows(tmp_path / "bad" / "arc_easy.jsonl", [row, {"query": "w20", "choices": []}])
    given = words.format(bad=tmp_path / "bad", good=folder).split()
    run_dir = tmp_path / "run"
    command = ["model=local", f"model.path={model_dir}", "debug=fast", "evaluator=lm_eval_local"]
    outcome = run_cli(capsys, *command, f"run_dir={run_dir}", *given)
    assert outcome.status == 2
    assert len(outcome.err.strip().splitlines()) == 1
    assert re.search(message, outcome.err), outcome.err
    assert not run_dir.exists()
