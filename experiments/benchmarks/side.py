"""One side of the comparison in a process of its own, so that its peak memory is its own.

    python side.py ROLE FOLDER        (started by supernet_and_generation.py)

It loads what the role needs, answers with one line of JSON, and then performs the work once for
every line it reads from standard input, answering each with a line of JSON; the line says how:
`run`, `profile`, or `nested`. Both sides do the same work on the same model, text, level grid and
random draws.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from nodes import generation_flops, one_by_one_flops, sublayer_flops
from released import ReleasedBuilder, ReleasedEvaluator, write_dense
from setting import Setting
from stopwatch import BUILD_PARTS, SEARCH_PARTS, Stopwatch
from transformers import LlamaConfig

from tyr.events import GenerationFinished
from tyr.memory import peak_rss_bytes
from tyr.model.architecture import ARCHITECTURES
from tyr.model.decoder import Decoder
from tyr.model.offload import FileWeights
from tyr.model.placement import MemorySettings
from tyr.model.random_weights import RandomFiles, random_weights
from tyr.model.skeleton import place, skeleton
from tyr.prune.criterion import Taylor
from tyr.prune.local import LocalPruner
from tyr.prune.target import SelfTarget
from tyr.search.archive import KeepAll
from tyr.search.economy import Economy
from tyr.search.evolution import EvolutionarySearch, SearchState
from tyr.search.ledger import Evaluator
from tyr.search.mutation import Levels
from tyr.search.objective import KdLogits, dense_reference
from tyr.search.population import PopulationEvaluator, PopulationLosses
from tyr.search.samples import NestedSamples
from tyr.search.selection import Sample
from tyr.sparsity import LevelGrid, uniform_allocation
from tyr.supernet.accumulation import ExpectationAccumulation
from tyr.supernet.builder import SupernetBuilder
from tyr.supernet.settings import SupernetSettings
from tyr.supernet.store import SupernetStore

KINDS = (torch.float32, torch.bfloat16)
LABEL = "benchmark"


class Workload:
    """Model, text and grid of a setting.

    Args:
        setting: sizes.
        folder: where supernets and records go.
    """

    def __init__(self, setting: Setting, folder: Path) -> None:
        self.setting = setting
        self.folder = folder
        self.settings = SupernetSettings(
            ExpectationAccumulation(), batch_tokens=setting.calibration_batch
        )

    def model(self) -> Any:
        """The stock model, always with the same random weights."""
        config = LlamaConfig(**self.setting.model_config())
        return random_weights(config, seed=self.setting.seed).eval()

    def decoder(self) -> Decoder:
        """The same model as tyr sees it."""
        return Decoder(
            self.model(),
            None,  # type: ignore[arg-type] # text is made of random tokens here
            architecture=ARCHITECTURES["llama"],
            storage_dtype=torch.float32,
        )

    def streamed(self) -> Decoder:
        """The same model with its blocks and hidden states in files (`model.offload=disk`)."""
        config = LlamaConfig(**self.setting.model_config())
        device = torch.device("cpu")
        model = skeleton(config, dtype=torch.float32)
        drawn = RandomFiles(model, seed=self.setting.seed, dtype=torch.float32, folder=self.folder)
        weights = FileWeights(drawn.files, dtype=torch.float32, device=device, owner=drawn)
        memory = MemorySettings("disk", device_state_bytes=0, host_state_bytes=0)
        return Decoder(
            model,
            None,  # type: ignore[arg-type] # as in `decoder`
            architecture=ARCHITECTURES["llama"],
            storage_dtype=torch.float32,
            placement=place(model, weights, memory, device=device, scratch=self.folder),
        )

    def tokens(self, count: int, seed: int) -> torch.Tensor:
        """Random sequences."""
        shape = (count // self.setting.sequence_length, self.setting.sequence_length)
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(self.setting.vocabulary, shape, generator=generator)

    def calibration(self) -> torch.Tensor:
        """Calibration text."""
        return self.tokens(self.setting.calibration_tokens, seed=1)

    def search_text(self) -> torch.Tensor:
        """Search text."""
        return self.tokens(self.setting.search_tokens, seed=2)

    def grid(self, decoder: Decoder) -> LevelGrid:
        """Nine levels around the uniform allocation."""
        uniform = uniform_allocation(self.setting.sparsity, decoder.units)
        return self.settings.grid(uniform, decoder.units, iteration=0)

    def supernet(self, side: str) -> Path:
        """Folder of a side's supernet."""
        return self.folder / f"supernet-{side}"

    def builder(self, decoder: Decoder) -> SupernetBuilder:
        """tyr's builder: 16 neurons and one head per step (A.3)."""
        return SupernetBuilder(
            decoder,
            self.calibration(),
            pruner=LocalPruner(Taylor(), SelfTarget()),
            seed=self.setting.seed,
            settings=self.settings,
        )

    def store(self, decoder: Decoder) -> SupernetStore:
        """tyr's supernet."""
        grid = self.grid(decoder)
        accumulation = self.settings.accumulation
        return self.builder(decoder).open_store(
            self.supernet("tyr"), grid, label=LABEL, accumulation=accumulation
        )


class Gemm:
    """Rate of this machine's matrix products, to set the others against.

    Of all products of a second, not of the best: a shared machine is twice as fast now and then,
    and a turn of the search sees the mean.
    """

    parts: tuple[Any, ...] = ()
    seconds, size = 1.0, 2048

    def __init__(self, workload: Workload) -> None:
        generator = torch.Generator().manual_seed(0)
        self._matrix = torch.randn(self.size, self.size, generator=generator)

    def run(self) -> dict[str, Any]:
        """Operations per second, float32 and bfloat16."""
        return {str(kind).removeprefix("torch."): self._rate(kind) for kind in KINDS}

    def _rate(self, kind: torch.dtype) -> float:
        matrix = self._matrix.to(kind)
        out = torch.mm(matrix, matrix)
        products, started = 0, time.perf_counter()
        while (passed := time.perf_counter() - started) < self.seconds:
            torch.mm(matrix, matrix, out=out)
            products += 1
        return 2 * self.size**3 * products / passed


class Side(Protocol):
    """Work that can be repeated."""

    def run(self) -> dict[str, Any]:
        """Do it once; what there is to say about it."""


class BuildTyr:
    """Prune-to-supernet by tyr."""

    parts = BUILD_PARTS["tyr"]

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._decoder = workload.decoder()

    def run(self) -> dict[str, Any]:
        """See `Side.run`."""
        workload, grid = self._workload, self._workload.grid(self._decoder)
        shutil.rmtree(workload.supernet("tyr"), ignore_errors=True)
        with Clock() as clock:
            store = workload.store(self._decoder)
            accumulation = workload.settings.accumulation
            workload.builder(self._decoder).build(
                store, grid, accumulation=accumulation, label=LABEL
            )
        return {**clock.times, "bytes": store.bytes_on_disk}


class BuildReleased:
    """Prune-to-supernet as released."""

    parts = BUILD_PARTS["released"]

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._grid = workload.grid(workload.decoder())

    def run(self) -> dict[str, Any]:
        """See `Side.run`."""
        workload, folder = self._workload, self._workload.supernet("released")
        shutil.rmtree(folder, ignore_errors=True)
        model = workload.model()  # building changes its weights
        calibration = workload.calibration()
        with Clock() as clock:
            batch_tokens = workload.setting.calibration_batch
            builder = ReleasedBuilder(model, calibration, batch_tokens=batch_tokens)
            builder.build(folder, self._grid)
        return {**clock.times, "bytes": size_on_disk(folder)}


class Densify:
    """tyr's supernet as dense files, for the released evaluator."""

    parts: tuple[Any, ...] = ()

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._decoder = workload.decoder()

    def run(self) -> dict[str, Any]:
        """See `Side.run`."""
        folder = self._workload.supernet("dense")
        write_dense(self._workload.store(self._decoder), self._decoder, folder)
        return {"bytes": size_on_disk(folder)}


class Record:
    """An evaluator that writes down what it was asked and what it answered."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self.stages: list[dict[str, Any]] = []
        self.num_sequences = evaluator.num_sequences
        self.length = evaluator.length

    def evaluate(self, candidates: Sequence[Levels], sample: Sample) -> PopulationLosses:
        """See `Evaluator.evaluate`."""
        with Clock() as clock:
            result = self._evaluator.evaluate(candidates, sample)
        self.stages.append(
            {
                **clock.times,
                "tokens": sample.num_tokens,
                "rows": sample.rows.tolist(),
                "candidates": [list(levels) for levels in candidates],
                "losses": result.losses,
                "sublayer_evaluations": result.sublayer_evaluations,
            }
        )
        return result


class Whole(NestedSamples):
    """A stage's positions in one piece, for an evaluator that keeps nothing of earlier stages."""

    def draw(self, *text: Any, **generators: Any) -> tuple[Sample, ...]:
        """See `Samples.draw`."""
        pieces = super().draw(*text, **generators)
        rows = torch.cat([piece.rows for piece in pieces]).sort().values
        return (Sample(rows, pieces[-1].length),)


class Search:
    """Consecutive generations of the same search, with either evaluator."""

    # For `nested`: how later stages take the positions of earlier ones, renewed every generation.
    nested = Economy(samples=NestedSamples(generations=1), archive=KeepAll())

    def __init__(self, workload: Workload, grid: LevelGrid, evaluator: Evaluator) -> None:
        setting = workload.setting
        self._workload = workload
        self._grid = grid
        self._evaluator = evaluator
        start = SearchState(0, (0,) * (2 * setting.blocks))
        self._states: dict[Economy | None, SearchState] = {None: start, self.nested: start}

    def run(self) -> dict[str, Any]:
        """See `Side.run`."""
        return self._generation(None)

    def run_nested(self) -> dict[str, Any]:
        """A generation of another search, whose stages share positions."""
        return self._generation(self.nested)

    def _generation(self, economy: Economy | None) -> dict[str, Any]:
        setting, record = self._workload.setting, Record(self._evaluator)
        search = EvolutionarySearch(
            KdLogits(),
            generations=self._states[economy].generation + 1,
            offspring=setting.offspring,
            stages=setting.stages,
            batch_tokens=setting.batch_tokens,
            economy=economy,
        )
        events: list[GenerationFinished] = []
        with Clock() as clock:
            state = search.run(
                record,
                self._grid,
                state=self._states[economy],
                seed=setting.seed,
                iteration=0,
                on_generation=lambda _, event: events.append(event),
            )
        self._states[economy] = state
        return {
            **clock.times,
            "stages": record.stages,
            "ranked": [[stage.num_tokens, *stage.losses] for stage in events[0].stages],
            "evaluated_tokens": events[0].evaluated_tokens,
            "parent": list(state.parent),
            "loss": state.loss,
            **memory(),
        }


class SearchTyr(Search):
    """tyr's evaluator, blocks and teacher states on the disk."""

    parts = SEARCH_PARTS["tyr"]
    compute_dtype: torch.dtype | None = None

    def __init__(self, workload: Workload) -> None:
        decoder = workload.streamed()
        self.loaded = memory()
        tokens, batch_tokens = workload.search_text(), workload.setting.batch_tokens
        evaluator = PopulationEvaluator(
            decoder,
            workload.store(decoder),
            objective=KdLogits(),
            reference=dense_reference(decoder, tokens, batch_tokens=batch_tokens),
            batch_tokens=batch_tokens,
            compute_dtype=self.compute_dtype,
        )
        super().__init__(workload, workload.grid(decoder), evaluator)
        self._decoder = decoder
        self._costs = sublayer_flops(decoder, workload.store(decoder), tokens.shape[1])

    def run(self) -> dict[str, Any]:
        """See `Side.run`; with the operations that sharing leaves, and those without any."""
        answer = super().run()
        stages = answer["stages"]
        return {
            **answer,
            "flops": generation_flops(self._decoder, self._costs, stages),
            "one_by_one_flops": one_by_one_flops(self._decoder, self._evaluator.length, stages),
        }


class SearchShort(SearchTyr):
    """tyr's evaluator computing in bfloat16."""

    compute_dtype = torch.bfloat16


class SearchReleased(Search):
    """The released evaluator on the dense files."""

    parts = SEARCH_PARTS["released"]
    nested = Economy(samples=Whole(generations=1))

    def __init__(self, workload: Workload) -> None:
        decoder = workload.decoder()
        self.loaded = memory()
        evaluator = ReleasedEvaluator(
            decoder.model,
            workload.supernet("dense"),
            workload.search_text(),
            batch_tokens=workload.setting.batch_tokens,
        )
        super().__init__(workload, workload.grid(decoder), evaluator)


ROLES: dict[str, Callable[[Workload], Side]] = {
    "build-tyr": BuildTyr,
    "build-released": BuildReleased,
    "densify": Densify,
    "search-tyr": SearchTyr,
    "search-short": SearchShort,
    "gemm": Gemm,
    "search-released": SearchReleased,
}


class Clock:
    """Wall and processor seconds of a `with` block; the latter ignore the rest of the machine."""

    def __enter__(self) -> Clock:
        self.times = {"seconds": -time.perf_counter(), "cpu_seconds": -time.process_time()}
        return self

    def __exit__(self, *error: object) -> None:
        self.times["seconds"] += time.perf_counter()
        self.times["cpu_seconds"] += time.process_time()


def memory() -> dict[str, int]:
    """Resident bytes now, where the system tells, and at the peak so far."""
    status = Path("/proc/self/statm")
    peak = peak_rss_bytes()
    if not status.is_file():
        return {"rss_bytes": peak, "peak_rss_bytes": peak}
    pages = int(status.read_text(encoding="ascii").split()[1])
    return {"rss_bytes": pages * resource.getpagesize(), "peak_rss_bytes": peak}


def size_on_disk(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def main() -> None:
    """Serve one role until standard input ends."""
    role, folder = sys.argv[1], Path(sys.argv[2])
    setting = Setting.read(folder / "setting.json")
    torch.set_num_threads(setting.threads)
    with Clock() as clock:
        side = ROLES[role](Workload(setting, folder))
    print(json.dumps({"loaded": getattr(side, "loaded", None), **clock.times}), flush=True)
    for command in sys.stdin:
        if command.strip() == "profile":
            with Stopwatch(getattr(side, "parts", ())) as watch:
                answer = side.run()
            answer["parts"] = watch.breakdown(answer["seconds"])
        elif command.strip() == "nested" and isinstance(side, Search):
            answer = side.run_nested()
        else:
            answer = side.run()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
