"""When does the search pay? Searched against uniform allocation on the built-in model.

Runs the command line over seeds and settings, each a run directory of its own, and tables KL and
perplexity on text that neither calibration nor search has seen. The seed moves the search's
mutations and samples; the text is the same for all, so the spread is the search's own.

    python experiments/benchmarks/search_pays.py --out outputs/search_pays
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report import describe_run, table, write_results

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).resolve().parents[2]
EVALUATED = 32768
BASE = ("logger=csv", "callbacks=quiet", f"data.evaluation_tokens={EVALUATED}")
# Rows of the final table, and what they are called here.
ROWS = {
    "uniform": "uniform",
    "tyr": "searched, re-pruned",
    "tyr_supernet": "searched, supernet",
}


@dataclass(frozen=True)
class Setting:
    """One question: the words that set it apart, and how many seeds answer it."""

    name: str
    words: tuple[str, ...]
    seeds: int = 3


SETTINGS = (
    Setting("as shipped, 50 %", ()),
    Setting("two generations an iteration instead of seven", ("search.generations=2",)),
    Setting("as shipped, 25 %", ("sparsity=0.25",)),
    Setting("second order, corrected target", ("criterion=second_order", "target=corrected")),
    Setting(
        "five times the search",
        (
            "iterations=3",
            "search.generations=15",
            "search.offspring=32",
            "search.stages=[[1024,8],[4096,4],[16384,1]]",
        ),
    ),
)


def run(words: tuple[str, ...], run_dir: Path) -> dict[str, Any]:
    """Rows of a finished run, and what it took; a finished one is only read, others go on."""
    command = [sys.executable, "-m", "tyr.run", *BASE, *words, f"run_dir={run_dir}", "resume=true"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, env=environment)
    summary = json.loads((run_dir / "summary.json").read_text())
    rows = {name: summary[name] for name in ("dense", "uniform", "tyr")}
    seconds = json.loads((run_dir / "durations.json").read_text())["total"]
    return {**rows, **summary["variants"], "seconds": seconds}


def measure(setting: Setting, out: Path, smoke: tuple[str, ...]) -> dict[str, Any]:
    """KL of every row of every seed."""
    slug = setting.name.replace(" ", "-").replace("%", "percent").replace(",", "").replace("'", "")
    runs = [
        run((*setting.words, f"seed={seed}", *smoke), out / f"{slug}-{seed}")
        for seed in range(setting.seeds)
    ]
    return {"name": setting.name, "words": [*BASE, *setting.words], "runs": runs}


def spread(values: list[float]) -> str:
    """Mean, with lowest and highest when there are several."""
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{statistics.mean(values):.4f} ({min(values):.4f}-{max(values):.4f})"


def summary(measured: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown: one line per setting."""
    header = ["setting", "seeds", "searched beats uniform"]
    header += [f"{key} {row}" for key in ("KL", "perplexity") for row in ROWS.values()]
    lines = []
    for entry in measured:
        runs = entry["runs"]
        wins = sum(run["tyr"]["kl"] < run["uniform"]["kl"] for run in runs)
        cells = [entry["name"], str(len(runs)), f"{wins} of {len(runs)}"]
        cells += [
            spread([r[row][key] for r in runs]) for key in ("kl", "perplexity") for row in ROWS
        ]
        lines.append(cells)
    return table(header, lines)


def main() -> None:
    """Measure every setting and write results/search_pays.{json,md}."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("outputs/search_pays"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--only", type=int, nargs="*", help="indices of the settings to run")
    parser.add_argument("--smoke", nargs="*", default=[], help="extra words, e.g. a tiny schedule")
    arguments = parser.parse_args()
    chosen = range(len(SETTINGS)) if arguments.only is None else arguments.only
    smoke = tuple(arguments.smoke)
    measured = [measure(SETTINGS[index], arguments.out, smoke) for index in chosen]
    threads = len(os.sched_getaffinity(0))  # what each run takes
    content = {
        **describe_run(threads, seed=0),
        "seconds": sum(run["seconds"] for entry in measured for run in entry["runs"]),
        "settings": measured,
    }
    dense = measured[0]["runs"][0]["dense"]["perplexity"]
    sections = [
        f"Mean over seeds, lowest and highest in brackets; {EVALUATED:,} evaluation tokens of "
        "modules that neither calibration nor search has read. KL in nats per token to the dense "
        f"model, whose perplexity is {dense:.3f}. The seed moves the search alone, so uniform has "
        "no spread.",
        "",
        *summary(measured),
        "",
        *[f"- {entry['name']}: `{' '.join(entry['words'])}`" for entry in measured],
    ]
    write_results(
        arguments.results / "search_pays",
        content,
        title="When the search pays, built-in model",
        sections=sections,
    )


if __name__ == "__main__":
    main()
