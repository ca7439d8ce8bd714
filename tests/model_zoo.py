"""Two-block random models of every supported architecture, and random structures for them.

Norms and biases are random too: a gathered bias or a dropped norm must show in the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from tyr.model.architecture import architecture_of
from tyr.model.decoder import Decoder
from tyr.model.sublayer import AttentionUnit, Structure, Sublayer
from tyr.sparsity import SublayerId

VOCABULARY = 61
WINDOW = 5  # shorter than the sequences of the tests
LENGTH = 11

_SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
_ODD = {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

ZOO: dict[str, dict[str, Any]] = {
    "llama": {**_SMALL, "model_type": "llama", "rope_parameters": _LLAMA3_ROPE},
    "llama_biased": {**_SMALL, "model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "mistral": {**_SMALL, **_ODD, "model_type": "mistral", "sliding_window": None},
    "mistral_windowed": {**_SMALL, **_ODD, "model_type": "mistral", "sliding_window": WINDOW},
    "qwen2": {**_SMALL, "model_type": "qwen2"},
    "qwen2_mixed_windows": {
        **_SMALL,
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "max_window_layers": 1,
    },
    "qwen3_tied": {**_SMALL, **_ODD, "model_type": "qwen3", "tie_word_embeddings": True},
}


def zoo_config(name: str, **changes: Any) -> PretrainedConfig:
    """Configuration of a zoo model, with fields changed."""
    fields = {**ZOO[name], **changes}
    config: PretrainedConfig = AutoConfig.for_model(fields.pop("model_type"), **fields)
    return config


def zoo_decoder(
    name: str,
    *,
    seed: int = 0,
    attention_unit: AttentionUnit = "head",
    storage_dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> Decoder:
    """A random decoder, computing in float32 with weights exact in `storage_dtype`."""
    config = zoo_config(name, **changes)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    for parameter_name, parameter in model.named_parameters():
        parameter.data = _random_values(parameter_name, parameter.shape, generator)
    model.tie_weights()
    return Decoder(
        model.to(storage_dtype).float(),
        tiny_tokenizer(),
        architecture=architecture_of(config, source=name),
        storage_dtype=storage_dtype,
        attention_unit=attention_unit,
        name=name,
    )


def _random_values(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    if "norm" in name:
        return 1 + 0.3 * noise
    return 0.3 * noise


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One word per token id: `w5` is 5."""
    words = {f"w{index}": index for index in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="w0", bos_token="w1", pad_token="w0"
    )


def random_tokens(*shape: int, seed: int = 0) -> Tensor:
    """Token ids without the padding id."""
    return torch.randint(2, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


Structures = Mapping[SublayerId, Structure]


def structures_from(
    decoder: Decoder, keep: Callable[[Sublayer], list[int]], *, seed: int = 0
) -> dict[SublayerId, Structure]:
    """Structures with given kept units and weights that differ from the dense columns."""
    generator = torch.Generator().manual_seed(seed)
    chosen = {}
    for sublayer in decoder.sublayers:
        kept = torch.tensor(sorted(keep(sublayer)), dtype=torch.int64)
        dense = sublayer.output_weight[:, sublayer.rows(kept)]
        weight = dense * (1 + 0.2 * torch.randn(dense.shape, generator=generator))
        chosen[sublayer.id] = Structure(kept, weight.to(decoder.storage_dtype))
    return chosen


def keep_everything(sublayer: Sublayer) -> list[int]:
    """No unit goes."""
    return list(range(sublayer.num_units))


def keep_every_other(sublayer: Sublayer) -> list[int]:
    """Every KV head keeps equally many query heads, or goes with all of them."""
    return list(range(0, sublayer.num_units, 2))


def keep_uneven(sublayer: Sublayer) -> list[int]:
    """KV head 0 keeps all its query heads, KV head 1 keeps one, any other goes."""
    if sublayer.id.kind == "ffn":
        return [0, 3, 4, 7, 11, 12, 19]
    return [*range(sublayer.dense_groups), 2 * sublayer.dense_groups - 1]


def keep_some_nowhere(sublayer: Sublayer) -> list[int]:
    """The FFN of block 0 and the attention of block 1 are gone."""
    empty = sublayer.id in (SublayerId(0, "ffn"), SublayerId(1, "attn"))
    return [] if empty else keep_uneven(sublayer)


PATTERNS = {
    "everything": keep_everything,
    "even": keep_every_other,
    "uneven": keep_uneven,
    "empty_sublayers": keep_some_nowhere,
}
