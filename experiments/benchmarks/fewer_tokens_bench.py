"""What `fewer_tokens.py` runs: a model with its supernet, and one search at a time on it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fewer_tokens_report import FAST, PAPER
from hydra import compose, initialize_config_dir

from tyr.data import SplitSizes, StdlibData
from tyr.data.tokens import TokenSplits
from tyr.events import GenerationFinished
from tyr.model.decoder import Decoder
from tyr.model.loading import PretrainedModel
from tyr.prune.criterion import Taylor
from tyr.prune.local import LocalPruner
from tyr.prune.target import SelfTarget
from tyr.randomness import derive_generator
from tyr.run import CONFIG_DIR, build
from tyr.search.archive import Evaluation
from tyr.search.evolution import EvolutionarySearch, SearchState
from tyr.search.increments import fit_increments
from tyr.search.kept import KeptStructures
from tyr.search.mutation import Levels, mutate
from tyr.search.objective import KdLogits, dense_reference
from tyr.search.population import PopulationEvaluator
from tyr.search.selection import Sample, draw_sample
from tyr.search.surrogate import rank_correlation
from tyr.sparsity import LevelGrid, uniform_allocation
from tyr.supernet.accumulation import ExpectationAccumulation
from tyr.supernet.builder import SupernetBuilder
from tyr.supernet.settings import SupernetSettings

VARIANTS: dict[str, tuple[str, ...]] = {
    PAPER: (),
    "start": ("start=dynamic",),
    "start, rounds": ("start=rounds",),
    "surrogate": ("surrogate=linear",),
    "racing": ("racing=sequential",),
    "archive, nested samples": ("archive=keep", "samples=nested"),
    FAST: ("experiment=fast",),
}


@dataclass(frozen=True)
class Scale:
    """How much to compute; the test runs a toy.

    Args:
        sizes: tokens of the splits; the search text is what samples are drawn from.
        large_tokens: of the fixed sample that losses are reported on.
        generations: of the paper's schedule.
        fast_generations: of searches that change where or what is sought, not only how long.
    """

    sizes: SplitSizes
    large_tokens: int
    generations: int
    fast_generations: int
    offspring: int
    stages: tuple[tuple[int, int], ...]
    seeds: int
    fresh: int = 24


FULL = Scale(
    SplitSizes(128, 32768, 32768, 1024), 8192, 20, 8, 32, ((256, 8), (1024, 4), (4096, 1)), 5, 16
)
TOY = Scale(SplitSizes(32, 1024, 512, 64), 256, 3, 2, 4, ((32, 2), (128, 1)), 2, fresh=4)


class Bench:
    """One model with its supernet and search text.

    Args:
        name: of the model.
        decoder: the dense model.
        splits: its text.
        scale: how much to compute.
        out: where the supernet and the searches go.
    """

    def __init__(
        self, name: str, decoder: Decoder, splits: TokenSplits, *, scale: Scale, out: Path
    ) -> None:
        self.name = name
        self.scale = scale
        self.out = out / name
        settings = SupernetSettings(ExpectationAccumulation())
        builder = SupernetBuilder(
            decoder,
            splits.calibration,
            pruner=LocalPruner(Taylor(), SelfTarget()),
            seed=0,
            settings=settings,
            fingerprint=splits.fingerprint,
        )
        uniform = uniform_allocation(0.5, builder.units)
        self.grid: LevelGrid = settings.grid(uniform, builder.units, 0)
        mode = settings.accumulation
        store = builder.open_store(
            self.out / "supernet", self.grid, label="iteration-0", accumulation=mode
        )
        builder.build(store, self.grid, accumulation=mode, label="iteration-0")
        most = EvolutionarySearch(KdLogits()).structure_cache_bytes
        self.evaluator = PopulationEvaluator(
            decoder,
            KeptStructures(store, decoder.device, most_bytes=most),
            objective=KdLogits(),
            reference=dense_reference(decoder, splits.search),
        )
        self.large = self._sample(scale.large_tokens, "large sample")
        self._losses: dict[Levels, float] = {}

    def search(self, variant: str, seed: int) -> dict[str, Any]:
        """Points of one search; a finished one is only read."""
        path = self._path(variant, seed)
        if not path.is_file():
            path.write_text(json.dumps(self._run(variant, seed)) + "\n")
        result: dict[str, Any] = json.loads(path.read_text())
        return result

    def finished(self, variant: str, seed: int) -> bool:
        """Whether a search is there to be read."""
        return self._path(variant, seed).is_file()

    def _path(self, variant: str, seed: int) -> Path:
        return self.out / f"{variant.replace(' ', '-').replace(',', '')}-{seed}.json"

    def _run(self, variant: str, seed: int) -> dict[str, Any]:
        method = self._method(variant)
        states: list[SearchState] = []
        points: list[dict[str, Any]] = []
        begun = time.process_time()

        def finished(state: SearchState, event: GenerationFinished) -> None:
            states.append(state)
            points.append(
                {
                    "tokens": event.evaluated_tokens,
                    "seconds": event.seconds,
                    "processor_seconds": time.process_time() - begun,
                    "screened": event.screened,
                    "raced_out": event.raced_out,
                    "archive_hits": event.archive_hits,
                    "rank_correlation": event.surrogate_rank_correlation,
                }
            )

        start = SearchState(0, (0,) * (2 * self.grid.units.num_blocks))
        method.run(
            self.evaluator, self.grid, state=start, seed=seed, iteration=0, on_generation=finished
        )
        losses = self._measure([start.parent, *(state.parent for state in states)])
        for point, loss in zip(points, losses[1:], strict=True):
            point["loss"] = loss
        last = states[-1]
        return {
            "variant": variant,
            "seed": seed,
            "start_loss": losses[0],
            "points": points,
            "parent": last.parent,
            "fresh": self._fresh_correlations(last, seed) if last.evaluations else None,
        }

    def _method(self, variant: str) -> EvolutionarySearch:
        """The search that the command line would build, with this benchmark's schedule."""
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            config = compose("config", overrides=list(VARIANTS[variant])).search
        scale = self.scale
        early = variant in ("start", "start, rounds", "surrogate", FAST)
        config.generations = scale.fast_generations if early else scale.generations
        config.offspring = scale.offspring
        config.stages = [list(stage) for stage in scale.stages]
        method: EvolutionarySearch = build(config, "search")
        return method

    def _sample(self, num_tokens: int, label: str) -> Sample:
        evaluator = self.evaluator
        rng = derive_generator(0, label)
        return draw_sample(evaluator.num_sequences, evaluator.length, num_tokens, rng)

    def _measure(self, candidates: Sequence[Levels]) -> list[float]:
        """Losses on the fixed large sample, each level vector once."""
        new = list(dict.fromkeys(c for c in candidates if c not in self._losses))
        if new:
            losses = self.evaluator.evaluate(new, self.large).losses
            self._losses.update(zip(new, losses, strict=True))
        return [self._losses[levels] for levels in candidates]

    def _fresh_correlations(self, state: SearchState, seed: int) -> dict[str, float | None]:
        """Rank correlation on new mutations of the last parent, measured on the large sample."""
        rng = derive_generator(seed, "fresh")
        seen = {one.levels for one in state.evaluations}
        fresh: list[Levels] = []
        for _ in range(100 * self.scale.fresh):
            levels = mutate(state.parent, self.grid.bounds(), rng)
            if levels not in seen and levels not in fresh and len(fresh) < self.scale.fresh:
                fresh.append(levels)
        measured = self.evaluator.evaluate(fresh, self.large).losses
        return {
            name: self._foretold(state.evaluations, fresh, measured, pairwise=pairwise)
            for name, pairwise in (("additive", False), ("pairwise", True))
        }

    @staticmethod
    def _foretold(
        evaluations: Sequence[Evaluation],
        fresh: Sequence[Levels],
        measured: Sequence[float],
        *,
        pairwise: bool,
    ) -> float | None:
        model = fit_increments(evaluations, pairwise=pairwise)
        return None if model is None else rank_correlation(model.predict(fresh), measured)


def built_in(scale: Scale, out: Path) -> Bench:
    """The model shipped with tyr, on the standard library's source."""
    decoder = PretrainedModel("built-in").load(device=torch.device("cpu"))
    sizes = scale.sizes
    data = StdlibData(
        sequence_length=sizes.sequence_length,
        calibration_tokens=sizes.calibration_tokens,
        search_tokens=sizes.search_tokens,
        evaluation_tokens=sizes.evaluation_tokens,
    )
    return Bench("built-in", decoder, data.load(decoder.tokenizer), scale=scale, out=out)


def stories(scale: Scale, out: Path, shared: Path | None) -> Bench | None:
    """stories260K on TinyStories, or None when it is not on this machine."""
    if shared is None:
        print("skipped: stories260K, because --shared names no folder with it")
        return None
    from stories260k import Story

    model, text = shared / "models" / "stories260K", shared / "data" / "tinystories-val.txt"
    if not (model.is_dir() and text.is_file()):
        print(f"skipped: {model} or {text} is not on this machine")
        return None
    decoder = PretrainedModel(str(model)).load(device=torch.device("cpu"))
    splits = Story(text, scale.sizes, deal=0).load(decoder.tokenizer)
    return Bench("stories260K", decoder, splits, scale=scale, out=out)
