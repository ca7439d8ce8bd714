"""The command `python -m tyr.latency`: exit statuses, messages, and what it leaves on disk."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.cli import plan_cli, run_cli
from tests.model_zoo import PATTERNS, structures_from, zoo_decoder
from tyr import devices, latency
from tyr.export.checkpoint import export_checkpoint
from tyr.export.shards import stored_shapes

SHORT = ("--input", "6", "--output", "3", "--repeats", "2", "--accelerator", "cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A dense model on disk and its export."""
    folder = tmp_path_factory.mktemp("models")
    decoder = zoo_decoder("qwen2", storage_dtype=torch.bfloat16)
    decoder.model.save_pretrained(folder / "dense")
    structures = structures_from(decoder, PATTERNS["empty_sublayers"])
    export_checkpoint(decoder, structures.__getitem__, folder / "pruned", provenance={})
    return {name: folder / name for name in latency.NAMES}


def test_a_measurement_is_printed_and_written(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*map(str, models.values()), *SHORT, "--batch", "1", "2", "--out", str(tmp_path / "o"))
    assert latency.main(words) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 + 2
    assert printed[2].startswith("| eager | 6 | 3 | 1 | ")
    rows = list(csv.DictReader((tmp_path / "o" / "latency.csv").open()))
    assert [(row["model"], row["batch"]) for row in rows] == [
        *(("dense", "1"), ("pruned", "1")),
        *(("dense", "2"), ("pruned", "2")),
    ]
    assert int(rows[0]["parameters"]) > int(rows[1]["parameters"])
    assert float(rows[0]["prefill_flops"]) > float(rows[1]["prefill_flops"])
    drawn = {path.name for path in (tmp_path / "o").iterdir()}
    assert drawn == {"latency.csv", "latency.png", "latency.svg"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--engine", "vllm"), "unknown engine 'vllm'"),
        (("--input", "64"), "64 input and 3 output tokens exceed the context of the dense model"),
        (("--batch", "0"), "batch >= 1, got 6, 3, 0"),
        (("--repeats", "0"), "repeats must be at least 1"),
        (("--dtype", "float8"), "--dtype must be auto or one of"),
        (("--accelerator", "abacus"), "accelerator=abacus cannot be used here"),
    ],
)
def test_a_word_that_cannot_be_is_refused_in_one_line(
    words: tuple[str, ...],
    message: str,
    models: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert latency.main((*map(str, models.values()), *SHORT, *words)) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_a_directory_beside_a_gguf_file_is_refused(
    models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert latency.main((str(models["dense"]), "pruned.gguf", *SHORT)) == 2
    assert "give two directories, or two .gguf files" in capsys.readouterr().err


def test_a_directory_without_a_model_is_refused(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert latency.main((str(models["dense"]), str(tmp_path), *SHORT)) == 2
    assert "holds no config.json" in capsys.readouterr().err


def test_models_that_do_not_fit_are_refused_before_they_are_loaded(
    models: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored = sum(size for path in models.values() for *_, size in stored_shapes(path))
    words = (*map(str, models.values()), *SHORT)
    monkeypatch.setattr(latency, "load", None)  # nothing is loaded
    monkeypatch.setattr(devices, "free_bytes", lambda device: stored - 1)
    assert latency.main(words) == 2
    assert "GB of memory are needed" in capsys.readouterr().err
    monkeypatch.setattr(devices, "free_bytes", lambda device: stored)
    assert latency.main((*words, "--dtype", "float32")) == 2  # the export is stored in half of it
    assert "choose --dtype bfloat16" in capsys.readouterr().err


def test_a_run_with_evaluator_latency_keeps_the_contract_and_adds_speed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    shape = ("num_hidden_layers=2", "hidden_size=64", "intermediate_size=96")
    model = ("model=random", *(f"model.config.{word}" for word in shape))
    words = (*model, "debug=fast", "logger=csv", "callbacks=quiet", "~callbacks.heatmap")
    sizes = ("evaluator.inputs=[16]", "evaluator.outputs=[3]", "evaluator.repeats=1")
    outcome = run_cli(capsys, "evaluator=latency", *sizes, *words, f"run_dir={run_dir}")
    assert outcome.status == 0, outcome.err
    summary = json.loads((run_dir / "summary.json").read_text())
    for name in ("dense", "uniform", "tyr"):
        row = summary[name]
        assert {"perplexity", "kl", "parameters", "backbone_parameters", "bytes"} <= row.keys()
        sides = [measured["model"] for measured in row["latency"]]
        assert sides == (["dense"] if name == "dense" else ["dense", "pruned"])
    dense, pruned = summary["tyr"]["latency"]
    assert (dense["parameters"], pruned["parameters"]) == (
        summary["dense"]["parameters"],
        summary["tyr"]["parameters"],
    )
    written = list(csv.DictReader((run_dir / "latency.csv").open()))
    assert [row["model"] for row in written][-2:] == ["dense beside tyr_supernet", "tyr_supernet"]
    assert (run_dir / "figures" / "latency.png").is_file()
    card = (run_dir / "model" / "README.md").read_text()
    assert "ttft" not in card  # a table of scalars; the file has the rest


@pytest.mark.parametrize("cli", [run_cli, plan_cli])
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("evaluator.inputs=[4000]", "exceed the context of random, 2048"),
        ("model.offload=disk", "evaluator=latency times the whole model in memory"),
    ],
)
def test_what_latency_cannot_measure_is_refused_before_the_run_begins(
    word: str, message: str, cli: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("model=random", "evaluator=latency", "debug=fast", f"run_dir={tmp_path / 'run'}")
    outcome = cli(capsys, *words, word)
    assert outcome.status == 2
    assert message in outcome.err
    assert not (tmp_path / "run").exists()


def test_weights_beside_those_that_the_index_names_are_not_counted(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(4)}, tmp_path / "model-00001-of-00001.safetensors")
    save_file({"a": torch.zeros(4)}, tmp_path / "consolidated.safetensors")
    assert len(list(stored_shapes(tmp_path))) == 2
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert list(stored_shapes(tmp_path)) == [("a", (4,), 16)]


def test_llama_cpp_is_refused_more_than_one_sequence_before_it_measures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(tmp_path / "dense.gguf"), str(tmp_path / "pruned.gguf"), "--batch", "1", "2"]
    assert latency.main(words) == 2
    assert "one sequence only: leave --batch out" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--engine compile", "--dtype auto", "--accelerator cpu"])
def test_llama_cpp_is_refused_what_only_torch_takes(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(tmp_path / "dense.gguf"), str(tmp_path / "pruned.gguf"), *option.split()]
    assert latency.main(words) == 2
    assert f"llama.cpp takes no {option.split()[0]}: leave it out" in capsys.readouterr().err
