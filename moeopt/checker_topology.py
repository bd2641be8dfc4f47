"""The checker of ``topology``: room of the servers, copies, hops in whole numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from moeopt.checker_dispatch import Violation
from moeopt.checker_hosts import HostsCheck
from moeopt.checker_times import BoolArray
from moeopt.problem import ProblemData
from moeopt.words import counted

#: How the hops were computed.
NEAREST = "exact: nearest copy"


def check_hosts(data: ProblemData, hosts: BoolArray) -> HostsCheck:
    """Check hosts (L, E, G) against the rules that ``topology`` adds, and count the hops."""
    from moeopt.balance.exact import float_above
    from moeopt.topology.exact import layer_values
    from moeopt.topology.spread import copies_on_servers

    topology = data.topology
    if topology is None:
        raise ValueError("no servers are known")
    copies = copies_on_servers(topology, hosts)
    violations = list(_room(data, copies))
    if not hosts.any(axis=2).all():
        return HostsCheck(violations)
    values = layer_values(topology, copies > 0)
    tokens = float(topology.weight.sum())
    objective = float_above(sum(values[1:], values[0]))
    details: dict[str, Any] = {
        "layers": [float_above(value) for value in values],
        "servers": copies.sum(axis=(0, 1)).tolist(),
        "replicas": int(copies.sum()) - data.layers * data.experts,
        "hops_a_visit": objective / tokens if tokens > 0 else 0.0,
    }
    return HostsCheck(violations, objective, NEAREST, details)


def _room(data: ProblemData, copies: np.ndarray) -> Iterator[Violation]:
    topology = data.topology
    assert topology is not None
    held = copies.sum(axis=(0, 1))
    for s in np.flatnonzero(held > topology.capacity).tolist():
        text = f"server {s}: {held[s]} experts, room for {topology.capacity[s]}"
        yield Violation("server_full", f"server {s}", int(held[s] - topology.capacity[s]), text)
    in_layer = copies.sum(axis=1)
    for l, s in np.argwhere(in_layer > topology.capacity_per_layer).tolist():
        where, most = f"layer {l}, server {s}", int(topology.capacity_per_layer[s])
        text = f"{where}: {in_layer[l, s]} experts, room for {most} of a layer"
        yield Violation("server_layer_full", where, int(in_layer[l, s]) - most, text)
    extra = int(copies.sum()) - data.layers * data.experts
    if extra > topology.replicas:
        more = counted(extra, "copy", "copies")
        text = f"{more} beyond one of each expert, {topology.replicas} allowed"
        yield Violation("replicas_exceeded", "all layers", extra - topology.replicas, text)


def summary(details: dict[str, Any]) -> list[tuple[str, str]]:
    """Lines for people, as (label, text), from :attr:`HostsCheck.details`."""
    held = details["servers"]
    lines = [
        ("hops a visit", f"{details['hops_a_visit']:.6f} to an expert and on, on average"),
        ("servers", f"{min(held):,} to {max(held):,} experts on each"),
    ]
    if details["replicas"] > 0:
        lines.append(("replicas", f"{details['replicas']:,} beyond one of each expert"))
    return lines
