"""Why a sliced model gains less than its FLOP and bytes: time inside and outside matrix products.

Profiles prefill and decoding of the models of latency.py, in turns, and sets the gain of the
products alone beside that of everything else (attention kernel, norms, rotary embedding, cache,
and the Python around them, which is the wall time that no operator accounts for).

    python experiments/benchmarks/latency_parts.py        # half a minute, on a quiet machine
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from latency import FULL, TOY, build
from report import describe_run, table, write_results
from torch.profiler import ProfilerActivity, profile
from transformers import DynamicCache

from tyr.latency import load
from tyr.launch import plain_libraries

RESULTS = Path(__file__).parent / "results"
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm")
STEPS = 16  # decoding steps in one measurement
PHASES = ("prefill", "decoding")

Spent = dict[str, float]  # part -> seconds


@torch.no_grad()
def generate(model: Any, prompt: torch.Tensor) -> dict[str, Spent]:
    """One prompt and `STEPS` steps, each phase profiled."""
    cache = DynamicCache(config=model.config)
    spent = {}
    for phase, tokens, times in (("prefill", prompt, 1), ("decoding", prompt[:, :1], STEPS)):
        with profile(activities=[ProfilerActivity.CPU]) as record:
            started = time.perf_counter()
            for _ in range(times):
                model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            wall = time.perf_counter() - started
        spent[phase] = parts(record, wall)
    return spent


def parts(record: Any, wall: float) -> Spent:
    """Seconds in products, attention kernels, other operators, and outside of operators."""
    own = {event.key: event.self_cpu_time_total / 1e6 for event in record.key_averages()}
    products = sum(seconds for name, seconds in own.items() if name in PRODUCTS)
    attention = sum(seconds for name, seconds in own.items() if "scaled_dot_product" in name)
    inside = sum(own.values())
    return {
        "products": products,
        "attention": attention,
        "other operators": inside - products - attention,
        "Python": max(0.0, wall - inside),
    }


def measure(models: dict[str, Any], length: int, repeats: int) -> dict[str, dict[str, Spent]]:
    """Medians over repeats in turns, after one to warm up: phase -> model -> part -> seconds."""
    runs: dict[str, list[dict[str, Spent]]] = {name: [] for name in models}
    generator = torch.Generator().manual_seed(0)
    for _ in range(repeats + 1):
        for name, model in models.items():
            prompt = torch.randint(model.config.vocab_size, (1, length), generator=generator)
            runs[name].append(generate(model, prompt))
    return {
        phase: {
            name: {key: median(run[phase][key] for run in done[1:]) for key in done[0][phase]}
            for name, done in runs.items()
        }
        for phase in PHASES
    }


def rows_of(length: int, found: dict[str, dict[str, Spent]]) -> list[list[str]]:
    """Table rows: milliseconds of dense and pruned, and their ratio, per part."""
    rows = []
    for phase, models in found.items():
        per = STEPS if phase == "decoding" else 1
        dense, pruned = models["dense"], models["pruned"]
        for part in (*dense, "all"):
            before, after = (
                1000 * (sum(side.values()) if part == "all" else side[part]) / per
                for side in (dense, pruned)
            )
            ratio = f"{before / after:.2f}x" if after else ""
            rows.append([f"{phase} at {length}", part, f"{before:.2f}", f"{after:.2f}", ratio])
    return rows


def main(words: Sequence[str] | None = None) -> None:
    """Measure and write results/latency_parts.{json,md}."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--input", type=int, nargs="+", default=[128, 512])
    options.add_argument("--repeats", type=int, default=7)
    options.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options.add_argument("--results", type=Path, default=RESULTS)
    options.add_argument("--toy", action="store_true", help="a tiny model: seconds")
    given = options.parse_args(words)
    plain_libraries()
    torch.set_num_threads(given.threads)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        paths = build(TOY if given.toy else FULL, Path(folder))
        cpu, wide = torch.device("cpu"), torch.float32
        models = {name: load(path, device=cpu, dtype=wide) for name, path in paths.items()}
        found = {length: measure(models, length, given.repeats) for length in given.input}
    content = {
        **describe_run(given.threads, seed=0),
        "seconds": time.perf_counter() - started,
        "parts": found,
    }
    header = ["phase", "part", "dense (ms)", "pruned (ms)", "faster"]
    rows = [row for length, phases in found.items() for row in rows_of(length, phases)]
    sections = [
        "Eager, float32, batch 1; milliseconds per prompt and per decoding step, medians of "
        f"{given.repeats} profiled repeats in turns (profiling adds to all but the products).",
        "",
        *table(header, rows),
    ]
    write_results(
        given.results / "latency_parts",
        content,
        title="Where the time of dense and sliced models goes",
        sections=sections,
    )
    print("\n".join(sections))


if __name__ == "__main__":
    main()
