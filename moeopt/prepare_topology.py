"""The part of :func:`moeopt.prepare.prepare` that is for ``topology``: hops, streams, room."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moeopt.arrays import Rows
from moeopt.instance import Instance
from moeopt.problem import IntArray, ProblemData
from moeopt.units import BYTES_PER_MIB


def missing_for_topology(instance: Instance) -> list[str]:
    """Say what ``topology`` needs and the instance does not have."""
    lines = []
    if instance.cluster.hops is None:
        lines.append("problem topology needs cluster.hops (moeopt instance topology writes them)")
    if instance.topology is None:
        lines.append("problem topology needs `topology`: where the tokens of each layer start")
    return lines


def with_topology(data: ProblemData, instance: Instance) -> ProblemData:
    """Return the data with servers, streams and room; every GPU is a kind of its own server's."""
    from moeopt.topology.data import TopologyData

    options, cluster = instance.topology, instance.cluster
    if options is None or cluster.hops is None:
        raise ValueError("no servers or no streams")  # missing_for_topology says so
    sizes = np.array([node.gpus for node in cluster.nodes], dtype=np.int64)
    node_of_gpu = np.repeat(np.arange(len(sizes)), sizes)
    dispatch = _table(options.dispatch_node)
    collect = np.roll(dispatch, -1, axis=0)
    if options.collect_node is not None:
        collect = _table(options.collect_node)
    share = np.ones(dispatch.shape[1]) if options.share is None else options.share
    weight = np.ones_like(data.load)
    if options.weighted:
        weight = data.top_k * data.load / data.load.sum(axis=1, keepdims=True)
    capacity, capacity_per_layer = _room(data, sizes, node_of_gpu)
    if options.capacity_per_layer is not None:
        capacity_per_layer = np.minimum(capacity_per_layer, options.capacity_per_layer)
    if options.capacity is not None:
        capacity = np.minimum(capacity, options.capacity)
    topology = TopologyData(
        hops=np.asarray(cluster.hops, dtype=np.float64),
        node_of_gpu=node_of_gpu,
        dispatch=dispatch,
        collect=collect,
        share=np.asarray(share / share.sum(), dtype=np.float64),
        weight=weight,
        capacity=np.minimum(capacity, data.layers * capacity_per_layer),
        capacity_per_layer=capacity_per_layer,
        replicas=options.replicas or 0,
    )
    return replace(data, topology=topology, gpu_kind=node_of_gpu)


def _table(rows: Rows) -> IntArray:
    """Rows of equal length as a table, shape (L, I)."""
    return rows.values.reshape(len(rows), -1)


def _room(data: ProblemData, sizes: IntArray, node_of_gpu: IntArray) -> tuple[IntArray, IntArray]:
    """Experts that slots and memory leave room for on each server: of all layers, of one."""
    slots = data.experts if data.slots is None else min(data.slots, data.experts)
    per_layer = np.minimum(sizes * slots, data.experts)
    if data.free_mib is None:
        return data.layers * per_layer, per_layer
    # Multiples of 2**-20 MiB: whole bytes, and the division is of integers.
    free = np.rint(data.free_mib * BYTES_PER_MIB).astype(np.int64)
    each = np.maximum(0, free // round(data.expert_mib * BYTES_PER_MIB))
    capacity: IntArray = np.bincount(node_of_gpu, each, minlength=len(sizes)).astype(np.int64)
    return np.minimum(capacity, data.layers * per_layer), per_layer
