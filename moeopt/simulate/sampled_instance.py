"""An instance of ``replication`` whose scenarios are sampled decode steps of a real trace.

``joint`` plans with mean routing, which charges every expert that any request may use. For small
batches real steps are neither so full nor so even. Here the batch is given: K steps of B tokens
with the experts that they chose are the scenarios, and each GPU keeps memory for the KV cache of
its share of the B requests. Hosts of such a plan are for the GPUs' whole memory beside it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moeopt.errors import InputError
from moeopt.instance import Instance
from moeopt.make.traces_shipped import Trace
from moeopt.prepare import prepare


def sampled_instance(
    instance: Instance, trace: Trace, *, batch: int, samples: int = 256, seed: int = 0
) -> Instance:
    """Put sampled decode steps and room for their KV cache into an instance.

    Parameters
    ----------
    instance : Instance
        With ``requests``: their largest KV cache is kept for each of the batch.
    trace : Trace
        With the instance's layers and experts; every token is drawn alike.
    batch, samples : int
        Tokens of a step, B; steps, K.
    seed : int

    Raises
    ------
    InputError
        The trace is of another MoE, or the instance has no requests.
    """
    moe = instance.moe
    if (trace.layers, trace.experts) != (moe.layers, moe.experts):
        raise InputError(
            f"{trace.name}: {trace.layers} layers × {trace.experts} experts; {instance.name} has "
            f"{moe.layers} × {moe.experts}"
        )
    if lines := [f"{n}: must be at least 1" for n, x in (("batch", batch), ("samples", samples))
                 if x < 1]:  # fmt: skip
        raise InputError(lines)
    requests = prepare(instance, "joint").requests
    assert requests is not None  # `prepare` refuses joint without them
    share = -(-batch // instance.cluster.gpus)
    tokens = np.random.default_rng(seed).integers(len(trace.ids), size=(samples, batch))
    routing = [
        layer.model_dump(exclude={"scenarios"})
        | {"scenarios": _scenarios(trace.ids[:, l], tokens, moe.experts)}
        for l, layer in enumerate(instance.routing)
    ]
    nodes = [
        node.model_dump() | {"kv_mib": share * float(requests.kv_mib.max())}
        for node in instance.cluster.nodes
    ]
    document = instance.model_dump(by_alias=True, exclude={"arrays", "arrays_sha256"})
    notes = (
        f"{samples} sampled steps of {batch} tokens of {trace.name}, seed {seed}; each GPU keeps "
        f"the largest KV cache {share} times"
    )
    if instance.source is not None and instance.source.notes:
        notes = f"{instance.source.notes}; {notes}"
    return Instance.from_document(
        document
        | {
            "name": f"{instance.name}_b{batch}",
            "cluster": document["cluster"] | {"nodes": nodes},
            "routing": routing,
            "source": {
                "title": f"{instance.name} with sampled decode steps",
                "notes": notes,
            },
        }
    )


def _scenarios(ids: np.ndarray, tokens: np.ndarray, experts: int) -> dict[str, Any]:
    """Experts and token counts of every step."""
    counts = [np.bincount(ids[step].ravel(), minlength=experts) for step in tokens]
    present = [np.flatnonzero(count) for count in counts]
    return {
        "experts": [e.tolist() for e in present],
        "tokens": [count[e].tolist() for count, e in zip(counts, present, strict=True)],
        "weight": np.full(len(counts), 1.0 / len(counts)),
    }
