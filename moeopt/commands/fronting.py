"""``front`` and ``sensitivity``: steady state."""

from __future__ import annotations

import json
import math
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moeopt.commands.arguments import (
    INTERRUPTED,
    NO_SOLUTION,
    ForceOpt,
    InstanceArg,
    JsonOpt,
    SeedOpt,
)
from moeopt.errors import InputError
from moeopt.files import require_folder, require_writable, write_bytes_atomic
from moeopt.interrupt import interruptible
from moeopt.limits import require_limits

if TYPE_CHECKING:
    from moeopt.front.plans import SteadyPlan
    from moeopt.front.sensitivity import Case
    from moeopt.front.throughput import Limited

TpotOpt = Annotated[
    list[float] | None,
    typer.Option(
        "--tpot", help="A limit of the time per output token, in ms; repeatable.", metavar="MS"
    ),
]
LimitOpt = Annotated[
    float, typer.Option("--time-limit", "-t", help="Seconds, for plans; what is there is printed.")
]
_INTERRUPTED = "interrupted: what was found until then follows"
_NOTE = "decoding only: prefill and communication are not counted"


def front(
    instance: InstanceArg,
    tpot: TpotOpt = None,
    points: Annotated[
        int | None,
        typer.Option("--points", min=1, help="How many; default 16, with --tpot only its limits."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw it: FILE.svg, FILE.pdf or FILE.png.")
    ] = None,
    plans: Annotated[
        Path | None,
        typer.Option("--plans", help="Folder to write each point's instance and plan to."),
    ] = None,
    gap: Annotated[float, typer.Option("--gap", help="Relative gap to stop at.")] = 1e-3,
    time_limit: LimitOpt = 300.0,
    seed: SeedOpt = 0,
    force: ForceOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Print the largest throughput at limits of the time per output token, with its bound.

    The mix of the requests is fixed: joint.share, or else their counts; how many are in flight is
    decided. Every point is a plan that the checker accepted.
    """
    from moeopt.front.curve import front as points_of
    from moeopt.front.envelope import Envelope
    from moeopt.front.plans import Planner
    from moeopt.front.steady import steady_state
    from moeopt.report.plot_style import ending_of

    ending = None
    if plot is not None:
        require_writable(plot, force)
        ending = ending_of(plot)
    if plans is not None:
        if not plans.is_dir():
            raise InputError(f"{plans}: there is no such folder")
        require_folder(plans)
    require_limits(time_limit)
    deadline = time.monotonic() + time_limit
    read = _instance(instance)
    limits_us = _limits_us(read, tpot)
    if points is None:
        points = len(limits_us) if tpot else 16
    steady = steady_state(read)
    with interruptible() as stop:
        found = points_of(
            Envelope(steady),
            Planner(steady, seed=seed, deadline=deadline, stop=stop.is_set),
            points=points,
            limits_us=limits_us,
            close=gap,
            on_point=lambda point: print(_progress(point), file=sys.stderr),
        )
    if stop.is_set():
        print(_INTERRUPTED, file=sys.stderr)
    document = {
        "instance": read.name,
        "sha256": read.sha256,
        "form": steady.data.layer_time.form,
        "charged": steady.data.charged,
        "note": _NOTE,
        "interrupted": stop.is_set(),
        "points": [_point(point) for point in found],
    }
    if as_json:
        print(json.dumps(document, allow_nan=False))
    else:
        _print_front(read.name, found)
    if plans is not None:
        # One plan may be the best at several limits.
        for plan in {p.plan.requests: p.plan for p in found if p.plan is not None}.values():
            _write_plan(plans, plan, force)
    if plot is not None and ending is not None:
        _draw(plot, ending, document, force)
    if not any(point.plan for point in found):
        raise typer.Exit(INTERRUPTED if stop.is_set() else NO_SOLUTION)


def sensitivity(
    instance: InstanceArg,
    tpot: Annotated[
        float | None,
        typer.Option("--tpot", help="Limit of the time per output token, in ms.", metavar="MS"),
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option("--requests", "-n", help="In flight; default: those of most throughput."),
    ] = None,
    gib: Annotated[float, typer.Option("--gib", help="Memory to add and take, on each GPU.")] = 1.0,
    time_limit: LimitOpt = 300.0,
    seed: SeedOpt = 0,
    as_json: JsonOpt = False,
) -> None:
    """Print what a GiB a GPU is worth, for replicas and for KV cache, and where replicas stop.

    Every change is an interval: checked plans on one side, bounds on the other.
    """
    from moeopt.front.sensitivity import sensitivity as ask

    if not gib > 0:
        raise InputError("--gib: must be positive")
    require_limits(time_limit)
    read = _instance(instance)
    limits_us = _limits_us(read, None if tpot is None else [tpot])
    with interruptible() as stop:
        answer = ask(
            read,
            limit_us=limits_us[0] if limits_us else math.inf,
            requests=requests,
            gib=gib,
            seed=seed,
            deadline=time.monotonic() + time_limit,
            stop=stop.is_set,
            on_case=lambda case: print(_case_done(case), file=sys.stderr),
        )
    if stop.is_set():
        print(_INTERRUPTED, file=sys.stderr)
    now = answer.cases[0]
    pays = answer.pays
    if as_json:
        document: dict[str, Any] = {
            "instance": read.name,
            "tpot_limit_us": limits_us[0] if limits_us else None,
            "gib": gib,
            "note": _NOTE,
            "interrupted": stop.is_set(),
            "cases": [_case(case, now) for case in answer.cases],
            "replicas_pay": None,
        }
        if pays is not None:
            document["replicas_pay"] = {
                "proved": pays.proved,
                "memory_mib": pays.memory_mib,
                "plan": _plan(pays.plan),
                "bound": pays.bound,
                "curve": [{"replicas": r, "bound": bound} for r, bound in pays.curve],
            }
        print(json.dumps(document, allow_nan=False))
        return
    from moeopt.rounding_text import lower_text, upper_text
    from moeopt.summary import print_rows
    from moeopt.terminal import print_text

    print_rows([_case_row(case, now, gib) for case in answer.cases])
    if pays is not None:
        print_text(
            f"With {now.requests:,} requests in flight and memory for any number of replicas, a "
            f"plan with {pays.plan.replicas:,} decodes {lower_text(pays.plan.throughput, 6)} "
            f"tokens/s; none decodes more than {upper_text(pays.bound, 6)}."
        )
        if pays.proved < 0:
            print("It is not proved that any additional replica pays.")
        else:
            print_text(
                f"Replicas pay at least up to {pays.proved + 1:,} additional ones "
                f"({pays.memory_mib / 1024:,.1f} GiB a GPU): with fewer, every plan is slower."
            )
    print(_NOTE)


# --- parts ------------------------------------------------------------------------------------


def _instance(name: str) -> Any:
    from moeopt.catalog import read_instance

    return read_instance(name)


def _limits_us(instance: Any, tpot_ms: list[float] | None) -> list[float]:
    """Return limits in microseconds: those asked for, or else the instance's."""
    if tpot_ms:
        if wrong := [f"--tpot {ms:g}: must be positive" for ms in tpot_ms if not ms > 0]:
            raise InputError(wrong)
        return sorted({ms * 1e3 for ms in tpot_ms})
    if instance.joint is not None and instance.joint.tpot_limit_us is not None:
        return [instance.joint.tpot_limit_us]
    return []


def _plan(plan: SteadyPlan) -> dict[str, Any]:
    return {
        "throughput": plan.throughput,
        "requests": plan.requests,
        "step_us": plan.step_us,
        "replicas": plan.replicas,
        "kv_mib": plan.kv_mib,
        "kv_share": plan.kv_share,
    }


def _point(point: Limited) -> dict[str, Any]:
    """Return a point as JSON; ``excluded`` means that a proof says there is no plan."""
    shown: dict[str, Any] = {"tpot_us": point.limit_us, "excluded": point.bound == 0}
    if point.bound > 0:
        shown |= {"bound": point.bound, "gap": point.gap}
    return shown | (_plan(point.plan) if point.plan is not None else {})


def _case(case: Case, now: Case) -> dict[str, Any]:
    change = case.change_from(now)
    return {
        "name": case.name,
        "more_gib": case.more_gib,
        "requests": case.requests,
        "replicas_room": case.replicas_room,
        "bound": case.bound,
        "plan": None if case.plan is None else _plan(case.plan),
        "within_limit": case.within,
        "change": None if change is None or case is now else list(change),
    }


def _progress(point: Limited) -> str:
    reached = "no plan" if point.plan is None else f"{point.plan.throughput:,.0f} tokens/s"
    return f"{point.limit_us / 1e3:,.3f} ms: {reached}"


def _case_done(case: Case) -> str:
    return f"{case.name}: done"


def _print_front(name: str, points: list[Limited]) -> None:
    from moeopt.rounding_text import lower_text, percent_text, upper_text
    from moeopt.summary import print_rows

    rows = []
    for point in points:
        plan = point.plan
        row = {"TPOT_limit_ms": upper_text(point.limit_us / 1e3, 6)}
        row["at_most_tokens/s"] = upper_text(point.bound, 6) if point.bound else "no plan exists"
        row["tokens/s"] = "" if plan is None else lower_text(plan.throughput, 6)
        row["gap_%"] = "" if point.gap is None else percent_text(Fraction(point.gap))
        row["step_ms"] = "" if plan is None else upper_text(plan.step_us / 1e3, 6)
        row["in_flight"] = "" if plan is None else f"{plan.requests:,}"
        row["replicas"] = "" if plan is None else f"{plan.replicas:,}"
        row["KV_share_%"] = "" if plan is None else f"{100 * plan.kv_share:.1f}"
        rows.append(row)
    print(name)
    print_rows(rows)
    print(_NOTE)


#: Digits of tokens a second in the table of sensitivity.
_DIGITS = 7
#: What the cases of sensitivity are called in the table, with the amount of memory.
_CASES = {
    "now": "now",
    "+ replicas": "+{} GiB, all to replicas",
    "+ KV": "+{} GiB, all to KV cache",
    "+ best use": "+{} GiB, best use",
    "- replicas": "-{} GiB, from replicas",
    "- KV": "-{} GiB, from KV cache",
    "- best use": "-{} GiB, best use",
    "KV to replicas": "{} GiB from KV to replicas",
    "replicas to KV": "{} GiB from replicas to KV",
}


def _case_row(case: Case, now: Case, gib: float) -> dict[str, str]:
    from moeopt.rounding_text import lower_text, upper_text

    change = case.change_from(now)
    plan = case.plan
    return {
        "on_each_GPU": _CASES[case.name].format(f"{gib:g}"),
        "in_flight": f"{case.requests:,}",
        "room_for_replicas": f"{case.replicas_room:,}",
        "tokens/s": "" if plan is None else lower_text(plan.throughput, _DIGITS),
        "at_most": upper_text(case.bound, _DIGITS),
        "change": "" if change is None or case is now else _change(change, now.bound),
        "step_ms": "" if plan is None else upper_text(plan.step_us / 1e3, 6),
        "within_limit": "yes" if case.within else "no",
    }


def _change(interval: tuple[float, float], before: float) -> str:
    """Return a change of tokens a second; 0 where it is less than a unit of their last digit."""
    from moeopt.rounding_text import lower_text, upper_text

    last_digit = 10.0 ** (math.floor(math.log10(before)) - _DIGITS + 1)
    if max(map(abs, interval)) < last_digit:
        return "0"
    return f"{lower_text(interval[0], 4)} to {upper_text(interval[1], 4)}"


def _draw(path: Path, ending: str, document: dict[str, Any], force: bool) -> None:
    from moeopt.report.plot_front import Front, plot_front
    from moeopt.report.plot_style import figure_bytes

    figure = plot_front(Front.model_validate(document))
    write_bytes_atomic(path, figure_bytes(figure, ending), force=force)


def _write_plan(folder: Path, plan: SteadyPlan, force: bool) -> None:
    from moeopt.instance import write_instance_file
    from moeopt.solution import write_solution_file

    name = plan.instance.name
    path = folder / f"{name}.json"
    write_instance_file(plan.instance, path, sidecar=True, force=force)
    write_solution_file(plan.solution, folder / f"{name}.plan.json", force=force)
