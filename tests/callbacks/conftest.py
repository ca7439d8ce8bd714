"""A synthetic run: 12 blocks, 8 heads, 448 neurons, 2 iterations of 4 generations."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tyr.events import (
    Callback,
    EvaluationFinished,
    EvaluationRow,
    GenerationFinished,
    RunFinished,
    RunStarted,
    SearchFinished,
    StageFinished,
    StageLosses,
    StageStarted,
    StartRound,
    SublayerPruned,
)
from tyr.sparsity import Allocation, UnitCounts, stream_order, uniform_allocation

BLOCKS, ITERATIONS, GENERATIONS = 12, 2, 4

HOOKS = {
    RunStarted: "on_run_start",
    StageStarted: "on_stage_start",
    SublayerPruned: "on_sublayer_pruned",
    StartRound: "on_start_round",
    GenerationFinished: "on_generation_end",
    SearchFinished: "on_search_end",
    EvaluationFinished: "on_evaluation_end",
    StageFinished: "on_stage_end",
    RunFinished: "on_run_end",
}


def send(callbacks: Iterable[Callback], events: Iterable[object]) -> None:
    """Call the hook of every event on every callback, as a run does."""
    callbacks = list(callbacks)
    for event in events:
        for callback in callbacks:
            getattr(callback, HOOKS[type(event)])(event)


@dataclass
class SyntheticRun:
    """The events of a run in a directory, whole or in parts.

    Args:
        run_dir: where the callbacks write.
        rows: the final table.
    """

    run_dir: Path
    rows: dict[str, EvaluationRow]
    blocks: int = BLOCKS
    iterations: int = ITERATIONS
    generations: int = GENERATIONS

    @property
    def units(self) -> UnitCounts:
        return UnitCounts((8,) * self.blocks, (448,) * self.blocks)

    @property
    def uniform(self) -> Allocation:
        return uniform_allocation(0.5, self.units)

    def started(self, *, resumed: bool = False) -> RunStarted:
        return RunStarted(
            run_dir=self.run_dir,
            model_name="stories<12>",
            units=self.units,
            uniform=self.uniform,
            sparsity=0.5,
            iterations=self.iterations,
            config={"sparsity": 0.5, "model": {"path": "a & b"}, "seed": 7},
            command="python -m tyr.run model=stories sparsity=0.5 'note=<&>'",
            environment={"torch": "2.13", "seed": 7, "packages": {"numpy": "2"}},
            resumed=resumed,
        )

    def events(self) -> list[object]:
        """The whole run, started and finished."""
        return [self.started(), *self.middle(), self.finished()]

    def middle(self) -> list[object]:
        """Everything between the start and the end."""
        return [*self._dense(), *self._loop(), *self._ending()]

    def finished(self) -> RunFinished:
        export = self.run_dir / "model"
        export.mkdir(parents=True, exist_ok=True)
        last = self.allocation(self.iterations - 1, self.generations - 1)
        return RunFinished(
            run_dir=self.run_dir,
            rows=self.rows,
            allocation=last,
            uniform=self.uniform,
            units=self.units,
            seconds={"dense": 1.5, "search-1": 1.0},
            peak_rss_bytes=123_456_789,
            export_dir=export,
            removed_units=last.total,
        )

    def allocation(self, iteration: int, generation: int) -> Allocation:
        """Drifts away from uniform, conserving the budget of both kinds."""
        rng = random.Random(5)
        attn, ffn = list(self.uniform.attn), list(self.uniform.ffn)
        for _ in range(2 * (iteration * self.generations + generation + 1)):
            low, high = sorted(rng.sample(range(self.blocks), 2))
            for counts, step in ((attn, 1), (ffn, 32)):
                most = 7 if counts is attn else 448
                if counts[low] >= step and counts[high] + step <= most:
                    counts[low] -= step
                    counts[high] += step
        return Allocation(tuple(attn), tuple(ffn))

    def generation(self, iteration: int, generation: int) -> GenerationFinished:
        rng = random.Random(100 * iteration + generation)
        position = iteration * self.generations + generation
        best, parent = 2.0 / (position + 2), 2.0 / (position + 1.5)
        stages = tuple(
            StageLosses(tokens, tuple(sorted(best + rng.random() for _ in range(count))))
            for tokens, count in ((2048, 16), (16384, 4), (131072, 2))
        )
        return GenerationFinished(
            iteration=iteration,
            generation=generation,
            generations=self.generations,
            seconds=0.25,
            evaluated_tokens=16 * 2048 + 4 * 16384 + 2 * 131072,
            sublayer_evaluations=400,
            dense_sublayer_evaluations=22 * 2 * self.blocks,
            best_loss=best,
            parent_loss=parent,
            stages=stages,
            allocation=self.allocation(iteration, generation),
        )

    def _dense(self) -> Iterator[object]:
        yield StageStarted("dense", 1)
        yield EvaluationFinished("dense", self.rows["dense"])
        yield StageFinished("dense", 1.5)

    def _loop(self) -> Iterator[object]:
        for t in range(self.iterations):
            yield StageStarted("supernet", 2 * self.blocks, t)
            yield from self._sublayers(t)
            yield StageFinished("supernet", 2.4, t)
            yield StageStarted("search", self.generations, t)
            for g in range(self.generations):
                yield self.generation(t, g)
            yield StageFinished("search", 1.0, t)
            yield SearchFinished(t, self.allocation(t, self.generations - 1), 0.3 / (t + 1))

    def _sublayers(self, iteration: int | None) -> Iterator[SublayerPruned]:
        for sublayer in stream_order(self.blocks):
            scale = 0.02 * (1 + sublayer.block / 4) / (1 + (iteration or 0))
            scale *= 1 if sublayer.kind == "attn" else 3
            errors = {level: scale * 1.5**level for level in range(-4, 5)}
            if iteration is None:
                errors = {0: scale}
            yield SublayerPruned(sublayer, 0.1, errors, iteration)

    def _ending(self) -> Iterator[object]:
        yield StageStarted("finish", 2 * self.blocks)
        yield from self._sublayers(None)
        yield StageFinished("finish", 1.2)
        yield StageStarted("evaluation", 3)
        for name in self.rows:
            if name != "dense":
                yield EvaluationFinished(name, self.rows[name])
        yield StageFinished("evaluation", 2.0)
        yield StageStarted("export", 1)
        yield StageFinished("export", 0.2)


def as_read_back(event: object) -> object:
    """A sublayer event as a resumed run reports it: no time spent, no errors known."""
    if isinstance(event, SublayerPruned):
        return replace(event, seconds=0.0, errors={}, resumed=True)
    return event


@pytest.fixture
def rows() -> dict[str, EvaluationRow]:
    return {
        "dense": EvaluationRow(8.5, 0.0, 131_000_000, 98_000_000, 262_000_000),
        "uniform": EvaluationRow(20.0, 0.9, 82_000_000, 49_000_000, 164_000_000),
        "tyr": EvaluationRow(16.0, 0.7, 82_000_000, 49_000_000, 164_000_000),
        "tyr_supernet": EvaluationRow(17.0, 0.75, 82_000_000, 49_000_000, 164_000_000),
    }


@pytest.fixture
def run(tmp_path: Path, rows: dict[str, EvaluationRow]) -> SyntheticRun:
    return SyntheticRun(tmp_path / "run", rows)


@pytest.fixture
def read_back() -> Callable[[object], object]:
    """`as_read_back`, for tests."""
    return as_read_back


@pytest.fixture
def play() -> Callable[[Iterable[Callback], Iterable[object]], None]:
    """`send`, for tests."""
    return send
