"""What `gpu.py` measures: a model of Llama-3.1-8B's shapes, its supernet, and one generation.

Weights are drawn on the device and tokens at random: speed and memory do not depend on them, so
nothing is downloaded. The stages are tyr's own objects, put together as `tyr.run` does; the device
is waited for wherever a clock is read.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from gpu_setting import GpuSetting
from torch import Tensor
from transformers import AutoModelForCausalLM

from tyr.devices import peak_bytes, reset_peak, synchronize
from tyr.events import SublayerPruned
from tyr.model.architecture import ARCHITECTURES
from tyr.model.decoder import Decoder
from tyr.prune.local import LocalPruner
from tyr.search.evolution import SearchState
from tyr.search.kept import KeptStructures
from tyr.search.mutation import Levels
from tyr.search.objective import KdLogits, dense_reference
from tyr.search.population import PopulationEvaluator, PopulationLosses
from tyr.search.selection import Sample
from tyr.sparsity import LevelGrid, uniform_allocation
from tyr.supernet.builder import SupernetBuilder
from tyr.supernet.store import SupernetStore
from tyr.supernet.write_behind import WriteBehind

LABEL = "benchmark"
EVERY = 8  # sublayers between two signs of life


class Clock:
    """Seconds spent in some methods while the `with` block runs, the device waited for.

    Args:
        device: where the work is.
        parts: label to (owner, attribute).
    """

    def __init__(self, device: torch.device, parts: dict[str, tuple[Any, str]]) -> None:
        self._device, self._parts = device, parts
        self._originals = {label: getattr(*part) for label, part in parts.items()}
        self.seconds = dict.fromkeys(parts, 0.0)

    def __enter__(self) -> Clock:
        for label, part in self._parts.items():
            setattr(*part, self._timed(label, self._originals[label]))
        return self

    def __exit__(self, *error: object) -> None:
        for label, part in self._parts.items():
            setattr(*part, self._originals[label])

    def _timed(self, label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            synchronize(self._device)
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                synchronize(self._device)
                self.seconds[label] += time.perf_counter() - started

        return timed


class Workload:
    """The model of a setting on a device.

    Args:
        setting: sizes.
        device: where to compute.
        folder: where the supernet goes.
    """

    def __init__(self, setting: GpuSetting, device: torch.device, folder: Path) -> None:
        self.setting, self.device, self.folder = setting, device, folder
        self.method = setting.method()
        self.decoder = self._decoder()
        units = self.decoder.units
        uniform = uniform_allocation(setting.sparsity, units)
        self.grid: LevelGrid = self.method.supernet.grid(uniform, units, 0)
        self.store: SupernetStore | None = None

    def _decoder(self) -> Decoder:
        dtype = getattr(torch, self.setting.dtype)
        torch.manual_seed(self.setting.seed)
        with self.device:  # drawn where they stay: billions of numbers take minutes on a CPU
            model = AutoModelForCausalLM.from_config(
                self.setting.config(), dtype=dtype, attn_implementation="sdpa"
            )
        return Decoder(
            model,
            None,  # type: ignore[arg-type] # text is made of random tokens here
            architecture=ARCHITECTURES["llama"],
            storage_dtype=dtype,
        )

    def tokens(self, count: int, seed: int) -> Tensor:
        """Random sequences."""
        length = self.setting.sequence_length
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(
            self.setting.vocabulary, (count // length, length), generator=generator
        )

    def build(self, say: Callable[[str], None]) -> dict[str, Any]:
        """Build the supernet, or what is missing of it, telling how far it is."""
        builder = SupernetBuilder(
            self.decoder,
            self.tokens(self.setting.calibration_tokens, seed=1),
            pruner=self.method.pruner,
            seed=self.setting.seed,
            settings=self.method.supernet,
        )
        accumulation = self.method.supernet.accumulation
        self.store = builder.open_store(
            self.folder, self.grid, label=LABEL, accumulation=accumulation
        )
        started = time.perf_counter()

        def report(event: SublayerPruned) -> None:
            if event.sublayer.index % EVERY == 0:
                say(f"{event.sublayer.name} at {time.perf_counter() - started:.1f} s")

        parts = {
            "solve": (LocalPruner, "prune"),
            "mix": (type(accumulation), "mix"),
            "disk": (WriteBehind, "_settle"),
        }
        reset_peak(self.device)
        with Clock(self.device, parts) as clock:
            seconds = self._timed(
                lambda: builder.build(
                    self.store, self.grid, accumulation=accumulation, label=LABEL, report=report
                )
            )
        return {
            "seconds": seconds,
            "solve_seconds": clock.seconds["solve"],
            "mix_seconds": clock.seconds["mix"],
            "disk_wait_seconds": clock.seconds["disk"],
            "bytes": self.store.bytes_on_disk,
            "peak_device_bytes": peak_bytes(self.device),
        }

    def search(self, generations: int) -> dict[str, Any]:
        """The teacher's states, then some generations; the first one also warms up."""
        assert self.store is not None, "build comes first"
        text, search = self.tokens(self.setting.search_tokens, seed=2), self.method.search
        reset_peak(self.device)
        references: list[Any] = []
        teacher = self._timed(
            lambda: references.append(
                dense_reference(self.decoder, text, batch_tokens=search.batch_tokens)
            )
        )
        most = search.structure_cache_bytes
        evaluator = PopulationEvaluator(
            self.decoder,
            KeptStructures(self.store, self.device, most_bytes=most) if most else self.store,
            objective=search.objective,
            reference=references[0],
            batch_tokens=search.batch_tokens,
        )
        timed = TimedEvaluator(evaluator, self.device)
        for generation in range(generations):
            timed.calls.append([])
            search.run(
                timed,
                self.grid,
                state=SearchState(0, (0,) * len(self.decoder.sublayers)),
                seed=generation,
                iteration=0,
                on_generation=lambda *_: None,
            )
        return {
            "teacher_seconds": teacher,
            "generations": timed.calls,
            "peak_device_bytes": peak_bytes(self.device),
        }

    def _timed(self, work: Callable[[], object]) -> float:
        synchronize(self.device)
        started = time.perf_counter()
        work()
        synchronize(self.device)
        return time.perf_counter() - started


class TimedEvaluator:
    """Passes stages on to an evaluator and notes their seconds.

    Args:
        evaluator: does the work.
        device: where.
    """

    def __init__(self, evaluator: PopulationEvaluator, device: torch.device) -> None:
        self._evaluator, self._device = evaluator, device
        self.calls: list[list[dict[str, Any]]] = []

    @property
    def num_sequences(self) -> int:
        """See `Evaluator`."""
        return self._evaluator.num_sequences

    @property
    def length(self) -> int:
        """See `Evaluator`."""
        return self._evaluator.length

    def evaluate(self, candidates: Sequence[Levels], sample: Sample) -> PopulationLosses:
        """See `Evaluator`."""
        with Clock(self._device, {"head": (KdLogits, "final_losses")}) as clock:
            synchronize(self._device)
            started = time.perf_counter()
            result = self._evaluator.evaluate(candidates, sample)
            synchronize(self._device)
            seconds = time.perf_counter() - started
        self.calls[-1].append(
            {
                "candidates": len(candidates),
                "tokens": sample.num_tokens,
                "nodes": result.sublayer_evaluations,
                "seconds": seconds,
                "head_seconds": clock.seconds["head"],
            }
        )
        return result
