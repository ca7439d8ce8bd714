"""What llama.cpp computes from our files against what torch computes from the same directory.

Logits of these random models have a standard deviation of 1.6. float32 files and a float32 KV cache
leave only the order of summation: the largest difference seen is 4e-5.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import tyr.export
from tests.export.gguf.engine import Engine, require_engine
from tests.export.gguf.models import Kept, export_pruned, random_prompt, small_decoder
from tyr.export.gguf.exporter import convert

require_engine()

TOLERANCE = 2e-4
ALL = list(range(8))
EVEN: Kept = {  # two query heads per KV head, or one; another width in every block
    (0, "attn"): [0, 1, 2, 3, 6, 7],
    (0, "ffn"): [0, 3, 4, 7, 11, 12, 19],
    (1, "attn"): [1, 4],
    (1, "ffn"): [2],
    (2, "attn"): [4, 5],
}
UNEVEN: Kept = {
    (0, "attn"): [0, 1, 2],
    (1, "attn"): [0, 1, 3, 4, 5, 6],
    (2, "attn"): [3, 6, 7],
    (2, "ffn"): [1, 2, 3],
}
ODD_UNEVEN: Kept = {  # for six query heads over two KV heads
    (0, "attn"): [0, 1, 2, 5],
    (1, "attn"): [1, 2, 3],
    (2, "attn"): [0, 4, 5],
    (1, "ffn"): [0, 5, 6],
}
GROUPS_OF_TWO: Kept = {(0, "attn"): [0, 1, 2, 3, 4, 5]}  # of 4 + 2: KV heads 2 + 1 times
NO_ATTENTION: Kept = {(1, "attn"): [], (0, "ffn"): [4, 5, 6]}
NO_LAST_ATTENTION: Kept = {(2, "attn"): []}
NO_FFN: Kept = {(0, "ffn"): [], (1, "attn"): [2, 3]}
NO_LAST_FFN: Kept = {(2, "ffn"): []}
EMPTY_BLOCK: Kept = {(1, "attn"): [], (1, "ffn"): []}
EMPTY_LAST_BLOCK: Kept = {(2, "attn"): [], (2, "ffn"): []}

LINEAR = {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}}
YARN = {
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
    }
}
PLAIN = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
LARGE_HEADS = {"head_dim": 16, "num_attention_heads": 8, "num_key_value_heads": 4}

CASES: dict[str, tuple[str, dict[str, Any], Kept]] = {
    "dense": ("llama", PLAIN, {}),
    "unequal heads, KV heads and widths": ("llama", PLAIN, EVEN),
    "llama3 rope scaling": ("llama", LARGE_HEADS, EVEN),
    "linear rope scaling": ("llama", LINEAR, EVEN),
    "yarn rope scaling": ("llama", {**LARGE_HEADS, **YARN}, EVEN),
    "uneven query groups": ("llama", PLAIN, UNEVEN),
    "query groups of 4 and 2": ("llama", {"num_key_value_heads": 2}, GROUPS_OF_TWO),
    "no attention in the middle": ("llama", PLAIN, NO_ATTENTION),
    "no attention in the last block": ("llama", PLAIN, NO_LAST_ATTENTION),
    "no FFN in the first block": ("llama", PLAIN, NO_FFN),
    "no FFN in the last block": ("llama", PLAIN, NO_LAST_FFN),
    "nothing in the middle block": ("llama", PLAIN, EMPTY_BLOCK),
    "nothing in the last block": ("llama", PLAIN, EMPTY_LAST_BLOCK),
    "all biases": ("llama_biased", {}, EVEN),
    "biases of sublayers that are gone": ("llama_biased", {}, {**NO_ATTENTION, **NO_LAST_FFN}),
    "mistral with its own head size": ("mistral", {}, ODD_UNEVEN),
    "qwen2 biases": ("qwen2", {}, EVEN),
    "qwen2 biases, uneven": ("qwen2", {}, {**UNEVEN, **NO_LAST_FFN}),
    "qwen3 dense": ("qwen3_tied", {}, {}),
    "qwen3 q/k norms": ("qwen3_tied", {}, ODD_UNEVEN),
    "qwen3 with empty sublayers": ("qwen3_tied", {}, {**NO_ATTENTION, **NO_LAST_FFN}),
    "qwen3 linear rope scaling": ("qwen3_tied", LINEAR, ODD_UNEVEN),
    "qwen3 yarn rope scaling": ("qwen3_tied", YARN, ODD_UNEVEN),
}


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    tyr.export.register()


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_computes_what_torch_computes(case: str, tmp_path: Path) -> None:
    name, changes, kept = CASES[case]
    compare(export_pruned(small_decoder(name, **changes), kept, tmp_path / "m"))


@pytest.mark.parametrize("name", ["llama_biased", "mistral", "qwen2", "qwen3_tied"])
def test_a_stock_directory_is_converted_too(name: str, tmp_path: Path) -> None:
    # More rows than tokens: transformers gives stock Qwen tokenizers an end token of their own.
    decoder = small_decoder(name, vocab_size=304)
    decoder.model.save_pretrained(tmp_path / "m")
    decoder.tokenizer.save_pretrained(tmp_path / "m")
    compare(tmp_path / "m")


def compare(directory: Path) -> None:
    """Logits of two prompts, and greedy text, in llama.cpp and in torch."""
    written = convert(directory, directory.parent / "m.gguf", dtype="f32")
    engine = Engine(written.path)
    model = AutoModelForCausalLM.from_pretrained(directory)
    for seed, length in ((0, 1), (1, 40)):
        prompt = random_prompt(length, seed=seed)
        with torch.no_grad():
            wanted = model(torch.tensor([prompt])).logits[0]
        torch.testing.assert_close(engine.logits(prompt), wanted, atol=TOLERANCE, rtol=TOLERANCE)
    start = random_prompt(5, seed=2)
    told = model.generate(torch.tensor([start]), max_new_tokens=20, do_sample=False)
    assert engine.greedy(start, 20) == told[0, len(start) :].tolist()
    engine.close()
