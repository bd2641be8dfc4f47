"""One layer of an instance as an instance of its own: ``NAME@10`` is layer 10 of NAME."""

from __future__ import annotations

from typing import Any

from moeopt.errors import InputError
from moeopt.instance import Instance

SIGN = "@"


def split_reference(text: str) -> tuple[str, int | None]:
    """Split ``NAME@LAYER``; the layer is None where there is no number behind the last ``@``."""
    name, sign, layer = text.rpartition(SIGN)
    return (name, int(layer)) if sign and name and layer.isdecimal() else (text, None)


def layer_of(instance: Instance, number: int) -> Instance:
    """Cut an instance to the layer with this number in the LLM.

    Slots alone limit it: memory, which couples layers, requests and the moves that `balance` may
    make over all layers are left out.

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
        node.model_copy(update={"memory_mib": None, "reserved_mib": 0.0})
        for node in instance.cluster.nodes
    )
    moe = instance.moe
    total = moe.layers_total if moe.layers_total is not None else moe.layers
    balance = instance.balance
    if balance is not None:
        l = instance.routing.index(found[0])
        only: dict[str, Any] = {"max_moves": None}
        if balance.windows is not None:
            only["windows"] = tuple(window[l : l + 1] for window in balance.windows)
        if balance.previous is not None:
            only["previous"] = balance.previous[l : l + 1]
        balance = balance.model_copy(update=only)
    return Instance(
        name=f"{instance.name}{SIGN}{number}",
        source=instance.source,
        moe=moe.model_copy(update={"layers": 1, "layers_total": total}),
        cluster=instance.cluster.model_copy(update={"nodes": nodes}),
        layer_time=instance.layer_time,
        routing=(found[0].model_copy(update={"next": None}),),
        balance=balance,
    )
