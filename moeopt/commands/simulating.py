"""``simulate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from moeopt.commands.arguments import InstanceArg, JsonOpt
from moeopt.errors import InputError


def simulate(
    instance: InstanceArg,
    solution: Annotated[Path, typer.Argument(metavar="SOLUTION", help="A plan, from anywhere.")],
    trace: Annotated[
        str, typer.Option("--trace", help="gpt-oss-20b, deepseek-v2-lite, or an .npz.")
    ],
    arrivals: Annotated[
        str | None,
        typer.Option(
            "--arrivals",
            help="Lengths and arrivals: azure-conv, azure-code, mooncake, or an .npz; "
            "default: the trace's own lengths.",
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option("--rate", help="Arrivals a second; default: requests always wait."),
    ] = None,
    dispatch: Annotated[
        str | None, typer.Option("--dispatch", help="plan, level or even; default: the plan's.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", help="Most requests at once; default: the KV limit.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", help="Decode steps measured a seed.")] = 1000,
    warmup: Annotated[int, typer.Option("--warmup", help="Steps before, not measured.")] = 300,
    seeds: Annotated[int, typer.Option("--seeds", help="Replays, each in another order.")] = 5,
    split_seed: Annotated[
        int, typer.Option("--split-seed", help="Of the split into fitted and held-out requests.")
    ] = 0,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            "--baseline",
            help="contiguous, random, load-balanced, greedy, or none; repeatable; default all.",
        ),
    ] = None,
    extra_slots: Annotated[
        int, typer.Option("--extra-slots", help="Of a GPU and layer, for replicas of baselines.")
    ] = 1,
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="Layer time of this GPU, not the instance's.")
    ] = None,
    form: Annotated[str, typer.Option("--form", help="With --gpu: sum, max or p2.")] = "p2",
    as_json: JsonOpt = False,
) -> None:
    """Replay held-out requests of a real trace on a plan, beside baselines and the prediction.

    Decoding only: prefill and communication take no time.
    """
    from moeopt.calibrate.layer_cost import layer_time
    from moeopt.catalog import read_instance
    from moeopt.make.traces_shipped import read_arrivals, read_trace
    from moeopt.problem import LayerTime
    from moeopt.simulate.baselines import BASELINES
    from moeopt.simulate.simulating import Settings
    from moeopt.simulate.simulating import simulate as run
    from moeopt.solution import read_solution_file

    read = read_instance(instance)
    given: dict[str, Any] = {}
    if gpu is not None:
        block = dict(layer_time(gpu, read.moe.name, form).block)
        base, per_mib = block.pop("attention_base_us"), block.pop("attention_us_per_mib")
        given = {
            "layer_time": LayerTime(**block),  # type: ignore[arg-type]
            "attention_us": (base, per_mib),
        }
    names = tuple(BASELINES) if baseline is None else tuple(n for n in baseline if n != "none")
    if baseline is not None and "none" in baseline and names:
        raise InputError("--baseline none goes with no other baseline")
    report = run(
        read,
        read_solution_file(solution),
        read_trace(trace),
        None if arrivals is None else read_arrivals(arrivals),
        settings=Settings(
            split_seed=split_seed,
            seeds=seeds,
            steps=steps,
            warmup_steps=warmup,
            batch_limit=batch,
            rule=dispatch,
            rate_per_s=rate,
            baselines=names,
            extra_slots=extra_slots,
        ),
        **given,
    )
    if as_json:
        print(json.dumps(report, allow_nan=False))
    else:
        _print(report)


def _print(report: dict[str, Any]) -> None:
    from moeopt.summary import print_rows
    from moeopt.terminal import print_text

    plan, predicted = report["plan"], report["prediction"]
    print_text(
        f"{report['instance']}: {report['requests_held_out']} held-out requests of "
        f"{report['trace']}, lengths of {report['arrivals'] or 'the trace'}; "
        f"{report['settings']['seeds']} replays of {report['settings']['steps']} decode steps; "
        f"not included: {', '.join(report['not_included'])}"
    )
    print_rows(
        [
            {"measured": label, **{key: _number(figures[key]) for key in figures}}
            for label, figures in (
                ("requests a step", plan["batch"]),
                ("step, us", plan["step_us"]),
                ("time per output token, us", plan["tpot_us"]),
                ("wait, us", plan["wait_us"]),
            )
            if figures is not None
        ]
    )
    kv = plan["kv_reserved"]
    held = "no limit" if kv is None else f"{kv['mean']:.1%} reserved, {kv['max']:.1%} at most"
    print_text(
        f"KV cache: {held}; GPU imbalance (largest/mean): {plan['gpu_imbalance']:.3f}"
        + (f"; {plan['refused']} requests fit no GPU" if plan["refused"] else "")
    )
    print_rows(
        [
            {
                "prediction": f"{reading} routing",
                "step, us": _number(predicted[reading]["step_us"]),
                "error": _percent(predicted[reading]["error"]),
                "largest": f"{predicted[reading]['largest_error']:.1%}",
                "of MoE layers": _percent(predicted[reading]["layers_error"]),
            }
            for reading in ("mean", "sampled")
        ]
    )
    if waves := report.get("waves"):
        print_text(
            f"waves: makespan {waves['mean_makespan_us'] / 1e6:.3f} s under mean routing, "
            f"{waves['sampled_makespan_us'] / 1e6:.3f} s sampled ({waves['mean_error']:+.2%})"
        )
    rows = [_throughput("this plan", plan, "")]
    for name, figures in report["baselines"].items():
        if "does_not_fit" in figures:
            rows.append({"plan": name, "tokens/s": figures["does_not_fit"]})
        else:
            rows.append(_throughput(name, figures, _percent(figures["gain"])))
    print_rows([{key: row.get(key, "") for key in rows[0]} for row in rows])


def _throughput(name: str, figures: dict[str, Any], gain: str) -> dict[str, str]:
    return {
        "plan": name,
        "tokens/s": _number(figures["tokens_per_s"]["mean"]),
        "gain of this plan": gain,
        "step, us": _number(figures["step_us"]["mean"]),
        "batch": _number(figures["batch"]["mean"]),
        "imbalance": f"{figures['gpu_imbalance']:.3f}",
        "replicas": str(figures["replicas"]),
        "dispatch": figures["dispatch"],
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _percent(interval: dict[str, Any]) -> str:
    """Mean and 95 % interval."""
    text = f"{interval['mean']:+.1%}"
    if interval["low"] is None:
        return text
    return f"{text} [{interval['low']:+.1%}, {interval['high']:+.1%}]"
