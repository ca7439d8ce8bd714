"""The latency benchmark runs at toy size; its full size is for a quiet machine."""

from __future__ import annotations

import csv
import importlib
import json
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "experiments" / "benchmarks"


def test_the_latency_benchmark_runs_at_toy_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = importlib.import_module("latency")
    sizes = ("--input", "16", "--output", "4", "--batch", "1", "2", "--repeats", "1")
    threads = str(torch.get_num_threads())
    script.main(["--toy", *sizes, "--threads", threads, "--results", str(tmp_path)])
    result = json.loads((tmp_path / "latency.json").read_text())
    dense, pruned = result["rows"][:2]
    assert (dense["model"], pruned["model"]) == ("dense", "pruned")
    assert pruned["kv_bytes_per_token"] == dense["kv_bytes_per_token"] / 2
    # Every linear layer of a block halves, and so does the attention; the head does not.
    assert 1.5 < dense["prefill_flops"] / pruned["prefill_flops"] < 2
    assert {"ttft", "decode", "ttft of limit", "decode of limit"} == result["figures"].keys()
    assert len(list(csv.DictReader((tmp_path / "latency.csv").open()))) == 4
    assert "| eager | 16+4, 1 |" in (tmp_path / "latency.md").read_text()
    assert (tmp_path / "latency.png").stat().st_size > 1000


def test_the_full_size_is_more_than_a_hundred_million_parameters() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        fields = dict(importlib.import_module("latency").FULL)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) > 100_000_000


@pytest.mark.slow
def test_the_parts_of_the_time_add_up_at_toy_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = importlib.import_module("latency_parts")
    threads = str(torch.get_num_threads())
    sizes = ("--input", "16", "--repeats", "1", "--threads", threads)
    script.main(["--toy", *sizes, "--results", str(tmp_path)])
    parts = json.loads((tmp_path / "latency_parts.json").read_text())["parts"]["16"]
    for phase in ("prefill", "decoding"):
        for model in ("dense", "pruned"):
            spent = parts[phase][model]
            assert set(spent) == {"products", "attention", "other operators", "Python"}
            assert spent["products"] > 0
            assert spent["attention"] > 0
    assert "| decoding at 16 | all |" in (tmp_path / "latency_parts.md").read_text()
