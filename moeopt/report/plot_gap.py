"""Gap over time: how plans and bounds met, from what a run recorded on its way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from moeopt.record import relative_gap
from moeopt.report.contests import Arena, Competitor, Contest
from moeopt.report.plot_style import (
    HEIGHT_IN,
    WIDTH_IN,
    in_style,
    line_order,
    line_style,
    log_axis,
    new_axes,
)

#: Panels of one figure; a study with more says so in its title.
MOST_PANELS = 9
#: Gaps below this are drawn at it: the axis is logarithmic.
LEAST_GAP = 1e-6
#: Times are drawn on a logarithmic axis where the last one is so many times the first one.
LOG_FROM = 20

Trajectory = Sequence[tuple[float, float | None, float | None]]


def gap_steps(trajectory: Trajectory, end_s: float) -> tuple[list[float], list[float]]:
    """Return seconds and gaps of a run, from its first gap to its end."""
    gaps = [(at, relative_gap(upper, lower)) for at, upper, lower in trajectory]
    known = [(at, max(gap, LEAST_GAP)) for at, gap in gaps if gap is not None]
    if known:
        known.append((max(end_s, known[-1][0]), known[-1][1]))
    return [at for at, _ in known], [gap for _, gap in known]


@in_style
def plot_gap(arena: Arena, instances: Iterable[str] | None = None) -> Figure:
    """Draw gap over time, a panel for each instance and seed, a line for each competitor.

    Parameters
    ----------
    instances : iterable of str, optional
        Only these; by default all, up to ``MOST_PANELS`` panels.
    """
    chosen = None if instances is None else set(instances)
    lines = {
        contest: _lines(arena, contest)
        for contest in arena.contests
        if chosen is None or contest[0] in chosen
    }
    drawn = [contest for contest, found in lines.items() if found]
    shown = drawn[:MOST_PANELS]
    seeds = {seed for _, seed in drawn}
    columns = min(3, max(1, len(shown)))
    rows = -(-max(1, len(shown)) // columns)
    width = WIDTH_IN if columns == 1 else 2.4 * columns
    figure, panels = new_axes(width, max(HEIGHT_IN, 0.5 + 1.75 * rows), rows, columns)
    used: dict[Competitor, tuple[str, str]] = {}
    for panel, contest in zip(panels, shown, strict=False):
        for competitor, (seconds, gaps) in lines[contest].items():
            i = arena.competitors.index(competitor)
            style, order = line_style(i), line_order(i)
            used[competitor] = style
            panel.step(
                seconds, gaps, where="post", color=style[0], linestyle=style[1], zorder=order
            )
            panel.plot(seconds[-1:], gaps[-1:], "o", color=style[0], markersize=2.5)
        panel.set_title(contest[0] if len(seeds) == 1 else f"{contest[0]}, seed {contest[1]}")
        panel.set_yscale("log")
        panel.set_ylim(LEAST_GAP / 1.6, 1.6)
        panel.yaxis.set_major_locator(LogLocator(10, numticks=8))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_formatter(_percent)
        times = [at for seconds, _ in lines[contest].values() for at in seconds if at > 0]
        if times and max(times) > LOG_FROM * min(times):
            panel.set_xscale("log")
            log_axis(panel.xaxis)
        else:
            panel.set_xlim(left=0.0)
    for i, panel in enumerate(panels):
        if i >= len(shown):
            panel.set_axis_off()
            continue
        if i % columns:
            panel.yaxis.set_major_formatter(NullFormatter())
        if i + columns >= len(shown):
            panel.set_xlabel("seconds")
    left_out = (
        f"; {len(drawn) - len(shown)} more panels left out" if len(drawn) > len(shown) else ""
    )
    figure.suptitle(f"{arena.problem}: gap over time{left_out}", x=0.01, ha="left", fontsize=8)
    if not shown:
        figure.text(0.5, 0.5, "no run recorded a gap on its way", ha="center")
    if used:
        handles = [
            panels[0].plot([], [], color=colour, linestyle=dashes)[0]
            for colour, dashes in used.values()
        ]
        figure.legend(
            handles,
            [competitor.label for competitor in used],
            loc="outside lower left",
            ncols=max(1, int(width / 2.2)),
            frameon=False,
            fontsize=7,
        )
    return figure


def _lines(arena: Arena, contest: Contest) -> dict[Competitor, tuple[list[float], list[float]]]:
    found = {}
    for competitor in arena.competitors:
        result = arena.results.get((contest, competitor))
        if result is not None:
            end_s = float(result.record["seconds"].get("total", 0.0))
            line = gap_steps(result.record.get("trajectory") or [], end_s)
            if line[0]:
                found[competitor] = line
    return found


def _percent(gap: float, _: object) -> str:
    return f"{100 * gap:g} %"
