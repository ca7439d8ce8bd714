"""How many fewer tokens does the search need for the same choice?

For each model one supernet, shared by all seeds, is searched with the paper's schedule (scaled to
the model), with each option that saves tokens alone, and with all of them (`experiment=fast`). The
parent of every generation is measured afterwards on one fixed large sample, which no search pays
for. A search has arrived when that loss is at most the one that the paper's schedule of the same
seed ends with. Every search is a file under `--out`, so an interrupted benchmark continues.

    python experiments/benchmarks/fewer_tokens.py --shared DIR
    python experiments/benchmarks/fewer_tokens.py --toy      # seconds, to see that it runs
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from fewer_tokens_bench import FULL, TOY, VARIANTS, Bench, built_in, stories
from fewer_tokens_report import (
    ENGINE,
    FAST,
    PAPER,
    Runs,
    draw_curves,
    engine_gain,
    goals,
    report,
    summarise,
)
from report import describe_run, verdicts, write_results

from tyr.callbacks.figure_style import save
from tyr.launch import plain_libraries

RESULTS = Path(__file__).parent / "results"
MODELS = ("built-in", "stories260K")


def parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, default=Path("outputs/fewer_tokens"))
    options.add_argument("--results", type=Path, default=RESULTS)
    options.add_argument(
        "--shared",
        type=Path,
        help="folder with models/stories260K and data/tinystories-val.txt; without, built-in only",
    )
    options.add_argument(
        "--engine", type=Path, default=ENGINE, help="recorded on a machine like this one"
    )
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--toy", action="store_true", help="seconds, to see that it runs")
    options.add_argument("--only", nargs="*", choices=MODELS)
    options.add_argument("--finished", action="store_true", help="only read what was searched")
    return options


def write(runs: dict[str, Runs], given: argparse.Namespace, *, seconds: float) -> None:
    """Results of the searches so far."""
    runs = {name: of_model for name, of_model in runs.items() if of_model[PAPER]}
    gain = engine_gain(given.engine)
    summaries = {name: summarise(of_model, gain) for name, of_model in runs.items()}
    measured = [name for name, s in summaries.items() if FAST in s]
    sections = [
        "A search has arrived when the loss of its parent on the fixed sample (KL to the dense "
        "model, nats per token) is at most the one that the paper's schedule of the same seed ends "
        "with. Ratios are means over the seeds that arrived; seconds are of the processor, one "
        f'thread. "In all" multiplies them by the {gain:.2f} that the engine gains over '
        f"one-by-one evaluation by the clock ({engine_gain(given.engine, 'cpu_ratio'):.2f} by "
        f"processor time; {given.engine.stem}.md). In the first table a seed that did not arrive "
        "counts as zero.",
        "",
        *verdicts({"models": summaries}, goals(measured)),
        "",
    ]
    for name, summary in summaries.items():
        sections += [*report(name, summary, runs[name]), f"![](fewer_tokens_{name}.png)", ""]
    content = {
        **describe_run(given.threads, seed=0),
        "seconds": seconds,
        "scale": asdict(TOY if given.toy else FULL),
        "models": summaries,
        "runs": runs,
    }
    title = "Tokens of the search: the paper's schedule against the options that save them"
    write_results(given.results / "fewer_tokens", content, title=title, sections=sections)
    for name, of_model in runs.items():
        save(draw_curves(name, of_model), given.results / f"fewer_tokens_{name}")


def prepare(name: str, given: argparse.Namespace) -> Bench | None:
    """A model ready to be searched; None when it is not on this machine."""
    scale = TOY if given.toy else FULL
    if name == "built-in":
        return built_in(scale, given.out)
    return stories(scale, given.out, given.shared)


def main(words: Sequence[str] | None = None) -> None:
    """Search every model with every variant and seed; write results after each seed."""
    given = parser().parse_args(words)
    plain_libraries()
    torch.set_num_threads(given.threads)
    begun = time.perf_counter()
    benches = {name: made for name in given.only or MODELS if (made := prepare(name, given))}
    runs: dict[str, Runs] = {name: {variant: [] for variant in VARIANTS} for name in benches}
    # What the goals need first, so that a benchmark cut short has measured it.
    alone = [variant for variant in VARIANTS if variant not in (PAPER, FAST)]
    for variants in ((PAPER, FAST), alone):
        for seed in range(max((bench.scale.seeds for bench in benches.values()), default=0)):
            for name, bench in benches.items():
                for variant in variants:
                    if given.finished and not bench.finished(variant, seed):
                        continue
                    run = bench.search(variant, seed)
                    runs[name][variant].append(run)
                    print(f"{name} {variant} seed {seed}: {run['points'][-1]}", flush=True)
                write(runs, given, seconds=time.perf_counter() - begun)


if __name__ == "__main__":
    main()
