"""config.json of a pruned model: the dense configuration plus the sizes of every block.

The per-block keys are those of transformers (`per_layer_config`), so other engines can read them;
`query_to_kv` is the one key of our own. Nothing is written here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from tyr.export import modeling_tyr
from tyr.export.tensors import SublayerPart
from tyr.model.decoder import Decoder


@dataclass(frozen=True)
class PrunedSizes:
    """Sizes of every block, collected sublayer by sublayer.

    Args:
        per_layer: `per_layer_config` entry of each block.
        query_to_kv: for blocks with unevenly shared KV heads, the KV head of each query head.
    """

    per_layer: dict[int, dict[str, Any]]
    query_to_kv: dict[str, list[int]]

    @classmethod
    def dense(cls, num_blocks: int) -> PrunedSizes:
        """No block differs from the dense model yet."""
        return cls({block: {} for block in range(num_blocks)}, {})

    def add(self, block: int, part: SublayerPart) -> None:
        """Take over what one sublayer contributes."""
        entry = self.per_layer[block]
        skipped = [*entry.get("skip", []), *part.sizes.get("skip", [])]
        entry.update(part.sizes)
        if skipped:
            entry["skip"] = skipped
        if part.query_to_kv is not None:
            self.query_to_kv[str(block)] = list(part.query_to_kv)

    def rows(self) -> list[dict[str, object]]:
        """One row per block, for tables."""
        sizes = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
        return [
            {"block": block, **{name: entry[name] for name in sizes}}
            for block, entry in self.per_layer.items()
        ]

    @property
    def without_attention(self) -> frozenset[int]:
        """Blocks whose attention is gone."""
        entries = self.per_layer.items()
        return frozenset(b for b, entry in entries if entry["num_attention_heads"] == 0)


def pruned_config(decoder: Decoder, sizes: PrunedSizes) -> PretrainedConfig:
    """The configuration of the pruned model, an instance of its class in `modeling_tyr`."""
    class_name = f"Tyr{decoder.architecture.class_name}"
    model_class: Any = getattr(modeling_tyr, class_name)
    config_class: Any = model_class.config_class
    module = Path(modeling_tyr.__file__).stem
    fields = decoder.config.to_diff_dict()
    fields.update(
        model_type=config_class.model_type,
        architectures=[class_name],
        auto_map={
            "AutoConfig": f"{module}.{config_class.__name__}",
            "AutoModel": f"{module}.{class_name.removesuffix('ForCausalLM')}Model",
            "AutoModelForCausalLM": f"{module}.{class_name}",
        },
        dtype=str(decoder.storage_dtype).removeprefix("torch."),
        head_dim=decoder.sublayers[0].head_size,  # no longer hidden/heads, so it must be written
        per_layer_config={block: dict(entry) for block, entry in sizes.per_layer.items()},
        query_to_kv=dict(sizes.query_to_kv),
        # For engines that read config.json with their own classes.
        allow_global_per_layer_attribute_access=True,
    )
    if fields.get("layer_types"):
        fields["layer_types"] = _layer_types(fields["layer_types"], sizes.without_attention)
    config: PretrainedConfig = config_class.from_dict(fields)
    return config


def _layer_types(types: list[str], without_attention: frozenset[int]) -> list[str]:
    """Give blocks without attention the type of block 0.

    transformers sizes each mask by the first cache layer of its type. A block without attention
    never fills its cache, and block 0 always has attention.
    """
    return [types[0] if block in without_attention else kind for block, kind in enumerate(types)]
