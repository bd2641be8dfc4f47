"""``instance topology``: servers on a cluster graph."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moeopt.commands.arguments import ForceOpt, InstanceArg
from moeopt.files import require_writable


def instance_topology(
    instance: InstanceArg,
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write.")],
    graph: Annotated[
        str,
        typer.Option(
            "--graph",
            help="fat-tree:K, dragonfly:GxA, dragonfly-sparse:GxA, racks:GxA, hops:FILE or "
            "edges:FILE.",
        ),
    ],
    servers: Annotated[
        int | None, typer.Option("--servers", min=1, help="Copies of the first node instead.")
    ] = None,
    gpus_per_server: Annotated[int | None, typer.Option("--gpus-per-server", min=1)] = None,
    attention: Annotated[
        str,
        typer.Option(
            "--attention",
            help="Where layers attend: spread (in turn), everywhere (data parallel), node:N.",
        ),
    ] = "spread",
    slots: Annotated[int | None, typer.Option("--slots", min=1, help="Of a GPU and layer.")] = None,
    capacity: Annotated[
        int | None, typer.Option("--capacity", min=1, help="Experts of all layers on a server.")
    ] = None,
    capacity_per_layer: Annotated[
        int | None, typer.Option("--capacity-per-layer", min=1, help="Experts of one layer there.")
    ] = None,
    replicas: Annotated[
        int | None, typer.Option("--replicas", min=0, help="Copies beyond one of each expert.")
    ] = None,
    unweighted: Annotated[
        bool, typer.Option("--unweighted", help="All experts alike, whatever their load.")
    ] = False,
    name: Annotated[str | None, typer.Option("--name", help="Of the instance.")] = None,
    force: ForceOpt = False,
) -> None:
    """Put an instance on a cluster graph: an instance of the problem topology."""
    from moeopt.catalog import read_instance
    from moeopt.instance import write_instance_file
    from moeopt.make.on_graph import Wanted, put_on_graph

    require_writable(output, force)
    wanted = Wanted(
        graph,
        servers,
        gpus_per_server,
        attention,
        slots_per_gpu=slots,
        capacity=capacity,
        capacity_per_layer=capacity_per_layer,
        replicas=replicas,
        weighted=not unweighted,
    )
    write_instance_file(put_on_graph(read_instance(instance), wanted, name), output, force=force)
    print(output)
