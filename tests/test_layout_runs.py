"""The command line under every layout: what is refused or said first, and that the result loads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from tests.cli import run_cli
from tests.references.masked_model import masked_model
from tests.test_config import choices, composed
from tests.tiny import save_random_model
from tests.tolerance import FLOAT32, assert_close
from tyr.model.loading import BUILT_IN, PretrainedModel
from tyr.model.sublayer import Structure
from tyr.run import build, build_method

FAST = (
    "debug=fast",
    "logger=csv",
    "supernet.interval=0.25",
    "finish.compare=false",
    "data.calibration_tokens=1024",
    "~callbacks.heatmap",
    "~callbacks.report",
)
BLOCKS, GROUPS, NEURONS = 2, 3, 96


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two blocks of three KV groups and 96 neurons."""
    folder = tmp_path_factory.mktemp("model")
    return save_random_model(
        folder, blocks=BLOCKS, heads=2 * GROUPS, kv_heads=GROUPS, neurons=NEURONS
    )


@pytest.fixture
def local(model_dir: Path) -> tuple[str, ...]:
    """Words that choose the small model."""
    return ("model=local", f"model.path={model_dir}", *FAST)


def perplexity(model: Any, words: tuple[str, ...]) -> float:
    """Of a loaded model on the evaluation text of a command line."""
    data = build(composed(*words).data, "data")
    tokens = data.load(AutoTokenizer.from_pretrained(BUILT_IN)).evaluation
    with torch.no_grad():
        logits = model(tokens).logits[:, :-1].flatten(0, 1)
    return float(functional.cross_entropy(logits, tokens[:, 1:].flatten()).exp())


def masked(model: Any, model_dir: Path) -> Any:
    """The dense model with zeros for what an exported one lacks, found by comparing rows."""
    decoder = PretrainedModel(str(model_dir)).load(
        device=torch.device("cpu"), attention_unit="kv_group"
    )
    structures = {}
    for sublayer in decoder.sublayers:
        block, dense = (m.model.layers[sublayer.id.block] for m in (model, decoder.model))
        attention = sublayer.id.kind == "attn"
        first = "self_attn.k_proj" if attention else "mlp.gate_proj"
        rows = sublayer.head_size
        mine, all_units = (
            m.get_submodule(first).weight.detach().view(-1, rows, 48) for m in (block, dense)
        )
        kept = [i for i, unit in enumerate(all_units) if any(torch.equal(unit, k) for k in mine)]
        output = block.self_attn.o_proj if attention else block.mlp.down_proj
        structures[sublayer.id] = Structure(torch.tensor(kept), output.weight.detach())
    return masked_model(decoder, structures)


def assert_masked_sliced_and_reloaded_agree(
    model: Any, model_dir: Path, words: tuple[str, ...], sliced: float
) -> None:
    """The run measured the sliced model; `model` was loaded from its export."""
    tokens = torch.arange(30).view(2, 15)
    with torch.no_grad():
        logits, expected = (m(tokens).logits for m in (model, masked(model, model_dir)))
    assert_close(logits, expected, tolerance=FLOAT32, reason="float32 sums in another order")
    assert perplexity(model, words) == pytest.approx(sliced, rel=1e-5)


def test_a_portable_run_meets_its_rounded_budget_in_blocks_that_engines_hold(
    local: tuple[str, ...],
    model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = (*local, "experiment=portable", "sparsity=0.375")
    outcome = run_cli(capsys, *words, f"run_dir={tmp_path}")
    assert outcome.status == 0, outcome.err
    said, _, run = outcome.out.partition("dense evaluation")
    assert "asks for 72 of 192 ffn units; the nearest budget the layout can meet is 64" in said
    assert said.splitlines()[0].startswith("tyr: "), "not Hydra's name and the time"
    assert run
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["asked_units"] == {"attn": 2, "ffn": 72}
    assert summary["removed_units"] == {"attn": 2, "ffn": 64}
    assert "iteration-0" in {path.name for path in tmp_path.iterdir()}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", trust_remote_code=True)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for block in range(BLOCKS):
        width = shapes[f"model.layers.{block}.mlp.down_proj.weight"][1]
        assert width in (32, 64, 96)
        query, key = (shapes[f"model.layers.{block}.self_attn.{n}_proj.weight"] for n in "qk")
        assert query[0] == 2 * key[0] > 0
    sliced = summary["tyr"]["perplexity"]
    assert_masked_sliced_and_reloaded_agree(model, model_dir, words, sliced)


def test_a_uniform_run_searches_nothing_and_leaves_a_stock_checkpoint(
    local: tuple[str, ...],
    model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = (*local, "layout=uniform", "sparsity=0.3333")
    outcome = run_cli(capsys, *words, f"run_dir={tmp_path}")
    assert outcome.status == 0, outcome.err
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["asked_units"] == summary["removed_units"] == {"attn": 2, "ffn": 64}
    assert summary["allocation"] == {"attn": [1, 1], "ffn": [32, 32]}
    assert not list(tmp_path.glob("iteration-*"))
    assert not list((tmp_path / "model").glob("*.py"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", trust_remote_code=False)
    assert type(model) is LlamaForCausalLM
    sliced = summary["tyr"]["perplexity"]
    assert_masked_sliced_and_reloaded_agree(model, model_dir, words, sliced)


BAD_INPUT = {
    "layout=protable": r"layout=protable is unknown \(did you mean portable\?\)",
    "layout=uniform sparsity=0.4": r"sparsity 0.4 .*; the nearest reachable: 0.333 and 0.667 \(",
    "layout=uniform sparsity=0.3333 iterations=2": r"nothing to search, so it needs iterations=0",
    "layout=uniform supernet.attention_unit=head": r"needs supernet.attention_unit=kv_group",
    "layout=uniform finish=supernet": r"finish=supernet needs iterations >= 1",
    "layout=portable sparsity=0.9": r"not reachable.*at most 4 can go; ask for at most 0.6667",
    "layout=portable supernet.ffn_alignment=256": r"alignment of at most 96",
    "layout=portable supernet.ffn_alignment=64": r"finer than 64 ffn units.*at least 0.3334",
    "supernet.ffn_alignment=0": r"ffn_alignment must be at least 1, got 0",
    "export=stock": r"export=stock needs blocks that are all alike.*use layout=uniform",
}


@pytest.mark.parametrize("words", BAD_INPUT, ids=lambda words: words)
def test_what_a_layout_cannot_give_is_refused_before_any_work(
    words: str, local: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = run_cli(capsys, *local, f"run_dir={tmp_path / 'run'}", *words.split())
    assert outcome.status == 2
    assert len(outcome.err.strip().splitlines()) == 1
    assert re.search(BAD_INPUT[words], outcome.err), outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("choice", choices("layout"))
@pytest.mark.parametrize("model", ["tiny", "random"])
def test_every_layout_builds_whatever_the_model_s_schedule(choice: str, model: str) -> None:
    method = build_method(composed(f"layout={choice}", f"model={model}"))
    assert method.supernet.equal_blocks == (choice == "uniform") == (method.iterations == 0)


def test_the_free_layout_is_the_default_and_changes_nothing() -> None:
    plain, free = composed(), composed("layout=free")
    assert plain.supernet == free.supernet
    assert (free.supernet.ffn_alignment, free.supernet.allow_empty) == (1, True)
    assert free.supernet.attention_unit == "head"


def test_the_alignment_of_the_portable_experiment_can_be_raised() -> None:
    config = composed("experiment=portable", "supernet.ffn_alignment=256")
    assert (config.supernet.ffn_alignment, config.supernet.allow_empty) == (256, False)


def test_a_chosen_export_wins_over_that_of_the_uniform_layout() -> None:
    assert composed("layout=uniform").export._target_.endswith("StockExport")
    assert composed("layout=uniform", "export=none").export._target_.endswith("NoExport")
