"""Quality on a real model: stories260K on TinyStories at 50 %.

Three questions: the order of the accumulation modes (Table 4: perplexity of the uniform structure
of the first supernet), what the search adds with the paper's settings, and what tyr's best settings
reach. Regions of the text differ a lot (dense perplexity 4.0 to 6.7), more than modes or settings
do, so its windows are dealt out at random: seed 0, 1, 2 are three deals of evaluation, search and
calibration windows, and the search's own seed with them.

    python experiments/benchmarks/stories260k.py --model DIR --text FILE
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tyr.data import SplitSizes, TokenSplits
from tyr.evaluate.perplexity import PerplexityEvaluator
from tyr.events import Callback
from tyr.export.checkpoint import NoExport
from tyr.launch import Job, launch, plain_libraries
from tyr.model.loading import PretrainedModel
from tyr.pipeline import Method
from tyr.prune.criterion import SecondOrder, Taylor
from tyr.prune.local import LocalPruner
from tyr.prune.target import CorrectedTarget, SelfTarget
from tyr.search.evolution import EvolutionarySearch
from tyr.search.objective import KdLogits
from tyr.supernet.accumulation import (
    Accumulation,
    CompleteAccumulation,
    ExpectationAccumulation,
    NoAccumulation,
    RandomAccumulation,
    UniformAccumulation,
)
from tyr.supernet.finish import Finish, FromSupernet, Repruned
from tyr.supernet.settings import SupernetSettings
from tyr.trainer import Trainer

RESULTS = Path(__file__).parent / "results"
MODES: dict[str, type[Accumulation]] = {
    "expectation": ExpectationAccumulation,
    "uniform": UniformAccumulation,
    "none": NoAccumulation,
    "random": RandomAccumulation,
    "complete": CompleteAccumulation,
}


@dataclass(frozen=True)
class Story:
    """TinyStories cut for this benchmark.

    Args:
        path: the text file.
        sizes: tokens of each split.
        deal: seed of the permutation of windows.
    """

    path: Path
    sizes: SplitSizes
    deal: int

    def load(self, tokenizer: Any) -> TokenSplits:
        """Whole windows in random order, dealt to the three splits."""
        text = self.path.read_text(encoding="utf-8")
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        length = self.sizes.sequence_length
        windows = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)
        order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(self.deal))
        counts = [self.sizes.windows(s) for s in ("evaluation", "search", "calibration")]
        if sum(counts) > len(windows):
            raise ValueError(f"{self.path} has {len(windows)} windows, {sum(counts)} are needed")
        evaluation, search, calibration = windows[order[: sum(counts)]].split(counts)
        return TokenSplits(
            calibration=calibration,
            search=search,
            evaluation=evaluation,
            evaluation_bytes=0,
            fingerprint=f"stories260k deal {self.deal}",
        )


@dataclass(frozen=True)
class Scale:
    """How much to compute; the test runs a toy."""

    sizes: SplitSizes
    iterations: int
    generations: int
    offspring: int
    stages: tuple[tuple[int, int], ...]
    seeds: int


FULL = Scale(
    SplitSizes(256, 131072, 32768, 32768), 3, 15, 32, ((2048, 8), (8192, 4), (32768, 1)), 3
)
TOY = Scale(SplitSizes(64, 2048, 512, 512), 1, 1, 4, ((128, 2), (512, 1)), 1)


class Bench:
    """Runs the method on the model and keeps only perplexities."""

    def __init__(self, model: Path, text: Path, scale: Scale) -> None:
        self.source = PretrainedModel(str(model))
        self.text = text
        self.scale = scale

    def run(
        self,
        *,
        seed: int,
        iterations: int,
        generations: int,
        accumulation: Accumulation,
        pruner: LocalPruner,
        finish: Finish,
    ) -> dict[str, float]:
        """Perplexity and KL of every row of one run."""
        scale = self.scale
        search = EvolutionarySearch(
            KdLogits(), generations=generations, offspring=scale.offspring, stages=scale.stages
        )
        method = Method(
            iterations=iterations,
            seed=seed,
            pruner=pruner,
            supernet=SupernetSettings(accumulation),
            search=search,
            finish=finish,
            exporter=NoExport(),
        )
        with tempfile.TemporaryDirectory() as folder:
            launch(
                method,
                PerplexityEvaluator(),
                self.source,
                Story(self.text, self.scale.sizes, deal=seed),
                callbacks=Callback(),
                trainer=Trainer("cpu"),
                job=Job(
                    Path(folder) / "run",
                    {"sparsity": 0.5, "resume": False, "seed": seed},
                    config_yaml="{}",
                    command="",
                ),
            )
            rows = json.loads((Path(folder) / "run" / "evaluation.json").read_text())["rows"]
        return {
            f"{name} {key}": row[key] for name, row in rows.items() for key in ("perplexity", "kl")
        }

    def accumulation_modes(self) -> dict[str, list[float]]:
        """Perplexity of the uniform structure of a supernet built with each mode, one per deal."""
        found: dict[str, list[float]] = {}
        for name, mode in MODES.items():
            found[name] = [
                self.run(
                    seed=seed,
                    iterations=1,
                    generations=0,
                    accumulation=mode(),
                    pruner=LocalPruner(Taylor(), SelfTarget()),
                    finish=FromSupernet(compare=False),
                )["tyr perplexity"]
                for seed in range(self.scale.seeds)
            ]
            print(f"accumulation {name}: {found[name]}", flush=True)
        return found

    def searched(self, name: str, pruner: Callable[[], LocalPruner]) -> list[dict[str, float]]:
        """Rows of the full method, one per seed; `tyr` is re-pruned, `tyr_supernet` is not."""
        runs = []
        for seed in range(self.scale.seeds):
            rows = self.run(
                seed=seed,
                iterations=self.scale.iterations,
                generations=self.scale.generations,
                accumulation=ExpectationAccumulation(),
                pruner=pruner(),
                finish=Repruned(),
            )
            print(name, seed, {key: round(value, 3) for key, value in rows.items()}, flush=True)
            runs.append(rows)
        return runs


def summary(values: list[float]) -> str:
    """The first deal, then the mean with the range over all."""
    spread = f"{statistics.mean(values):.2f} ({min(values):.2f}-{max(values):.2f})"
    return f"{values[0]:.2f} | {spread}"


def report(modes: dict[str, list[float]], runs: dict[str, list[dict[str, float]]]) -> str:
    """The results file."""
    lines = [
        "# stories260K, TinyStories, 50 %",
        "",
        "`python experiments/benchmarks/stories260k.py --model DIR --text FILE`: context 256, "
        "131,072 calibration, 32,768 search and 32,768 evaluation tokens, windows dealt at "
        "random; 3 iterations of 15 generations x 32 offspring, stages 2k/8k/32k.",
        "",
        "| accumulation, perplexity of the uniform structure | deal 0 | "
        "three deals: mean (range) |",
        "|---|---|---|",
        *(f"| {mode} | {summary(values)} |" for mode, values in modes.items()),
        "",
        "| perplexity | deal 0 | three deals: mean (range) |",
        "|---|---|---|",
    ]
    keys = {
        "uniform": "uniform, local pruning",
        "tyr_supernet": "searched, supernet",
        "tyr": "searched, re-pruned",
    }
    dense = summary([run["dense perplexity"] for run in next(iter(runs.values()))])
    lines.append(f"| dense | {dense} |")
    for name, rows in runs.items():
        for key, title in keys.items():
            values = [row[f"{key} perplexity"] for row in rows]
            lines.append(f"| {name}: {title} | {summary(values)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write results/stories260k.{json,md}."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="directory of stories260K")
    parser.add_argument("--text", type=Path, required=True, help="tinystories-val.txt")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--toy", action="store_true", help="seconds instead of minutes")
    arguments = parser.parse_args()
    plain_libraries()
    bench = Bench(arguments.model, arguments.text, TOY if arguments.toy else FULL)
    modes = bench.accumulation_modes()
    runs = {
        "paper (taylor, self)": bench.searched(
            "paper", lambda: LocalPruner(Taylor(), SelfTarget())
        ),
        "second order, corrected": bench.searched(
            "best", lambda: LocalPruner(SecondOrder(), CorrectedTarget())
        ),
    }
    arguments.results.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"accumulation": modes, "searched": runs}, indent=1)
    (arguments.results / "stories260k.json").write_text(content + "\n")
    (arguments.results / "stories260k.md").write_text(report(modes, runs))
    print(report(modes, runs))


if __name__ == "__main__":
    main()
