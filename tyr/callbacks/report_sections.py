"""The sections of the report, each from plain data to markup.

No section decides whether tyr did well: the sentence comes from `results.verdict`. Percent appears
because these are tables for people.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from tyr.callbacks import markup
from tyr.callbacks.heatmap import FIGURE_NAMES, FIGURES_DIR
from tyr.callbacks.history import GenerationPoint
from tyr.callbacks.latency import FIGURE_NAME as LATENCY_FIGURE
from tyr.callbacks.latency import LATENCY_FILE
from tyr.callbacks.plan import TITLES
from tyr.callbacks.planned import Planned, memory_sentence, times_planned
from tyr.callbacks.results import (
    format_count,
    format_megabytes,
    format_perplexity,
    format_ratio,
    format_seconds,
    result_lines,
)
from tyr.evaluate.scores import CAPTION, score_lines
from tyr.events import EvaluationRow
from tyr.sparsity import Allocation, UnitCounts

FOLD_BLOCKS = 16
_FIGURES: Mapping[str, tuple[str, str]] = {
    "allocation": (
        "Where the units went",
        "Each cell is one sublayer; darker means more of it was removed. Rows of one colour mean "
        "the search stayed near uniform; light columns are blocks the search kept.",
    ),
    "sparsity_by_block": (
        "How the allocation moved",
        "Every line sums to the same number of removed units. Look for whether later iterations "
        "still move: if the last two lines agree, the search has settled.",
    ),
    "search": (
        "What the search gained",
        "The distance between the two lines is what one generation gained on the same tokens; "
        "where they meet, no offspring beat its parent. Where an iteration starts, a new supernet "
        "was built around the allocation found so far, so the loss may jump.",
    ),
    "calibration_error": (
        "How hard each sublayer is to prune",
        "Share of each sublayer's output that reconstruction could not restore, on the calibration "
        "text. Level 0 is the iteration's starting allocation, the dashed line the sparsest "
        "structure in the supernet; 1 means nothing of the output is left.",
    ),
    LATENCY_FIGURE: (
        "How fast the model runs",
        "Medians and quartiles of dense and pruned taking turns in one process. A prefill cannot "
        "gain more than its arithmetic shrank, decoding no more than the bytes it reads: see "
        "prefill_flops and decode_bytes in latency.csv.",
    ),
}
_PLAN_NOTE = (
    "Planned are the matrix products alone, at the rate measured when the run began: a stage near "
    "1x has no time to lose. A small model spends most of its time on everything else."
)
_FILES = {
    "model.gguf": "the same for llama.cpp",
    "summary.json": "every number of this page",
    "metrics.csv": "one row per event of the run",
    "allocation.json": "units removed from every sublayer",
    LATENCY_FILE: "how fast every model ran",
    "plan.json": "what the run was planned to cost",
    "config.yaml": "the resolved configuration",
    "environment.json": "versions, commit, device, seed",
    "figures": "the figures as PNG and SVG",
}


def results(rows: Mapping[str, EvaluationRow]) -> str:
    """The final table with its ratios."""
    headers = ["model", "perplexity", "ratio", "KL (nats/token)", "parameters", "ratio"]
    cells = [
        (
            line.name,
            format_perplexity(line.row.perplexity),
            format_ratio(line.perplexity_ratio),
            f"{line.row.kl:.4f}",
            format_count(line.row.parameters),
            format_ratio(line.parameters_ratio),
            format_count(line.row.backbone_parameters),
            format_megabytes(line.row.bytes),
            format_ratio(line.bytes_ratio),
        )
        for line in result_lines(rows)
    ]
    headers += ["in blocks", "size (MB)", "ratio"]
    return markup.table(headers, cells, strong=["tyr"]) + _tasks(rows)


def _tasks(rows: Mapping[str, EvaluationRow]) -> str:
    """Scores per task; empty when none were asked."""
    scores = {line.name: line.row.tasks for line in result_lines(rows)}
    if not any(scores.values()):
        return ""
    about = f'<p class="about">{markup.text(CAPTION)}</p>'
    return markup.table(*score_lines(scores), strong=["average"]) + about


def results_note(removed: Allocation, uniform: Allocation) -> str:
    """What the table does not say by itself; whether the budgets are equal is checked here."""
    budgets = "the same number" if removed.total == uniform.total else "different numbers"
    return (
        f"Ratios are to the dense model. uniform and tyr remove {budgets} of units. Lower "
        "perplexity and KL are better; a small difference on one text may be chance."
    )


def figures(run_dir: Path) -> str:
    """Every figure that was drawn, with what to look at."""
    parts = []
    for name in (*FIGURE_NAMES, LATENCY_FIGURE):
        path = run_dir / FIGURES_DIR / f"{name}.svg"
        if path.exists():
            title, caption = _FIGURES[name]
            image = markup.figure(path.read_bytes(), title=title, caption=caption)
            parts.append(markup.section(title, image))
    return "\n".join(parts)


def search(generations: Mapping[tuple[int, int], GenerationPoint]) -> str:
    """One line per iteration: what it gained and what it cost; empty without a search."""
    rows = []
    for iteration in sorted({iteration for iteration, _ in generations}):
        points = [generations[p] for p in sorted(generations) if p[0] == iteration]
        dense = sum(point.dense_sublayer_evaluations for point in points)
        computed = sum(point.sublayer_evaluations for point in points)
        rows.append(
            (
                iteration + 1,
                len(points),
                f"{points[0].parent_loss:.5g}",
                f"{points[-1].best_loss:.5g}",
                format_count(sum(point.evaluated_tokens for point in points)),
                f"{100 * computed / dense:.0f} %" if dense else "-",
                format_seconds(sum(point.seconds for point in points)),
            )
        )
    headers = ["iteration", "generations", "first loss", "last loss", "tokens", "computed", "time"]
    note = (
        '<p class="about">“computed” is the share of sublayer evaluations left after sharing equal '
        "prefixes between candidates; the losses are the same.</p>"
    )
    return markup.section("Search", markup.table(headers, rows) + note) if rows else ""


def allocation(removed: Allocation, units: UnitCounts) -> str:
    """Kept units of every block; folded for deep models."""
    rows = []
    for block in range(units.num_blocks):
        cells: list[object] = [block]
        for kind in ("attn", "ffn"):
            most = units.attn[block] if kind == "attn" else units.ffn[block]
            gone = removed.attn[block] if kind == "attn" else removed.ffn[block]
            cells += [f"{most - gone} of {most}", f"{100 * gone / most:.1f} %"]
        rows.append(cells)
    headers = ["block", "attention kept", "removed", "FFN kept", "removed"]
    body = markup.table(headers, rows)
    total = "; ".join(
        f"{name}: {gone} of {most} units removed ({100 * gone / most:.1f} %)"
        for name, gone, most in (
            ("attention", sum(removed.attn), sum(units.attn)),
            ("FFN", sum(removed.ffn), sum(units.ffn)),
        )
    )
    if units.num_blocks > FOLD_BLOCKS:
        body = markup.folded(f"All {units.num_blocks} blocks", body)
    return f"<p>{markup.text(total)}.</p>{body}"


def times(
    seconds: Mapping[str, float], planned: Planned | None = None, *, peak_rss_bytes: int = 0
) -> str:
    """Duration of every stage, its iterations together, beside the plan's where there was one."""
    total = seconds.get("total") or sum(seconds.values()) or 1.0
    headers = ["stage", "time", "share"]
    rows = [
        [TITLES.get(name, name), format_seconds(spent), f"{100 * spent / total:.0f} %"]
        for name, spent in seconds.items()
    ]
    if planned is None:
        return markup.table(headers, rows, strong=["total"])
    for row, (name, spent) in zip(rows, seconds.items(), strict=True):
        least = planned.seconds.get(name)
        row += ["-" if least is None else format_seconds(least), times_planned(spent, least)]
    note = f"{_PLAN_NOTE} {memory_sentence(planned, peak_rss_bytes)}"
    about = f'<p class="about">{markup.text(note)}</p>'
    return markup.table([*headers, "planned", "ratio"], rows, strong=["total"]) + about


def environment(values: Mapping[str, object]) -> str:
    """Versions, commit, device and seed, as recorded."""
    rows: list[tuple[str, object]] = []
    for name, value in values.items():
        nested = value.items() if isinstance(value, Mapping) else None
        rows += [(f"{name}: {key}", item) for key, item in nested] if nested else [(name, value)]
    return markup.table([], rows, words=True)


def files(run_dir: Path, export_dir: Path | None) -> str:
    """Links to what lies beside the report."""
    found = [(name, what) for name, what in _FILES.items() if (run_dir / name).exists()]
    if export_dir is not None:
        relative = os.path.relpath(export_dir, run_dir)
        found.insert(0, (Path(relative).as_posix(), "the pruned model"))
    return f"<p>In {markup.text(run_dir)}:</p>{markup.file_list(found)}"
