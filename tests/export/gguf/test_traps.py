"""What llama.cpp does with layouts that we rewrite or refuse: the reasons for layout.py's rules.

These files are written past our own checks. If one of these tests fails after an update of the
engine, the engine has learnt something and the rule may go. A file that makes llama.cpp abort is
loaded in another process.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import tyr.export
from tests.export.gguf.engine import Engine, require_engine
from tests.export.gguf.models import Kept, export_pruned, random_prompt, small_decoder
from tyr.export.gguf.exporter import convert
from tyr.export.gguf.layout import BlockLayout, model_layout
from tyr.export.gguf.source import ModelDirectory, open_directory
from tyr.export.gguf.tensors import GgufTensor, gguf_tensors
from tyr.export.gguf.vocabulary import read_vocabulary
from tyr.export.gguf.writer import write_gguf

require_engine()
PLAIN = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
PROMPT = random_prompt(9)


def exported(tmp_path: Path, kept: Kept) -> Path:
    tyr.export.register()
    return export_pruned(small_decoder("llama", **PLAIN), kept, tmp_path / "m")


def write_unchecked(
    directory: Path, out: Path, *, block: int, claim: BlockLayout, without: str
) -> Path:
    """A file whose metadata claim something else of one block, without some of its tensors."""
    source = open_directory(directory)
    layout = model_layout(source.config, family="llama")
    tensors = [t for t in gguf_tensors(source, layout) if not t.name.startswith(without)]
    blocks = [claim if index == block else b for index, b in enumerate(layout.blocks)]
    return write_with(source, tensors, out, blocks=tuple(blocks))


def write_with(
    source: ModelDirectory, tensors: list[GgufTensor], out: Path, *, blocks: tuple[BlockLayout, ...]
) -> Path:
    layout = dataclasses.replace(model_layout(source.config, family="llama"), blocks=blocks)
    vocabulary = read_vocabulary(source.tokenizer, vocab_size=300)
    return write_gguf(
        source.config, layout, tensors=tensors, vocabulary=vocabulary, path=out, dtype="f32"
    ).path


def torch_logits(directory: Path) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = AutoModelForCausalLM.from_pretrained(directory)(
            torch.tensor([PROMPT])
        ).logits[0]
    return logits


def run_elsewhere(path: Path) -> subprocess.CompletedProcess[str]:
    """Load a file and compute once, in another process."""
    code = (
        "import sys, llama_cpp\n"
        "llama = llama_cpp.Llama(sys.argv[1], n_ctx=64, n_threads=1, n_gpu_layers=0)\n"
        "llama.eval([5, 6, 7])\nprint('computed')\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},  # else ggml runs a debugger on itself
    )


def test_an_ffn_of_width_0_after_attention_is_silently_wrong(tmp_path: Path) -> None:
    directory = exported(tmp_path, {(1, "ffn"): []})
    claim = BlockLayout(8, 4, 0, (1, 1, 1, 1))
    out = tmp_path / "wrong.gguf"
    write_unchecked(directory, out, block=1, claim=claim, without="blk.1.ffn")
    wanted = torch_logits(directory)
    wrong = Engine(out).logits(PROMPT)
    assert (wrong - wanted).abs().max() > 0.1 * wanted.std()
    right = Engine(convert(directory, tmp_path / "right.gguf", dtype="f32").path).logits(PROMPT)
    torch.testing.assert_close(right, wanted, atol=1e-3, rtol=1e-3)


def test_an_ffn_of_width_0_in_the_last_block_aborts(tmp_path: Path) -> None:
    directory = exported(tmp_path, {(2, "ffn"): []})
    claim = BlockLayout(8, 4, 0, (1, 1, 1, 1))
    out = tmp_path / "wrong.gguf"
    write_unchecked(directory, out, block=2, claim=claim, without="blk.2.ffn")
    outcome = run_elsewhere(out)
    assert outcome.returncode == -signal.SIGABRT, outcome.stderr


def test_no_attention_in_the_first_block_does_not_load(tmp_path: Path) -> None:
    directory = exported(tmp_path, {})
    out = tmp_path / "wrong.gguf"
    write_unchecked(directory, out, block=0, claim=BlockLayout(0, 0, 20, ()), without="blk.0.attn")
    with pytest.raises((ValueError, RuntimeError)):
        Engine(out)


def test_query_heads_that_kv_heads_do_not_divide_abort(tmp_path: Path) -> None:
    source = open_directory(exported(tmp_path, {}))
    layout = model_layout(source.config, family="llama")
    tensors = [_three_heads(tensor) for tensor in gguf_tensors(source, layout)]
    blocks = (layout.blocks[0], BlockLayout(8, 3, 20, (1, 1, 1)), layout.blocks[2])
    out = write_with(source, tensors, tmp_path / "wrong.gguf", blocks=blocks)
    outcome = run_elsewhere(out)
    assert outcome.returncode == -signal.SIGABRT, outcome.stderr


def _three_heads(tensor: GgufTensor) -> GgufTensor:
    """Keys and values of block 1 without the last KV head."""
    if tensor.name not in ("blk.1.attn_k.weight", "blk.1.attn_v.weight"):
        return tensor
    return GgufTensor(tensor.name, (12, 32), lambda: tensor.make()[:12])


def test_rows_without_the_rope_order_are_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = exported(tmp_path, {})
    monkeypatch.setattr("tyr.export.gguf.tensors.rope_order", torch.arange)
    written = convert(directory, tmp_path / "wrong.gguf", dtype="f32")
    wanted = torch_logits(directory)
    assert (Engine(written.path).logits(PROMPT) - wanted).abs().max() > 0.1 * wanted.std()


def quantise(source: Path, out: Path, kind: int) -> dict[str, str]:
    """llama.cpp's own quantiser; returns the type of every tensor."""
    import gguf
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = kind
    parameters.nthread = 1
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), parameters)
    assert status == 0
    return {t.name: t.tensor_type.name for t in gguf.GGUFReader(out).tensors}


def test_widths_decide_what_the_quantiser_can_do(tmp_path: Path) -> None:
    """Multiples of 32 take Q8_0, others stay F16; K-quants need 256 and take a larger type else."""
    import llama_cpp

    tyr.export.register()
    sizes = {"hidden_size": 256, "intermediate_size": 320, "head_dim": 32}
    decoder = small_decoder("llama", **PLAIN, **sizes)
    kept: Kept = {
        (0, "ffn"): list(range(256)),
        (1, "ffn"): list(range(288)),
        (2, "ffn"): list(range(300)),
    }
    directory = export_pruned(decoder, kept, tmp_path / "m")
    whole = convert(directory, tmp_path / "f16.gguf").path
    down = [f"blk.{block}.ffn_down.weight" for block in range(3)]
    eight = quantise(whole, tmp_path / "q8.gguf", llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0)
    assert [eight[name] for name in down] == ["Q8_0", "Q8_0", "F16"]
    four = quantise(whole, tmp_path / "q4.gguf", llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M)
    assert four[down[0]] in ("Q4_K", "Q6_K")
    assert four[down[1]] in ("Q5_0", "Q5_1", "Q8_0")
    assert four[down[2]] == "F16"
    own = convert(directory, tmp_path / "own.gguf", dtype="q8_0")
    assert Engine(own.path).logits(PROMPT).isfinite().all()
