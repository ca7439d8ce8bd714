"""The look of tyr's figures, and turning a figure into files or pixels.

Figures are built on `matplotlib.figure.Figure` with the Agg canvas, never through pyplot, so no
global state is touched. matplotlib is imported on first use because that costs about a second.
Colours work for colour-blind readers: one hue from light to dark, grey for references.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from tyr.files import write_bytes

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

INK, GREY, BLUE = "#222222", "#7f7f7f", "#08519c"
FORMATS = ("png", "svg")
PNG_DPI = 150
MOST_MARKED_POINTS = 60
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same figure everywhere
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "svg.hashsalt": "tyr",  # ids in the SVG come from the content, not from chance
    "savefig.facecolor": "white",
}
_Parameters = ParamSpec("_Parameters")


def styled(draw: Callable[_Parameters, Figure]) -> Callable[_Parameters, Figure]:
    """Decorate a drawing function: it draws in tyr's style and leaves the global one alone."""

    @functools.wraps(draw)
    def wrapper(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> Figure:
        from matplotlib import rc_context

        with rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapper


def new_figure(
    size: tuple[float, float], *, columns: int = 1, share_y: bool = False
) -> tuple[Figure, list[Axes]]:
    """An empty figure of `size` inches with `columns` axes side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False, sharey=share_y)
    return figure, list(axes[0])


def shades(count: int) -> list[str]:
    """`count` blues from light to dark; a single one is dark."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    places = [1 - 0.55 * (count - 1 - i) / max(count - 1, 1) for i in range(count)]
    return [to_hex(colormaps["Blues"](0.9 * place)) for place in places]


def sequential() -> Colormap:
    """Light to dark blue for 0 to 100 percent; the lightest still stands out from the page."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    blues = colormaps["Blues"]
    return ListedColormap([blues(0.07 + 0.93 * i / 255) for i in range(256)])


def line_look(color: str, *, points: int, strong: bool = True) -> dict[str, Any]:
    """Keywords of `plot` for a measured line; its points are marked while there are few."""
    width, size = (1.9, 3.5) if strong else (1.2, 2.5)
    marker = "o" if points <= MOST_MARKED_POINTS else ""
    return {"color": color, "linewidth": width, "marker": marker, "markersize": size}


def reference_look(points: int) -> dict[str, Any]:
    """Keywords of `plot` for what the measured lines are compared with; one point has no line."""
    marker = "_" if points == 1 else ""
    dashes = {"linewidth": 1.3, "linestyle": (0, (4, 2))}
    return {"color": GREY, "marker": marker, "markersize": 14, **dashes}


def log_axis(axis: Axes) -> None:
    """A logarithmic y axis with plain numbers at 1, 2 and 5, or at decades when there are many."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_yscale("log")
    low, high = axis.get_ylim()
    steps = (1.0, 2.0, 5.0) if high < 1000 * low else (1.0,)
    axis.yaxis.set_major_locator(LogLocator(subs=steps))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_locator(NullLocator())


def block_axis(axis: Axes, num_blocks: int) -> None:
    """Label an x axis with decoder blocks, whole numbers only."""
    axis.set_xticks(block_ticks(num_blocks))
    axis.set_xlim(-0.5, num_blocks - 0.5)
    axis.set_xlabel("decoder block")
    axis.grid(axis="y")


def block_ticks(num_blocks: int, *, most: int = 16) -> range:
    """Every block when at most `most`, otherwise at a round distance."""
    distance = 1
    while num_blocks > most * distance:
        distance *= 2
    return range(0, num_blocks, distance)


def legend_above(figure: Figure, axis: Axes, *, columns: int = 5) -> None:
    """One legend for the whole figure, above it, where no line runs."""
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        most = min(len(handles), columns)
        figure.legend(handles, labels, loc="outside upper center", ncols=most)


def save(figure: Figure, path: Path) -> None:
    """Write `path` as .png and as .svg, each atomically, with the same bytes every time."""
    for suffix in FORMATS:
        write_bytes(path.with_suffix(f".{suffix}"), _encode(figure, suffix))


def pixels(figure: Figure) -> np.ndarray[Any, Any]:
    """The figure as an array of RGB bytes: (height, width, 3), uint8."""
    import numpy as np
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)  # its methods are not annotated
    with rc_context(STYLE):
        canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def _encode(figure: Figure, suffix: str) -> bytes:
    from matplotlib import rc_context

    buffer = BytesIO()
    metadata = {"Date": None} if suffix == "svg" else {}
    with rc_context(STYLE):
        figure.savefig(buffer, format=suffix, dpi=PNG_DPI, metadata=metadata)
    return buffer.getvalue()
