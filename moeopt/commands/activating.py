"""``activation``: kept gate mass of the layers, and the front of step time against it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moeopt.commands.arguments import ForceOpt, InstanceArg, JsonOpt, SeedOpt
from moeopt.files import require_writable, write_bytes_atomic
from moeopt.limits import require_limits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moeopt.activation_front import Point
    from moeopt.problem import FloatArray, ProblemData

_NOTE = "what dropping does to later choices and to answers is in no number here"
#: The ways of the front: key, and its name in tables and plots.
_WAYS = {
    "placed": "placed, by layer",
    "contiguous": "contiguous, by layer",
    "uniform_placed": "placed, uniform",
    "uniform_contiguous": "contiguous, uniform",
}


def activation(
    instance: InstanceArg,
    front: Annotated[
        bool, typer.Option("--front", help="Step time against kept gate mass, with bounds.")
    ] = False,
    points: Annotated[
        int, typer.Option("--points", min=2, help="Budgets of the front, equally spaced.")
    ] = 21,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw it: FILE.svg, FILE.pdf or FILE.png.")
    ] = None,
    time_limit: Annotated[
        float, typer.Option("--time-limit", "-t", help="Seconds, for plans and bounds.")
    ] = 120.0,
    seed: SeedOpt = 0,
    force: ForceOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Print the gate mass that each layer keeps with 1, 2, … experts; or the whole front.

    Every point of the front is a plan that the checker accepted, with a bound of its budget.
    """
    from moeopt.catalog import read_instance
    from moeopt.prepare import prepare
    from moeopt.report.plot_style import ending_of, figure_bytes

    ending = None
    if plot is not None:
        require_writable(plot, force)
        ending = ending_of(plot)
    require_limits(time_limit)
    data = prepare(read_instance(instance), "activation")
    document, figure = _front(data, points, time_limit, seed) if front else _kept(data)
    if as_json:
        print(json.dumps(document, allow_nan=False))
    elif front:
        _print_front(document)
    else:
        _print_kept(document)
    if plot is not None and ending is not None:
        write_bytes_atomic(plot, figure_bytes(figure(document), ending), force=force)


# --- kept gate mass -------------------------------------------------------------------------------


def _kept(data: ProblemData) -> tuple[dict[str, Any], Any]:
    from moeopt.report.plot_activation import plot_kept_mass

    kept = kept_mass(data)
    document = {"instance": data.name, "layers": data.layer_numbers, "kept_mass": kept.tolist()}

    def draw(made: dict[str, Any]) -> Figure:
        return plot_kept_mass(made["instance"], kept)

    return document, draw


def kept_mass(data: ProblemData) -> FloatArray:
    """Kept gate mass of every layer with 1 to k experts, shape (L, k), rounded down."""
    from moeopt.activation.data import MASS_UNITS, activation_of

    return 1.0 - activation_of(data).dropped / MASS_UNITS


def _print_kept(document: dict[str, Any]) -> None:
    from moeopt.summary import print_rows

    print(f"{document['instance']}: kept gate mass, %, by kept experts")
    print_rows(
        [
            {"layer": number, **{str(j): f"{100 * mass:.3f}" for j, mass in enumerate(row, 1)}}
            for number, row in zip(document["layers"], document["kept_mass"], strict=True)
        ]
    )
    print(_NOTE)


# --- the front ------------------------------------------------------------------------------------


def _front(
    data: ProblemData, points: int, time_limit_s: float, seed: int
) -> tuple[dict[str, Any], Any]:
    from moeopt.activation_front import four_ways

    ways = four_ways(data, points, time_limit_s=time_limit_s, seed=seed)
    batch = data.activation.batch if data.activation is not None else None
    in_tokens = batch is not None and data.layer_time.form != "unit"
    document = {
        "instance": data.name,
        "unit": "expert-time units" if data.layer_time.form == "unit" else "us",
        "batch": batch if in_tokens else None,
        "ways": {key: [_point(point) for point in ways[key]] for key in _WAYS},
        "note": _NOTE,
    }
    return document, _draw_front


def _point(point: Point) -> dict[str, Any]:
    return {
        "least_kept_mass": point.budget_share,
        "kept_mass": point.kept_share,
        "activated": point.solution.activated,
        "step": point.step,
        "lower_bound": point.lower,
        "hosts": point.solution.hosts,
    }


def _draw_front(document: dict[str, Any]) -> Figure:
    from moeopt.report.plot_activation import plot_front

    scale = 1e6 * document["batch"] if document["batch"] else 1.0
    label = "tokens a second" if document["batch"] else "steps per unit of time"

    def curve(key: str, value: str = "step") -> list[tuple[float, float]]:
        rows = [(100 * p["least_kept_mass"], scale / p[value]) for p in document["ways"][key]]
        return sorted(rows)

    return plot_front(
        document["instance"],
        label,
        [(_WAYS[key], curve(key)) for key in ("placed", "contiguous")],
        [(_WAYS[key], curve(key)) for key in ("uniform_placed", "uniform_contiguous")],
        curve("placed", "lower_bound"),
    )


def _print_front(document: dict[str, Any]) -> None:
    from moeopt.rounding_text import exact_gap, lower_text, percent_text, upper_text
    from moeopt.summary import print_rows

    batch, unit = document["batch"], document["unit"]
    by_key = {
        key: {p["least_kept_mass"]: p for p in document["ways"][key]} for key in document["ways"]
    }
    rows = []
    for share, point in sorted(by_key["placed"].items(), reverse=True):
        row = {
            "kept_mass_%": f"{100 * share:.2f}",
            "experts": f"{sum(point['activated']) / len(point['activated']):.2f}",
            f"step,_{unit.replace(' ', '_')}": upper_text(point["step"], 6),
            "at_least": lower_text(point["lower_bound"], 6),
            "gap_%": percent_text(exact_gap(point["step"], point["lower_bound"])),
        }
        if batch:
            row["tokens/s"] = lower_text(1e6 * batch / point["step"], 6)
        row["contiguous"] = upper_text(by_key["contiguous"][share]["step"], 6)
        for key, name in (("uniform_placed", "uniform"), ("uniform_contiguous", "uniform_contig.")):
            row[name] = upper_text(by_key[key][share]["step"], 6) if share in by_key[key] else ""
        rows.append(row)
    print(document["instance"])
    print_rows(rows)
    print(_NOTE)
    print("step times of all ways; uniform: equally many experts in every layer", file=sys.stderr)
