"""What `fewer_tokens.py` concludes from its searches: ratios, tables and curves. No torch here."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from report import Goal, table

from tyr.callbacks.figure_style import (
    BLUE,
    GREY,
    legend_above,
    line_look,
    new_figure,
    shades,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Runs = dict[str, list[dict[str, Any]]]  # variant to one search per seed

PAPER, FAST = "paper", "all options"
ENGINE = Path(__file__).parent / "results" / "supernet_and_generation.json"


def engine_gain(results: Path, key: str = "ratio") -> float:
    """What the engine gains in one float32 generation over one-by-one evaluation, as recorded.

    Args:
        results: of supernet_and_generation.py, on the machine of the searches.
        key: `ratio` by the clock, `cpu_ratio` by processor time.
    """
    figures = json.loads(results.read_text(encoding="utf-8"))["figures"]
    return float(figures["generation"][key])


def arrival(run: dict[str, Any], target: float) -> dict[str, float] | None:
    """Tokens and seconds until a search's parent is as good as the target, if it ever is."""
    tokens = wall = 0.0
    for point in run["points"]:
        tokens, wall = tokens + point["tokens"], wall + point["seconds"]
        if point["loss"] <= target:
            return {"tokens": tokens, "seconds": wall, "processor": point["processor_seconds"]}
    return None


def summarise(runs: Runs, gain: float) -> dict[str, Any]:
    """Per variant: losses, tokens, and ratios to the paper's schedule of the same seed.

    Args:
        runs: the searches.
        gain: see `engine_gain`.
    """
    return {name: _summary(chosen, runs[PAPER], gain) for name, chosen in runs.items() if chosen}


def _summary(
    runs: list[dict[str, Any]], paper: list[dict[str, Any]], gain: float
) -> dict[str, Any]:
    whole, first, seconds, reached = [], [], [], 0
    for run, reference in zip(runs, paper, strict=False):
        target = reference["points"][-1]["loss"]
        there, papers = arrival(run, target), arrival(reference, target)
        assert papers is not None, "a schedule reaches its own last loss"
        if there is None:
            continue
        reached += 1
        whole.append(sum(point["tokens"] for point in reference["points"]) / there["tokens"])
        first.append(papers["tokens"] / there["tokens"])
        seconds.append(reference["points"][-1]["processor_seconds"] / there["processor"])
    correlations = [
        point["rank_correlation"]
        for run in runs
        for point in run["points"]
        if point["rank_correlation"] is not None
    ]
    fresh = [run["fresh"] for run in runs if run["fresh"] is not None]
    return {
        "seeds": len(runs),
        "final_loss": [run["points"][-1]["loss"] for run in runs],
        "tokens": mean([sum(p["tokens"] for p in run["points"]) for run in runs]),
        "reached": reached,
        "ratio_whole": mean(whole),
        "ratio_first_arrival": mean(first),
        "ratio_seconds": mean(seconds),
        # A seed that did not arrive counts as zero, so these are at most the true means.
        "tokens_at_least": sum(whole) / len(runs),
        "seconds_at_least": gain * sum(seconds) / len(runs),
        "rank_correlation": mean(correlations),
        "fresh_additive": mean([f["additive"] for f in fresh if f["additive"] is not None]),
        "fresh_pairwise": mean([f["pairwise"] for f in fresh if f["pairwise"] is not None]),
    }


def mean(values: Sequence[float]) -> float | None:
    """Mean, or None of nothing."""
    return statistics.fmean(values) if values else None


def shown(value: float | None, pattern: str) -> str:
    """A number, or a dash."""
    return "-" if value is None else format(value, pattern)


def report(name: str, summary: dict[str, Any], runs: Runs) -> list[str]:
    """Markdown of one model."""
    rows = []
    for variant, s in summary.items():
        losses = s["final_loss"]
        rows.append(
            [
                variant,
                str(s["seeds"]),
                f"{shown(s['tokens'], ',.0f')}",
                f"{statistics.fmean(losses):.4f} ({min(losses):.4f}-{max(losses):.4f})",
                f"{s['reached']} of {s['seeds']}",
                shown(s["ratio_whole"], ".2f"),
                shown(s["ratio_first_arrival"], ".2f"),
                shown(s["ratio_seconds"], ".2f"),
                shown(s["rank_correlation"], ".2f"),
                f"{shown(s['fresh_additive'], '.2f')} / {shown(s['fresh_pairwise'], '.2f')}",
            ]
        )
    header = [
        "search",
        "seeds",
        "tokens evaluated",
        "loss at its end: mean (range)",
        "arrived",
        "paper's tokens over tokens to arrive",
        "the same, counting the paper's only to its own arrival",
        "processor seconds ratio",
        "rank correlation while searching",
        "on fresh mutations: additive / pairwise",
    ]
    start = runs[PAPER][0]["start_loss"]
    return [f"## {name}", "", f"Loss of the centre: {start:.4f}.", "", *table(header, rows), ""]


def goals(names: Sequence[str]) -> list[Goal]:
    """The project's goals, per model."""
    found = []
    for name in names:
        path = ("models", name, FAST)
        found += [
            Goal(f"{name}: tokens ratio", (*path, "tokens_at_least"), at_least=4),
            Goal(
                f"{name}: seconds ratio with the engine's", (*path, "seconds_at_least"), at_least=10
            ),
        ]
    return found


@styled
def draw_curves(name: str, runs: Runs) -> Figure:
    """Loss of the parent against tokens and against seconds: means over seeds per generation.

    The paper's schedule is grey, all options together dark blue, each alone a lighter blue.
    """
    figure, axes = new_figure((11.0, 4.0), columns=2, share_y=True)
    alone = [variant for variant in runs if variant not in (PAPER, FAST)]
    colours = {**dict(zip(alone, shades(len(alone) + 1), strict=False)), PAPER: GREY, FAST: BLUE}
    looks = ("--", ":", "-.", (0, (1, 3)), (0, (6, 2, 1, 2, 1, 2)))
    dashes = dict(zip(alone, looks, strict=False))
    for axis, quantity in zip(axes, ("tokens", "processor_seconds"), strict=True):
        for variant, of_seeds in runs.items():
            if not of_seeds:
                continue
            look = line_look(colours[variant], points=99, strong=variant in (PAPER, FAST))
            x = _mean_per_generation([_course(run, quantity) for run in of_seeds])
            y = _mean_per_generation([_losses(run) for run in of_seeds])
            fewer = len(of_seeds) < len(runs[PAPER])
            label = f"{variant} ({len(of_seeds)} of them)" if fewer else variant
            axis.plot(x, y, label=label, linestyle=dashes.get(variant, "-"), **look)
        axis.grid()
    axes[0].set_title(f"{name}: {len(runs[PAPER])} seeds")
    axes[0].set_xlabel("evaluated tokens, thousands")
    axes[1].set_xlabel("processor seconds of the search")
    axes[0].set_ylabel("KL on the fixed sample, nats")
    legend_above(figure, axes[0], columns=4)
    return figure


def _course(run: dict[str, Any], quantity: str) -> list[float]:
    """A quantity up to each generation, from nothing on; tokens in thousands."""
    values = [point[quantity] for point in run["points"]]
    if quantity == "tokens":
        values = [tokens / 1000 for tokens in accumulate(values)]
    return [0.0, *values]


def _losses(run: dict[str, Any]) -> list[float]:
    return [run["start_loss"], *(point["loss"] for point in run["points"])]


def _mean_per_generation(courses: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.fmean(values) for values in zip(*courses, strict=True)]
