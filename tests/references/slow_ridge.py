"""Ridge regression by one dense solve per strength, scored by generalised cross-validation."""

from __future__ import annotations

import torch
from torch import Tensor


def slow_ridge(features: Tensor, target: Tensor, *, intercepts: int) -> Tensor:
    """Weights of the strength with the least n·RSS / (n − degrees of freedom)²."""
    count = features.shape[1]
    gram = features.mT @ features
    scale = gram.diagonal().mean()
    best = (float("inf"), torch.zeros(count, dtype=features.dtype))
    for power in range(-6, 5):
        damped = gram + 10.0**power * scale * torch.eye(count, dtype=features.dtype)
        weights = torch.linalg.solve(damped, features.mT @ target)
        hat = features @ torch.linalg.inv(damped) @ features.mT
        freedom = float(len(target) - intercepts - hat.trace())
        misfit = float((target - features @ weights).square().sum())
        if misfit / freedom**2 < best[0]:
            best = (misfit / freedom**2, weights)
    return best[1]
