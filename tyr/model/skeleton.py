"""A stock model without weights, and giving it those that are to stay in memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from tyr.model.architecture import Architecture, architecture_of
from tyr.model.offload import HostWeights, Residency, Weights
from tyr.model.placement import MemorySettings, Placement


def skeleton(config: PretrainedConfig, *, dtype: torch.dtype) -> PreTrainedModel:
    """The stock model of a configuration on the meta device: shapes and no values."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return cast(PreTrainedModel, model)


def complete(
    model: PreTrainedModel,
    architecture: Architecture,
    state: Mapping[str, Tensor],
    device: torch.device,
    *,
    strict: bool = False,
) -> None:
    """Give a skeleton parameters, its ties, and its rotary tables.

    Args:
        model: on the meta device.
        architecture: names of its parts.
        state: parameters by name, on the computing device; tied ones once.
        device: computing device.
        strict: whether all of them are expected, and no others.
    """
    model.load_state_dict(dict(state), assign=True, strict=strict)
    model.tie_weights()
    backbone: Any = architecture.backbone(model)
    # Computed, not stored: made anew, and on the CPU, where the stock loader makes them too.
    backbone.rotary_emb = type(backbone.rotary_emb)(config=model.config).to(device)


def lend_blocks(model: PreTrainedModel, weights: Weights, device: torch.device) -> Residency:
    """Complete a skeleton with what lies outside its blocks; the result brings the blocks.

    Args:
        model: on the meta device.
        weights: all parameters.
        device: computing device.

    Raises:
        ModelError: a weight cannot be read.
    """
    architecture = architecture_of(model.config, source="model")
    name = architecture.blocks_name(model)
    outside = [n for n, _ in model.named_parameters() if not n.startswith(f"{name}.")]
    complete(model, architecture, weights.read(outside), device)
    blocks = architecture.blocks(model)
    return Residency(blocks, prefix=name, weights=weights, device=device)


def leave_on_host(model: PreTrainedModel, device: torch.device) -> HostWeights:
    """The weights of a model on the CPU, which becomes a skeleton."""
    state = {name: parameter.detach() for name, parameter in model.named_parameters()}
    cast(Any, model).to("meta")
    model.tie_weights()  # `to` gave each of a tied pair a tensor of its own
    return HostWeights(state, device=device)


def place(
    model: PreTrainedModel,
    weights: Weights | None,
    memory: MemorySettings,
    *,
    device: torch.device,
    scratch: Path | None,
) -> Placement:
    """Put a model on its device: all of it, or of a skeleton what does not come and go.

    Args:
        model: on the CPU, or a skeleton whose weights are elsewhere.
        weights: of the skeleton, else None.
        memory: budgets of hidden states.
        device: computing device.
        scratch: folder for hidden states that do not fit in memory.
    """
    if weights is None:
        cast(Any, model).to(device)
        residency = None
    else:
        residency = lend_blocks(model, weights, device)
    return Placement(memory.states(device, scratch), residency)
