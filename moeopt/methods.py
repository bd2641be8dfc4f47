"""The ways to prove lower bounds of one layer, in the order in which they are worth trying.

Few GPUs and small groups: exhaustive search and patterns. Many GPUs: columns. Large groups:
semidefinite bounds. Replicas on few GPUs: the pair search. Each says itself what it takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from moeopt.problem import ProblemData
from moeopt.proving import LayerProof, Method, Task, one_layer

#: Exhaustive search of placements is quick up to about so many experts.
FEW_EXPERTS = 16
#: From so many GPUs on columns beat patterns.
MANY_GPUS = 6


def methods_for(data: ProblemData) -> list[Method]:
    """Return the methods of a problem, the most promising for its shape first."""
    if data.problem == "placement":
        if data.experts <= FEW_EXPERTS:
            return [GROUP_SEARCH, COLUMNS, PATTERNS]
        if data.gpus >= MANY_GPUS and COLUMNS.fits(one_layer(data, 0)) is None:
            return [COLUMNS, PATTERNS, PSD]
        return [PSD, PATTERNS, COLUMNS]
    if data.problem == "replication":
        return [COLUMNS, PAIR_SEARCH] if data.gpus >= MANY_GPUS else [PAIR_SEARCH, COLUMNS]
    return []


def _arguments(layer: ProblemData) -> tuple[Any, int, int, int]:
    assert layer.slots is not None
    return layer.scenarios[0], layer.experts, layer.gpus, layer.slots


def _only(problem: str, fits: Callable[..., str | None]) -> Callable[[ProblemData], str | None]:
    def checked(layer: ProblemData) -> str | None:
        if layer.problem != problem:
            return f"is for {problem}"
        return fits(*_arguments(layer))

    return checked


# --- exhaustive search ---------------------------------------------------------------------------


def _group_fits(*layer: Any) -> str | None:
    from moeopt.proofs.group_search import unsupported

    return unsupported(*layer)


def _group_run(layer: ProblemData, task: Task) -> LayerProof:
    from moeopt.proofs.group_search import group_search

    found = group_search(
        *_arguments(layer),
        upper=float("inf") if task.upper is None else task.upper,
        time_limit_s=task.time_limit_s,
        stop=task.stop,
    )
    return LayerProof(found.lower, found.hosts)


GROUP_SEARCH = Method(
    "group search",
    "every placement without GPU labels was searched, or is above the bound",
    _only("placement", _group_fits),
    _group_run,
)


# --- columns -------------------------------------------------------------------------------------


def _columns_fit(layer: ProblemData) -> str | None:
    from moeopt.proofs.columns import supports

    return supports(*_arguments(layer))


def _columns_run(layer: ProblemData, task: Task) -> LayerProof:
    from moeopt.proofs.columns import column_bound

    found = column_bound(
        *_arguments(layer),
        replicas=layer.problem == "replication",
        upper=task.upper,
        time_limit_s=task.time_limit_s,
        stop=task.stop,
        on_bound=task.on_bound,
    )
    better = None
    if layer.problem == "placement" and found.sets:
        better = np.zeros((layer.experts, layer.gpus), dtype=bool)
        for g, members in enumerate(found.sets):
            better[members, g] = True
        if not (better.sum(axis=1) == 1).all():
            better = None
    return LayerProof(found.value, better)


COLUMNS = Method(
    "columns",
    "Lagrangian bound over the sets of single-copy experts that one GPU can hold",
    _columns_fit,
    _columns_run,
)


# --- patterns ------------------------------------------------------------------------------------


def _patterns_fit(*layer: Any) -> str | None:
    scenarios, experts = layer[:2]
    if experts > 32:
        return "more than 32 experts: too many patterns"
    if int(scenarios.sizes.max(initial=0)) > 4:
        return "scenarios of more than four experts"
    return None


def _patterns_run(layer: ProblemData, task: Task) -> LayerProof:
    import threading

    from moeopt.lattice_lift import lift
    from moeopt.solvers.base import SolveSettings
    from moeopt.solvers.supervise import run_job

    event = threading.Event()
    if task.stop():
        event.set()
    outcome = run_job(
        one_layer(layer, 0),
        "placement_patterns",
        "pdlp",
        SolveSettings(time_limit_s=task.time_limit_s),
        relax=True,
        stop=event,
        on_progress=lambda progress: event.set() if task.stop() else None,
    )
    result = outcome.result
    if result is None or result.dual_bound is None:
        return LayerProof(0.0)
    return LayerProof(lift(result.dual_bound, layer.scenarios[0].weight))


PATTERNS = Method(
    "patterns",
    "LP over the patterns of every four experts by PDLP, safe dual bound in exact arithmetic",
    _only("placement", _patterns_fit),
    _patterns_run,
)


# --- semidefinite bounds -------------------------------------------------------------------------


def _psd_fits(*layer: Any) -> str | None:
    from moeopt.proofs.psd import supports

    return supports(*layer)


def _psd_run(layer: ProblemData, task: Task) -> LayerProof:
    from moeopt.proofs.psd import psd_bound

    found = psd_bound(
        *_arguments(layer),
        upper=task.upper,
        time_limit_s=task.time_limit_s,
        stop=task.stop,
        on_bound=task.on_bound,
    )
    return LayerProof(found.value)


PSD = Method(
    "psd",
    "Lagrangian bound over co-location matrices that are positive semidefinite",
    _only("placement", _psd_fits),
    _psd_run,
)


# --- the pair search -----------------------------------------------------------------------------


def _pairs_fit(*layer: Any) -> str | None:
    from moeopt.proofs.pair_search import supports

    return supports(*layer)


def _pairs_run(layer: ProblemData, task: Task) -> LayerProof:
    from moeopt.proofs.pair_search import pair_search

    if task.upper is None:
        return LayerProof(0.0)  # its ladder of targets needs a plan to start from
    found = pair_search(
        *_arguments(layer),
        upper=task.upper,
        incumbent=task.hosts,
        time_limit_s=task.time_limit_s,
        stop=task.stop,
        on_bound=task.on_bound,
    )
    return LayerProof(found.lower, found.hosts)


PAIR_SEARCH = Method(
    "pair search",
    "branch and bound over the hosts of each expert, or over what each GPU lacks",
    _only("replication", _pairs_fit),
    _pairs_run,
)
