"""One layer of an instance as an instance of its own: ``NAME@10`` is layer 10 of NAME."""

from __future__ import annotations

from typing import Any

import numpy as np

from moeopt.arrays import Rows
from moeopt.errors import InputError
from moeopt.instance import Instance
from moeopt.instance_parts import TopologyOptions

SIGN = "@"


def split_reference(text: str) -> tuple[str, int | None]:
    """Split ``NAME@LAYER``; the layer is None where there is no number behind the last ``@``."""
    name, sign, layer = text.rpartition(SIGN)
    return (name, int(layer)) if sign and name and layer.isdecimal() else (text, None)


def _topology_of(topology: TopologyOptions, l: int, layers: int) -> TopologyOptions:
    """Keep the streams of one layer, its share of the replicas, and no room over all layers."""
    after = topology.collect_node or topology.dispatch_node
    at = l if topology.collect_node is not None else (l + 1) % layers
    only: dict[str, Any] = {
        "dispatch_node": _row(topology.dispatch_node, l),
        "collect_node": _row(after, at),
        "capacity": None,
    }
    if topology.replicas is not None:
        only["replicas"] = topology.replicas // layers
    return topology.model_copy(update=only)


def _row(rows: Rows, l: int) -> Rows:
    """One row as rows."""
    values = rows.values[rows.ptr[l] : rows.ptr[l + 1]]
    return Rows(np.array([0, len(values)], dtype=np.int64), values)


def layer_of(instance: Instance, number: int) -> Instance:
    """Cut an instance to the layer with this number in the LLM.

    Slots alone limit it: memory, which couples layers, requests and the moves that `balance` may
    make over all layers are left out; the budget of `activation` is shared out equally.

    Raises
    ------
    InputError
        There is no such layer, or memory alone limits.
    """
    found = [layer for layer in instance.routing if layer.layer == number]
    if not found:
        numbers = [layer.layer for layer in instance.routing]
        raise InputError(
            f"{instance.name} has no layer {number}: its layers are {numbers[0]} to {numbers[-1]}"
        )
    if instance.cluster.slots_per_gpu is None:
        raise InputError(
            f"{instance.name}: no slots are given: layers share memory, none can be cut out"
        )
    nodes = tuple(
        node.model_copy(update={"memory_mib": None, "reserved_mib": 0.0, "kv_mib": None})
        for node in instance.cluster.nodes
    )
    moe = instance.moe
    total = moe.layers_total if moe.layers_total is not None else moe.layers
    l = instance.routing.index(found[0])
    balance = instance.balance
    if balance is not None:
        only: dict[str, Any] = {"max_moves": None}
        if balance.windows is not None:
            only["windows"] = tuple(window[l : l + 1] for window in balance.windows)
        if balance.previous is not None:
            only["previous"] = balance.previous[l : l + 1]
        balance = balance.model_copy(update=only)
    activation = instance.activation
    if activation is not None:
        only = {
            "gate_mass": activation.gate_mass[l : l + 1],
            "scenarios": activation.scenarios[l : l + 1],
            "budget": activation.budget / moe.layers,
        }
        if activation.hosts is not None:
            only["hosts"] = activation.hosts[l : l + 1]
        activation = activation.model_copy(update=only)
    topology = instance.topology
    if topology is not None:
        topology = _topology_of(topology, l, moe.layers)
    affinity = instance.affinity
    if affinity is not None and affinity.kind == "inter":
        affinity = None  # one layer alone has none after it
    return Instance(
        name=f"{instance.name}{SIGN}{number}",
        source=instance.source,
        moe=moe.model_copy(update={"layers": 1, "layers_total": total}),
        cluster=instance.cluster.model_copy(update={"nodes": nodes}),
        layer_time=instance.layer_time,
        routing=(found[0].model_copy(update={"next": None}),),
        balance=balance,
        topology=topology,
        activation=activation,
        affinity=affinity,
    )
