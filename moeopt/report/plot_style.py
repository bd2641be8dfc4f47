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
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from moeopt.errors import InputError

if TYPE_CHECKING:
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
#: Where colours come round again, lines differ by their dashes.
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


def log_axis(axis: Axis) -> None:
    """Label a logarithmic axis at 1, 2 and 5 times the powers of ten, in plain numbers."""
    axis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def line_style(i: int) -> tuple[str, str]:
    """Return colour and dashes of the i-th line."""
    return COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)]


def label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write names at the right of the axes, at the height of their lines, none over another.

    Parameters
    ----------
    ends : sequence of (float, str, str)
        Height in data units, name, colour.
    """
    if not ends:
        return
    to_axes = axes.transData + axes.transAxes.inverted()
    left, _ = axes.get_xlim()
    wanted = [float(to_axes.transform((left, height))[1]) for height, _, _ in ends]
    # Constrained layout has not run yet: the axes are about as high as they will be.
    leader = {"arrowstyle": "-", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 0, "relpos": (0, 0.5)}
    line_height = 9.5 / 72 * axes.figure.dpi / axes.bbox.height
    for (_, name, colour), at, wish in zip(ends, spread(wanted, line_height), wanted, strict=True):
        axes.annotate(
            name,
            xy=(1.0, wish),
            xytext=(1.04, at),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            fontsize=7,
            color=colour,
            annotation_clip=False,
            arrowprops=leader | {"color": colour},
        )


def spread(wanted: Sequence[float], least: float) -> list[float]:
    """Return heights in the order of the wanted ones, so far apart, close to them, at most 1.

    Groups of names that would overlap are centred on the mean of what they want (the pool adjacent
    violators algorithm of isotonic regression).
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    groups: list[tuple[float, int]] = []  # (sum of wanted − own offset, members)
    for rank, i in enumerate(order):
        groups.append((wanted[i] - rank * least, 1))
        while len(groups) > 1 and _mean(groups[-2]) >= _mean(groups[-1]):
            total, members = groups.pop()
            groups[-1] = (groups[-1][0] + total, groups[-1][1] + members)
    means = [_mean(group) for group in groups for _ in range(group[1])]
    heights = [0.0] * len(wanted)
    ceiling = 1.0  # the top of the axes: above it stands the title
    for rank, i in reversed(list(enumerate(order))):
        heights[i] = min(means[rank] + rank * least, ceiling)
        ceiling = heights[i] - least
    return heights


def _mean(group: tuple[float, int]) -> float:
    return group[0] / group[1]


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
