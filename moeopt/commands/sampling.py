"""``instance sample``: sampled decode steps of a trace as scenarios."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moeopt.commands.arguments import ForceOpt, InstanceArg
from moeopt.files import require_folder, require_writable


def instance_sample(
    instance: InstanceArg,
    trace: Annotated[
        str, typer.Option("--trace", help="gpt-oss-20b, deepseek-v2-lite, or an .npz.")
    ],
    batch: Annotated[int, typer.Option("--batch", help="Requests decoded together.")],
    samples: Annotated[int, typer.Option("--samples", help="Decode steps, the scenarios.")] = 256,
    split_seed: Annotated[
        int,
        typer.Option("--split-seed", help="Steps are of the half that `simulate` does not replay."),
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Of the tokens of each step.")] = 0,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write to.")] = Path("."),
    force: ForceOpt = False,
) -> None:
    """Make an instance of `replication` for a given batch: real steps, memory kept for their KV."""
    from moeopt.catalog import read_instance
    from moeopt.instance import write_instance_file
    from moeopt.make.traces_shipped import read_trace
    from moeopt.simulate.sampled_instance import sampled_instance

    require_folder(output)
    fitted = read_trace(trace).split(split_seed)[0]
    made = sampled_instance(
        read_instance(instance), fitted, batch=batch, samples=samples, seed=seed
    )
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{made.name}.json"
    require_writable(path, force)
    write_instance_file(made, path, sidecar=True, force=force)
    print(path)
