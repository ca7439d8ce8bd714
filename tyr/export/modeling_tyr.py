"""Llama, Mistral, Qwen2 and Qwen3 with a different number of heads and neurons in every block.

This one file is copied into every exported model and runs where tyr is not installed. It contains
no attention code: a stock transformers block is built again with the sizes that `per_layer_config`
gives for it. Two things are ours: a sublayer that was removed altogether, and query heads that are
spread unevenly over KV heads (`query_to_kv` in config.json). In that case the KV cache still holds
each KV head once, and it is repeated per query head only while attention runs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MistralConfig,
    MistralForCausalLM,
    MistralModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Model,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)

# Sizes that differ between blocks. The value at the top of config.json is that of the dense model.
SIZES = ("num_attention_heads", "num_key_value_heads", "intermediate_size")


class PrunedConfig:
    """Configuration mixin: the sizes at the top level may be read, and are the dense model's.

    transformers (5.13 and later) refuses such reads, or logs each one, because most callers want a
    block's own size: that is `config.per_layer_config[block].num_attention_heads`. The dense value
    is an upper bound for every block, and stock checks and savers need it.
    """

    def __getattribute__(self, key: str) -> Any:
        if key in SIZES:
            return object.__getattribute__(self, key)
        return super().__getattribute__(key)


class PrunedDecoder:
    """Model mixin: build the stock model, then build each pruned block again with its own sizes."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        overrides = layer_overrides(config)
        # Hidden from the stock constructor: a transformers that acted on it would build blocks that
        # know neither `query_to_kv` nor the biases we keep.
        config.per_layer_config = None
        try:
            stock: Any = super()
            stock.__init__(config, *args, **kwargs)
            # After the constructor, which settles the attention implementation in `config`. A copy
            # taken before would run attention that is not causal.
            layers = getattr(self, "model", cast(Any, self)).layers
            for index, sizes in sorted(overrides.items()):
                layers[index] = pruned_layer(config, index, sizes=sizes, stock=type(layers[index]))
        finally:
            config.per_layer_config = overrides or None
        self.model_tags = ["pruned", "tyr"]  # `push_to_hub` writes them into the model card
        cast(Any, self).post_init()  # initialises the blocks built above


def layer_overrides(config: Any) -> dict[int, dict[str, Any]]:
    """Block index to the sizes that differ from the dense model's, in any transformers 5."""
    overrides = config.to_dict().get("per_layer_config") or {}
    return {int(index): dict(sizes) for index, sizes in overrides.items()}


def pruned_layer(config: Any, index: int, *, sizes: Mapping[str, Any], stock: Any) -> Any:
    """One stock block with its own sizes.

    Args:
        config: configuration of the whole model, attention implementation settled.
        index: which block.
        sizes: what differs from `config`.
        stock: the block's class.

    Raises:
        ValueError: `query_to_kv` does not fit the head counts.
    """
    own = copy.copy(config)
    for name in SIZES:  # a stock module cannot be built empty: one unit stands in until removed
        setattr(own, name, max(1, sizes.get(name, getattr(config, name))))
    layer: Any = stock(own, index)
    for module in layer.modules():
        # Shared again, so that `set_attn_implementation` on the model reaches every block.
        if getattr(module, "config", None) is own:
            module.config = config
    if sizes.get("num_attention_heads") == 0:
        layer.self_attn = RemovedAttention(layer.self_attn.o_proj.bias, "o_proj")
        layer.input_layernorm = nn.Identity()
    elif index_of_heads := (getattr(config, "query_to_kv", None) or {}).get(str(index)):
        spread_unevenly(layer.self_attn, index_of_heads, kv_heads=own.num_key_value_heads)
    if sizes.get("intermediate_size") == 0:
        layer.mlp = Removed(layer.mlp.down_proj.bias, "down_proj")
        layer.post_attention_layernorm = nn.Identity()
    return layer


class NoInputs(nn.Linear):
    """An output projection whose inputs are all gone: only its bias is a parameter.

    It stays a linear layer, because PEFT adapts no other module of this name.
    """

    def __init__(self, bias: Tensor) -> None:
        super().__init__(0, bias.numel(), device=bias.device, dtype=bias.dtype)
        weight = self.weight.detach()
        del self.weight
        self.register_buffer("weight", weight, persistent=False)

    def reset_parameters(self) -> None:
        """Start at zero; the stock initialiser warns about the empty weight."""
        nn.init.zeros_(self.bias)


class Removed(nn.Module):
    """An FFN without units. What remains is the bias of its output projection, if it had one."""

    def __init__(self, bias: Tensor | None, projection: str) -> None:
        super().__init__()
        self.projection = projection
        if bias is not None:
            self.add_module(projection, NoInputs(bias))

    def forward(self, hidden_states: Tensor, **_: Any) -> Any:
        """What to add to the residual stream: (B, T, C), or a scalar zero."""
        output = getattr(self, self.projection, None)
        return hidden_states.new_zeros(()) if output is None else output(hidden_states[..., :0])


class RemovedAttention(Removed):
    """An attention without heads. It leaves its layer of the KV cache empty."""

    def forward(self, hidden_states: Tensor, **_: Any) -> Any:
        """As `Removed`, with the attention weights that stock attention returns beside it."""
        return super().forward(hidden_states), None


def spread_unevenly(attention: Any, query_to_kv: list[int], *, kv_heads: int) -> None:
    """Make a stock attention serve query heads that share KV heads unevenly.

    Args:
        attention: stock attention module.
        query_to_kv: KV head of each query head, ascending.
        kv_heads: KV heads of this block.

    Raises:
        ValueError: the list is not ascending or misses a KV head.
    """
    if sorted(query_to_kv) != list(query_to_kv) or set(query_to_kv) != set(range(kv_heads)):
        raise ValueError(
            f"query_to_kv must be ascending and use each of {kv_heads} KV heads, got {query_to_kv}"
        )
    attention.queries_per_kv = tuple(query_to_kv.count(head) for head in range(kv_heads))
    attention.num_key_value_groups = 1  # stock attention then sees one KV head per query head
    attention.register_forward_pre_hook(_repeat_through_cache, with_kwargs=True)


def _repeat_through_cache(
    attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    repeating = RepeatingCache(kwargs.get("past_key_values"), attention.queries_per_kv)
    return args, {**kwargs, "past_key_values": repeating}


class RepeatingCache:
    """Stands before the KV cache (or none) for one attention call and repeats what it returns.

    The cache stores each KV head once. The copy made here is as large as the keys and values of one
    block with a KV head per query head, and lives as long as the call.
    """

    def __init__(self, cache: Any, queries_per_kv: tuple[int, ...]) -> None:
        self._cache = cache
        self._queries_per_kv = queries_per_kv

    def update(
        self, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store (B, KV, T, D) keys and values; give back all of them as (B, Q, T', D)."""
        if self._cache is not None:
            key, value = self._cache.update(key, value, *args, **kwargs)
        return self._repeat(key), self._repeat(value)

    def _repeat(self, states: Tensor) -> Tensor:
        # Views joined once: no index tensor, so nothing to move between devices.
        heads = enumerate(self._queries_per_kv)
        return torch.cat(
            [states[:, kv : kv + 1].expand(-1, queries, -1, -1) for kv, queries in heads], dim=1
        )


class TyrLlamaConfig(PrunedConfig, LlamaConfig):
    model_type = "tyr_llama"


class TyrLlamaModel(PrunedDecoder, LlamaModel):
    config_class = TyrLlamaConfig


class TyrLlamaForCausalLM(PrunedDecoder, LlamaForCausalLM):
    config_class = TyrLlamaConfig


class TyrMistralConfig(PrunedConfig, MistralConfig):
    model_type = "tyr_mistral"


class TyrMistralModel(PrunedDecoder, MistralModel):
    config_class = TyrMistralConfig


class TyrMistralForCausalLM(PrunedDecoder, MistralForCausalLM):
    config_class = TyrMistralConfig


class TyrQwen2Config(PrunedConfig, Qwen2Config):
    model_type = "tyr_qwen2"


class TyrQwen2Model(PrunedDecoder, Qwen2Model):
    config_class = TyrQwen2Config


class TyrQwen2ForCausalLM(PrunedDecoder, Qwen2ForCausalLM):
    config_class = TyrQwen2Config


class TyrQwen3Config(PrunedConfig, Qwen3Config):
    model_type = "tyr_qwen3"


class TyrQwen3Model(PrunedDecoder, Qwen3Model):
    config_class = TyrQwen3Config


class TyrQwen3ForCausalLM(PrunedDecoder, Qwen3ForCausalLM):
    config_class = TyrQwen3Config
