"""What runs a model for the latency measurement: torch eager, torch.compile, llama.cpp.

All decode greedily, one token at a time with a KV cache, and time the same two spans: from the
prompt to the first token, and from there to the last. The loop here is plain, so the overhead of
`generate` is in no figure. An engine warms up and repeats only when it is told to.

Letters: B sequences, T prompt tokens.
"""

from __future__ import annotations

import copy
import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from tyr.devices import synchronize
from tyr.errors import ConfigError
from tyr.evaluate.peak import PeakTensors
from tyr.evaluate.work import Work, count_work

TORCH_ENGINES = ("eager", "compile")


@dataclass(frozen=True)
class Workload:
    """What is generated.

    Args:
        input_tokens: length of the prompt.
        output_tokens: tokens to generate, the first one included; at least 2.
        batch: sequences at once.
    """

    input_tokens: int
    output_tokens: int
    batch: int

    def __post_init__(self) -> None:
        if self.input_tokens < 1 or self.output_tokens < 2 or self.batch < 1:
            raise ConfigError(
                f"a workload needs input >= 1, output >= 2 (the first token is the prefill's) and "
                f"batch >= 1, got {self.input_tokens}, {self.output_tokens}, {self.batch}"
            )

    @property
    def length(self) -> int:
        """Positions of one sequence."""
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True)
class Run:
    """One timed generation: seconds to the first token, and from the first to the last."""

    ttft_seconds: float
    decode_seconds: float


@dataclass(frozen=True)
class Footprint:
    """Memory of a workload, or None where an engine does not tell.

    Args:
        peak_bytes: weights plus the most that other tensors take at once.
        kv_bytes_per_token: what one token of one sequence takes in the KV cache.
    """

    peak_bytes: int | None
    kv_bytes_per_token: float | None


class Engine(Protocol):
    """A model that can be timed.

    Args:
        name: of the engine.
        parameters: of the model, if known.
        context: most positions it was made for.
        work: what a forward takes, if known.
    """

    name: str
    parameters: int | None
    context: int
    work: Work | None

    def prepare(self, workload: Workload) -> None:
        """Forget the last workload and get ready for this one."""

    def run(self) -> Run:
        """Generate once."""

    def footprint(self) -> Footprint:
        """Memory of the workload; may generate once more, untimed."""


class TorchEngine:
    """A transformers model, eager or compiled.

    Compiled, prompt and decoding steps run on a static cache as large as the workload; eager, on
    the cache that grows, as `generate` would choose.

    Args:
        model: a causal LM in evaluation mode, on its device.
        compiled: whether to compile its forward.
    """

    def __init__(self, model: Any, *, compiled: bool = False) -> None:
        self.name = "compile" if compiled else "eager"
        self._model = model
        self._compiled = compiled
        self._forward: Callable[..., Any] = model
        self._cache: Any = None
        self.parameters: int | None = sum(p.numel() for p in model.parameters())
        self.context = int(model.config.max_position_embeddings)
        self.work: Work | None = count_work(model)
        self._workload = Workload(1, 2, 1)

    def prepare(self, workload: Workload) -> None:
        """See `Engine.prepare`."""
        self._workload = workload
        if not self._compiled:
            return
        torch._dynamo.reset()  # each shape is a graph, and torch stops compiling after eight
        config = _without_window(self._model.config, workload.length)
        self._cache = StaticCache(config=config, max_cache_len=workload.length)
        # Layers differ in their heads, so the cache takes its shapes from a first, eager prompt.
        self._generate(self._model, self._cache)
        self._forward = torch.compile(self._model, dynamic=False)

    def run(self) -> Run:
        """See `Engine.run`."""
        if self._cache is None:
            return self._generate(self._model, DynamicCache(config=self._model.config))
        self._cache.reset()
        return self._generate(self._forward, self._cache)

    @torch.no_grad()
    def _generate(self, forward: Callable[..., Any], cache: Any) -> Run:
        prompt = self._prompt()
        self._wait()
        started = time.perf_counter()
        token = _next(forward, prompt, cache)
        self._wait()
        first = time.perf_counter()
        for _ in range(self._workload.output_tokens - 1):
            token = _next(forward, token, cache)
        self._wait()
        return Run(first - started, time.perf_counter() - first)

    def footprint(self) -> Footprint:
        """See `Engine.footprint`. Measured eagerly: dispatch is what a compiled model skips."""
        parameters = {p.data_ptr(): p.nbytes for p in self._model.parameters()}
        cache = DynamicCache(config=self._model.config)
        with PeakTensors() as peak:
            self._generate(self._model, cache)
        layers = [layer for layer in cache.layers if layer.is_initialized]
        tokens = [layer.keys.shape[0] * layer.keys.shape[2] for layer in layers]
        per_token = sum(
            (layer.keys.nbytes + layer.values.nbytes) / count
            for layer, count in zip(layers, tokens, strict=True)
        )
        return Footprint(sum(parameters.values()) + peak.peak_bytes, per_token)

    def _prompt(self) -> Tensor:
        """(B, T) token ids, the same for every model with this vocabulary."""
        size = (self._workload.batch, self._workload.input_tokens)
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(self._model.config.vocab_size, size, generator=generator)
        return tokens.to(self._model.device)

    def _wait(self) -> None:
        synchronize(self._model.device)


def _without_window(config: Any, length: int) -> Any:
    """The configuration of a static cache, which compiles once for all positions.

    One of a sliding window counts positions in Python, so that each is a graph of its own and most
    would run eagerly. A window that holds the whole workload never slides.

    Raises:
        ConfigError: the window is shorter than the workload.
    """
    window = getattr(config, "sliding_window", None)
    if window is None:
        return config
    if window < length:
        raise ConfigError(
            f"engine compile cannot decode {length} positions with a sliding window of {window}: "
            f"measure at most {window}, or with engine eager"
        )
    plain = copy.deepcopy(config)
    plain.sliding_window = None
    if getattr(plain, "layer_types", None):
        plain.layer_types = ["full_attention"] * len(plain.layer_types)
    return plain


def _next(forward: Callable[..., Any], tokens: Tensor, cache: Any) -> Tensor:
    """(B, T) new tokens -> (B, 1), the likeliest next one."""
    logits: Tensor = forward(
        tokens, past_key_values=cache, use_cache=True, logits_to_keep=1
    ).logits  # (B, 1, V)
    return logits.argmax(dim=-1)


class LlamaCppEngine:
    """A GGUF file in llama.cpp, through llama-cpp-python.

    The token fed next is fixed: which one it is changes no time, and sampling is left out. One
    sequence only, as that package offers no batch.

    Args:
        path: the file.
        threads: of llama.cpp; None leaves the choice to it.

    Raises:
        ConfigError: llama-cpp-python or gguf is not installed, or there is no such file.
    """

    name = "llama.cpp"

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        try:
            self._package: Any = importlib.import_module("llama_cpp")
            gguf: Any = importlib.import_module("gguf")
        except ImportError as error:
            raise ConfigError(
                "engine llama.cpp needs llama-cpp-python: pip install -e '.[gguf-test]'"
            ) from error
        if not path.is_file():
            raise ConfigError(f"{path} is not a file: expected a GGUF model")
        self._path, self._threads = path, threads
        self._model: Any = None
        self._workload = Workload(1, 2, 1)
        header = gguf.GGUFReader(str(path))
        lengths = [f for key, f in header.fields.items() if key.endswith(".context_length")]
        self.context = int(lengths[0].contents()) if lengths else 0
        self.parameters: int | None = sum(int(t.n_elements) for t in header.tensors)
        self.work: Work | None = None

    def prepare(self, workload: Workload) -> None:
        """See `Engine.prepare`.

        Raises:
            ConfigError: more than one sequence.
        """
        if workload.batch != 1:
            raise ConfigError(f"engine llama.cpp measures batch 1 only, got {workload.batch}")
        self._workload = workload
        self._model = self._package.Llama(
            str(self._path),
            n_ctx=workload.length,
            n_batch=max(32, workload.input_tokens),
            n_threads=self._threads,
            n_threads_batch=self._threads,
            verbose=False,
        )

    def run(self) -> Run:
        """See `Engine.run`."""
        self._model.reset()
        prompt = [1 + index % 100 for index in range(self._workload.input_tokens)]
        started = time.perf_counter()
        self._model.eval(prompt)
        first = time.perf_counter()
        for _ in range(self._workload.output_tokens - 1):
            self._model.eval([1])
        return Run(first - started, time.perf_counter() - first)

    def footprint(self) -> Footprint:
        """Not told by the package."""
        return Footprint(None, None)
