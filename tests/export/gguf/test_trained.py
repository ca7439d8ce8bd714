"""Trained models in llama.cpp: the built-in one and, where it is at hand, stories260K.

Greedy text is compared token for token, but for bf16 only where torch is sure. Weights of 16 bits
are compared with torch on the same rounded weights; llama.cpp rounds activations to 16 bits, too,
hence the wider tolerances. Logits of these models reach 20.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tyr.export
from tests.export.gguf.engine import Engine, require_engine
from tyr.export.checkpoint import export_checkpoint
from tyr.export.gguf.exporter import convert
from tyr.model.loading import BUILT_IN, PretrainedModel
from tyr.model.sublayer import Structure, Sublayer
from tyr.sparsity import SublayerId

require_engine()

TOLERANCES = {
    "f32": (torch.float32, 1e-3),
    "f16": (torch.float16, 0.05),
    "bf16": (torch.bfloat16, 0.2),
}
STORIES = Path(__file__).resolve().parents[4] / "shared" / "models" / "stories260K"
MODELS = [
    pytest.param(BUILT_IN, '    def read(self, size):\n        """Read', id="built-in"),
    pytest.param(
        STORIES,
        "Once upon a time",
        id="stories260K",
        marks=pytest.mark.skipif(
            not STORIES.is_dir(), reason="../shared/models/stories260K is not on this machine"
        ),
    ),
]


def lightly_pruned(path: Path, directory: Path) -> Path:
    """One query head of every block and a tenth of its neurons gone; KV heads shared unevenly."""
    decoder = PretrainedModel(str(path)).load(device=torch.device("cpu"))

    def keep(sublayer: Sublayer) -> list[int]:
        everything = range(sublayer.num_units)
        if sublayer.id == SublayerId(3, "attn"):
            return []
        step = sublayer.id.block + 1 if sublayer.id.kind == "attn" else 10
        gone = {step} if sublayer.id.kind == "attn" else set(everything[::step])
        return [unit for unit in everything if unit not in gone]

    def read(sublayer_id: SublayerId) -> Structure:
        sublayer = next(s for s in decoder.sublayers if s.id == sublayer_id)
        kept = torch.tensor(keep(sublayer), dtype=torch.int64)
        weight = sublayer.output_weight[:, sublayer.rows(kept)]
        return Structure(kept, weight.to(decoder.storage_dtype))

    export_checkpoint(decoder, read, directory, provenance={})
    return directory


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize(("path", "text"), MODELS)
def test_greedy_text_of_a_trained_model_is_the_same(
    path: Path, text: str, dtype: str, tmp_path: Path
) -> None:
    tyr.export.register()
    directory = path
    if dtype == "f32":
        directory = lightly_pruned(path, tmp_path / "m")
    engine = Engine(convert(directory, tmp_path / "m.gguf", dtype=dtype).path, context=128)
    rounded, tolerance = TOLERANCES[dtype]
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=rounded).float()
    prompt = AutoTokenizer.from_pretrained(directory)(text)["input_ids"]
    assert engine.tokenize(text) == prompt
    with torch.no_grad():
        wanted = model(torch.tensor([prompt])).logits[0]
    torch.testing.assert_close(engine.logits(prompt), wanted, atol=tolerance, rtol=1e-3)
    told = model.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False)
    wanted_tokens = told[0, len(prompt) :].tolist()
    told_by_engine = engine.greedy(prompt, len(wanted_tokens))
    if dtype == "bf16":  # activations have eight bits there, so a near tie may go either way
        assert wanted[-1, told_by_engine[0]] >= wanted[-1].max() - 2 * tolerance
    else:
        assert told_by_engine == wanted_tokens
    assert len(set(wanted_tokens)) > 8
    engine.close()
