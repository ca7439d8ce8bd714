"""Accuracy on tasks through lm-eval, for models in memory and exported ones alike.

The paper's protocol (section 4.1): accuracy on seven tasks without examples and on MMLU with five.
A sliced model in memory is given transformers' interface, so both kinds go through lm-eval's own
`HFLM`. What differs from its defaults: log-probabilities are taken in float32, batches are sized
by tokens instead of by trial (a CPU that is out of memory does not raise, it is killed), and an
answer longer than the context is an error with the task's name. A model whose blocks come and go is
given many batches at once. The only module that imports lm_eval, inside functions: it takes seconds
to load.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from tyr.errors import ConfigError, DataError, ModelError
from tyr.evaluate.task_layouts import FEWEST_EXAMPLES
from tyr.evaluate.together import AskedTwice, LogitsOf
from tyr.events import TaskScore
from tyr.hints import near

logger = logging.getLogger(__name__)

METRICS = ("acc", "acc_norm")
BOOTSTRAPS = 100  # for metrics that are not reported; accuracy has a formula


class Questions(Protocol):
    """Tasks that can be loaded."""

    names: tuple[str, ...]

    def load(self) -> AbstractContextManager[Mapping[str, Any]]:
        """lm-eval's task dictionary, valid inside the context."""


@dataclass(frozen=True)
class Harness:
    """Asks a model some questions.

    Args:
        questions: which.
        metric: `acc`, or `acc_norm` for the tasks that have it.
        limit: first examples of each task (of each part of a group); None for all.
        batch_tokens: positions per forward batch; two float32 tensors of (batch_tokens,
            vocabulary) are held.

    Raises:
        ConfigError: a setting is out of range.
    """

    questions: Questions
    metric: str = "acc"
    limit: int | None = None
    batch_tokens: int = 8192
    _told: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            hint = near(self.metric, list(METRICS))
            raise ConfigError(f"metric must be acc or acc_norm, got {self.metric}{hint}")
        whole = self.limit is None or type(self.limit) is int
        if not whole or (self.limit is not None and self.limit < FEWEST_EXAMPLES):
            raise ConfigError(
                f"limit must be at least {FEWEST_EXAMPLES} examples per task, or null "
                f"for all, got {self.limit}"
            )
        if self.batch_tokens < 1:
            raise ConfigError(f"batch_tokens must be at least 1, got {self.batch_tokens}")

    def scores(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        progress: bool = False,
        together: LogitsOf | None = None,
    ) -> dict[str, TaskScore]:
        """Score per task.

        Args:
            model: a transformers model, or a `task_evaluator.StockModel`.
            tokenizer: its tokenizer; left as it is.
            progress: show a bar on stderr.
            together: the model's logits of many batches, where that is cheaper than one by one; the
                same numbers.

        Raises:
            ConfigError: a task reports no accuracy.
            DataError: a dataset cannot be reached, or an answer is longer than the context.
            ModelError: the tokenizer has no token to begin a text with.
        """
        from lm_eval import evaluate

        if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
            raise ModelError(
                "the tokenizer has neither a BOS nor an EOS token to begin a text with"
            )
        with _quiet(), self.questions.load() as tasks, torch.no_grad():
            _check_accuracy(tasks, self.questions.names)
            language_model = _hflm()(
                model,
                # A copy: lm-eval gives tokenizers a padding token, and ours is exported later.
                copy.deepcopy(tokenizer),
                batch_tokens=self.batch_tokens,
                progress=progress,
                told=self._told,
                together=together,
            )
            results = evaluate(
                language_model,
                tasks,
                limit=self.limit,
                bootstrap_iters=BOOTSTRAPS,
                log_samples=False,
            )
        return {name: self._score(name, results, tasks) for name in self.questions.names}

    def _score(self, name: str, results: Mapping[str, Any], tasks: Mapping[str, Any]) -> TaskScore:
        found = results["results"][name]
        metric = self.metric if f"{self.metric},none" in found else "acc"
        group = tasks.get("groups", {}).get(name)
        parts = [name] if group is None else [task.task_name for task in group.get_all_tasks()]
        return TaskScore(
            metric=metric,
            value=float(found[f"{metric},none"]),
            stderr=float(found[f"{metric}_stderr,none"]),
            examples=sum(int(results["n-samples"][part]["effective"]) for part in parts),
            chance=_chance([tasks["tasks"][part] for part in parts]),
        )


def _chance(tasks: Sequence[Any]) -> float:
    """Mean over examples of one over the number of choices."""
    # One request per choice, so what was asked tells how many choices each example had.
    choices = Counter((task.task_name, asked.doc_id) for task in tasks for asked in task.instances)
    return sum(1 / count for count in choices.values()) / len(choices)


def check_installed() -> None:
    """Refuse before any work.

    Raises:
        ConfigError: lm-eval is not installed, or without what its `HFLM` imports.
    """
    if missing := [name for name in ("lm_eval", "accelerate") if find_spec(name) is None]:
        raise ConfigError(
            f"tasks need {missing[0]}, which is not installed: `pip install -e '.[eval]'`, "
            f"or choose evaluator=perplexity"
        )


@functools.cache
def own_tasks() -> Any:
    """lm-eval's index of its tasks; reading its 14,000 YAML files takes a quarter of a minute."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def tasks_in(directory: Path) -> Any:
    """lm-eval's index of the YAML files in a directory."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(directory), include_defaults=False)


def _check_accuracy(tasks: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse tasks that count something else, before they are asked."""
    for name in names:
        group = tasks.get("groups", {}).get(name)
        if group is None:
            counted = list(tasks["tasks"][name].aggregation())
        else:
            counted = [metric.metric for metric in group.aggregate_metric_list or []]
        if "acc" not in counted:
            raise ConfigError(f"task {name} reports no accuracy, so it has no place in the table")


@contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval without its advice and its bars, which would tear tyr's own display."""
    import datasets
    from lm_eval.api import task as task_module

    library, bar = logging.getLogger("lm_eval"), task_module.tqdm
    level, shown = library.level, datasets.are_progress_bars_disabled()
    library.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    task_module.tqdm = functools.partial(bar, disable=True)  # it offers no switch
    try:
        yield
    finally:
        task_module.tqdm = bar
        library.setLevel(level)
        if not shown:
            datasets.enable_progress_bars()


@functools.cache
def _hflm() -> Any:
    """`HFLM` with the differences that the module docstring names."""
    from lm_eval.models.huggingface import HFLM

    class SizedHFLM(HFLM):
        """HFLM with batches of at most `batch_tokens` positions, set by the longest request."""

        def __init__(
            self,
            model: Any,
            tokenizer: Any,
            *,
            batch_tokens: int,
            progress: bool,
            told: set[str],
            together: LogitsOf | None,
        ) -> None:
            super().__init__(
                model,
                backend="causal",
                tokenizer=tokenizer,
                batch_size="auto",
                softmax_dtype=torch.float32,
            )
            self._batch_tokens, self._progress, self._told = batch_tokens, progress, told
            self._task_names: list[str] = []
            self._ahead = together and AskedTwice(together, model.config.vocab_size)

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            self._task_names = [request.task_name for request in requests]
            return super().loglikelihood(requests, disable_tqdm=not self._progress)

        def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
            lengths = [(len(context), len(answer)) for _, context, answer in requests]
            cut = check_lengths(self._task_names, lengths, self.max_length)
            for task in cut.keys() - self._told:  # once, not again for every model of a run
                self._told.add(task)
                logger.warning(
                    "%s: %d of %d requests are longer than the context of %d tokens and lose "
                    "their beginning",
                    *(task, cut[task], self._task_names.count(task), self.max_length),
                )
            ask = functools.partial(super()._loglikelihood_tokens, requests, *args, **kwargs)
            return ask() if self._ahead is None else self._ahead.ask(ask)

        def _model_call(self, inps: Any, *args: Any, **kwargs: Any) -> Any:
            if self._ahead is not None:
                return self._ahead(inps)
            return super()._model_call(inps, *args, **kwargs)

        def _batch_scheduler(self, pos: int, n_reordered_requests: Any) -> int:
            _, context, answer = n_reordered_requests[0]  # sorted, the longest first
            longest = min(len(context) + len(answer) - 1, self.max_length)
            return int(max(1, self._batch_tokens // max(1, longest)))

    return SizedHFLM


def check_lengths(
    tasks: Sequence[str], lengths: Sequence[tuple[int, int]], context: int
) -> Counter[str]:
    """Refuse answers that the context cannot hold, and count requests that lose their beginning.

    Args:
        tasks: task of each request.
        lengths: tokens of prompt and answer of each request.
        context: the model's longest sequence.

    Returns:
        Requests that are too long, per task that has any.

    Raises:
        DataError: an answer is longer than the context.
    """
    cut: Counter[str] = Counter()
    for task, (prompt, answer) in zip(tasks, lengths, strict=True):
        if answer > context:
            raise DataError(
                f"an answer of task {task} has {answer} tokens but the model's context is "
                f"{context}: leave the task out"
            )
        if prompt + answer > context + 1:
            cut[task] += 1
    return cut
