"""Kept gate mass: its curve in every layer, and what step a plan reaches with it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from moeopt.problem import FloatArray
from moeopt.report.plot_style import COLOURS, in_style, legend_beside, new_axes

#: Of ways that are points, not curves: both are seen where they meet.
_MARKS = (("o", 7.0), ("x", 4.0))

#: A curve: name, then (kept gate mass in percent, value) by rising mass.
Curve = tuple[str, list[tuple[float, float]]]


@in_style
def plot_kept_mass(title: str, kept: FloatArray) -> Figure:
    """Draw the mean kept gate mass of every layer, shape (L, k), against kept experts."""
    figure, (axes,) = new_axes()
    counts = np.arange(1, kept.shape[1] + 1)
    for row in kept:
        axes.plot(counts, 100 * row, color="#bbbbbb", linewidth=0.6)
    middle = 100 * np.median(kept, axis=0)
    axes.plot(counts, middle, "o-", color=COLOURS[0], markersize=3.5)
    axes.annotate(
        "median layer",
        (counts[0], middle[0]),
        xytext=(6, -4),
        textcoords="offset points",
        ha="left",
        va="top",
        fontsize=7,
        color=COLOURS[0],
    )
    axes.set_ylim(0, 102)
    axes.set_xticks(counts)
    axes.set_xlabel("kept experts of a token")
    axes.set_ylabel("kept gate mass (%)")
    axes.set_title(title)
    return figure


@in_style
def plot_front(
    title: str,
    label: str,
    curves: Sequence[Curve],
    marks: Sequence[Curve],
    bound: list[tuple[float, float]],
) -> Figure:
    """Draw values against kept gate mass: curves of plans, marks, and the edge of what is excluded.

    Parameters
    ----------
    label : str
        Of the values, larger is better.
    bound : sequence of (float, float)
        Kept mass in percent, and what no plan that keeps so much exceeds.
    """
    figure, (axes,) = new_axes()
    colours = [COLOURS[0], *COLOURS[2:]]
    # From what costs nothing on: a plan holds for all that may drop more, a bound for less.
    x, y = zip(*reversed(bound), strict=True)
    axes.step(x, y, where="pre", color=COLOURS[1], linewidth=1.0, label="bound: no plan above")
    # Ways that reach the same are drawn over each other: what is below shows between the dashes
    # and around the marks.
    for i, ((name, points), colour) in enumerate(zip((*curves, *marks), colours, strict=False)):
        x, y = zip(*reversed(points), strict=True)
        if i < len(curves):
            width, dashes = (2.2, "-") if i == 0 else (1.2, (0, (2, 2)))
            axes.step(x, y, where="post", color=colour, ls=dashes, lw=width, label=name)
        else:
            mark, size = _MARKS[(i - len(curves)) % len(_MARKS)]
            axes.plot(x, y, mark, color=colour, mfc="none", markersize=size, label=name)
    axes.invert_xaxis()
    axes.set_xlabel("kept gate mass (%)")
    axes.set_ylabel(label)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.5g}")
    axes.set_title(title)
    legend_beside(axes)
    return figure
