"""The checker of ``affinity``: equal numbers, loads, tokens that change GPU and node."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from moeopt.checker_dispatch import Violation
from moeopt.checker_hosts import HostsCheck
from moeopt.checker_times import BoolArray
from moeopt.problem import ProblemData

#: How the objective was computed.
COUNTED = "exact: tokens counted"


def check_hosts(data: ProblemData, hosts: BoolArray) -> HostsCheck:
    """Check hosts (L, E, G) against the rules that ``affinity`` adds, and compute the objective."""
    from moeopt.affinity.evaluate import evaluate, gpu_loads

    violations = [*_copies(hosts), *_uneven(data, hosts)]
    affinity = data.affinity
    if affinity is None or (hosts.sum(axis=2) != 1).any():
        return HostsCheck(violations)
    place = hosts.argmax(axis=2)
    loads, most = gpu_loads(affinity, place), affinity.most_load
    for l, g in np.argwhere(loads > most[:, None]).tolist():
        where = f"layer {l}, GPU {g}"
        text = f"{where}: {loads[l, g]:,.6g} tokens, at most {most[l]:,.6g} are allowed"
        violations.append(Violation("load_exceeded", where, float(loads[l, g] - most[l]), text))
    report = evaluate(affinity, place)
    details: dict[str, Any] = {
        "layers": report.costs.tolist(),
        "crossing_gpus": report.crossing_gpus if report.total.any() else 0.0,
        "crossing_nodes": report.crossing_nodes if report.total.any() else 0.0,
        "imbalance": report.imbalance.tolist(),
    }
    return HostsCheck(violations, report.objective, COUNTED, details)


def _copies(hosts: BoolArray) -> Iterator[Violation]:
    for l, e in np.argwhere(hosts.sum(axis=2) > 1).tolist():
        extra = int(hosts[l, e].sum()) - 1
        where = f"layer {l}, expert {e}"
        text = f"{where}: {extra + 1} replicas, a plan of affinity has one"
        yield Violation("expert_replicated", where, extra, text)


def _uneven(data: ProblemData, hosts: BoolArray) -> Iterator[Violation]:
    held = hosts.sum(axis=1)
    for l, g in np.argwhere(held * data.gpus != data.experts).tolist():
        where = f"layer {l}, GPU {g}"
        text = f"{where}: {held[l, g]} experts, every GPU hosts {data.experts / data.gpus:g}"
        yield Violation(
            "experts_uneven", where, abs(int(held[l, g]) - data.experts / data.gpus), text
        )


def summary(details: dict[str, Any]) -> list[tuple[str, str]]:
    """Lines for people, as (label, text), from :attr:`HostsCheck.details`."""
    return [
        (
            "tokens",
            f"{details['crossing_gpus']:.4%} change GPU, {details['crossing_nodes']:.4%} node",
        ),
        ("largest load / mean", f"{max(details['imbalance']):.4f} in the worst layer"),
    ]
