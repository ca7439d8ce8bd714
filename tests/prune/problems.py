"""Random pruning problems with their features, so that the slow way can start from the data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.references.greedy import Regression, corrected_regression, self_regression
from tests.tiny import random_matrix
from tyr.calibrate.statistics import Statistics
from tyr.prune.progressive import LocalProblem
from tyr.prune.target import CorrectedTarget, SelfTarget

DAMPING = 0.01


@dataclass(frozen=True)
class Data:
    """Features of a pruned and a dense stream, float64.

    Args:
        pruned: (N, d_in), correlated columns of very different size.
        dense: (N, d_in).
        residual_gap: (N, C), r − r̂.
        weight: (d_in, C).
        unit_size: rows per unit.
    """

    pruned: Tensor
    dense: Tensor
    residual_gap: Tensor
    weight: Tensor
    unit_size: int

    @property
    def statistics(self) -> Statistics:
        return Statistics(
            hessian=self.pruned.mT @ self.pruned,
            cross=self.pruned.mT @ self.dense,
            residual=self.pruned.mT @ self.residual_gap,
            num_tokens=len(self.pruned),
        )

    def self_problem(self, damping: float = DAMPING) -> LocalProblem:
        return SelfTarget().problem(
            self.statistics, self.weight, damping=damping, unit_size=self.unit_size, name="000.ffn"
        )

    def self_regression(self, damping: float = DAMPING) -> Regression:
        return self_regression(self.pruned, self.weight, damping=damping, unit_size=self.unit_size)

    def corrected_problem(
        self, alpha: float, beta: float, damping: float = DAMPING
    ) -> LocalProblem:
        return CorrectedTarget(alpha, beta).problem(
            self.statistics, self.weight, damping=damping, unit_size=self.unit_size, name="000.ffn"
        )

    def corrected_regression(
        self, alpha: float, beta: float, damping: float = DAMPING
    ) -> Regression:
        return corrected_regression(
            self.pruned,
            self.weight,
            dense_features=self.dense,
            residual_gap=self.residual_gap,
            alpha=alpha,
            beta=beta,
            damping=damping,
            unit_size=self.unit_size,
        )


def random_data(
    units: int, unit_size: int, *, outputs: int = 6, tokens: int = 80, seed: int = 0
) -> Data:
    """Features in which some directions dominate, as in a language model."""
    width = units * unit_size
    mixing = random_matrix(width, width, seed=seed) * torch.logspace(0, -1.5, width).double()
    pruned = random_matrix(tokens, width, seed=seed + 1) @ mixing
    return Data(
        pruned=pruned,
        dense=pruned + 0.3 * random_matrix(tokens, width, seed=seed + 2) @ mixing,
        residual_gap=0.3 * random_matrix(tokens, outputs, seed=seed + 3),
        weight=random_matrix(width, outputs, seed=seed + 4),
        unit_size=unit_size,
    )
