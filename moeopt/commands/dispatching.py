"""``dispatch``: one batch on a plan, against the rules of serving systems."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moeopt.commands.arguments import InstanceArg, JsonOpt, SeedOpt
from moeopt.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from moeopt.batch_dispatch.comparing import Dispatched
    from moeopt.instance import Instance


def dispatch(
    instance: InstanceArg,
    solution: Annotated[Path, typer.Argument(metavar="SOLUTION", help="A plan, from anywhere.")],
    counts: Annotated[
        Path | None,
        typer.Option(
            "--counts",
            help="Tokens of each expert: .csv or .npy, layers × experts; .npy also by source "
            "GPU, layers × GPUs × experts.",
        ),
    ] = None,
    trace: Annotated[
        str | None,
        typer.Option("--trace", help="Draw the batch: gpt-oss-20b, deepseek-v2-lite, or an .npz."),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", help="With --trace: tokens.")] = 256,
    rule: Annotated[
        list[str] | None,
        typer.Option("--rule", help="even, nearest, round-robin; repeatable; default all."),
    ] = None,
    seed: SeedOpt = 0,
    as_json: JsonOpt = False,
) -> None:
    """Dispatch one batch on a plan: the best found, a bound, and what servers' rules make of it."""
    import numpy as np

    from moeopt.batch_dispatch.comparing import compare_rules
    from moeopt.batch_dispatch.rules import RULES
    from moeopt.catalog import read_instance
    from moeopt.matrix_file import read_matrix
    from moeopt.problem import LayerTime
    from moeopt.solution import read_solution_file, validate_against

    if (counts is None) == (trace is None):
        raise InputError("say which batch: either --counts FILE or --trace NAME")
    read, plan = read_instance(instance), read_solution_file(solution)
    if lines := validate_against(read, plan):
        raise InputError(lines)
    if counts is not None:
        tokens = read_matrix(counts, "counts")
    else:
        tokens = _drawn(read, str(trace), batch, seed)
    cost = read.layer_time.model_dump(exclude={"attention_base_us", "attention_us_per_mib"})
    sizes = [node.gpus for node in read.cluster.nodes]
    found = compare_rules(
        plan.hosts_array(read.cluster.gpus),
        tokens,
        LayerTime(**cost),
        np.repeat(np.arange(len(sizes)), sizes),
        tuple(rule or RULES),
        seed=seed,
    )
    numbers = [layer.layer for layer in read.routing]
    if as_json:
        layers = [_document(n, layer) for n, layer in zip(numbers, found, strict=True)]
        print(json.dumps({"instance": read.name, "seed": seed, "layers": layers}, allow_nan=False))
    else:
        _print(numbers, found, "" if read.layer_time.form == "unit" else ", us")


def _drawn(read: Instance, name: str, batch: int, seed: int) -> np.ndarray:
    import numpy as np

    from moeopt.batch_dispatch.sampling import sample_counts, trace_layers
    from moeopt.make.traces_shipped import read_trace

    trace = read_trace(name)
    if trace.experts != read.moe.experts:
        raise InputError(
            f"trace {trace.name} has {trace.experts} experts, {read.name} {read.moe.experts}"
        )
    numbers = [layer.layer for layer in read.routing]
    layers = trace_layers(trace, numbers, read.moe.layers_total)
    return sample_counts(trace, layers, batch, read.cluster.gpus, np.random.default_rng(seed))


def _document(number: int, layer: Dispatched) -> dict[str, Any]:
    best = layer.best
    return {
        "layer": number,
        "time": best.time,
        "bound": best.bound,
        "bound_from": best.proof,
        "gap": best.gap,
        "guarantee": best.guarantee,
        "balancedness": layer.balancedness,
        "dispatch": best.assignment,
        "rules": {
            rule: {"time": time, "balancedness": balanced}
            for rule, (time, balanced) in layer.rules.items()
        },
    }


def _print(numbers: list[int], found: list[Dispatched], unit: str) -> None:
    from moeopt.rounding_text import exact_gap, lower_text, percent_text, upper_text
    from moeopt.summary import print_rows
    from moeopt.terminal import print_text

    rows = []
    for number, layer in zip(numbers, found, strict=True):
        best = layer.best
        row: dict[str, Any] = {
            "layer": number,
            f"bound{unit}": lower_text(best.bound, 6),
            "proof": best.proof,
            f"best{unit}": upper_text(best.time, 6),
            "gap, %": percent_text(exact_gap(best.time, best.bound)),
            "balanced": f"{layer.balancedness:.4f}",
        }
        for rule, (time, balanced) in layer.rules.items():
            row[rule] = f"{upper_text(time, 6)} ({balanced:.4f})"
        rows.append(row)
    print_rows(rows)
    total = sum(layer.best.time for layer in found)
    parts = [f"best {upper_text(total)}"]
    parts.append(f"bound {lower_text(sum(layer.best.bound for layer in found))}")
    for rule in found[0].rules:
        parts.append(f"{rule} {upper_text(sum(layer.rules[rule][0] for layer in found))}")
    print_text(f"all layers{unit}: {', '.join(parts)}; in brackets: mean tokens of a GPU / largest")
