"""Rotary position embedding as llama.cpp is told of it.

Plain, linear and YaRN scaling are metadata; llama3 scaling is a tensor of divisors, one per pair of
rows, which only `deci` reads. Every other kind is refused: llama.cpp would ignore it or load it
with another meaning. The frequencies themselves are computed by transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tyr.errors import ModelError

# YaRN settings that llama.cpp computes itself, with the only value it can have.
_YARN_FIXED: Mapping[str, tuple[object, ...]] = {
    "attention_factor": (None,),
    "mscale": (None,),
    "mscale_all_dim": (None,),
    "truncate": (None, True),
}


@dataclass(frozen=True)
class Rope:
    """What the file says of positions.

    Args:
        theta: base of the frequencies.
        scaling: `none`, `linear`, `yarn` or `llama3`.
        factor: of linear and YaRN scaling.
        original_context: context before YaRN scaling.
        beta_fast: of YaRN.
        beta_slow: of YaRN.
        divisors: (D/2,), float32, for llama3 scaling.
    """

    theta: float
    scaling: str = "none"
    factor: float = 1.0
    original_context: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    divisors: Tensor | None = None


def read_rope(config: PretrainedConfig, *, head_size: int, arch: str) -> Rope:
    """The rotary embedding of a configuration.

    Raises:
        ModelError: llama.cpp cannot do it.
    """
    given: dict[str, Any] = dict(getattr(config, "rope_parameters", None) or {})
    kind = str(given.get("rope_type") or "default")
    theta = float(given.get("rope_theta") or 10000.0)
    if given.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise ModelError(
            f"partial_rotary_factor={given['partial_rotary_factor']}: llama.cpp rotates whole "
            f"heads in arch={arch}"
        )
    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, "linear", factor=float(given["factor"]))
    if kind == "yarn":
        return _yarn(config, given, theta)
    if kind == "llama3" and arch == "deci":
        return Rope(theta, "llama3", divisors=_divisors(config, theta, head_size))
    reason = (
        "arch=openelm does not read the tensor of frequency divisors, so positions would be wrong"
        if kind == "llama3"
        else "llama.cpp has no such scaling for these architectures"
    )
    raise ModelError(f"rope scaling {kind!r} cannot be exported to GGUF with arch={arch}: {reason}")


def _yarn(config: PretrainedConfig, given: Mapping[str, Any], theta: float) -> Rope:
    for name, allowed in _YARN_FIXED.items():
        if given.get(name) not in allowed:
            raise ModelError(
                f"YaRN rope scaling with {name}={given[name]} cannot be exported to GGUF: "
                f"llama.cpp derives it from the factor"
            )
    original = given.get("original_max_position_embeddings") or config.max_position_embeddings
    return Rope(
        theta,
        "yarn",
        factor=float(given["factor"]),
        original_context=int(original),
        beta_fast=float(given.get("beta_fast") or 32.0),
        beta_slow=float(given.get("beta_slow") or 1.0),
    )


def _divisors(config: PretrainedConfig, theta: float, head_size: int) -> Tensor:
    """(D/2,): plain frequencies over scaled ones."""
    frequencies: tuple[Tensor, float] = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    exponents = torch.arange(0, head_size, 2, dtype=torch.float32) / head_size
    return (1.0 / theta**exponents / frequencies[0]).float()
