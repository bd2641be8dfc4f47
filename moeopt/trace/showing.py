"""A trace for people: what it is, and how uneven."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moeopt.errors import InputError
from moeopt.make.traces_shipped import ARRIVALS, ROUTING, read_arrivals, read_trace
from moeopt.matrix_file import open_npz
from moeopt.trace.loads import read_load_trace
from moeopt.trace.skew import Skew, skew_of_choices, skew_of_loads

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """A trace of loads or choices, read once and measured.

    Attributes
    ----------
    about : dict
        Label to value: what the trace is.
    load : float array, shape (L, E)
        Tokens of every expert, all windows together.
    skew : Skew
    """

    about: dict[str, Any]
    load: FloatArray
    skew: Skew


def kind_of(name_or_path: str | os.PathLike[str]) -> str | None:
    """Return ``loads``, ``choices`` or ``arrivals``; None if it is no trace at all."""
    text = os.fspath(name_or_path)
    if text in ROUTING:
        return "choices"
    if text in ARRIVALS:
        return "arrivals"
    if not text.endswith(".npz"):
        return None
    with open_npz(Path(text)) as archive:
        names = set(archive.files)
    for key, kind in (("arrival_ms", "arrivals"), ("offsets", "choices"), ("load", "loads")):
        if key in names:
            return kind
    raise InputError(f"{text}: no trace: it has neither load, nor offsets, nor arrival_ms")


def describe_trace(name_or_path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Describe a trace: section title to {label: value}.

    Raises
    ------
    InputError
    """
    if kind_of(name_or_path) != "arrivals":
        return describe_measured(measured(name_or_path))
    arrivals = read_arrivals(name_or_path)
    count, seconds = len(arrivals.arrival_s), float(arrivals.arrival_s[-1])
    return {
        "trace": {"name": arrivals.name, "requests": f"{count:,}"},
        "requests": {
            "time": f"{seconds:,.0f} s, {count / max(seconds, 1e-9):.2f} a second",
            "prompt tokens": _spread(arrivals.prompt_tokens),
            "output tokens": _spread(arrivals.output_tokens),
        },
    }


def describe_measured(found: Measured) -> dict[str, dict[str, Any]]:
    """Describe a trace of loads or choices: section title to {label: value}."""
    load, skew = found.load, found.skew
    mean = load / load.mean(axis=1, keepdims=True)
    skews = {
        "largest / mean load of a layer": f"median {np.median(skew.peak):.2f}, "
        f"largest {skew.peak.max():.2f}",
        "experts below a tenth of the mean": f"{(mean < 0.1).mean():.1%}",
        "drift between the halves": f"median {np.median(skew.drift):.1%}, "
        f"largest {skew.drift.max():.1%} of the load moves",
    }
    if skew.affinity is not None and skew.sets is not None:
        skews["most frequent pair / chance"] = f"median {np.median(skew.affinity):.2f}"
        skews |= {
            f"sets that cover {share:.0%}": f"median {np.median(counts):,.0f} a layer"
            for share, counts in skew.sets.items()
        }
    return {"trace": found.about, "skew": skews}


def measured(name_or_path: str | os.PathLike[str]) -> Measured:
    """Read and measure a trace of loads or choices.

    Raises
    ------
    InputError
        Also for a trace of arrivals, which has no loads.
    """
    if kind_of(name_or_path) == "arrivals":
        raise InputError(f"{name_or_path}: a trace of arrivals has no loads")
    if kind_of(name_or_path) == "choices":
        trace = read_trace(name_or_path)
        section = {
            "name": trace.name,
            "layers × experts, top-k": f"{trace.layers} × {trace.experts}, top-{trace.top_k}",
            "tokens": f"{len(trace.ids):,} of {len(trace.lengths):,} requests",
        }
        return Measured(section, trace.usage(), skew_of_choices(trace.ids, trace.experts))
    loads = read_load_trace(Path(name_or_path))
    windows, layers, experts = loads.load.shape
    section = {
        "name": loads.name,
        "layers × experts": f"{layers} × {experts}",
        "windows": f"{windows:,}",
        "tokens a layer": f"{loads.total.sum(axis=1).mean():,.0f}",
    }
    return Measured(section, loads.total, skew_of_loads(loads.load))


def _spread(values: npt.NDArray[np.int64]) -> str:
    median, p99 = np.percentile(values, [50, 99])
    return f"median {median:,.0f}, p99 {p99:,.0f}, largest {values.max():,}"
