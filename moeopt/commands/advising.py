"""``advise``: whether a better map of experts is worth it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moeopt.commands.arguments import JsonOpt, SeedOpt
from moeopt.errors import InputError

if TYPE_CHECKING:
    from moeopt.advise.advice import Advice, Windows
    from moeopt.advise.question import Question
    from moeopt.trace.loads import LoadTrace

_LOADS = (".npz", ".npy", ".csv")
#: Windows of requests of a trace of choices.
_WINDOWS = 16


def advise(
    source: Annotated[
        str,
        typer.Argument(
            metavar="LOADS",
            help="Loads or choices: a trace (.npz), a shipped one, .npy, .csv; or an instance.",
        ),
    ],
    gpus: Annotated[int | None, typer.Option("--gpus", help="Number of GPUs.")] = None,
    slots: Annotated[
        int | None, typer.Option("--slots", help="Slots of a layer: experts and extra replicas.")
    ] = None,
    nodes: Annotated[int, typer.Option("--nodes", help="Nodes of equally many GPUs.")] = 1,
    groups: Annotated[
        int, typer.Option("--groups", help="Groups of experts, each kept on one node.")
    ] = 1,
    fit: Annotated[
        str | None, typer.Option("--fit", help="Windows to make maps for, FIRST:END.")
    ] = None,
    score: Annotated[
        str | None, typer.Option("--score", help="Windows to score them on, FIRST:END.")
    ] = None,
    windows: Annotated[
        int | None,
        typer.Option("--windows", help="Windows of requests of a trace of choices; default 16."),
    ] = None,
    current: Annotated[
        Path | None, typer.Option("--current", help="Map in use: .npy, or a file with --from.")
    ] = None,
    origin: Annotated[
        str | None, typer.Option("--from", help="Format of the map in use: sglang, vllm, …")
    ] = None,
    expert_mib: Annotated[
        float | None, typer.Option("--expert-mib", help="Memory of one expert of one layer.")
    ] = None,
    kv_kib_per_token: Annotated[
        float | None, typer.Option("--kv-kib-per-token", help="KV cache of a token, all layers.")
    ] = None,
    max_moves: Annotated[
        int | None, typer.Option("--max-moves", help="Copies that may move, over all layers.")
    ] = None,
    least_gain: Annotated[
        float, typer.Option("--least-gain", help="Share of tokens that is worth a change.")
    ] = 0.02,
    seed: SeedOpt = 0,
    as_json: JsonOpt = False,
) -> None:
    """Say whether a better map of experts is worth it: made for some windows, scored on others."""
    from moeopt.advise.advice import EFFORT
    from moeopt.advise.advice import advise as answer
    from moeopt.advise.question import from_instance
    from moeopt.advise.verdict import is_worth_it, sentence
    from moeopt.catalog import read_instance
    from moeopt.make.traces_shipped import ARRIVALS, ROUTING

    if not 0 < least_gain < 1:
        raise InputError(f"--least-gain: between 0 and 1, not {least_gain:g}")
    if source in ARRIVALS:
        raise InputError(f"{source}: a trace of arrivals has no loads of experts")
    if source.endswith(_LOADS) or source in ROUTING:
        if gpus is None or slots is None:
            raise InputError("a trace needs --gpus and --slots")
        question = _of_trace(
            _loads(source, windows),
            gpus=gpus,
            slots=slots,
            nodes=nodes,
            groups=groups,
            current=current,
            origin=origin,
            expert_mib=expert_mib,
            kv_kib_per_token=kv_kib_per_token,
            most_moves=max_moves,
        )
    else:
        given = [gpus, slots, windows, current, origin, expert_mib, kv_kib_per_token, max_moves]
        if given != [None] * len(given) or (nodes, groups) != (1, 1):
            raise InputError(
                "an instance says itself what GPUs, slots, windows, map and memory there are"
            )
        question = from_instance(read_instance(source))
    advice = answer(
        question,
        fit=_windows("--fit", fit),
        score=_windows("--score", score),
        effort=replace(EFFORT, seed=seed),
    )
    text = sentence(advice, least_gain)
    if as_json:
        document = {"answer": text, "worth_it": is_worth_it(advice, least_gain)}
        print(json.dumps(document | advice.as_dict(), allow_nan=False))
        return
    _print(advice)
    print(text)


def _loads(source: str, windows: int | None) -> LoadTrace:
    """Read loads; choices are counted in windows of requests."""
    from moeopt.make.traces_shipped import read_trace
    from moeopt.trace.loads import loads_of_choices, read_load_trace
    from moeopt.trace.showing import kind_of
    from moeopt.trace.systems import read_matrix

    kind = kind_of(source)
    if kind == "choices":
        return loads_of_choices(read_trace(source), _WINDOWS if windows is None else windows)
    if windows is not None:
        raise InputError("--windows is for traces of choices: loads have their windows")
    return read_matrix(Path(source)) if kind is None else read_load_trace(source)


def _of_trace(
    trace: LoadTrace, *, current: Path | None, origin: str | None, **numbers: Any
) -> Question:
    from moeopt.advise.question import from_trace, read_map

    if origin is not None and current is None:
        raise InputError("--from is the format of --current, which is missing")
    today = None if current is None else read_map(current, trace.layers, origin)
    return from_trace(trace, today=today, **numbers)


def _windows(option: str, text: str | None) -> Windows | None:
    if text is None:
        return None
    first, colon, end = text.partition(":")
    if not (colon and first.isdecimal() and end.isdecimal()):
        raise InputError(f"{option}: write FIRST:END, such as 0:10, not {text!r}")
    return int(first), int(end)


def _print(advice: Advice) -> None:
    from moeopt.rounding_text import lower_text, upper_text
    from moeopt.summary import print_rows

    rows: list[dict[str, Any]] = []
    for score in (advice.today, advice.published, advice.unreplicated, advice.moeopt):
        if score is not None:
            rows.append(
                {
                    "map": score.name,
                    "balancedness": f"{score.balancedness:.4f}",
                    "tokens on the fullest GPUs": upper_text(score.largest_tokens),
                    "copies to move": "" if score.moves is None else f"{score.moves:,}",
                }
            )
    rows.append(
        {
            "map": "no map is better than",
            "balancedness": f"{advice.ceiling:.4f}",
            "tokens on the fullest GPUs": lower_text(advice.least_tokens),
            "copies to move": "",
        }
    )
    print_rows(rows)
