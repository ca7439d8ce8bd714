"""A three-block Llama small enough for float64 and brute force, and text for it.

Heads 4 over 2 KV heads, head size 8, 24 neurons, vocabulary 64. The weights are larger than an
initialiser's, so that pruning a unit shows clearly in the loss.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from tyr.model.architecture import ARCHITECTURES
from tyr.model.decoder import Decoder
from tyr.model.loading import BUILT_IN
from tyr.model.sublayer import AttentionUnit

VOCABULARY = 64
WIDTH = 32
HEADS = 4
HEAD_SIZE = 8
NEURONS = 24


def tiny_decoder(
    *,
    blocks: int = 3,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    storage_dtype: torch.dtype | None = None,
    attention_unit: AttentionUnit = "head",
    device: torch.device | None = None,
) -> Decoder:
    """A random decoder that computes in `dtype`, on the CPU by default; it has no tokenizer.

    Weights are exact in `storage_dtype` (default: `dtype`).
    """
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=NEURONS,
        num_hidden_layers=blocks,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2,
        head_dim=HEAD_SIZE,
        max_position_embeddings=64,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.2 * noise if "norm" in name else 0.25 * noise
    storage = storage_dtype or dtype
    return Decoder(
        cast(Any, model).to(storage).to(device, dtype),
        cast(PreTrainedTokenizerBase, None),
        architecture=ARCHITECTURES["llama"],
        storage_dtype=storage,
        attention_unit=attention_unit,
        name="tiny",
    )


def save_random_model(
    folder: Path, *, blocks: int, heads: int, kv_heads: int, neurons: int, context: int = 512
) -> Path:
    """A random Llama with heads of 8 and the built-in tokenizer, for `model=local`."""
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=HEAD_SIZE * heads,
        intermediate_size=neurons,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=context,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(BUILT_IN).save_pretrained(folder)
    return folder


def random_tokens(sequences: int, length: int, *, seed: int = 0) -> Tensor:
    """(sequences, length) token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (sequences, length), generator=generator)


def random_matrix(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers, float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
