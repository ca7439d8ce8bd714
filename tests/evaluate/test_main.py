"""`python -m tyr.evaluate`: an exported directory on its own or beside its dense model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.cli import Outcome
from tests.evaluate.task_files import write_task_files
from tests.model_zoo import PATTERNS, structures_from, zoo_decoder
from tyr.evaluate import __main__ as command
from tyr.evaluate.__main__ import main
from tyr.export.checkpoint import export_checkpoint
from tyr.export.shards import stored_shapes

pytest.importorskip("lm_eval", reason="extra: eval")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task_files(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A dense directory and a pruned one."""
    directory = tmp_path_factory.mktemp("models")
    decoder = zoo_decoder("llama")
    decoder.model.save_pretrained(directory / "dense")
    decoder.tokenizer.save_pretrained(directory / "dense")
    structures = structures_from(decoder, PATTERNS["uneven"])
    export_checkpoint(decoder, structures.__getitem__, directory / "pruned", provenance={})
    return str(directory / "dense"), str(directory / "pruned")


def evaluate(capsys: pytest.CaptureFixture[str], *words: str) -> Outcome:
    """The command in this process."""
    capsys.readouterr()
    status = 0
    try:
        main(words)
    except SystemExit as stop:
        status = int(stop.code or 0)
    captured = capsys.readouterr()
    return Outcome(status, captured.out, captured.err)


def test_the_table_shows_both_models_and_the_file_holds_the_same(
    models: tuple[str, str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, pruned = models
    file = tmp_path / "scores.json"
    words = ["--data-dir", str(folder), "--tasks", "blimp,arc_easy", "--limit", "6"]
    outcome = evaluate(capsys, pruned, "--dense", dense, *words, "--output", str(file))
    assert outcome.status == 0, outcome.err
    record = json.loads(file.read_text())
    lines = [line.split() for line in outcome.out.splitlines()]
    assert lines[0] == ["task", "n", "chance", "dense", "model"]
    for line, task in ((lines[1], "blimp"), (lines[2], "arc_easy")):
        values = [record["tasks"][name][task]["value"] for name in ("dense", "model")]
        assert [line[0], line[3], line[6]] == [task, *(f"{100 * value:.1f}" for value in values)]
    assert lines[4][0] == "retained"
    share = record["average"]["model"]["value"] / record["average"]["dense"]["value"]
    assert record["retained"] == pytest.approx(share)


def test_a_model_alone_has_one_column(
    models: tuple[str, str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = evaluate(capsys, models[1], "--data-dir", str(folder), "--tasks", "blimp_islands")
    assert outcome.status == 0, outcome.err
    head, row, *rest = [line.split() for line in outcome.out.splitlines()]
    assert head == ["task", "n", "chance", "model"]
    assert row[:3] == ["blimp_islands", "12", "50"]
    assert "retained" not in [line[0] for line in rest if line][:1]


@pytest.mark.parametrize(
    ("model", "words", "message"),
    [
        ("./nowhere", "", "nowhere does not exist: expected the directory of an exported"),
        ("outputs/run/nowhere", "", "outputs/run/nowhere does not exist"),
        ("{pruned}", "--tasks blimpp", "did you mean blimp?"),
        ("{pruned}", "--limit 1", "limit must be at least 2"),
        ("{pruned}", "--metric accuracy", "metric must be acc or acc_norm, got accuracy"),
        ("{pruned}", "--dense ./nowhere", "nowhere does not exist"),
        ("{pruned}", "--data-dir ./nowhere", "data_dir=nowhere does not exist"),
        ("{pruned}", "--device abacus", "--device abacus cannot be used here"),
    ],
)
def test_bad_input_is_one_paragraph(
    model: str,
    words: str,
    message: str,
    models: tuple[str, str],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [model.format(pruned=models[1]), "--data-dir", str(folder), *words.split()]
    outcome = evaluate(capsys, *given)
    assert outcome.status == 2
    [line] = outcome.err.strip().splitlines()
    assert line.startswith("tyr: ")
    assert message in line


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(
    models: tuple[str, str],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored = sum(size for *_, size in stored_shapes(Path(models[1])))
    monkeypatch.setattr(command, "load", None)  # nothing is loaded
    monkeypatch.setattr(command, "free_bytes", lambda device: stored - 1)
    outcome = evaluate(capsys, models[1], "--data-dir", str(folder))
    assert outcome.status == 2
    assert f"for the weights of {models[1]}" in outcome.err
    monkeypatch.setattr(command, "free_bytes", lambda device: stored)
    command.check_model(models[1], torch.device("cpu"))


def test_a_damaged_model_is_refused(
    models: tuple[str, str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in Path(models[1]).iterdir():
        content = file.read_bytes()
        cut = content[: len(content) // 2] if file.suffix == ".safetensors" else content
        (tmp_path / file.name).write_bytes(cut)
    outcome = evaluate(capsys, str(tmp_path), "--data-dir", str(folder), "--tasks", "blimp")
    assert outcome.status == 2
    assert f"cannot load {tmp_path}" in outcome.err
