"""How long prune-to-supernet and the search stand still for the supernet's files, before and after.

    python experiments/benchmarks/supernet_io.py                  (ten minutes, two cores)

Before: every file is written, hashed and read back before the next sublayer begins, and the search
reads a sublayer's levels when it comes to it. After: files are written behind (write_behind.py) and
read ahead (`SupernetStore.read_ahead`). Both with the disk and page cache as they are, and with a
slow disk: as many seconds of waiting are added to each write and read as its bytes take at
`--megabytes-per-second`. The losses are compared; they must be equal. Writes results/supernet_io.md
and .json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from report import Goal, describe_run, table, verdicts, write_results
from setting import Setting, add_options
from side import LABEL, Workload
from slow_disk import AtOnce, Behind, Disk, Feed, Waiting

from tyr.search.evolution import EvolutionarySearch, SearchState
from tyr.search.objective import KdLogits, dense_reference
from tyr.search.population import PopulationEvaluator
from tyr.supernet import builder as builder_module

HERE = Path(__file__).resolve().parent
NAME = "supernet_io"
GOAL = 0.05


class Bench:
    """Both stages on one model, with both ways of reading and writing.

    Args:
        setting: sizes.
        folder: for supernets.
    """

    def __init__(self, setting: Setting, folder: Path) -> None:
        self._setting, self._folder = setting, folder
        self._workload = Workload(setting, folder)
        self._decoder = self._workload.decoder()
        self._grid = self._workload.grid(self._decoder)
        text = self._workload.search_text()
        self._reference = dense_reference(self._decoder, text, batch_tokens=setting.batch_tokens)

    def build(self, name: str, rate: float | None, *, behind: bool) -> dict[str, Any]:
        """One supernet."""
        waiting, store = Waiting(), Disk(self._folder / name, {"name": name}, rate)
        original = builder_module.WriteBehind
        writer = Behind if behind else AtOnce
        builder_module.WriteBehind = lambda store: writer(store, waiting)  # type: ignore
        started = time.perf_counter()
        try:
            self._workload.builder(self._decoder).build(
                store,
                self._grid,
                accumulation=self._workload.settings.accumulation,
                label=LABEL,
            )
        finally:
            builder_module.WriteBehind = original  # type: ignore[misc]
        return {
            "seconds": time.perf_counter() - started,
            "waiting": waiting.seconds,
            "bytes": store.bytes_on_disk,
        }

    def search(self, name: str, rate: float | None, *, ahead: bool) -> dict[str, Any]:
        """One generation on that supernet."""
        setting, waiting = self._setting, Waiting()
        feed = Feed(Disk(self._folder / name, {"name": name}, rate), waiting, ahead=ahead)
        objective = KdLogits()
        evaluator = PopulationEvaluator(
            self._decoder,
            feed,  # type: ignore[arg-type]
            objective=objective,
            reference=self._reference,
            batch_tokens=setting.batch_tokens,
        )
        search = EvolutionarySearch(
            objective,
            generations=1,
            offspring=setting.offspring,
            stages=setting.stages,
            batch_tokens=setting.batch_tokens,
        )
        stages: list[Any] = []
        started = time.perf_counter()
        search.run(
            evaluator,
            self._grid,
            state=SearchState(0, (0,) * len(self._decoder.sublayers)),
            seed=setting.seed,
            iteration=0,
            on_generation=lambda _, event: stages.extend(event.stages),
        )
        return {
            "seconds": time.perf_counter() - started,
            "waiting": waiting.seconds,
            "losses": [stage.losses for stage in stages],
        }


def measure(bench: Bench, rates: Mapping[str, float | None]) -> dict[str, Any]:
    """Both stages, both ways, on every disk."""
    figures: dict[str, Any] = {}
    for disk, rate in rates.items():
        for way in ("before", "after"):
            name = f"{disk}-{way}"
            built = bench.build(name, rate, behind=way == "after")
            searched = bench.search(name, rate, ahead=way == "after")
            for stage, run in (("supernet", built), ("search", searched)):
                run["share"] = run["waiting"] / run["seconds"]
                figures.setdefault(disk, {}).setdefault(stage, {})[way] = run
                say(f"{disk} disk, {stage}, {way}: {run['seconds']:.2f} s, {run['share']:.1%}")
    losses = [way["losses"] for disk in figures.values() for way in disk["search"].values()]
    figures["equal_losses"] = float(all(found == losses[0] for found in losses))
    for disk in rates:
        for way in ("before", "after"):
            del figures[disk]["search"][way]["losses"]
    return figures


GOALS = (
    *(
        Goal(f"{stage}, {disk} disk: share of waiting", (disk, stage, "after", "share"), None, GOAL)
        for disk in ("plain", "slow")
        for stage in ("supernet", "search")
    ),
    Goal("equal losses both ways", ("equal_losses",), at_least=1),
)


def rows_of(figures: dict[str, Any]) -> list[list[str]]:
    """One line per disk, stage and way."""
    return [
        [disk, stage, way, f"{r['seconds']:.2f}", f"{r['waiting']:.2f}", f"{r['share']:.1%}"]
        for disk in ("plain", "slow")
        for stage, ways in figures[disk].items()
        for way, r in ways.items()
    ]


def say(text: str) -> None:
    """Progress for whoever waits."""
    print(text, flush=True)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.set_defaults(
        blocks=4, calibration_tokens=4096, search_tokens=2048, stage_tokens=[128, 512, 2048]
    )
    parser.add_argument("--megabytes-per-second", type=float, default=50.0)
    parser.add_argument("--output", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    setting = Setting.from_mapping(vars(arguments))
    run = describe_run(setting.threads, setting.seed)
    started = time.perf_counter()
    rates = {"plain": None, "slow": arguments.megabytes_per_second * 1e6}
    with tempfile.TemporaryDirectory(prefix="tyr-io-") as name, torch.no_grad():
        figures = measure(Bench(setting, Path(name)), rates)
    content = {
        **run,
        "setting": json.loads(json.dumps(vars(setting))),
        "megabytes_per_second": arguments.megabytes_per_second,
        "figures": figures,
        "seconds": time.perf_counter() - started,
    }
    header = ["disk", "stage", "way", "seconds", "waiting", "share"]
    sections = [
        *verdicts(figures, GOALS),
        "",
        *table(header, rows_of(figures)),
        "",
        f"The slow disk is simulated: {arguments.megabytes_per_second:g} MB/s. The last file of a "
        f"supernet has nothing to be written behind, so its share falls with depth: here it is one "
        f"of {2 * setting.blocks}, in Llama-3.1-8B one of 64.",
    ]
    write_results(
        arguments.output / NAME, content, title="Waiting for the supernet", sections=sections
    )
    print("\n".join(verdicts(figures, GOALS)))


if __name__ == "__main__":
    main()
