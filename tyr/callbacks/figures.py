"""The figures of a run as pure functions: data in, matplotlib `Figure` out.

`draw_sparsity_by_block` follows Figure 6 of the paper, `draw_search` its Figure 4. Percent exists
only here. Notebooks, W&B and the `SparsityHeatmap` callback share them; nothing here reads a run
directory or writes a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from tyr.callbacks.figure_style import (
    BLUE,
    GREY,
    INK,
    block_axis,
    block_ticks,
    legend_above,
    line_look,
    log_axis,
    new_figure,
    reference_look,
    sequential,
    shades,
    styled,
)
from tyr.callbacks.history import GenerationPoint, LevelErrors
from tyr.sparsity import KINDS, Allocation, Kind, SublayerId, UnitCounts, sparsity_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KIND_TITLES: dict[Kind, str] = {"attn": "attention", "ffn": "FFN"}
MOST_ANNOTATED_BLOCKS = 40
# Share of an axis that `iteration 10` and `100` take with some air around them.
WORD_WIDTH, NUMBER_WIDTH = 0.13, 0.035
LOG_RANGE = 20  # losses further apart than this factor are drawn on a log axis


@styled
def draw_allocation(
    removed: Allocation, units: UnitCounts, title: str = "", *, annotated: bool = True
) -> Figure:
    """Heatmap of an allocation: one row per kind, one column per block, percent removed.

    Args:
        removed: removed units per sublayer.
        units: units that exist.
        title: what the allocation is of; empty for a plain one.
        annotated: write the percentage into every cell, if the blocks are few enough to read it;
            that is most of the time a figure takes.
    """
    blocks = units.num_blocks
    figure, (axis,) = new_figure((max(5.5, min(14.0, 2.2 + 0.34 * blocks)), 2.1))
    percent = [_percent(removed, units, kind) for kind in KINDS]
    edges = [block - 0.5 for block in range(blocks + 1)]
    image = axis.pcolormesh(
        edges, [-0.5, 0.5, 1.5], percent, cmap=sequential(), vmin=0, vmax=100, edgecolors="white"
    )
    axis.invert_yaxis()
    axis.set_yticks(range(len(KINDS)), [KIND_TITLES[kind] for kind in KINDS])
    axis.set_xticks(block_ticks(blocks, most=MOST_ANNOTATED_BLOCKS))
    axis.set_xlabel("decoder block")
    axis.set_title(title or "Units removed from every sublayer")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    if annotated and blocks <= MOST_ANNOTATED_BLOCKS:
        _annotate_cells(axis, percent)
    bar = figure.colorbar(image, ax=axis, pad=0.02, aspect=9, ticks=[0, 50, 100])
    bar.set_label("removed (%)")
    bar.ax.spines[:].set_visible(False)
    return figure


@styled
def draw_sparsity_by_block(units: UnitCounts, allocations: Mapping[str, Allocation]) -> Figure:
    """Sparsity of attention and FFN against the block, one line per allocation (Figure 6).

    Args:
        units: units that exist.
        allocations: label to allocation; `uniform` is drawn as the reference, the others from light
            to dark in the order given.
    """
    figure, axes = new_figure((9.0, 3.5), columns=2, share_y=True)
    searched = [label for label in allocations if label != "uniform"]
    colors = dict(zip(searched, shades(len(searched)), strict=True))
    for axis, kind in zip(axes, KINDS, strict=True):
        for label, removed in allocations.items():
            strong = bool(searched) and label == searched[-1]
            look = reference_look(units.num_blocks)
            if label != "uniform":
                look = line_look(colors[label], points=units.num_blocks, strong=strong)
            axis.plot(_percent(removed, units, kind), label=label, **look)
        block_axis(axis, units.num_blocks)
        axis.set_title(KIND_TITLES[kind])
        axis.set_ylim(-3, 103)
    axes[0].set_ylabel("units removed (%)")
    legend_above(figure, axes[0])
    return figure


@styled
def draw_search(generations: Mapping[tuple[int, int], GenerationPoint]) -> Figure:
    """Loss of the best candidate and of the parent it competed with, all iterations (Figure 4).

    Args:
        generations: (iteration, generation) to its numbers.
    """
    figure, (axis,) = new_figure((8.0, 3.6))
    positions = sorted(generations)
    points = [generations[position] for position in positions]
    steps = range(1, len(points) + 1)
    axis.plot(steps, [p.parent_loss for p in points], label="parent", **reference_look(len(points)))
    look = line_look(BLUE, points=len(points))
    axis.plot(steps, [p.best_loss for p in points], label="best, the next parent", **look)
    losses = [loss for p in points for loss in (p.best_loss, p.parent_loss)]
    if losses and 0 < LOG_RANGE * min(losses) < max(losses) < float("inf"):
        log_axis(axis)
    axis.set_xlim(0.5, max(len(points), 1) + 0.5)
    _mark_iterations(axis, positions)
    axis.set_xlabel("generation, counted through all iterations")
    axis.set_ylabel("loss, last stage")
    axis.locator_params(axis="x", integer=True, min_n_ticks=1)
    axis.grid(axis="y")
    legend_above(figure, axis)
    return figure


@styled
def draw_calibration_error(
    num_blocks: int, errors: Mapping[int, Mapping[str, LevelErrors]]
) -> Figure:
    """Relative reconstruction error of every sublayer, per iteration: level 0 and the sparsest.

    Args:
        num_blocks: decoder blocks of the model.
        errors: iteration to sublayer name (`003.attn`) to level to squared error over squared norm.
    """
    figure, axes = new_figure((9.0, 3.8), columns=2, share_y=True)
    colors = shades(len(errors))
    for axis, kind in zip(axes, KINDS, strict=True):
        for color, (iteration, sublayers) in zip(colors, sorted(errors.items()), strict=True):
            label = f"iteration {iteration + 1}"
            centre = _by_block(sublayers, num_blocks, kind, lambda levels: levels.get(0))
            axis.plot(centre, label=f"{label}, level 0", **line_look(color, points=num_blocks))
            sparsest = _by_block(sublayers, num_blocks, kind, lambda levels: levels[max(levels)])
            dashes = reference_look(num_blocks) | {"color": color, "linestyle": (0, (3, 1.5))}
            axis.plot(sparsest, label=f"{label}, sparsest", **dashes)
        block_axis(axis, num_blocks)
        axis.set_title(KIND_TITLES[kind])
    log_axis(axes[0])
    axes[0].set_ylabel("squared error / squared output")
    legend_above(figure, axes[0], columns=4)
    return figure


def _percent(removed: Allocation, units: UnitCounts, kind: Kind) -> list[float]:
    return [100 * share for share in sparsity_of(removed, units, kind)]


def _annotate_cells(axis: Axes, percent: Sequence[Sequence[float]]) -> None:
    for row, values in enumerate(percent):
        for block, value in enumerate(values):
            ink = "white" if value > 55 else INK
            whole = int(value + 0.5)  # half up; format would make 12.5 a 12 and 87.5 an 88
            axis.text(block, row, str(whole), ha="center", va="center", color=ink, size=8)


def _mark_iterations(axis: Axes, positions: Sequence[tuple[int, int]]) -> None:
    """Label where every iteration starts; `positions` are (iteration, generation), sorted.

    Where the words would overprint, the word is said once, before the axis, and numbers follow: as
    many as there is room for.
    """
    starts: dict[int, int] = {}  # iteration to its first generation, counted through
    for index, (iteration, _) in enumerate(positions):
        starts.setdefault(iteration, index)
    for start in list(starts.values())[1:]:
        axis.axvline(start + 0.5, color=GREY, linewidth=0.8, linestyle=(0, (1, 2)))
    ends = [*list(starts.values())[1:], len(positions)]
    widths = [end - start for start, end in zip(starts.values(), ends, strict=True)]
    spelled = all(width >= WORD_WIDTH * len(positions) for width in widths)
    if not spelled and positions:
        _above(axis, "iteration", 0.5, ha="right", offset=-4)
    last = float("-inf")
    for iteration, start in starts.items():
        if spelled:
            _above(axis, f"iteration {iteration + 1}", start + 0.5)
        elif start - last >= NUMBER_WIDTH * len(positions):
            _above(axis, str(iteration + 1), start + 0.5)
            last = start


def _above(axis: Axes, text: str, x: float, *, ha: str = "left", offset: int = 2) -> None:
    """A small grey label on top of the axis."""
    axis.annotate(
        text,
        (x, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(offset, 3),
        textcoords="offset points",
        ha=ha,
        va="bottom",
        size=9,
        color="#555555",
    )


def _by_block(
    sublayers: Mapping[str, LevelErrors],
    num_blocks: int,
    kind: Kind,
    pick: Callable[[LevelErrors], float | None],
) -> list[float]:
    """One error per block; NaN, which is not drawn, where none is known or it is exactly zero."""
    names = [SublayerId(block, kind).name for block in range(num_blocks)]
    return [(pick(sublayers[n]) if n in sublayers else None) or float("nan") for n in names]
