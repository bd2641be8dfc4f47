"""Performance profiles: which share of the instances is solved within a multiple of the best time.

Source: E. Dolan, J. Moré, Benchmarking optimization software with performance profiles,
Mathematical Programming 91, 2002 (arXiv:cs/0102001).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.figure import Figure

from moeopt.report.comparison_table import score
from moeopt.report.contests import Arena, Competitor
from moeopt.report.plot_style import (
    HEIGHT_IN,
    in_style,
    legend_beside,
    line_order,
    line_style,
    log_axis,
    new_axes,
)

#: Times are recorded in milliseconds: shorter ones cannot be compared.
LEAST_S = 1e-3


def time_ratios(arena: Arena) -> dict[Competitor, list[float]]:
    """Return, for each competitor, its time over the best one of each contest, ascending.

    Contests are those that every competitor has run, or does not take; what is not solved has an
    infinite ratio, and a contest that nobody solved counts for the share all the same.
    """
    ratios: dict[Competitor, list[float]] = {competitor: [] for competitor in arena.competitors}
    for contest in arena.decided_contests:
        times = {}
        for competitor in arena.competitors:
            _, seconds, solved = score(arena, contest, competitor)
            times[competitor] = max(seconds, LEAST_S) if solved else math.inf
        best = min(times.values())
        for competitor, seconds in times.items():
            ratios[competitor].append(seconds / best if math.isfinite(seconds) else math.inf)
    return {competitor: sorted(values) for competitor, values in ratios.items()}


def steps(ratios: Sequence[float], last: float) -> tuple[list[float], list[float]]:
    """Return the corners of a profile from ratio 1 to ``last``: ratios and shares."""
    x, y = [1.0], [0.0]
    for solved, ratio in enumerate(ratios, start=1):
        if ratio > last:
            break
        x.append(ratio)
        y.append(solved / len(ratios))
    return [*x, last], [*y, y[-1]]


@in_style
def plot_profile(arena: Arena) -> Figure:
    """Draw the performance profile of one problem."""
    ratios = time_ratios(arena)
    finite = [ratio for values in ratios.values() for ratio in values if math.isfinite(ratio)]
    last = max(2.0, 1.15 * max(finite, default=1.0))
    contests = len(arena.decided_contests)
    figure, (axes,) = new_axes(height_in=max(HEIGHT_IN, 0.7 + 0.14 * len(ratios)))
    axes.set_xscale("log")
    axes.set_xlim(1.0, last)
    axes.set_ylim(-0.02, 1.02)
    ends = []
    for i, (competitor, values) in enumerate(ratios.items()):
        colour, dashes = line_style(i)
        x, y = steps(values, last)
        (line,) = axes.step(x, y, where="post", color=colour, linestyle=dashes, clip_on=False)
        line.set(label=competitor.label, zorder=line_order(i))
        ends.append(y[-1])
    axes.set_xlabel("time / best time")
    axes.set_ylabel("share of instances solved")
    log_axis(axes.xaxis)
    pairs = "pair" if contests == 1 else "pairs"
    axes.set_title(f"{arena.problem}: {contests} {pairs} of instance and seed")
    handles = axes.get_lines()
    order = sorted(range(len(ends)), key=lambda i: -ends[i])
    legend_beside(axes, [handles[i] for i in order])
    return figure
