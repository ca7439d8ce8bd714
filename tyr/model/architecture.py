"""What tyr must know of a decoder architecture, and which architectures it knows.

One adapter serves Llama, Mistral, Qwen2 and Qwen3, because their blocks share names and residual
layout: norm → attention → add, norm → gated FFN → add. Biases, q/k norms and a head size that is
not hidden/heads need no special case. The stock transformers modules do the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from tyr.errors import ModelError
from tyr.sparsity import UnitCounts

_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
)


@dataclass(frozen=True)
class Architecture:
    """Where a decoder keeps its parts. Attribute names are those of the transformers classes.

    Args:
        model_type: `config.model_type`.
        class_name: the stock causal LM class.
    """

    model_type: str
    class_name: str
    query: str = "q_proj"
    key: str = "k_proj"
    value: str = "v_proj"
    attention_output: str = "o_proj"
    gate: str = "gate_proj"
    up: str = "up_proj"
    ffn_output: str = "down_proj"
    attention: str = "self_attn"
    ffn: str = "mlp"
    attention_norm: str = "input_layernorm"
    ffn_norm: str = "post_attention_layernorm"

    def blocks(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """The decoder blocks, in order."""
        return cast(Sequence[nn.Module], self.backbone(model).layers)

    def blocks_name(self, model: PreTrainedModel) -> str:
        """Name of the list of blocks in the checkpoint, e.g. `model.layers`."""
        blocks: object = self.blocks(model)
        named: Iterator[tuple[str, nn.Module]] = model.named_modules()
        return next(name for name, module in named if module is blocks)

    def backbone(self, model: PreTrainedModel) -> Any:
        """The module that holds embeddings, blocks, final norm and rotary embedding."""
        return model.model


ARCHITECTURES: dict[str, Architecture] = {
    arch.model_type: arch
    for arch in (
        Architecture("llama", "LlamaForCausalLM"),
        Architecture("mistral", "MistralForCausalLM"),
        Architecture("qwen2", "Qwen2ForCausalLM"),
        Architecture("qwen3", "Qwen3ForCausalLM"),
    )
}


def architecture_of(config: PretrainedConfig, *, source: str) -> Architecture:
    """The adapter of a model configuration.

    Args:
        config: a transformers configuration.
        source: path or name of the model, for messages.

    Raises:
        ModelError: the model is quantised, not a causal LM, of an unsupported type, or of sizes
            that cannot be.
    """
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"{source} is quantised: pruning solves for full-precision weights; "
            f"give the unquantised checkpoint and quantise the pruned model afterwards"
        )
    known = ", ".join(sorted(ARCHITECTURES))
    if config.model_type not in ARCHITECTURES:
        raise ModelError(
            f"{source} has model_type {config.model_type!r}; supported: {known}. An adapter needs "
            f"pre-norm residual blocks with a linear attention output and a linear FFN output: add "
            f"one `Architecture` to tyr/model/architecture.py and the two-block tests cover it"
        )
    architecture = ARCHITECTURES[config.model_type]
    names = config.architectures or [architecture.class_name]
    if architecture.class_name not in names:
        raise ModelError(
            f"{source} is a {names[0]}, not a causal language model: "
            f"expected {architecture.class_name}"
        )
    _check_sizes(config, source)
    return architecture


def _check_sizes(config: PretrainedConfig, source: str) -> None:
    """Raise ModelError for sizes that no decoder has; the stock classes would fail later or not."""
    for name in _SIZES:
        size = getattr(config, name, None)
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ModelError(f"{source}: {name} must be a whole number of at least 1, got {size!r}")
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if heads % kv_heads:
        raise ModelError(
            f"{source}: num_attention_heads={heads} is no multiple of "
            f"num_key_value_heads={kv_heads}: every KV head serves equally many query heads"
        )
    if getattr(config, "head_dim", None) is None and config.hidden_size % heads:
        raise ModelError(
            f"{source}: hidden_size={config.hidden_size} is no multiple of "
            f"num_attention_heads={heads}, and there is no head_dim"
        )


def head_size(config: PretrainedConfig) -> int:
    """Width of one attention head; not hidden/heads in Mistral-Nemo and Qwen3."""
    explicit = getattr(config, "head_dim", None)
    return int(explicit or config.hidden_size // config.num_attention_heads)


def unit_counts(config: PretrainedConfig, attention_unit: str) -> UnitCounts:
    """Prunable units of a dense model: query heads or KV groups, and FFN neurons."""
    heads = config.num_key_value_heads if attention_unit == "kv_group" else None
    blocks = config.num_hidden_layers
    return UnitCounts(
        attn=(heads or config.num_attention_heads,) * blocks,
        ffn=(config.intermediate_size,) * blocks,
    )
