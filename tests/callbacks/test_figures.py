"""Figures show the numbers they were given; how they look was judged by eye."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from tyr.callbacks.figure_style import block_ticks, pixels, save, shades
from tyr.callbacks.figures import (
    draw_allocation,
    draw_calibration_error,
    draw_search,
    draw_sparsity_by_block,
)
from tyr.callbacks.history import GenerationPoint
from tyr.sparsity import Allocation, UnitCounts


def texts(axis: Any) -> list[str]:
    return [text.get_text() for text in axis.texts]


def point(best_loss: float, parent_loss: float) -> GenerationPoint:
    return GenerationPoint(1.0, 1, 1, 1, best_loss, parent_loss, Allocation((0,), (0,)))


def test_the_heatmap_annotates_every_cell_in_percent() -> None:
    units = UnitCounts((8, 8, 8), (100, 100, 100))
    figure = draw_allocation(Allocation((0, 1, 7), (50, 26, 100)), units)
    assert texts(figure.axes[0]) == ["0", "13", "88", "50", "26", "100"]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["attention", "FFN"]
    assert figure.axes[0].yaxis.get_inverted(), "attention comes first, as in a block"


@pytest.mark.parametrize(("blocks", "annotated"), [(40, True), (41, False)])
def test_the_heatmap_leaves_out_numbers_that_cannot_be_read(blocks: int, annotated: bool) -> None:
    units = UnitCounts((8,) * blocks, (64,) * blocks)
    figure = draw_allocation(Allocation((4,) * blocks, (32,) * blocks), units)
    assert bool(figure.axes[0].texts) == annotated


def test_sparsity_lines_carry_the_data_of_both_kinds(run: Any) -> None:
    allocations = {"uniform": run.uniform, "iteration 1": run.allocation(0, 3)}
    figure = draw_sparsity_by_block(run.units, allocations)
    for axis, kind, most in zip(figure.axes, ("attn", "ffn"), (8, 448), strict=True):
        for line, removed in zip(axis.lines, allocations.values(), strict=True):
            expected = 100 * np.array(removed.of(kind)) / most
            np.testing.assert_allclose(line.get_ydata(), expected)


def test_the_search_curve_runs_through_all_iterations_in_order() -> None:
    points = {
        (t, g): point(3.0 - t - g / 4, 3.5 - t - g / 4) for t, g in ((1, 0), (0, 1), (0, 0), (1, 1))
    }
    axis = draw_search(points).axes[0]
    parent, best = axis.lines[:2]
    assert list(best.get_ydata()) == [3.0, 2.75, 2.0, 1.75]
    assert list(parent.get_ydata()) == [3.5, 3.25, 2.5, 2.25]
    assert texts(axis) == ["iteration 1", "iteration 2"]
    assert axis.lines[2].get_xdata()[0] == 2.5, "the boundary lies between the generations"
    assert axis.get_yscale() == "linear"


@pytest.mark.parametrize(
    "generations",
    [[1], [50, 1], [15] * 4, [1] * 7, [1] * 12, [1] * 120, [30, 1, 1, 2, 1, 1, 40]],
    ids=lambda counts: f"{len(counts)}x{counts[0]}",
)
def test_the_names_of_iterations_do_not_overprint(generations: list[int]) -> None:
    points = {(t, g): point(3.0, 3.5) for t, count in enumerate(generations) for g in range(count)}
    figure = draw_search(points)
    figure.draw_without_rendering()
    labels = sorted((t.get_window_extent() for t in figure.axes[0].texts), key=lambda box: box.x0)
    assert all(left.x1 < right.x0 for left, right in pairwise(labels))
    assert labels[0].x0 >= 0
    assert labels[-1].x1 <= figure.bbox.x1
    assert "iteration" in texts(figure.axes[0])[0]


def test_losses_far_apart_are_drawn_on_a_log_axis() -> None:
    points = {(0, g): point(10.0 ** (2 - g), 200.0) for g in range(3)}
    assert draw_search(points).axes[0].get_yscale() == "log"


def test_calibration_errors_show_level_0_and_the_sparsest() -> None:
    errors = {0: {"000.attn": {-1: 0.1, 0: 0.2, 1: 0.4}, "001.attn": {0: 0.3, 2: 0.9}}}
    figure = draw_calibration_error(2, errors)
    centre, sparsest = figure.axes[0].lines
    assert list(centre.get_ydata()) == [0.2, 0.3]
    assert list(sparsest.get_ydata()) == [0.4, 0.9]
    assert np.isnan(figure.axes[1].lines[0].get_ydata()).all(), "unknown errors are not drawn"


def test_the_same_figure_is_the_same_file(run: Any, tmp_path: Any) -> None:
    contents = []
    for name in ("a", "b"):
        save(draw_allocation(run.uniform, run.units), tmp_path / name)
        contents.append([(tmp_path / f"{name}.{s}").read_bytes() for s in ("svg", "png")])
    assert contents[0] == contents[1]


def test_pixels_are_rgb_bytes(run: Any) -> None:
    array = pixels(draw_allocation(run.uniform, run.units, annotated=False))
    assert array.dtype == np.uint8
    assert array.ndim == 3
    assert array.shape[2] == 3
    assert array.min() < 200 < array.max()


def test_drawing_leaves_the_global_style_alone(run: Any) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    draw_allocation(run.uniform, run.units)
    assert dict(mpl.rcParams) == before


def test_shades_go_from_light_to_dark() -> None:
    brightness = [sum(int(s[i : i + 2], 16) for i in (1, 3, 5)) for s in shades(4)]
    assert brightness == sorted(brightness, reverse=True)
    assert shades(1) == shades(4)[-1:]


@pytest.mark.parametrize("blocks", [1, 16, 17, 80, 126])
def test_block_ticks_are_few_and_evenly_spaced(blocks: int) -> None:
    ticks = list(block_ticks(blocks))
    assert 1 <= len(ticks) <= 16
    assert len({b - a for a, b in pairwise(ticks)}) <= 1
