"""``paging``: misses of a cache of experts, policies beside the offline optimum."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moeopt.commands.arguments import ForceOpt, JsonOpt, SeedOpt
from moeopt.errors import InputError
from moeopt.files import require_writable, write_bytes_atomic
from moeopt.words import counted

if TYPE_CHECKING:
    from moeopt.paging import Requests

#: Sizes in the table where all are asked for.
_SHOWN = 12


def paging(
    source: Annotated[
        str,
        typer.Argument(
            metavar="TRACE|INSTANCE", help="A trace of routing, or an instance of paging."
        ),
    ],
    cache: Annotated[
        str, typer.Option("--cache", "-c", help="Experts it holds: numbers with commas, or all.")
    ] = "all",
    policies: Annotated[
        list[str] | None,
        typer.Option("--policy", help="Repeatable; default: those of one pass; or all."),
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", help="Sequences of the trace decoded at once.", min=1)
    ] = None,
    sequences: Annotated[
        int | None, typer.Option("--sequences", help="Only the first of the trace.", min=1)
    ] = None,
    load_us: Annotated[
        float | None, typer.Option("--load-us", help="Time to load one expert, microseconds.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw misses against size: .svg, .pdf or .png.")
    ] = None,
    seed: SeedOpt = 0,
    force: ForceOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Replay cache policies on requests for experts, beside the offline optimum."""
    import numpy as np

    from moeopt.paging.comparing import CURVES, POLICIES, misses_of
    from moeopt.paging.policies import OPTIMUM
    from moeopt.report.plot_style import ending_of
    from moeopt.summary import print_rows
    from moeopt.terminal import print_text

    if plot is not None:
        ending_of(plot)
        require_writable(plot, force)
    name, requests, cost_us = _read(source, batch, sequences, load_us)
    names = policies or list(CURVES)
    names = [OPTIMUM, *(n for n in (POLICIES if "all" in names else names) if n != OPTIMUM)]
    sizes = _sizes(cache, requests)
    every = np.arange(requests.widest, requests.pages + 1)
    # One pass of a policy with keys is for all sizes; the others are replayed at the sizes shown.
    lines = {n: misses_of(requests, n, every.tolist(), seed=seed) for n in names if n in CURVES}
    misses = {
        n: lines[n][np.minimum(sizes, requests.pages) - requests.widest]
        if n in lines
        else misses_of(requests, n, sizes.tolist(), seed=seed)
        for n in names
    }
    if as_json:
        document = {
            "source": name,
            "requests": len(requests),
            "uses": len(requests.page),
            "load_us": cost_us,
            "cache": sizes.tolist(),
            "misses": {n: [m if m >= 0 else None for m in v.tolist()] for n, v in misses.items()},
        }
        print(json.dumps(document, allow_nan=False))
    else:
        print_text(
            f"{name}: {len(requests):,} requests for {len(requests.page):,} experts, at most "
            f"{requests.widest} at once, of {requests.pages:,} in all"
        )
        print_rows(
            [_row(c, i, misses, requests, cost_us, OPTIMUM) for i, c in enumerate(sizes.tolist())]
        )
        print_text(
            "policies: misses / offline optimum, which is proved; -: the cache is too small for it"
        )
    if plot is not None:
        from moeopt.report.plot_misses import plot_misses
        from moeopt.report.plot_style import figure_bytes

        held = np.minimum(sizes, requests.pages)
        replayed = {n: (held, misses[n]) for n in names if n not in lines}
        uses = len(requests.page)
        figure = plot_misses(every, lines, uses, OPTIMUM, name, replayed=replayed)
        write_bytes_atomic(plot, figure_bytes(figure, ending_of(plot)), force=force)


def _read(
    source: str, batch: int | None, sequences: int | None, load_us: float | None
) -> tuple[str, Requests, float | None]:
    """Name, requests, and time of one load; of a shipped or given trace, or of an instance."""
    import numpy as np

    from moeopt.catalog import read_instance
    from moeopt.make.traces_shipped import ROUTING, read_trace
    from moeopt.paging.streams import requests_of_choices
    from moeopt.prepare import prepare

    if load_us is not None and not load_us > 0:
        raise InputError(f"--load-us: must be positive, not {load_us:g}")
    if source in ROUTING or source.endswith(".npz"):
        trace = read_trace(source)
        if sequences is not None:
            if sequences > len(trace.lengths):
                raise InputError(f"--sequences: the trace has {len(trace.lengths)}")
            trace = trace.take(np.arange(sequences))
        made = requests_of_choices(trace.ids, trace.offsets, trace.experts, batch=batch or 1)
        return f"{trace.name}, batch {batch or 1}", made, load_us
    if batch is not None or sequences is not None:
        raise InputError("--batch and --sequences are for traces: an instance says them itself")
    data = prepare(read_instance(source), "paging")
    if data.paging is None:
        raise ValueError("there are no requests to serve")
    own = data.paging.load_us
    if load_us is None and own is not None:
        if np.ptp(own) > 0:
            raise InputError(
                f"{source}: loads of unequal cost; `moeopt solve {source} -p paging` takes them"
            )
        load_us = float(own[0])
    return data.name, data.paging.requests, load_us


def _sizes(text: str, requests: Requests) -> Any:
    """Cache sizes: all those that are shown, or the ones that are given."""
    import numpy as np

    if text == "all":
        least = requests.widest
        return np.unique(np.linspace(least, requests.pages, _SHOWN + 1).round().astype(np.int64))
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--cache {text}: numbers with commas, or all") from None
    for size in sizes:
        if size < requests.widest:
            at_once = counted(requests.widest, "expert", "experts")
            raise InputError(
                f"--cache {size}: must be at least {requests.widest}: one request needs {at_once}"
            )
    return np.unique(np.array(sizes, dtype=np.int64))


def _row(
    size: int,
    i: int,
    misses: dict[str, Any],
    requests: Requests,
    load_us: float | None,
    optimum: str,
) -> dict[str, Any]:
    from moeopt.rounding_text import upper_text

    best = int(misses[optimum][i])
    row = {
        "cache": f"{size:,}",
        "optimum": f"{best:,}",
        "of uses": f"{best / len(requests.page):.3%}",
    }
    if load_us is not None:
        row["loads, s"] = upper_text(best * load_us / 1e6, 5)
    for name, found in misses.items():
        if name != optimum:
            row[name] = "-" if found[i] < 0 else f"{found[i] / best:.3f}"
    return row
