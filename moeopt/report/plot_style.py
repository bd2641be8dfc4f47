"""How every plot looks: one column wide, colours that the colour-blind tell apart, no boxes."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)

from moeopt.errors import InputError

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

P = ParamSpec("P")

#: File formats by ending.
ENDINGS = ("svg", "pdf", "png")

#: Width of a plot: one column of a two-column paper, and its labels at the right of the lines.
WIDTH_IN = 4.6
HEIGHT_IN = 2.6

#: M. Okabe, K. Ito, Color Universal Design (2008), without yellow, which vanishes on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
#: Neighbouring lines differ by their dashes, too: what is below a line shows between them.
DASHES = ("-", "--", ":", "-.")

#: Sequential, monotone in lightness: V. Nuñez et al., PLoS ONE 13(7), 2018.
HEAT = "cividis_r"

_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.4,
    # Text stays text: found by a search, small in the file.
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    # The same data make the same file, byte by byte.
    "svg.hashsalt": "moeopt",
}


def in_style(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in the style of all plots: without windows, and without changing anybody else's."""

    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return styled


def new_axes(
    width_in: float = WIDTH_IN, height_in: float = HEIGHT_IN, rows: int = 1, columns: int = 1
) -> tuple[Figure, list[Axes]]:
    """Return a figure and its axes, row by row."""
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


#: A logarithmic axis whose ends are less than this apart, as a ratio, has evenly spaced labels:
#: of 1, 2 and 5 times the powers of ten it might show a single one.
_SHORT_RATIO = 4.0


def log_axis(axis: Axis) -> None:
    """Label a logarithmic axis, drawn on already, in plain numbers.

    At 1, 2 and 5 times the powers of ten; at even distances where the axis is short.
    """
    least, most = axis.get_view_interval()
    if most < _SHORT_RATIO * least:
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def line_style(i: int) -> tuple[str, str]:
    """Return colour and dashes of the i-th line: the pairs of the first 28 lines are different."""
    return COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)]


def line_order(i: int) -> float:
    """Return the ``zorder`` of the i-th line: those with dashes above the solid ones."""
    return 2 + 0.1 * (i % len(DASHES))


def legend_beside(axes: Axes, handles: Sequence[Artist] | None = None) -> None:
    """Name the lines at the right of the axes, from their top down: no line is below a name."""
    axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.02, 1.0),
        borderaxespad=0.0,
        frameon=False,
        fontsize=7,
    )


def figure_bytes(figure: Figure, ending: str) -> bytes:
    """Return a figure as a file of one of ``ENDINGS``.

    Raises
    ------
    InputError
        There is no such format.
    """
    if ending not in ENDINGS:
        raise InputError(f"plots are written as {', '.join(ENDINGS)}, not as {ending!r}")
    # No dates: the same results make the same file.
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": None}[ending]
    buffer = io.BytesIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(buffer, format=ending, dpi=200, metadata=metadata)
    return buffer.getvalue()


def ending_of(path: Path) -> str:
    """Return the format that a file name asks for.

    Raises
    ------
    InputError
        Another one than ``ENDINGS``.
    """
    ending = path.suffix.removeprefix(".").lower()
    if ending not in ENDINGS:
        raise InputError(f"{path}: a plot's name ends in .{', .'.join(ENDINGS)}")
    return ending
