"""Throughput–latency fronts: what plans reach, and what no plan can."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moeopt.errors import InputError
from moeopt.files import problem_lines, read_json_object
from moeopt.report.plot_style import COLOURS, in_style, new_axes

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class FrontPoint(BaseModel):
    """One point of a front; other keys of the file are not looked at.

    Attributes
    ----------
    tpot_us : float
        Limit of the time per output token, in microseconds.
    throughput : float or None
        Tokens a second of a checked plan within it; None where none was found.
    bound : float or None
        Tokens a second that no plan within it exceeds.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    tpot_us: Positive
    throughput: Positive | None = None
    bound: Positive | None = None


class Front(BaseModel):
    """What ``moeopt front --json`` prints."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    instance: str
    points: Annotated[list[FrontPoint], Field(min_length=1)]


def read_front(path: Path) -> Front:
    """Read a front.

    Raises
    ------
    InputError
        One line for each problem of the file, or a plan that is better than its bound.
    """
    try:
        front = Front.model_validate(read_json_object(path))
    except ValidationError as error:
        raise InputError([f"{path}: {line}" for line in problem_lines(error, Front)]) from error
    wrong = [
        f"{path}: points[{i}]: throughput {point.throughput!r} is above its bound {point.bound!r}"
        for i, point in enumerate(front.points)
        if point.throughput is not None
        and point.bound is not None
        and point.throughput > point.bound
    ]
    if wrong:
        raise InputError(wrong)
    return front


@in_style
def plot_front(front: Front) -> Figure:
    """Draw plans as a staircase of points and bounds as the edge of what is impossible."""
    points = sorted(front.points, key=lambda point: point.tpot_us)
    reached = best_so_far([(p.tpot_us / 1e3, p.throughput) for p in points])
    figure, (axes,) = new_axes()
    bounds = [(p.tpot_us / 1e3, p.bound) for p in points if p.bound is not None]
    if bounds:
        x, y = bound_steps(bounds)
        top = 1.12 * max(y)
        axes.fill_between(x, y, top, color="#e8e8e8", linewidth=0)
        line = "-" if len(bounds) > 1 else "_-"  # a single limit has no edge, only a point of it
        axes.plot(x, y, line, color=COLOURS[1], linewidth=1.0, label="bound: no plan above")
        axes.set_ylim(0, top)
    if reached:
        x, y = [at for at, _ in reached], [value for _, value in reached]
        axes.step(x, y, "o-", where="post", color=COLOURS[0], markersize=3.5, label="checked plans")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("limit of the time per output token (ms)")
    axes.set_ylabel("tokens a second")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_title(front.instance)
    # Below the axes: no place inside is free in every front.
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=7)
    return figure


def best_so_far(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float]]:
    """Return the points above all with tighter limits: a plan within one is within looser ones."""
    kept: list[tuple[float, float]] = []
    for at, value in points:
        if value is not None and (not kept or value > kept[-1][1]):
            kept.append((at, value))
    return kept


def bound_steps(bounds: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Return the corners of what is excluded: a bound at a limit holds for every tighter one."""
    x: list[float] = []
    y: list[float] = []
    for i, (at, _) in enumerate(bounds):
        least = min(value for _, value in bounds[i:])
        x += [bounds[max(0, i - 1)][0], at]
        y += [least, least]
    return x, y
