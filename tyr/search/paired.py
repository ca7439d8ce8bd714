"""Paired tests on few observations of many candidates.

Each candidate's variance of differences is known badly from a handful of chunks, so it is moderated
as in Smyth (2004, "Linear models and empirical Bayes methods", Section 6): variances of one
population are taken as draws from one scaled inverse chi-square law, whose two parameters are
estimated from all of them, and each is shrunk towards it. The t statistic then has the degrees of
freedom of the law and of the candidate's own chunks together, at most those of all candidates.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_NEWTON_STEPS = 50
_NODES = 4001  # of Simpson's rule, an odd number
_MOST_FREEDOM = 1e4  # beyond, the normal law is as good; keeping t is the careful side


def paired_p_values(differences: Tensor, weights: Tensor) -> Tensor:
    """One-sided p-values of "the mean difference is not above zero".

    Args:
        differences: (chunks, candidates), float64, at least two chunks.
        weights: (chunks,), float64, tokens of each chunk; a chunk's variance falls with them.

    Returns:
        (candidates,), float64.
    """
    chunks, count = differences.shape
    share = weights[:, None] / weights.sum()
    mean = (share * differences).sum(dim=0)
    own = chunks - 1
    # Variance of a chunk of average weight.
    variance = (weights[:, None] / weights.mean() * (differences - mean).square()).sum(dim=0) / own
    prior_freedom, prior_variance = variance_prior(variance, own)
    if math.isinf(prior_freedom):
        moderated = torch.full_like(variance, prior_variance)
    else:
        moderated = (prior_freedom * prior_variance + own * variance) / (prior_freedom + own)
    freedom = min(prior_freedom + own, float(own * count))
    statistic = mean / (moderated / chunks).sqrt()
    # 0/0: neither a difference nor any scatter, so nothing speaks against the candidate.
    return student_tail(statistic.nan_to_num(nan=0.0), freedom)


def variance_prior(variances: Tensor, freedom: int) -> tuple[float, float]:
    """Degrees of freedom and scale of the law that the variances come from (Smyth, Section 6.2).

    By the first two moments of their logarithms. Infinite degrees of freedom mean that they scatter
    no more than equal variances would; none, that there is but one.

    Args:
        variances: (candidates,), float64, each with `freedom` degrees of freedom.
        freedom: at least 1.
    """
    positive = variances[variances > 0]
    if len(positive) == 0:
        return math.inf, 0.0
    if len(positive) == 1:  # nothing to compare it with, so it stands for itself
        return 0.0, float(positive[0])
    half = torch.tensor(freedom / 2, dtype=torch.float64)
    logs = positive.log() - torch.digamma(half) + half.log()
    mean = float(logs.mean())
    excess = float(logs.var()) - float(torch.polygamma(1, half))
    if excess <= 0:
        return math.inf, math.exp(mean)
    prior_half = inverse_trigamma(excess)
    value = torch.tensor(prior_half, dtype=torch.float64)
    return 2 * prior_half, math.exp(mean + float(torch.digamma(value) - value.log()))


def inverse_trigamma(target: float) -> float:
    """The x with trigamma(x) = target > 0, by Newton's method on 1/trigamma (Smyth, appendix)."""
    x = 0.5 + 1 / target
    for _ in range(_NEWTON_STEPS):
        at = torch.tensor(x, dtype=torch.float64)
        value, slope = float(torch.polygamma(1, at)), float(torch.polygamma(2, at))
        step = value * (1 - value / target) / slope
        x += step
        if abs(step) < 1e-9 * x:
            break
    return x


def student_tail(statistic: Tensor, freedom: float) -> Tensor:
    """P(T > t) of Student's law, by Simpson's rule on the integral of cos^(freedom - 1).

    Args:
        statistic: t, float64, any shape; may be infinite.
        freedom: degrees of freedom, at least 1.
    """
    freedom = min(freedom, _MOST_FREEDOM)
    angle = torch.atan(statistic.abs() / math.sqrt(freedom))[..., None]
    places = torch.linspace(0, 1, _NODES, dtype=torch.float64)
    weights = torch.ones(_NODES, dtype=torch.float64)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    integrand = (angle + places * (math.pi / 2 - angle)).cos().clamp(min=0) ** (freedom - 1)
    area = (integrand * weights).sum(dim=-1) * (math.pi / 2 - angle[..., 0]) / (3 * (_NODES - 1))
    log_scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(math.pi)
    tail = (math.exp(log_scale) * area).clamp(max=0.5)
    return torch.where(statistic >= 0, tail, 1 - tail)
