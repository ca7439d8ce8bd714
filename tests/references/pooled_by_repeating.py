"""Increments pooled over measurements: every step is listed as often as it weighs, and averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean


def increment_between(
    measurements: Sequence[Mapping[int, float]], weights: Sequence[int], start: int, end: int
) -> float | None:
    """Increment of one sublayer from level `start` to `end`; None when a step is not known."""
    low, high = sorted((start, end))
    total = 0.0
    for level in range(low, high):
        steps = [
            known[level + 1] - known[level]
            for known, weight in zip(measurements, weights, strict=True)
            for _ in range(weight)
            if level in known and level + 1 in known
        ]
        if not steps:
            return None
        total += fmean(steps)
    return total if end > start else -total
