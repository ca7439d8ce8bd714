"""`evaluator=latency`: speed beside perplexity and KL.

The dense model is measured alone for its own row, and again in turns with every pruned one, so each
row holds its own comparison. How a pruned model becomes layers with a KV cache is handed in:
nothing here knows how models are pruned or exported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from transformers import PretrainedConfig

from tyr.errors import ConfigError
from tyr.evaluate.engines import TORCH_ENGINES, Engine, TorchEngine
from tyr.evaluate.latency import Protocol, check_lengths, measure, workloads
from tyr.evaluate.perplexity import LanguageModel, PerplexityEvaluator, Quality
from tyr.hints import near
from tyr.memory import available_bytes, check_fits
from tyr.model.decoder import Decoder, PrunedDecoder
from tyr.model.source import ModelSource

Materialise = Callable[[Decoder, Any], Any]


def torch_engines(names: Sequence[str]) -> tuple[str, ...]:
    """The names, checked.

    Raises:
        ConfigError: there are none, or one is unknown.
    """
    for name in names:
        if name not in TORCH_ENGINES:
            raise ConfigError(
                f"unknown engine {name!r}{near(name, list(TORCH_ENGINES))}: expected one of "
                f"{', '.join(TORCH_ENGINES)}"
            )
    if not names:
        raise ConfigError(f"no engine is given: expected some of {', '.join(TORCH_ENGINES)}")
    return tuple(names)


class LatencyEvaluator:
    """Perplexity and KL as ever, and how fast the model runs.

    Args:
        materialise: makes a transformers model of the dense decoder and a reader of structures.
        inputs: prompt lengths.
        outputs: generated tokens, the first one included.
        batches: sequences at once; every combination of the three is measured.
        repeats: timed generations per model and workload.
        warmup: untimed ones before them.
        engines: `eager`, `compile`.
        batch_tokens: see `PerplexityEvaluator`, as the next.
        uniform_baseline: also prune to the uniform allocation and measure that model.
    """

    def __init__(
        self,
        materialise: Materialise,
        *,
        inputs: Sequence[int],
        outputs: Sequence[int],
        batches: Sequence[int],
        repeats: int = 5,
        warmup: int = 1,
        engines: Sequence[str] = ("eager",),
        batch_tokens: int = 8192,
        uniform_baseline: bool = True,
    ) -> None:
        self._materialise = materialise
        self._wanted = workloads(inputs, outputs, batches)
        self._protocol = Protocol(repeats, warmup)
        self._engines = torch_engines(engines)
        self._perplexity = PerplexityEvaluator(
            batch_tokens=batch_tokens, uniform_baseline=uniform_baseline
        )
        self.uniform_baseline = uniform_baseline

    def check(self, source: ModelSource, device: torch.device) -> None:
        """See `perplexity.Evaluator.check`.

        Raises:
            ConfigError: a workload exceeds the context of the model, or blocks are on disk.
        """
        offloaded = source.memory.on(device) != "none"
        self._check(source.configuration(), offloaded=offloaded, name=source.name)

    def evaluate(self, model: LanguageModel, windows: Any, *, reference: Decoder) -> Quality:
        """See `perplexity.Evaluator.evaluate`.

        Raises:
            ConfigError: see `check`.
            ModelError: there is no memory for a copy of the pruned model.
        """
        self._check(reference.config, offloaded=reference.offloaded, name=reference.name)
        quality = self._perplexity.evaluate(model, windows, reference=reference)
        models = {"dense": reference.model}
        if isinstance(model, PrunedDecoder):
            _check_memory(reference)
            models["pruned"] = self._materialise(reference, model.read)
        rows = []
        for name in self._engines:
            engines: dict[str, Engine] = {
                key: TorchEngine(module, compiled=name == "compile")
                for key, module in models.items()
            }
            rows += measure(engines, self._wanted, self._protocol)
        return replace(quality, latency=[asdict(row) for row in rows])

    def _check(self, config: PretrainedConfig, *, offloaded: bool, name: str) -> None:
        if offloaded:
            raise ConfigError(
                "evaluator=latency times the whole model in memory, but model.offload keeps its "
                "blocks elsewhere: use model.offload=none, or export and measure the two "
                "directories with python -m tyr.latency"
            )
        check_lengths(int(config.max_position_embeddings), self._wanted, name=name)


def _check_memory(reference: Decoder) -> None:
    """A pruned copy is at most as large as the dense blocks it is made of."""
    if reference.device.type != "cpu":
        return  # the allocator says so itself, at once
    needed = sum(p.nbytes for _, p in _blocks(reference))
    check_fits(
        needed,
        available_bytes(),
        what="a copy of the pruned model; export it and measure it alone, python -m tyr.latency",
    )


def _blocks(decoder: Decoder) -> Any:
    for sublayer in decoder.sublayers:
        yield from sublayer.parameters()
