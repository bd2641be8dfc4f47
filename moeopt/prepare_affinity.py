"""The part of :func:`moeopt.prepare.prepare` that is for ``affinity``: tokens between layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from moeopt.feasibility import explain_infeasible
from moeopt.instance import Instance
from moeopt.problem import FloatArray, ProblemData


def missing_for_affinity(instance: Instance) -> Iterator[str]:
    """Say what an instance lacks."""
    options = instance.affinity
    if options is None:
        yield "problem affinity needs the block `affinity`"
        return
    if options.kind == "intra":
        for l, routed in enumerate(instance.routing):
            if routed.scenarios is None:
                yield f"problem affinity of kind intra needs routing[{l}].scenarios"
        return
    if instance.moe.layers < 2:
        yield "problem affinity of kind inter needs two layers or more"
    for l, routed in enumerate(instance.routing[:-1]):
        if routed.next is None:
            yield f"problem affinity of kind inter needs routing[{l}].next"


def with_affinity(data: ProblemData, instance: Instance) -> ProblemData:
    """Return the data with its tokens between layers; as it is where no plan can exist."""
    from moeopt.affinity.data import AffinityData

    options = instance.affinity
    if options is None:
        raise ValueError("there is no block `affinity`")  # missing_for_affinity said so
    nodes = [node.gpus for node in instance.cluster.nodes]
    inter = options.kind == "inter"
    data = replace(
        data,
        scenarios=() if inter else data.scenarios,
        gpu_kind=np.repeat(np.arange(len(nodes)), nodes),
    )
    if explain_infeasible(data):
        return data
    flow = np.zeros((data.layers - 1 if inter else 0, data.experts, data.experts))
    for l in range(len(flow)):
        flow[l] = _flow(instance.routing[l].next, data.experts)
    affinity = AffinityData(
        kind=options.kind,
        node=data.gpu_kind,
        load=data.load,
        flow=flow,
        scenarios=data.scenarios,
        near=options.near,
        far=options.far,
        max_load=options.max_load,
    )
    return replace(data, affinity=affinity)


def _flow(rows: FloatArray | None, experts: int) -> FloatArray:
    """Tokens from each expert to each of the next layer, shape (E, E)."""
    flow = np.zeros((experts, experts))
    if rows is not None:
        pairs = rows[:, :2].astype(np.int64)
        np.add.at(flow, (pairs[:, 0], pairs[:, 1]), rows[:, 2])
    return flow
