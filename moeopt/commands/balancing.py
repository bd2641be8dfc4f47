"""``balance``: replicas of experts on GPUs from a load matrix."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moeopt.commands.arguments import ForceOpt
from moeopt.errors import InputError
from moeopt.files import read_text, require_writable, write_bytes_atomic
from moeopt.words import counted

if TYPE_CHECKING:
    import numpy as np

    from moeopt.balance import BalanceOutcome


def balance(
    loads: Annotated[
        Path, typer.Argument(help="Tokens of each expert: .npy (windows ×) layers × experts, .csv.")
    ],
    gpus: Annotated[int, typer.Option("--gpus", help="Number of GPUs.")],
    slots: Annotated[
        int, typer.Option("--slots", help="Slots of a layer: experts and extra replicas.")
    ],
    nodes: Annotated[int, typer.Option("--nodes", help="Nodes of equally many GPUs.")] = 1,
    groups: Annotated[
        int, typer.Option("--groups", help="Groups of experts, each kept on one node.")
    ] = 1,
    rule: Annotated[
        str, typer.Option("--rule", help="Split of an expert's tokens: even or optimal.")
    ] = "even",
    previous: Annotated[
        Path | None, typer.Option("--previous", help="Plan in use: .npy or .json.")
    ] = None,
    max_moves: Annotated[
        int | None, typer.Option("--max-moves", help="Copies that may move, over all layers.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the search.")] = 0,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the plan: .npy or .json.")
    ] = None,
    force: ForceOpt = False,
) -> None:
    """Balance the load of GPUs with replicated experts; every layer with a proved bound."""
    from moeopt.balance import Effort, balance_data, solve_balance
    from moeopt.matrix_file import read_matrix
    from moeopt.summary import print_rows

    if output is not None and output.suffix not in (".npy", ".json"):
        raise InputError(f"{output}: a plan is written as .npy or .json")
    if output is not None:
        require_writable(output, force)
    data = balance_data(
        read_matrix(loads, "loads"),
        gpus=gpus,
        replicas=slots,
        nodes=nodes,
        groups=groups,
        rule=rule,
        previous=None if previous is None else _read_plan(previous),
        most_moves=max_moves,
    )
    outcome = solve_balance(data, Effort(seed=seed))
    print_rows([_row(outcome, l) for l in range(data.layers)])
    print(f"balancedness {outcome.report.balancedness.mean():.6f}, ", end="")
    print(f"largest certified gap {outcome.gap.max():.4%}", end="")
    moves = outcome.report.moves
    print("" if moves is None else f", {counted(moves, 'copy', 'copies')} moved")
    if output is not None:
        _write_plan(output, outcome.plan, force)


def _row(outcome: BalanceOutcome, l: int) -> dict[str, Any]:
    from moeopt.rounding_text import lower_text, upper_text

    return {
        "layer": l,
        "largest load": upper_text(float(outcome.report.per_layer[l])),
        "lower bound": lower_text(outcome.bounds[l].value),
        "proof": outcome.bounds[l].method,
        "balancedness": f"{outcome.report.balancedness[:, l].mean():.6f}",
    }


def _read_plan(path: Path) -> np.ndarray:
    """Read the expert of every slot, layers × slots."""
    import numpy as np

    from moeopt.matrix_file import read_matrix

    if path.suffix != ".json":
        return read_matrix(path, "experts of slots")
    try:
        document = json.loads(read_text(path))
        return np.array(document["physical_to_logical_map"], dtype=np.int64)
    except (ValueError, KeyError, TypeError) as error:
        line = f"{path}: a list of layers under physical_to_logical_map is needed ({error})"
        raise InputError(line) from error


def _write_plan(path: Path, plan: np.ndarray, force: bool) -> None:
    import numpy as np

    if path.suffix == ".npy":
        file = io.BytesIO()
        np.save(file, plan)
        raw = file.getvalue()
    else:
        raw = json.dumps({"physical_to_logical_map": plan.tolist()}).encode()
    write_bytes_atomic(path, raw, force=force)
