"""The slow, obvious pruned model: the stock model with zeros where units are gone.

Nothing is sliced. A query head or neuron whose output-projection columns are zero contributes
nothing, whatever it computes; the kept columns hold the structure's weight.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

from tyr.model.decoder import Decoder
from tyr.model.sublayer import Structure
from tyr.sparsity import SublayerId


def masked_model(decoder: Decoder, structures: Mapping[SublayerId, Structure]) -> Any:
    """A stock transformers model that computes what the pruned one should."""
    model: Any = copy.deepcopy(decoder.model)
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    groups = config.num_attention_heads // config.num_key_value_heads
    for sublayer, structure in structures.items():
        block = model.model.layers[sublayer.block]
        if sublayer.kind == "attn":
            linear = block.self_attn.o_proj
            unit = head_dim * (groups if decoder.attention_unit == "kv_group" else 1)
        else:
            linear, unit = block.mlp.down_proj, 1
        masked = torch.zeros_like(linear.weight)
        for position, index in enumerate(structure.kept.tolist()):
            columns = structure.weight[:, position * unit : (position + 1) * unit]
            masked[:, index * unit : (index + 1) * unit] = columns
        linear.weight.data = masked
    return model
