"""The evaluators `lm_eval` and `lm_eval_local`: task scores beside perplexity and KL.

A sliced model in memory has no transformers class; here it gets as much of that interface as
lm-eval needs. What is asked and how is the business of `harness.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tyr.evaluate.harness import Harness
from tyr.evaluate.perplexity import LanguageModel, PerplexityEvaluator, Quality
from tyr.evaluate.questions import FileTasks, HubTasks
from tyr.evaluate.together import walks
from tyr.model.decoder import Decoder
from tyr.model.source import ModelSource


class StockModel:
    """A model in memory behind the part of transformers' interface that lm-eval uses.

    Args:
        model: gives hidden states and a vocabulary projection.
        config: the dense model's.
    """

    def __init__(self, model: LanguageModel, config: Any) -> None:
        self._model = model
        self.config = config
        self.device = model.head.device

    def __call__(self, tokens: Tensor) -> SimpleNamespace:
        """(N, T) int64 -> an object whose `logits` are (N, T, V)."""
        return SimpleNamespace(logits=self._model.final_hidden(tokens) @ self._model.head.mT)

    def logits_of(self, batches: Sequence[Tensor], *, positions: int) -> Iterator[Tensor]:
        """Logits of every batch, in walks of several: blocks that come and go do so once a walk.

        Args:
            batches: each (n, T) int64.
            positions: most in one walk, whose hidden states are all kept; one batch may have more.

        Yields:
            Per batch (n, T, V), in order.
        """
        for together in walks(batches, positions):
            for hidden in self._model.final_states(together):
                yield hidden @ self._model.head.mT


class TaskEvaluator:
    """Perplexity and KL as ever, and a score per task beside them.

    Args:
        harness: asks the tasks.
        perplexity: measures the rest.
    """

    def __init__(self, harness: Harness, perplexity: PerplexityEvaluator) -> None:
        self.harness, self._perplexity = harness, perplexity
        self.uniform_baseline = perplexity.uniform_baseline

    def check(self, source: ModelSource, device: torch.device) -> None:
        """Nothing to refuse."""

    def evaluate(self, model: LanguageModel, windows: Tensor, *, reference: Decoder) -> Quality:
        """See `Evaluator.evaluate`."""
        quality = self._perplexity.evaluate(model, windows, reference=reference)
        stock = StockModel(model, reference.config)
        # A walk of as many positions as perplexity's just now, so it needs no more memory.
        together = partial(stock.logits_of, positions=windows.numel())
        scores = self.harness.scores(
            stock, reference.tokenizer, together=together if reference.offloaded else None
        )
        return replace(quality, tasks=scores)


def from_hub(
    tasks: Sequence[str] | None = None,
    *,
    shots: Mapping[str, int] | None = None,
    metric: str = "acc",
    limit: int | None = None,
    batch_tokens: int = 8192,
    uniform_baseline: bool = True,
) -> TaskEvaluator:
    """`evaluator=lm_eval`: lm-eval's own tasks.

    Args:
        tasks: see `HubTasks`, as `shots`.
        shots: examples in the prompt, per task.
        metric: see `Harness`, as the next two.
        limit: examples per task.
        batch_tokens: positions per forward batch, of perplexity too.
        uniform_baseline: see `PerplexityEvaluator`.

    Raises:
        TyrError: a setting is wrong, a task is unknown, or lm-eval is not installed.
    """
    perplexity = PerplexityEvaluator(batch_tokens=batch_tokens, uniform_baseline=uniform_baseline)
    questions = HubTasks(tasks, shots)
    return TaskEvaluator(Harness(questions, metric, limit, batch_tokens), perplexity)


def from_files(
    data_dir: str | Path,
    tasks: Sequence[str] | None = None,
    *,
    metric: str = "acc",
    limit: int | None = None,
    batch_tokens: int = 8192,
    uniform_baseline: bool = True,
) -> TaskEvaluator:
    """`evaluator=lm_eval_local`: task files on this machine; arguments as in `from_hub`.

    Args:
        data_dir: directory of task files, see `local_tasks.find_tasks`.
        tasks: names; None takes all that are there.
        metric: `acc` or `acc_norm`.
        limit: examples per task.
        batch_tokens: positions per forward batch.
        uniform_baseline: see `PerplexityEvaluator`.

    Raises:
        TyrError: a setting or a file is wrong, a task is unknown, or lm-eval is not installed.
    """
    perplexity = PerplexityEvaluator(batch_tokens=batch_tokens, uniform_baseline=uniform_baseline)
    questions = FileTasks(Path(data_dir).expanduser(), tasks)
    return TaskEvaluator(Harness(questions, metric, limit, batch_tokens), perplexity)
