"""Sizes of instances, for the first columns of a table."""

from __future__ import annotations

from moeopt.catalog import read_instance
from moeopt.errors import InputError
from moeopt.instance import Instance
from moeopt.report.table import Column

#: Short headings: they stand above short numbers.
COLUMNS = tuple(Column(name, "size") for name in ("L", "E", "k", "G", "slots", "scen.", "req."))
LEGEND = (
    "Sizes: L layers, E experts, k of them for each token, G GPUs, slots of a GPU, scenarios of "
    "all layers, requests."
)

Sizes = tuple[int | None, ...]


def sizes_of(instance: Instance) -> Sizes:
    """Return layers, experts, top-k, GPUs, slots, scenarios of all layers, and requests."""
    moe = instance.moe
    listed = [layer.scenarios for layer in instance.routing if layer.scenarios is not None]
    return (
        moe.layers,
        moe.experts,
        moe.top_k,
        instance.cluster.gpus,
        instance.cluster.slots_per_gpu,
        sum(len(scenarios.weight) for scenarios in listed) or None,
        sum(request.count for request in instance.requests or ()) or None,
    )


def find_sizes(name: str, sha256: str) -> Sizes:
    """Return the sizes of an instance by name; Nones where its content is not at hand any more."""
    try:
        instance = read_instance(name)
    except InputError:
        return (None,) * len(COLUMNS)
    if instance.sha256 != sha256:
        return (None,) * len(COLUMNS)
    return sizes_of(instance)
