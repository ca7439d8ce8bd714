"""Greedy pruning that solves everything from scratch at every step, on the actual features.

No Hessian inverse is ever carried over: the weight of the units that are left is a least-squares
solution on X itself, and the loss of a unit is measured by solving without it. Damping is written
as rows added to X, so that the ridge is data like any other.

Letters: N tokens, D rows per unit, C output width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Regression:
    """min ‖Y − X·Ŵ‖² with whole units of Ŵ zero.

    Args:
        inputs: (N, d_in), float64, ridge rows included.
        outputs: (N, C), float64.
        unit_size: rows of the weight per unit.
    """

    inputs: Tensor
    outputs: Tensor
    unit_size: int

    @property
    def num_units(self) -> int:
        return self.inputs.shape[1] // self.unit_size

    def columns(self, units: Sequence[int]) -> list[int]:
        return [unit * self.unit_size + row for unit in units for row in range(self.unit_size)]

    def solve(self, units: Sequence[int]) -> Tensor:
        """(U·D, C): least squares on the columns of the given units."""
        kept = self.inputs[:, self.columns(units)]
        if kept.shape[1] == 0:
            return torch.zeros(0, self.outputs.shape[1], dtype=self.outputs.dtype)
        solution: Tensor = torch.linalg.lstsq(kept, self.outputs, driver="gelsd").solution
        return solution

    def error(self, units: Sequence[int]) -> float:
        """Squared error of the best weight on the given units."""
        kept = self.inputs[:, self.columns(units)]
        return float((self.outputs - kept @ self.solve(units)).square().sum())


def self_regression(
    features: Tensor, weight: Tensor, *, damping: float, unit_size: int
) -> Regression:
    """Eq. 2: reproduce features @ weight, with a ridge that pulls towards `weight`.

    Args:
        features: (N, d_in).
        weight: (d_in, C).
        damping: ridge as a fraction of the mean squared feature norm per column.
        unit_size: rows per unit.
    """
    return _with_ridge(features, features @ weight, weight, damping=damping, unit_size=unit_size)


def corrected_regression(
    features: Tensor,
    weight: Tensor,
    *,
    dense_features: Tensor,
    residual_gap: Tensor,
    alpha: float,
    beta: float,
    damping: float,
    unit_size: int,
) -> Regression:
    """Reproduce X̂W + α(X − X̂)W + β(r − r̂)."""
    wanted = features @ weight + alpha * (dense_features - features) @ weight + beta * residual_gap
    return _with_ridge(features, wanted, weight, damping=damping, unit_size=unit_size)


def _with_ridge(
    features: Tensor, wanted: Tensor, weight: Tensor, *, damping: float, unit_size: int
) -> Regression:
    ridge = damping * features.square().sum(dim=0).mean()
    rows = ridge.sqrt() * torch.eye(len(weight), dtype=features.dtype)
    return Regression(torch.cat([features, rows]), torch.cat([wanted, rows @ weight]), unit_size)


def unit_scores(
    regression: Regression, kept: Sequence[int], *, criterion: str, rng: torch.Generator
) -> list[float]:
    """Saliency of every kept unit by its definition."""
    if criterion == "random":
        return torch.rand(len(kept), generator=rng, dtype=torch.float64).tolist()
    rows = [
        slice(p * regression.unit_size, (p + 1) * regression.unit_size) for p in range(len(kept))
    ]
    weight = regression.solve(kept)
    if criterion == "magnitude":
        return [float(weight[row].square().sum()) for row in rows]
    full_gradient = regression.inputs.mT @ regression.outputs  # G of the unpruned problem
    gradient = full_gradient[regression.columns(kept)]
    first = [abs(float((gradient[row] * weight[row]).sum())) for row in rows]
    if criterion == "first_order":
        return first
    present = regression.error(kept)
    without = [regression.error([other for other in kept if other != unit]) for unit in kept]
    second = [0.5 * (error - present) for error in without]
    if criterion == "second_order":
        return second
    assert criterion == "taylor"
    return [a + b for a, b in zip(first, second, strict=True)]


def prune_greedily(
    regression: Regression,
    removed_counts: Sequence[int],
    *,
    criterion: str,
    group_size: int,
    rng: torch.Generator,
) -> dict[int, tuple[list[int], Tensor]]:
    """Kept units and their weight (U·D, C) at each number of removed units."""
    kept = list(range(regression.num_units))
    levels: dict[int, tuple[list[int], Tensor]] = {}
    for count in sorted(removed_counts):
        while regression.num_units - len(kept) < count:
            still = count - (regression.num_units - len(kept))
            scores = unit_scores(regression, kept, criterion=criterion, rng=rng)
            order = sorted(range(len(kept)), key=lambda place: scores[place])
            gone = {kept[place] for place in order[: min(group_size, still)]}
            kept = [unit for unit in kept if unit not in gone]
        levels[count] = (list(kept), regression.solve(kept))
    return levels
