"""Perplexity and KL on the evaluation windows.

Protocol: the evaluation text is cut into non-overlapping windows of `data.sequence_length` tokens
(stride = window), no special token is added, each window is scored on its own with T − 1
next-token predictions, and perplexity is exp of the mean loss over all of them. On equal windows
this is transformers' own loss. It is the protocol of GPTQ and SparseGPT, which the paper follows.

A model is anything that gives final hidden states and a vocabulary projection, so dense, sliced
and exported models are measured by the same code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from tyr.errors import ConfigError, NumericsError
from tyr.events import TaskScore
from tyr.losses import kl_divergences, next_token_losses
from tyr.model.decoder import Decoder
from tyr.model.source import ModelSource

LARGEST_LOSS = 700.0  # exp of more overflows a float


class LanguageModel(Protocol):
    """What is needed of a model to measure it."""

    @property
    def head(self) -> Tensor:
        """(V, C), vocabulary projection."""

    def final_hidden(self, tokens: Tensor) -> Tensor:
        """(N, T) int64 -> (N, T, C), hidden states after the final norm."""

    def final_states(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """`final_hidden` of every batch, in whatever order suits the model."""


@dataclass(frozen=True)
class Quality:
    """How good a model is on the evaluation text.

    Args:
        perplexity: exp of the mean next-token loss.
        kl: mean KL(reference ‖ model) per token, nats, over all T positions of a window.
        tasks: score per task, from evaluators that ask tasks.
        latency: rows of latency.csv, from the evaluator that measures speed.
    """

    perplexity: float
    kl: float
    tasks: Mapping[str, TaskScore] = field(default_factory=dict)
    latency: Sequence[Mapping[str, Any]] = field(default_factory=list)


class Evaluator(Protocol):
    """What a run measures its models with."""

    uniform_baseline: bool  # also prune to the uniform allocation and measure that model

    def check(self, source: ModelSource, device: torch.device) -> None:
        """Refuse, before any work, what could not be measured.

        Args:
            source: the dense model, of which no weight is read.
            device: computing device.

        Raises:
            ConfigError: the model or where it is kept rules a measurement out.
        """

    def evaluate(self, model: LanguageModel, windows: Tensor, *, reference: Decoder) -> Quality:
        """Quality of `model`; `reference` is the dense one, with the tokenizer of both."""


class PerplexityEvaluator:
    """Measures perplexity and the distance to a reference model.

    Args:
        batch_tokens: positions per forward batch.
        uniform_baseline: also prune to the uniform allocation and measure that model.
    """

    def __init__(self, *, batch_tokens: int = 8192, uniform_baseline: bool = True) -> None:
        if batch_tokens < 1:
            raise ConfigError(f"evaluator.batch_tokens must be at least 1, got {batch_tokens}")
        self.batch_tokens = batch_tokens
        self.uniform_baseline = uniform_baseline

    def check(self, source: ModelSource, device: torch.device) -> None:
        """Nothing to refuse."""

    @torch.no_grad()
    def evaluate(
        self, model: LanguageModel, windows: Tensor, *, reference: LanguageModel
    ) -> Quality:
        """Perplexity of `model` and its KL from `reference` (itself: 0) on the windows.

        Args:
            model: what to measure.
            windows: (K, T) int64, T at least 2.
            reference: the dense model.

        Raises:
            NumericsError: the loss or its exponential is NaN or infinite.
        """
        loss = divergence = 0.0
        tokens = windows.to(model.head.device)
        batches = tokens.split(max(1, self.batch_tokens // windows.shape[1]))
        teacher = None if model is reference else reference.final_states(batches)
        for batch, hidden in zip(batches, model.final_states(batches), strict=True):
            share = len(batch) / len(windows)
            loss += share * next_token_losses(batch, [hidden], model.head)[0]
            if teacher is not None:
                dense = next(teacher)
                divergence += share * kl_divergences(dense, [hidden], model.head)[0]
        if not (loss < LARGEST_LOSS and math.isfinite(divergence)):
            raise NumericsError(
                f"the evaluation loss is {loss} with KL {divergence}: the model is broken or needs "
                f"more precision (model.compute_dtype=float32)"
            )
        return Quality(math.exp(loss), divergence)
