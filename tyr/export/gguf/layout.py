"""Which GGUF architecture a model fits and what each block looks like in it; what does not fit.

llama.cpp reads head counts and widths per block in `deci` (Llama, Mistral, Qwen2, with biases) and
in `openelm` (tied Qwen3, with q/k norms). Some layouts it loads wrongly or aborts on; these are
rewritten to an equal one that works, or refused with the reason. No weight is read here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

from tyr.errors import ConfigError, ModelError
from tyr.export.gguf.rope import Rope, read_rope
from tyr.export.modeling_tyr import SIZES, layer_overrides
from tyr.model.architecture import head_size

ARCHS = ("auto", "deci", "openelm")
STAND_IN_NEURONS = 32  # smallest width that is still quantised


@dataclass(frozen=True)
class BlockLayout:
    """One block as llama.cpp sees it.

    Args:
        query_heads: query heads in the file.
        kv_heads: KV heads in the file, at least as many as are stored.
        neurons: FFN neurons in the file.
        kv_copies: how often each stored KV head is written, in order; empty without attention.
        zero_attention: the attention in the file is one head of zeros.
        zero_ffn: the FFN in the file is a few neurons of zeros.
    """

    query_heads: int
    kv_heads: int
    neurons: int
    kv_copies: tuple[int, ...]
    zero_attention: bool = False
    zero_ffn: bool = False


@dataclass(frozen=True)
class ModelLayout:
    """The whole model as llama.cpp sees it.

    Args:
        arch: `deci` or `openelm`.
        head_size: width of every head.
        tied: the vocabulary head is the token embedding.
        rope: rotary embedding.
        blocks: every block.
    """

    arch: str
    head_size: int
    tied: bool
    rope: Rope
    blocks: tuple[BlockLayout, ...]


def model_layout(config: PretrainedConfig, *, family: str, arch: str = "auto") -> ModelLayout:
    """Decide how a model is written.

    Args:
        config: of an exported or a stock model.
        family: `llama`, `mistral`, `qwen2` or `qwen3`.
        arch: `auto`, or the architecture to insist on.

    Raises:
        ConfigError: unknown architecture.
        ModelError: llama.cpp would load the model wrongly, or not at all.
    """
    arch = _choose_arch(family, arch)
    tied = bool(config.tie_word_embeddings)
    _check_model(config, arch=arch, tied=tied)
    size = head_size(config)
    rope = read_rope(config, head_size=size, arch=arch)
    return ModelLayout(arch, size, tied, rope, _blocks(config, arch))


def _choose_arch(family: str, arch: str) -> str:
    if arch not in ARCHS:
        raise ConfigError(f"arch must be one of {', '.join(ARCHS)}, got {arch!r}")
    fitting = "openelm" if family == "qwen3" else "deci"
    if arch not in ("auto", fitting):
        reason = (
            "deci has no q/k norms, which Qwen3 needs"
            if family == "qwen3"
            else "openelm always applies q/k norms, which this model does not have"
        )
        raise ModelError(f"arch={arch} cannot hold a {family} model: {reason}; use arch={fitting}")
    return fitting


def _check_model(config: PretrainedConfig, *, arch: str, tied: bool) -> None:
    if config.hidden_act not in ("silu", "swish"):
        raise ModelError(
            f"hidden_act={config.hidden_act!r}: llama.cpp computes silu in arch={arch}, so the "
            f"model would be wrong"
        )
    window = smallest_window(config)
    if window is not None and window < config.max_position_embeddings:
        raise ModelError(
            f"the model attends over a sliding window of {window} tokens, which arch={arch} does "
            f"not have: texts longer than that would be computed wrongly. If yours are shorter, "
            f"set max_position_embeddings to {window} in config.json"
        )
    if arch == "openelm" and not tied:
        raise ModelError(
            "arch=openelm takes the vocabulary head from the token embedding, but this Qwen3 has "
            "one of its own (tie_word_embeddings=false): no GGUF architecture of llama.cpp holds "
            "untied Qwen3 blocks of different sizes"
        )
    if arch == "openelm" and getattr(config, "attention_bias", False):
        raise ModelError("arch=openelm has no attention biases, which this Qwen3 has")


def smallest_window(config: PretrainedConfig) -> int | None:
    """The sliding attention window, or None if every block attends to everything."""
    window: Any = getattr(config, "sliding_window", None)
    types: Any = getattr(config, "layer_types", None)
    if window is None or (types and "sliding_attention" not in types):
        return None
    return int(window)


def _blocks(config: PretrainedConfig, arch: str) -> tuple[BlockLayout, ...]:
    overrides = layer_overrides(config)
    uneven: Mapping[str, Sequence[int]] = getattr(config, "query_to_kv", None) or {}
    output_bias = bool(getattr(config, "attention_bias", False))
    blocks = []
    for block in range(config.num_hidden_layers):
        sizes = {name: _size(config, overrides.get(block, {}), name) for name in SIZES}
        queries, kv, neurons = (sizes[name] for name in SIZES)
        if queries == 0 and block == 0:
            raise ModelError(
                "block 0 has no attention left: llama.cpp takes the size of the heads from block "
                "0 and does not load such a file; keep at least one attention unit there"
            )
        copies = _kv_copies(block, queries, kv, uneven.get(str(block)))
        written = sum(copies)
        # deci leaves out an attention without heads, but then its output bias, too; openelm cannot.
        zero_attention = queries == 0 and (arch == "openelm" or output_bias)
        # deci with attention but no FFN forgets to add the residual, and aborts in the last block.
        zero_ffn = neurons == 0
        blocks.append(
            BlockLayout(
                query_heads=1 if zero_attention else queries,
                kv_heads=1 if zero_attention else written,
                neurons=STAND_IN_NEURONS if zero_ffn else neurons,
                kv_copies=copies,
                zero_attention=zero_attention,
                zero_ffn=zero_ffn,
            )
        )
    return tuple(blocks)


def _size(config: PretrainedConfig, own: Mapping[str, Any], name: str) -> int:
    skipped: Sequence[str] = own.get("skip") or []
    if ("mlp" if name == "intermediate_size" else "attention") in skipped:
        return 0
    return int(own.get(name, getattr(config, name)))


def _kv_copies(
    block: int, queries: int, kv: int, query_to_kv: Sequence[int] | None
) -> tuple[int, ...]:
    """How often each KV head must be written so that all serve equally many query heads.

    llama.cpp pairs heads evenly and aborts if it cannot. Groups of 4 and 2 query heads become
    three of 2, with the first KV head written twice; the KV cache grows by as much.
    """
    if queries == 0:
        return ()
    if query_to_kv is None:
        if kv == 0 or queries % kv:
            raise ModelError(
                f"block {block} has {queries} query heads over {kv} KV heads: llama.cpp aborts "
                f"unless they divide evenly, and config.json has no query_to_kv for this block"
            )
        return (1,) * kv
    served = Counter(query_to_kv)
    if len(query_to_kv) != queries or sorted(served) != list(range(kv)):
        raise ModelError(
            f"block {block}: query_to_kv in config.json must give one of {kv} KV heads for each "
            f"of {queries} query heads, got {list(query_to_kv)}"
        )
    if list(query_to_kv) != sorted(query_to_kv):
        raise ModelError(f"block {block}: query_to_kv in config.json must be ascending")
    group = math.gcd(*served.values())
    return tuple(served[head] // group for head in range(kv))
