"""``calibrate``, and ``instance make`` from a GPU and an MoE."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from moeopt.commands.arguments import ForceOpt, JsonOpt
from moeopt.commands.making import instance_make as from_recipe
from moeopt.errors import InputError
from moeopt.files import require_folder, require_writable, write_bytes_atomic


def calibrate(
    file: Annotated[
        Path, typer.Argument(help="CSV with tokens, activated_experts and microseconds.")
    ],
    form: Annotated[
        list[str] | None, typer.Option("--form", help="sum, max or p2; repeatable; default all.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the best fit as JSON.")
    ] = None,
    force: ForceOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Fit layer times to measurements of an expert kernel; print the block to paste."""
    from moeopt.calibrate.forms import fit_all
    from moeopt.calibrate.layer_cost import FORMS
    from moeopt.calibrate.measurements import read_measurements

    if output is not None:
        require_writable(output, force)
    measured = read_measurements(file)
    fits = fit_all(measured, tuple(form) if form else FORMS)
    best = {"layer_time": fits[0].block()}
    rows = [
        {
            **dict.fromkeys(("base_us", "expert_us", "token_base_us", "token_us"), ""),
            **found.block(),
            "mean_error": found.mean_error,
            "largest_error": found.largest_error,
        }
        for found in fits
    ]
    if as_json:
        fitted = [{key: value for key, value in row.items() if value != ""} for row in rows]
        print(json.dumps({"measurements": len(measured), "fits": fitted, **best}, allow_nan=False))
    else:
        _print(rows, len(measured), best)
    if output is not None:
        text = json.dumps(best, indent=2) + "\n"
        write_bytes_atomic(output, text.encode(), force=force)


def _print(rows: list[dict[str, Any]], measured: int, best: dict[str, Any]) -> None:
    from moeopt.summary import print_rows

    order = ("form", "mean_error", "largest_error", *list(rows[0])[:4])
    shown = [
        {key: f"{row[key]:.1%}" if key.endswith("error") else row[key] for key in order}
        for row in rows
    ]
    print_rows(shown)
    print(f"{measured} measurements; the form with the least mean error:")
    print(json.dumps(best))


def instance_make(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe; `list` shows them all. None with --gpu, --moe.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder that holds the sources' folders.")
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write to.")] = Path("."),
    force: ForceOpt = False,
    gpu: Annotated[str | None, typer.Option("--gpu", help="h100, h200, a100, l40s, …")] = None,
    moe: Annotated[str | None, typer.Option("--moe", help="mixtral-8x7b, gpt-oss-20b, …")] = None,
    gpus: Annotated[int, typer.Option("--gpus", help="GPUs in all.")] = 8,
    nodes: Annotated[int, typer.Option("--nodes", help="Nodes of equal size.")] = 1,
    form: Annotated[str, typer.Option("--form", help="sum, max or p2.")] = "max",
    precision: Annotated[
        str | None, typer.Option("--precision", help="Of the experts: bf16, fp8, mxfp4.")
    ] = None,
    memory_mib: Annotated[
        float | None, typer.Option("--memory-mib", help="Of a GPU, where not all of it is meant.")
    ] = None,
    lengths: Annotated[
        str,
        typer.Option(
            "--lengths", help="azure-conv, azure-code, mooncake, or a CSV of request classes."
        ),
    ] = "azure-conv",
    requests: Annotated[int, typer.Option("--requests", help="Requests of that trace.")] = 600,
    classes: Annotated[int, typer.Option("--classes", help="Classes they are cut into.")] = 8,
    skew: Annotated[
        float, typer.Option("--skew", help="Of the loads, where no trace of the MoE is shipped.")
    ] = 0.5,
    seed: Annotated[int, typer.Option("--seed", help="Of loads, or of the split.")] = 0,
    name: Annotated[str | None, typer.Option("--name", help="Of the instance.")] = None,
) -> None:
    """Make instance files: from public traces (RECIPE), or from --gpu and --moe."""
    if recipe is not None:
        if gpu is not None or moe is not None:
            raise InputError("give a recipe, or --gpu and --moe, not both")
        from_recipe(recipe, data, output, force)
        return
    if gpu is None or moe is None:
        raise InputError("give a recipe (moeopt instance make list), or both --gpu and --moe")
    require_folder(output)
    from moeopt.calibrate.instances import Wanted, make_instance
    from moeopt.instance import write_instance_file

    made = make_instance(
        Wanted(
            gpu=gpu,
            moe=moe,
            gpus=gpus,
            nodes=nodes,
            form=form,
            precision=precision,
            memory_mib=memory_mib,
            lengths=lengths,
            requests=requests,
            classes=classes,
            skew=skew,
            seed=seed,
            name=name,
        )
    )
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{made.instance.name}.json"
    require_writable(path, force)
    write_instance_file(made.instance, path, force=force)
    for line in made.assumed:
        print(f"assumed: {line}", file=sys.stderr)
    print(path)
