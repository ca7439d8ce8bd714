"""Error accumulation: which output a sublayer passes on when it has many structures (Eq. 7).

`o_proj` and `down_proj` are linear, so Σ wₑ·(X·Wₑ) = X·(Σ wₑWₑ): each mode forms one mixed weight
and the stream moves once, whatever the number of levels. Table 4 compares the modes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from tyr.devices import send
from tyr.model.sublayer import Structure, Sublayer


class Accumulation(Protocol):
    """Decides the output weight that the calibration stream passes a sublayer with."""

    def mix(
        self, sublayer: Sublayer, structures: Mapping[int, Structure], *, rng: torch.Generator
    ) -> Tensor:
        """Mixed output weight: (C, d_in), in compute precision.

        Args:
            sublayer: the dense sublayer.
            structures: level to structure.
            rng: CPU generator for modes that draw.
        """


def kept_fraction(sublayer: Sublayer, structure: Structure) -> float:
    """1 − Sₑ of a structure."""
    return len(structure.kept) / sublayer.num_units


def weighted_sum(
    sublayer: Sublayer, structures: Sequence[Structure], shares: Sequence[float]
) -> Tensor:
    """Σ shareₑ·Wₑ with every Wₑ widened by zero columns: (C, d_in), in compute precision.

    Summed in float32 or better and rounded once.
    """
    dense = sublayer.output_weight
    mixed = torch.zeros_like(dense, dtype=torch.promote_types(dense.dtype, torch.float32))
    for structure, share in zip(structures, shares, strict=True):
        rows = send(sublayer.rows(structure.kept), dense.device)
        # First there, then wider: torch would widen on the CPU and send twice the bytes.
        weight = send(structure.weight, mixed.device).to(mixed.dtype)
        mixed.index_add_(1, rows, weight * share)  # a CPU takes three times as long with alpha
    return mixed.to(dense.dtype)


class NoAccumulation:
    """Pass the dense output on: deeper sublayers do not learn of shallower pruning."""

    def mix(
        self, sublayer: Sublayer, structures: Mapping[int, Structure], *, rng: torch.Generator
    ) -> Tensor:
        """See `Accumulation.mix`."""
        return sublayer.output_weight


class RandomAccumulation:
    """Pass on the output of one structure drawn at random."""

    def mix(
        self, sublayer: Sublayer, structures: Mapping[int, Structure], *, rng: torch.Generator
    ) -> Tensor:
        """See `Accumulation.mix`."""
        levels = sorted(structures)
        drawn = int(torch.randint(len(levels), (), generator=rng))
        return weighted_sum(sublayer, [structures[levels[drawn]]], [1.0])


class UniformAccumulation:
    """Pass on the plain mean of all structures' outputs."""

    def mix(
        self, sublayer: Sublayer, structures: Mapping[int, Structure], *, rng: torch.Generator
    ) -> Tensor:
        """See `Accumulation.mix`."""
        members = list(structures.values())
        return weighted_sum(sublayer, members, [1 / len(members)] * len(members))


class ExpectationAccumulation:
    """Eq. 7: weigh each structure by 1 − Sₑ, so the reliable, denser ones count more."""

    def mix(
        self, sublayer: Sublayer, structures: Mapping[int, Structure], *, rng: torch.Generator
    ) -> Tensor:
        """See `Accumulation.mix`."""
        members = list(structures.values())
        kept = [kept_fraction(sublayer, member) for member in members]
        total = sum(kept) or 1.0  # every structure empty: the mixture is zero whatever the shares
        return weighted_sum(sublayer, members, [fraction / total for fraction in kept])


class CompleteAccumulation:
    """Pass on the structure at level 0 alone: exact when that is the one that will be used.

    For plain local pruning and the finishing pass; as a supernet's mode it makes the centre path
    ideal and leaves the other levels unaware (Section 2.3, "complete error accumulation").
    """

    def mix(
        self, sublayer: Sublayer, structures: Mapping[int, Structure], *, rng: torch.Generator
    ) -> Tensor:
        """See `Accumulation.mix`."""
        return weighted_sum(sublayer, [structures[0]], [1.0])
