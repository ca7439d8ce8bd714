"""On a trained model and real text, where they are at hand: `../shared` beside the checkout."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.cli import run_cli

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT.parent / "shared" / "models" / "stories260K"
TEXT = ROOT.parent / "shared" / "data" / "tinystories-val.txt"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (MODEL.is_dir() and TEXT.is_file()),
        reason="../shared/models/stories260K and ../shared/data are not on this machine",
    ),
]


def test_a_lightly_pruned_story_teller_still_tells_stories(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    words = (
        "model=local",
        f"model.path={MODEL}",
        "data=text",
        f"data.path={TEXT}",
        "data.sequence_length=256",
        "data.calibration_tokens=32768",
        "data.evaluation_tokens=8192",
        "iterations=2",
        "search.generations=3",
        "search.offspring=8",
        "search.stages=[[1024,2],[4096,1]]",
        "sparsity=0.125",
        "logger=csv",
        "callbacks=quiet",
        f"run_dir={run_dir}",
    )
    outcome = run_cli(capsys, *words)
    assert outcome.status == 0, outcome.err
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["removed_units"] == {"attn": 5, "ffn": 108}  # an eighth of 40 and of 860
    assert summary["dense"]["perplexity"] < 6
    assert summary["tyr"]["perplexity"] < 1.3 * summary["dense"]["perplexity"]
    model = AutoModelForCausalLM.from_pretrained(run_dir / "model", trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(run_dir / "model", trust_remote_code=True)
    prompt = tokenizer("Once upon a time", return_tensors="pt", return_token_type_ids=False)
    told = tokenizer.decode(model.generate(**prompt, max_new_tokens=40, do_sample=False)[0])
    assert len(set(told.split())) > 12  # words, not one of them repeated
    assert "there was" in told


def test_the_quality_benchmark_runs_at_toy_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiments.benchmarks import stories260k

    words = ["--toy", "--model", str(MODEL), "--text", str(TEXT), "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["stories260k.py", *words])
    stories260k.main()
    result = json.loads((tmp_path / "stories260k.json").read_text())
    assert set(result["accumulation"]) == set(stories260k.MODES)
    assert "| expectation |" in (tmp_path / "stories260k.md").read_text()
