"""Write a pruned model whose blocks are all alike as a plain checkpoint of its own stock class.

The one form that loads everywhere without code: `LlamaForCausalLM` and its like, with smaller
numbers in config.json. It needs `layout=uniform`; blocks that differ are exported by
`checkpoint.py`. What a stock class cannot hold is refused from the configuration alone, before
weights are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig

from tyr.errors import ConfigError, ModelError
from tyr.export.checkpoint import SHARD_BYTES, HuggingFaceExport
from tyr.export.config import PrunedSizes
from tyr.layout import Layout
from tyr.model.architecture import architecture_of, head_size
from tyr.model.decoder import Decoder
from tyr.model.source import ModelSource
from tyr.sparsity import UnitCounts, uniform_allocation

SIZES = ("num_attention_heads", "num_key_value_heads", "intermediate_size")


def stock_config(decoder: Decoder, sizes: PrunedSizes) -> PretrainedConfig:
    """The base model's configuration with the sizes that all blocks share.

    Raises:
        ModelError: blocks differ, a sublayer is empty, or the stock class refuses the sizes.
    """
    entries = [dict(entry) for entry in sizes.per_layer.values()]
    shared = {name: entries[0][name] for name in SIZES}
    odd = [block for block, entry in enumerate(entries) if entry != shared]
    if sizes.query_to_kv or odd or not all(shared.values()):
        raise ModelError(
            f"a stock {decoder.architecture.class_name} needs blocks that are all alike, with "
            f"evenly shared KV heads and no empty sublayer; block 0 has {shared}, and these blocks "
            f"do not fit: {odd or sorted(sizes.query_to_kv) or [0]}; prune with layout=uniform, or "
            f"use export=hf"
        )
    shared["dtype"] = str(decoder.storage_dtype).removeprefix("torch.")
    return resized(decoder.config, shared)


class StockExport(HuggingFaceExport):
    """Exports a checkpoint of the stock class; `export=stock`.

    `export` raises ModelError when blocks differ in size, or one has lost a sublayer.

    Args:
        max_shard_bytes: see `HuggingFaceExport`.
    """

    def __init__(self, max_shard_bytes: int = SHARD_BYTES) -> None:
        super().__init__(max_shard_bytes, configure=stock_config)

    def check(
        self, source: ModelSource, units: UnitCounts, *, sparsity: float, layout: Layout
    ) -> None:
        """See `check_stock`."""
        check_stock(source.configuration(), units, sparsity=sparsity, layout=layout)


def resized(config: PretrainedConfig, changes: Mapping[str, Any]) -> PretrainedConfig:
    """A stock configuration with fields changed.

    Raises:
        ModelError: its class refuses them.
    """
    fields = config.to_diff_dict()
    fields.pop("auto_map", None)  # a plain checkpoint needs no code of the base either
    fields["architectures"] = [architecture_of(config, source=config.model_type).class_name]
    fields["head_dim"] = head_size(config)  # no longer hidden/heads, so it must be written
    try:
        stock: PretrainedConfig = type(config).from_dict({**fields, **changes})
    except (StrictDataclassError, ValueError) as error:
        raise ModelError(
            f"the stock {type(config).__name__} refuses {dict(changes)}: {error.__cause__ or error}"
        ) from error
    return stock


def check_stock(
    config: PretrainedConfig, units: UnitCounts, *, sparsity: float, layout: Layout
) -> None:
    """Refuse, before the run, what no stock class can hold.

    Args:
        config: of the dense model.
        units: KV groups and neurons that exist.
        sparsity: fraction to remove; reachable under the layout.
        layout: what every block must keep.

    Raises:
        ConfigError: blocks may differ, or the stock class does not take that many heads.
    """
    if not layout.equal_blocks:
        raise ConfigError(
            "export=stock needs blocks that are all alike, but this layout lets them differ; use "
            "layout=uniform, or export=hf"
        )
    try:
        _shrunk(config, units, sparsity, layout)
    except ModelError as error:
        works = ", ".join(f"{step:g}" for step in _loadable(config, units, layout))
        raise ConfigError(
            f"{error}; sparsities it takes: {works or 'none'}; use one of these, or "
            f"layout=portable with export=hf"
        ) from error


def _shrunk(
    config: PretrainedConfig, units: UnitCounts, sparsity: float, layout: Layout
) -> PretrainedConfig:
    """The stock configuration of a model that loses so much, before the model exists."""
    removed = uniform_allocation(sparsity, units, layout)
    groups = units.attn[0] - removed.attn[0]
    heads = groups * (config.num_attention_heads // config.num_key_value_heads)
    neurons = units.ffn[0] - removed.ffn[0]
    return resized(config, dict(zip(SIZES, (heads, groups, neurons), strict=True)))


def _loadable(config: PretrainedConfig, units: UnitCounts, layout: Layout) -> Iterator[float]:
    """A sparsity for every number of KV groups that the stock class takes.

    A rounder number reaches further: of 300 neurons in 3 blocks 0.6667 asks for 200, 0.67 for 201.
    """
    groups = units.attn[0]
    for removed in range(groups):
        steps = dict.fromkeys(round(removed / groups, digits) for digits in (4, 3, 2))
        yield from [step for step in steps if _is_loadable(config, units, step, layout)][:1]


def _is_loadable(
    config: PretrainedConfig, units: UnitCounts, sparsity: float, layout: Layout
) -> bool:
    try:
        _shrunk(config, units, sparsity, layout)
    except (ModelError, ConfigError):
        return False
    return True
