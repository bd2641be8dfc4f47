"""Run an adapter in a process of its own: highspy and ortools cannot meet in one."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy import sparse

from moeopt.errors import InputError
from moeopt.linear import LinearModel
from moeopt.solvers.base import Progress, SolveResult, SolveSettings

_CHILD = """
import importlib, pickle, sys, threading
name, source, target = sys.argv[1:]
adapter = importlib.import_module("moeopt.solvers." + name)
answers = []
for model, settings, start, log, stop_at_start in pickle.loads(open(source, "rb").read()):
    events, stop = [], threading.Event()
    if stop_at_start:
        stop.set()
    try:
        answers.append((adapter.solve(model, settings, start, events.append, stop, log), events))
    except Exception as error:
        answers.append((error, events))
open(target, "wb").write(pickle.dumps(answers))
"""


@dataclass
class Case:
    model: LinearModel
    settings: SolveSettings = field(default_factory=SolveSettings)
    start: np.ndarray | None = None
    log_path: str | None = None
    stop: bool = False


def run_adapter(name: str, cases: list[Case]) -> list[tuple[SolveResult, list[Progress]]]:
    """Solve the cases one after the other in one child; raise what the adapter raised."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.pkl"), Path(folder, "out.pkl")
        source.write_bytes(
            pickle.dumps([(c.model, c.settings, c.start, c.log_path, c.stop) for c in cases])
        )
        subprocess.run(
            [sys.executable, "-c", _CHILD, name, str(source), str(target)], check=True, timeout=300
        )
        answers = pickle.loads(target.read_bytes())
    for answer, _ in answers:
        if isinstance(answer, Exception):
            raise answer if isinstance(answer, InputError) else AssertionError(repr(answer))
    return answers


def model(
    rows, sides, cost, lower, upper, integer, *, offset=0.0, sense=1, columns=None
) -> LinearModel:
    """Make a model from lists; ``sides`` are (lower, upper) pairs."""
    dense = np.asarray(rows, dtype=float).reshape(len(sides), len(cost))
    return LinearModel(
        matrix=sparse.csr_array(dense),
        cost=np.asarray(cost, dtype=float),
        lower=np.asarray(lower, dtype=float),
        upper=np.asarray(upper, dtype=float),
        row_lower=np.array([s[0] for s in sides], dtype=float),
        row_upper=np.array([s[1] for s in sides], dtype=float),
        integer=np.asarray(integer, dtype=bool),
        offset=offset,
        sense=sense,
        columns=columns or {},
    )


def makespan(layers, experts, gpus, factor, seed) -> LinearModel:
    """Assign experts to GPUs; one open epigraph column a layer carries the load times a decimal."""
    rng = np.random.default_rng(seed)
    load = rng.integers(1, 3000, (layers, experts))
    n = layers * experts * gpus
    i, j, a, low, high = [], [], [], [], []

    def add(columns, values, lower, upper):
        i.extend([len(low)] * len(columns))
        j.extend(columns)
        a.extend(values)
        low.append(lower)
        high.append(upper)

    at = np.arange(n).reshape(layers, experts, gpus)
    for l in range(layers):
        for e in range(experts):
            add(at[l, e], [1.0] * gpus, 1, 1)
        for g in range(gpus):
            add([*at[l, :, g], n + l], [*(load[l] * factor), -1.0], -np.inf, 0)
    return LinearModel(
        matrix=sparse.csr_array((a, (i, j)), shape=(len(low), n + layers)),
        cost=np.r_[np.zeros(n), np.ones(layers)],
        lower=np.zeros(n + layers),
        upper=np.r_[np.ones(n), np.full(layers, np.inf)],
        row_lower=np.array(low, dtype=float),
        row_upper=np.array(high, dtype=float),
        integer=np.r_[np.ones(n, bool), np.zeros(layers, bool)],
    )
