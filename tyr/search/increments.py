"""Loss increments per sublayer and level, learned by ridge regression from evaluated candidates.

Losses on different samples differ by a constant that says nothing about candidates, so every sample
has an intercept of its own (data are centred within samples). A level's increment is the sum of the
steps on the way to it from level 0, and the ridge is on the steps, so that neighbouring levels
inform each other. Its strength is chosen by generalised cross-validation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tyr.search.archive import Evaluation
from tyr.search.mutation import Levels

# The straight line through a sublayer's levels is shrunk less than departures from it.
_LINE_SCALE = 3.0
_STRENGTHS = tuple(10.0**power for power in range(-6, 5))


@dataclass(frozen=True)
class Increments:
    """A fitted regression.

    Args:
        weights: (features,), float64.
        half_width: highest absolute level it knows.
        pairwise: whether it has a term per pair of sublayers.
    """

    weights: Tensor
    half_width: int
    pairwise: bool

    def predict(self, candidates: Sequence[Levels]) -> list[float]:
        """Losses up to a constant."""
        features = features_of(candidates, self.half_width, pairwise=self.pairwise)
        predicted: list[float] = (features @ self.weights).tolist()
        return predicted


def fit_increments(evaluations: Sequence[Evaluation], *, pairwise: bool) -> Increments | None:
    """Fit all evaluations; None when no sample has two different candidates.

    Args:
        evaluations: losses on any samples.
        pairwise: whether products of levels get weights.
    """
    distinct = {(one.levels, one.sample): one.loss for one in evaluations}
    levels = [levels for levels, _ in distinct]
    if not levels:
        return None
    half_width = max(1, max(abs(level) for one in levels for level in one))
    samples: dict[tuple[int, ...], int] = {}
    group = torch.tensor([samples.setdefault(key, len(samples)) for _, key in distinct])
    features = centred(features_of(levels, half_width, pairwise=pairwise), group)
    losses = centred(torch.tensor(list(distinct.values()), dtype=torch.float64)[:, None], group)
    if not bool(features.any()):
        return None
    weights = ridge(features, losses[:, 0], intercepts=len(samples))
    return Increments(weights, half_width, pairwise)


def features_of(candidates: Sequence[Levels], half_width: int, *, pairwise: bool) -> Tensor:
    """(candidates, features), float64: a line and 2 * half_width steps per sublayer, then products.

    Args:
        candidates: level vectors.
        half_width: steps on each side of level 0; levels beyond continue the line.
        pairwise: whether to add the product of every two sublayers' levels.
    """
    levels = torch.tensor(candidates, dtype=torch.float64)  # (N, S)
    steps = torch.arange(1, half_width + 1, dtype=torch.float64)
    sparser = (levels[..., None] >= steps).double()  # (N, S, half_width)
    denser = (levels[..., None] <= -steps).double()
    line = _LINE_SCALE * levels[..., None] / half_width
    parts = [torch.cat([line, sparser, denser], dim=-1).flatten(1)]
    if pairwise:
        first, second = torch.triu_indices(levels.shape[1], levels.shape[1], offset=1)
        parts.append(levels[:, first] * levels[:, second] / half_width**2)
    return torch.cat(parts, dim=1)


def centred(values: Tensor, group: Tensor) -> Tensor:
    """(n, k) values less the mean of their group; `group` (n,) holds indices."""
    count = int(group.max()) + 1
    sums = torch.zeros(count, values.shape[1], dtype=values.dtype).index_add_(0, group, values)
    sizes = torch.bincount(group, minlength=count)[:, None]
    return values - (sums / sizes)[group]


def ridge(features: Tensor, target: Tensor, *, intercepts: int) -> Tensor:
    """(k,) ridge weights, with the strength that generalised cross-validation likes best.

    Args:
        features: (n, k), float64, centred.
        target: (n,), float64, centred.
        intercepts: degrees of freedom that centring took.
    """
    values, vectors = torch.linalg.eigh(features.mT @ features)
    values = values.clamp(min=0)
    moments = vectors.mT @ (features.mT @ target)
    power = float(target @ target)
    scale = max(float(values.mean()), torch.finfo(torch.float64).tiny)
    best = (float("inf"), torch.zeros_like(moments))
    for strength in _STRENGTHS:
        solved = moments / (values + strength * scale)
        misfit = max(power - float(solved @ (2 * moments - values * solved)), 0.0)
        freedom = len(target) - intercepts - float((values / (values + strength * scale)).sum())
        score = misfit / freedom**2 if freedom > 0 else float("inf")
        if score < best[0]:
            best = (score, solved)
    weights: Tensor = vectors @ best[1]
    return weights
