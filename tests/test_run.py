"""The command-line contract: names, exit statuses, messages, and what a run leaves on disk."""

from __future__ import annotations

import csv
import json
import logging
import re
import shutil
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.cli import run_cli
from tests.data.text import numbered
from tests.tiny import save_random_model

FAST = ("debug=fast", "logger=csv", "callbacks=quiet")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-block random model with six query heads and the built-in tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    return save_random_model(folder, blocks=2, heads=6, kv_heads=3, neurons=64)


@pytest.fixture
def local(model_dir: Path) -> tuple[str, ...]:
    """Words that choose the small model."""
    return ("model=local", f"model.path={model_dir}", *FAST)


def test_a_run_leaves_what_the_contract_names(
    local: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    outcome = run_cli(capsys, *local, f"run_dir={run_dir}", "sparsity=0.375")
    assert outcome.status == 0, outcome.err
    summary = json.loads((run_dir / "summary.json").read_text())
    for name in ("dense", "uniform", "tyr"):
        expected = {"perplexity", "kl", "parameters", "backbone_parameters", "bytes"}
        assert expected <= summary[name].keys()
    assert summary["removed_units"] == {"attn": 5, "ffn": 48}  # 0.375 of 12 heads is 4.5, half up
    assert summary["peak_rss_bytes"] > 0
    assert summary["seconds"]
    assert set(summary["planned"]["seconds"]) == {
        *("dense", "supernet", "search", "finish", "evaluation", "total")
    }
    rows = list(csv.DictReader((run_dir / "metrics.csv").open()))
    generations = [row for row in rows if row["event"] == "generation"]
    assert len(generations) == 2
    for row in generations:
        assert float(row["best_loss"]) <= float(row["parent_loss"])
        assert int(row["evaluated_tokens"]) > 0
        assert int(row["sublayer_evaluations"]) <= int(row["dense_sublayer_evaluations"])
    for name in ("config.yaml", "environment.json", "allocation.json", "report.html"):
        assert (run_dir / name).is_file()
    assert list((run_dir / "figures").glob("*.png"))


BAD_INPUT = {
    "sparsity=1.0": r"sparsity must be in \[0, 1\), got 1.0",
    "sparsity=-0.1": r"sparsity must be in \[0, 1\)",
    "sparsity=0.999": r"not reachable.*ask for at most",
    "sparsity=half": r"half.*could not be converted to Float",
    "accumulation=unifrom": r"accumulation=unifrom is unknown \(did you mean uniform\?\)",
    "supernet.accumulation=uniform": r"write accumulation=uniform",
    "pruner.criterion=taylor": r"write criterion=taylor",
    "search.objective=perplexity": r"write objective=perplexity",
    "search.generatons=3": r"no setting search.generatons \(did you mean search.generations\?\)",
    "data=text": r"data.path must be given",
    "data.path=x": r"the chosen settings have no data.path; it belongs to data=text",
    "data@text=text": r"there is no setting data@text: write data=",
    "data._target_=tyr.data.Nope": r"there is no tyr.data.Nope",
    "data.sequence_length=0": r"data.sequence_length must be at least 2 tokens, got 0",
    "model=null": r"got nonetype: choose a group as group=NAME",
    "+callbacks.foo=1": r"callbacks.foo must be an object with its settings, got 1",
    "logger=wandb logger.wandb.name=2024": (
        r"logger.wandb.name must be text, got 2024: write 'logger.wandb.name=\"2024\"'"
    ),
    "iterations=-1": r"iterations must not be negative",
    "sparsity=nan": r"sparsity must be in \[0, 1\), got nan",
    "pruner.criterion=null": r"pruner.criterion must be given, got null",
    "supernet.accumulation=null": r"supernet.accumulation must be given, got null",
    "search.objective=null": r"search.objective must be given, got null",
    "search.economy.racing=null": r"search.economy.racing must be given, got null",
    "evaluator=latency evaluator.materialise=null": r"evaluator.materialise must be given",
    "~search": r"search must be given",
    "~pruner": r"pruner must be given",
    "evaluator=latency evaluator.outputs=[4.5]": (
        r"each of evaluator.outputs must be a whole number, got 4.5"
    ),
    "evaluator=latency evaluator.engines=eager": (
        r"evaluator.engines must be a list, got 'eager': write 'evaluator.engines=\[...\]'"
    ),
    "evaluator=latency evaluator.inputs=16": r"evaluator.inputs must be a list, got 16",
    "search.stages=5": r"search.stages must be",
    "objective=kd_hidden search.objective.alpha=nan": r"alpha must be a number, got nan",
    "objective=kd_hidden search.objective.alpha=inf": r"alpha must be a number, got inf",
    "surrogate=linear search.economy.surrogate.random_share=nan": r"must be a number, got nan",
    "supernet.interval=0.01": r"finer than one attn unit",
    "supernet.interval=0.9": r"supernet.interval must be in",
    "supernet.levels=8": r"must be odd",
    "supernet.attention_unit=group": r"must be head or kv_group",
    "search.stages=[[512,4],[1024,2]]": r"last stage must keep 1",
    "search.stages=[[512,64],[1024,1]]": r"64 survivors out of",
    "data=text data.path={text} search.stages=[[10000000,1]]": r"too little text",
    "search.stages=[512,8]": r"must be pairs \[tokens, survivors\]",
    "search.stages=[[1,1]] objective=perplexity": r"needs sequences of at least 2 tokens",
    "data=text data.path={text} data.calibration_tokens=900000000": r"too little text",
    "data.sequence_length=1024": r"exceeds the model's context of 512",
    "data.evaluation_tokens=10": r"evaluation_tokens=10 is less than one window",
    "pruner.damping=-1": r"damping must not be negative",
    "trainer.accelerator=tpu9000": r"trainer.accelerator=tpu9000 cannot be used",
    "trainer.devices=0": r"trainer.devices must be a whole number of at least 1, got 0",
    "trainer.strategy=fsdp": r"trainer.strategy must be one of auto, ddp",
    "trainer.num_nodes=2": r"needs MASTER_ADDR, MASTER_PORT and NODE_RANK",
    "trainer.devices=9 debug=fast": r"9 processes share .* sequences: lower trainer.devices",
    "+trainer.precision=16": r"no setting trainer.precision; known: accelerator, devices",
    "surrogate=linear search.economy.surrogate.pairwise=maybe": (
        r"search.economy.surrogate.pairwise must be true or false, got 'maybe'"
    ),
    "supernet.allow_empty=1": r"supernet.allow_empty must be true or false, got 1",
    "start=dynamic search.economy.start.stage=x": (
        r"search.economy.start.stage must be a whole number, got 'x'"
    ),
    "racing=sequential search.economy.racing.error_rate=low": r"error_rate must be a number",
    "search.offspring=4e0": r"search.offspring must be a whole number, got 4.0: write 4",
    "search.generations=null": r"search.generations must be a whole number, got null",
    "pruner.ffn_group=2.5": r"pruner.ffn_group must be a whole number, got 2.5",
    "pruner.damping=true": r"pruner.damping must be a number, got true",
    "finish=supernet iterations=0": r"finish=supernet needs iterations",
}


@pytest.mark.parametrize("words", BAD_INPUT, ids=lambda words: words)
def test_bad_input_is_one_paragraph_before_any_work(
    words: str, local: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, text = tmp_path / "run", tmp_path / "text.txt"
    text.write_text(numbered(0, 900))
    outcome = run_cli(capsys, *local, f"run_dir={run_dir}", *words.format(text=text).split())
    assert outcome.status == 2
    assert len(outcome.err.strip().splitlines()) == 1
    assert "Traceback" not in outcome.err
    assert re.search(BAD_INPUT[words], outcome.err), outcome.err
    assert not run_dir.exists()


def test_an_empty_run_dir_is_not_the_working_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    outcome = run_cli(capsys, "run_dir=")
    assert outcome.status == 2
    assert "run_dir must name a directory, got nothing" in outcome.err
    assert here.is_dir()
    assert not list(here.iterdir())


def test_a_run_does_not_go_on_with_other_weights(
    local: tuple[str, ...], model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, run_dir = tmp_path / "model", tmp_path / "run"
    shutil.copytree(model_dir, copy)
    words = (*local, f"model.path={copy}", f"run_dir={run_dir}")
    assert run_cli(capsys, *words, "iterations=0", "finish=repruned").status == 0
    inputs = json.loads((run_dir / "inputs.json").read_text())
    assert inputs["compute_dtype"] == "float32"
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    weights = load_file(copy / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"] *= 1.5
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    outcome = run_cli(capsys, *words, "iterations=0", "finish=repruned", "resume=true")
    assert outcome.status == 2
    assert "the weights of the model are not those" in outcome.err
    for path, content in before.items():
        assert path.name == "environment.json" or path.read_bytes() == content, path


def test_resuming_finds_the_newest_run_of_the_same_settings(
    local: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = (*local, "iterations=0", "finish=repruned", "model.name='group/model[1]'")
    for more in ([], ["criterion=random"]):
        assert run_cli(capsys, *words, *more).status == 0
        time.sleep(1)  # the names of run directories count seconds
    earlier, _ = finished = sorted(tmp_path.glob("outputs/group/*/finished.json"))
    earlier.unlink()
    outcome = run_cli(capsys, *words, "resume=true")
    assert outcome.status == 0, outcome.err
    assert sorted(tmp_path.glob("outputs/group/*/finished.json")) == finished
    outcome = run_cli(capsys, *words, "criterion=magnitude", "resume=true")
    assert outcome.status == 2
    assert "made by a different configuration (pruner.criterion" in outcome.err


def test_records_damaged_by_a_power_cut_do_not_stop_a_run(
    local: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*local, f"run_dir={tmp_path / 'run'}", "iterations=0", "finish=repruned")
    assert run_cli(capsys, *words).status == 0
    records = ["durations.json", "allocation.json", "plan.json", "finished.json"]
    for name in records:
        (tmp_path / "run" / name).write_bytes(b"")
    outcome = run_cli(capsys, *words, "resume=true")
    assert outcome.status == 0, outcome.err
    for name in records:
        assert f"{name} is damaged" in outcome.out + outcome.err


@pytest.mark.parametrize("folder", ["file", "file/run"])
def test_a_run_directory_that_cannot_be_made_is_bad_input(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    outcome = run_cli(capsys, *FAST, f"run_dir={tmp_path / folder}")
    assert outcome.status == 2
    assert "cannot make the run directory" in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1


def test_a_run_whose_weights_cannot_be_read_leaves_room_for_the_next(
    local: tuple[str, ...], model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, run_dir = tmp_path / "model", tmp_path / "run"
    shutil.copytree(model_dir, copy)
    (copy / "model.safetensors").write_bytes(b"half")
    words = (*local, f"model.path={copy}", f"run_dir={run_dir}", "iterations=0", "finish=repruned")
    outcome = run_cli(capsys, *words)
    assert outcome.status == 2
    assert "cannot read the weights" in outcome.err
    assert not run_dir.exists()
    shutil.copy(model_dir / "model.safetensors", copy)
    assert run_cli(capsys, *words).status == 0


def test_what_the_hub_prints_itself_is_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(capsys, "sparsity=2").status == 2
    logging.getLogger("huggingface_hub").warning("retrying")
    logging.getLogger("another").warning("told")
    printed = "".join(capsys.readouterr())
    assert "tyr: told" in printed
    assert "tyr: retrying" not in printed
