"""Saliency of a unit: how much the sublayer's output suffers if the unit goes (Eq. 4).

A criterion scores every unit; the greedy pass removes the lowest. It never changes weights, and it
sees units as blocks of rows: D = head size for a head, 1 for an FFN neuron.

Letters: U units, D rows per unit, C output width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor


@dataclass(frozen=True)
class UnitBlocks:
    """Rows of the current problem grouped by unit, in no particular order.

    Args:
        units: (U,), int64, which units they are.
        weight: (U, D, C), current weight, float32.
        gradient: (U, D, C), G = H·W of the unpruned problem, float32.
        inverse: (U, D, D), diagonal blocks of the current inverse Hessian, in solving precision.
    """

    units: Tensor
    weight: Tensor
    gradient: Tensor
    inverse: Tensor


class Criterion(Protocol):
    """Scores units; a lower score is removed earlier."""

    def score(self, blocks: UnitBlocks, *, rng: torch.Generator) -> Tensor:
        """Saliency of every unit: (U,), finite, non-negative.

        Args:
            blocks: current state of the alive units.
            rng: CPU generator, for criteria that draw.
        """


def dot(left: Tensor, right: Tensor) -> Tensor:
    """Σ left ⊙ right per unit: (U, D, C), (U, D, C) -> (U,)."""
    return cast(Tensor, torch.linalg.vecdot(left.flatten(1), right.flatten(1)))


def first_order_term(blocks: UnitBlocks) -> Tensor:
    """|Σ G_u ⊙ W_u| per unit, the first term of Eq. 4: (U,)."""
    return dot(blocks.gradient, blocks.weight).abs()


def second_order_term(blocks: UnitBlocks) -> Tensor:
    """½ · tr(W_uᵀ (H⁻¹_uu)⁻¹ W_u) per unit, the second term of Eq. 4: (U,).

    The error the best compensation leaves when the unit goes (Optimal Brain Surgeon). For a head,
    H⁻¹_uu is a block; the printed formula is its 1x1 case.
    """
    if blocks.inverse.shape[-1] == 1:
        norms: Tensor = torch.linalg.vector_norm(blocks.weight.flatten(1), dim=1)
        return 0.5 * norms.square() / blocks.inverse[:, 0, 0]
    weight = blocks.weight.to(blocks.inverse.dtype)
    return 0.5 * dot(weight, torch.linalg.solve(blocks.inverse, weight))


class Taylor:
    """First plus second order, the paper's criterion (Eq. 4)."""

    def score(self, blocks: UnitBlocks, *, rng: torch.Generator) -> Tensor:
        """See `Criterion.score`."""
        return first_order_term(blocks) + second_order_term(blocks)


class SecondOrder:
    """The second-order term alone: Optimal Brain Surgeon (Hassibi & Stork), ZipLM's choice."""

    def score(self, blocks: UnitBlocks, *, rng: torch.Generator) -> Tensor:
        """See `Criterion.score`."""
        return second_order_term(blocks)


class FirstOrder:
    """The first-order term alone."""

    def score(self, blocks: UnitBlocks, *, rng: torch.Generator) -> Tensor:
        """See `Criterion.score`."""
        return first_order_term(blocks)


class Magnitude:
    """Squared norm of the unit's output weight; blind to activations."""

    def score(self, blocks: UnitBlocks, *, rng: torch.Generator) -> Tensor:
        """See `Criterion.score`."""
        return blocks.weight.square().sum(dim=(1, 2))


class Random:
    """Uniformly random order: the floor that every criterion must beat."""

    def score(self, blocks: UnitBlocks, *, rng: torch.Generator) -> Tensor:
        """See `Criterion.score`."""
        drawn = torch.rand(len(blocks.units), generator=rng, dtype=torch.float64)
        rank = blocks.units.argsort().argsort()  # the first draw is the lowest unit's
        return drawn.to(blocks.weight)[rank]
