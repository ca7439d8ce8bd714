"""latency.csv and figures/latency: how fast every evaluated model was (Figure 5 of the paper).

Only the evaluator `latency` measures speed; without its rows nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyr.callbacks.figure_style import BLUE, GREY, new_figure, save, styled
from tyr.callbacks.heatmap import FIGURES_DIR
from tyr.events import Callback, EvaluationRow, RunFinished
from tyr.files import write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LATENCY_FILE = "latency.csv"
FIGURE_NAME = "latency"
Row = Mapping[str, Any]


class LatencyTable(Callback):
    """Writes run_dir/latency.csv and a figure when the run ends.

    The column `model` names the row of the final table; the dense model that was measured in turns
    with it is `dense beside` that row.
    """

    def on_run_end(self, event: RunFinished) -> None:
        rows = list(latency_rows(event.rows))
        if not rows:
            return
        from tyr.evaluate.latency import csv_text  # brings torch

        write_text(Path(event.run_dir) / LATENCY_FILE, csv_text(rows))
        pruned = [row for row in rows if row["model"] == "tyr"]
        beside = [row for row in rows if row["model"] == "dense beside tyr"]
        if pruned and beside:
            figure = draw_latency(beside, pruned)
            save(figure, Path(event.run_dir) / FIGURES_DIR / FIGURE_NAME)


def latency_rows(rows: Mapping[str, EvaluationRow]) -> Iterator[dict[str, Any]]:
    """The rows of latency.csv, named after the models of the final table."""
    for name, evaluated in rows.items():
        for row in evaluated.latency:
            own = name == "dense" or row["model"] != "dense"
            yield {**row, "model": name if own else f"dense beside {name}"}


@styled
def draw_latency(dense: Sequence[Row], pruned: Sequence[Row]) -> Figure:
    """Time to first token and decode throughput per workload, with quartiles and the ratio.

    Args:
        dense: rows of latency.csv of the dense model.
        pruned: those of the pruned model, same workloads in the same order.
    """
    figure, axes = new_figure((9.5, 1.6 + 0.45 * len(dense)), columns=2, share_y=True)
    _bars(axes[0], dense, pruned, "ttft_seconds", faster="less")
    _bars(axes[1], dense, pruned, "decode_tokens_per_second", faster="more")
    axes[0].set_title("time to first token (s)")
    axes[1].set_title("decode throughput (tokens/s)")
    axes[0].set_yticks(range(len(dense)), [_label(row) for row in dense])
    axes[0].invert_yaxis()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2)
    return figure


def _bars(
    axis: Axes, dense: Sequence[Row], pruned: Sequence[Row], key: str, *, faster: str
) -> None:
    for rows, offset, color, name in ((dense, -0.2, GREY, "dense"), (pruned, 0.2, BLUE, "pruned")):
        values = [row[key] for row in rows]
        spread = [
            [row[key] - row[f"{key}_low"] for row in rows],
            [row[f"{key}_high"] - row[key] for row in rows],
        ]
        places = [index + offset for index in range(len(rows))]
        axis.barh(places, values, height=0.36, color=color, label=name, xerr=spread, capsize=2)
    for index, (before, after) in enumerate(zip(dense, pruned, strict=True)):
        ratio = before[key] / after[key] if faster == "less" else after[key] / before[key]
        axis.annotate(
            f" {ratio:.2f}x",
            (after[f"{key}_high"], index + 0.2),
            va="center",
            fontsize=9,
            xytext=(3, 0),
            textcoords="offset points",
        )
    axis.margins(x=0.16)
    axis.grid(axis="x")


def _label(row: Row) -> str:
    shape = f"{row['input_tokens']}+{row['output_tokens']}, batch {row['batch']}"
    return shape if row["engine"] == "eager" else f"{shape}, {row['engine']}"
