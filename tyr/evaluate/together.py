"""Answers lm-eval's batches from walks of many, for models whose blocks come and go.

lm-eval tells its batches one at a time and wants the logits of each before it tells the next, so a
model that reads its blocks from disk would read all of them for every batch. Here it is asked
twice: the first time to learn the batches. Which numbers it gets does not change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

# Batches of tokens, each (n, T), to their logits in order, each (n, T, V).
LogitsOf = Callable[[Sequence[Tensor]], Iterator[Tensor]]

T = TypeVar("T")


class AskedTwice:
    """Stands in for a model while lm-eval is asked.

    Args:
        logits_of: of many batches.
        vocabulary: V.
    """

    def __init__(self, logits_of: LogitsOf, vocabulary: int) -> None:
        self._logits_of = logits_of
        self._vocabulary = vocabulary
        self._batches: list[Tensor] = []
        self._coming: Iterator[Tensor] | None = None

    def __call__(self, tokens: Tensor) -> Tensor:
        """(n, T) -> (n, T, V): zeros at first, which cost a softmax but no forward."""
        if self._coming is not None:
            return next(self._coming)
        self._batches.append(tokens)
        return torch.zeros((), device=tokens.device).expand(*tokens.shape, self._vocabulary)

    def ask(self, ask: Callable[[], T]) -> T:
        """What `ask` returns the second time; it must call this with the same batches each time."""
        self._batches, self._coming = [], None
        ask()
        self._coming = self._logits_of(self._batches)
        return ask()


def walks(batches: Sequence[Tensor], positions: int) -> Iterator[list[Tensor]]:
    """Batches in order, as many together as have at most `positions`, but at least one."""
    together: list[Tensor] = []
    taken = 0
    for batch in batches:
        if together and taken + batch.numel() > positions:
            yield together
            together, taken = [], 0
        together.append(batch)
        taken += batch.numel()
    if together:
        yield together
