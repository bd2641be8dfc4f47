"""A cluster graph put onto an instance: servers, hops, where attention is, room, copies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moeopt.errors import InputError
from moeopt.instance import Instance
from moeopt.topology.graphs import hops_of

#: Where the attention of the layers is computed.
ATTENTION = {
    "spread": "spread: equal runs of layers on each server, in order (a pipeline)",
    "everywhere": "everywhere: each server attends to its own tokens, all alike (data parallel)",
    "node:N": "node:N: all layers on server N",
}


@dataclass(frozen=True)
class Wanted:
    """A cluster and the options of ``topology``.

    Attributes
    ----------
    graph : str
        See :data:`moeopt.topology.graphs.KINDS`.
    servers : int or None
        Copies of the first node that replace the instance's nodes.
    gpus_per_server : int or None
        GPUs of each of these.
    attention : str
        See :data:`ATTENTION`.
    slots_per_gpu, capacity, capacity_per_layer, replicas : int or None
        As in the file; None leaves the slots as they are, and the rest out.
    weighted : bool
    """

    graph: str
    servers: int | None = None
    gpus_per_server: int | None = None
    attention: str = "spread"
    slots_per_gpu: int | None = None
    capacity: int | None = None
    capacity_per_layer: int | None = None
    replicas: int | None = None
    weighted: bool = True


def blocks(wanted: Wanted, layers: int, servers: int) -> dict[str, Any]:
    """Return the hops of the cluster and the block ``topology``, as they stand in a file.

    Raises
    ------
    InputError
        The graph or the attention does not fit.
    """
    dispatch, collect = _attention(wanted.attention, layers, servers)
    options = {
        "dispatch_node": dispatch,
        "collect_node": collect,
        "capacity": wanted.capacity,
        "capacity_per_layer": wanted.capacity_per_layer,
        "weighted": None if wanted.weighted else False,
        "replicas": wanted.replicas,
    }
    hops = hops_of(wanted.graph, servers)
    plain = hops.astype(int) if (hops == hops.astype(int)).all() else hops
    return {
        "hops": plain.tolist(),
        "topology": {key: value for key, value in options.items() if value is not None},
    }


def put_on_graph(instance: Instance, wanted: Wanted, name: str | None = None) -> Instance:
    """Return the instance on the cluster that is wanted; requests and their problem are left out.

    Raises
    ------
    InputError
        The graph, the attention or a number does not fit.
    """
    cluster = instance.cluster
    nodes = cluster.nodes
    if wanted.servers is not None or wanted.gpus_per_server is not None:
        count = len(nodes) if wanted.servers is None else wanted.servers
        first = nodes[0]
        if wanted.gpus_per_server is not None:
            first = first.model_copy(update={"gpus": wanted.gpus_per_server})
        nodes = (first,) * count
    made = blocks(wanted, instance.moe.layers, len(nodes))
    slots = cluster.slots_per_gpu if wanted.slots_per_gpu is None else wanted.slots_per_gpu
    plain = cluster.model_dump(exclude={"nodes", "hops", "slots_per_gpu"}, exclude_none=True)
    document = {
        "schema": "moeopt-instance/1",
        "name": name or f"{instance.name}_topology_{wanted.graph.partition(':')[0]}",
        "source": None if instance.source is None else instance.source.model_dump(),
        "moe": instance.moe.model_dump(),
        "cluster": {
            **plain,
            "nodes": [node.model_dump() for node in nodes],
            "slots_per_gpu": slots,
            "hops": made["hops"],
        },
        "layer_time": instance.layer_time.model_dump(),
        "routing": [_routing(layer) for layer in instance.routing],
        "topology": made["topology"],
    }
    return Instance.from_document(document)


def _routing(layer: Any) -> dict[str, Any]:
    """One layer of the routing as a document whose arrays are those of the instance."""
    scenarios = layer.scenarios
    listed = None
    if scenarios is not None:
        listed = {key: getattr(scenarios, key) for key in type(scenarios).model_fields}
    return {"layer": layer.layer, "scenarios": listed, "load": layer.load, "next": layer.next}


def _attention(attention: str, layers: int, servers: int) -> tuple[list[Any], list[Any] | None]:
    """Dispatch and collect nodes of each layer."""
    if attention == "spread":
        return [l * servers // layers for l in range(layers)], None
    if attention == "everywhere":
        everywhere = [list(range(servers))] * layers
        return everywhere, everywhere
    kind, _, node = attention.partition(":")
    if kind != "node" or not node.isdecimal():
        raise InputError(
            [f"attention {attention!r}: write one of", *(f"  {t}" for t in ATTENTION.values())]
        )
    if int(node) >= servers:
        raise InputError(f"attention {attention}: servers are 0 to {servers - 1}")
    return [int(node)] * layers, [int(node)] * layers
