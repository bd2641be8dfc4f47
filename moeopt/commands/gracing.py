"""``grace``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moeopt.commands.arguments import NO_SOLUTION, ForceOpt, JsonOpt
from moeopt.errors import InputError
from moeopt.files import require_writable
from moeopt.words import counted

if TYPE_CHECKING:
    from moeopt.grace import Settings
    from moeopt.make.traces_shipped import Trace


def grace(
    trace: Annotated[
        str,
        typer.Argument(metavar="TRACE", help="gpt-oss-20b, deepseek-v2-lite, or an .npz."),
    ],
    nodes: Annotated[int, typer.Option("--nodes", help="Number of nodes.")] = 2,
    gpus: Annotated[int, typer.Option("--gpus", help="GPUs of all nodes.")] = 8,
    grouping: Annotated[
        list[str] | None,
        typer.Option("--grouping", help="Step 1: a strategy (repeatable), or all."),
    ] = None,
    replication: Annotated[
        list[str] | None, typer.Option("--replication", help="Step 2, likewise.")
    ] = None,
    routing: Annotated[
        list[str] | None, typer.Option("--routing", help="Step 3, likewise.")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", help="Tokens of a batch.")] = 512,
    seeds: Annotated[int, typer.Option("--seeds", help="Runs; the means are printed.")] = 1,
    fit: Annotated[float, typer.Option("--fit", help="Share of requests that is fitted.")] = 0.5,
    ratio: Annotated[
        float | None,
        typer.Option("--ratio", help="Sizes of the published groups on GPUs; default 0.15."),
    ] = None,
    node_ratio: Annotated[
        float | None,
        typer.Option("--node-ratio", help="Sizes of the published nodes; default: free."),
    ] = None,
    extra: Annotated[
        int | None,
        typer.Option("--extra", help="Copies added to a layer; default: as the published rule."),
    ] = None,
    load_of_copies: Annotated[
        bool,
        typer.Option("--load-of-copies", help="Published prediction with W_r for W_max in W_p."),
    ] = False,
    instance: Annotated[
        str | None, typer.Option("--instance", help="With -o: the instance the plan is for.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the plan as a solution.")
    ] = None,
    force: ForceOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Group, replicate and route experts as GRACE-MoE does, each step replaceable by ours.

    Fitted on some requests, measured on the others: traffic by tier, balance, memory, and bounds.
    """
    from moeopt.grace import GROUPINGS, REPLICATIONS, ROUTINGS, Nodes, Settings, means, run
    from moeopt.make.traces_shipped import read_trace

    if nodes < 1 or gpus % nodes:
        raise InputError(f"{gpus} GPUs cannot be divided among {nodes} nodes")
    settings = Settings(
        nodes=Nodes(nodes, gpus // nodes),
        groupings=_names(grouping, GROUPINGS),
        replications=_names(replication, REPLICATIONS),
        routings=_names(routing, ROUTINGS),
        batch=batch,
        seeds=seeds,
        fit_share=fit,
        ratio=ratio,
        node_ratio=node_ratio,
        extra=extra,
        load_of_copies=load_of_copies,
    )
    if output is not None:
        require_writable(output, force)
    if (output is None) != (instance is None):
        raise InputError("-o and --instance go together: a plan is one of an instance")
    if output is not None and len(settings.groupings) * len(settings.replications) > 1:
        raise InputError("-o writes one plan: name one grouping and one replication")
    read = read_trace(trace)
    outcomes = list(run(read, settings))
    if as_json:
        print(json.dumps([asdict(outcome) for outcome in outcomes], allow_nan=False))
    else:
        _print(read.name, settings, means(outcomes))
    if output is not None and instance is not None:
        _write(read, settings, instance, output, force)


def _names(given: list[str] | None, known: dict[str, Any]) -> tuple[str, ...]:
    if given is None:
        return ("grace",)
    return tuple(known) if "all" in given else tuple(dict.fromkeys(given))


def _write(trace: Trace, settings: Settings, name: str, output: Path, force: bool) -> None:
    """Write the plan of seed 0 as a solution of an instance, and check it."""
    from moeopt.catalog import read_instance
    from moeopt.checker import check_solution
    from moeopt.grace import make_plan
    from moeopt.prepare import prepare
    from moeopt.solution import Solution, write_solution_file
    from moeopt.summary import print_check

    data = prepare(read_instance(name), "replication")
    shape = (trace.layers, trace.experts, settings.nodes.gpus)
    if (data.layers, data.experts, data.gpus) != shape:
        raise InputError(
            f"{name} has {data.layers} layers of {data.experts} experts on {data.gpus} GPUs, "
            f"the plan {shape[0]} of {shape[1]} on {shape[2]}"
        )
    solution = Solution.from_arrays(data, make_plan(trace, settings, 0).hosts)
    report = check_solution(data, solution)
    print_check(report)
    write_solution_file(solution, output, force=force)
    if report.violations:
        raise typer.Exit(NO_SOLUTION)


def _print(name: str, settings: Settings, rows: list[dict[str, Any]]) -> None:
    from moeopt.rounding_text import lower_text
    from moeopt.summary import print_rows
    from moeopt.terminal import print_text

    nodes = settings.nodes
    print_text(
        f"{name} on {nodes.count} nodes × {nodes.gpus_per_node} GPUs: held-out requests, batches "
        f"of {settings.batch} tokens, {counted(settings.seeds, 'seed', 'seeds')}; "
        "traffic for each token and layer"
    )
    print_rows(
        [
            {
                "grouping": row["grouping"],
                "replication": row["replication"],
                "routing": row["routing"],
                "same GPU": f"{row['same_gpu']:.3f}",
                "node": f"{row['same_node']:.3f}",
                "remote": f"{row['remote']:.3f}",
                "least": lower_text(row["least_remote"], 4),
                "node sends": f"{row['node_sends']:.3f}",
                "GPU sends": f"{row['gpu_sends']:.3f}",
                "max/mean": f"{row['imbalance']:.3f}",
                "least here": lower_text(row["least_imbalance"], 4),
                "copies": f"{row['copies']:.2f}",
                "fullest": f"{row['fullest']:.2f}",
            }
            for row in rows
        ],
        keys=3,
    )
    print_text(
        "same GPU, node, remote: pairs (token, expert); sends: copies of tokens, one a destination"
    )
    print_text(
        "least: bound of every plan with as many copies; least here: of every routing on this plan"
    )
