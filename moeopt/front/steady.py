"""An instance in steady state: n requests of a fixed mix decode together, in one wave.

Every request emits one token a step, so the time per output token (TPOT) is the step time and the
throughput is n / step. A wave's KV cache is reserved for the final lengths.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moeopt.errors import InputError
from moeopt.feasibility import explain_infeasible
from moeopt.front.mix import rounded_counts, whole_weights
from moeopt.instance import Instance, JointOptions
from moeopt.joint.memory import memory_of
from moeopt.prepare import prepare
from moeopt.problem import IntArray, ProblemData

#: Most requests in flight that are looked at, far more than a cluster of one placement decodes.
REQUESTS_LIMIT = 200_000

_MIB_PER_GIB = 1024


@dataclass(frozen=True)
class SteadyState:
    """The instance, and its mix for every number of requests in flight.

    Attributes
    ----------
    instance : Instance
        With the classes of the mix only.
    data : ProblemData
        Prepared for ``joint``; its counts are not looked at.
    counts : int array, shape (N + 1, C)
        Requests of each class, ``counts[n]`` of n in flight; N is the most that fit.
    """

    instance: Instance
    data: ProblemData
    counts: IntArray

    @property
    def most(self) -> int:
        """Most requests whose cache fits beside one copy of every expert, GPUs taken together."""
        return len(self.counts) - 1

    def instance_of(self, n: int) -> Instance:
        """Return the instance with n requests in flight, in one wave."""
        requests = self.instance.requests or ()
        present = tuple(
            request.model_copy(update={"count": int(count)})
            for request, count in zip(requests, self.counts[n], strict=True)
            if count
        )
        options = self.instance.joint or JointOptions()
        return changed(
            self.instance,
            name=f"{self.instance.name}_n{n}",
            requests=present,
            joint=JointOptions(
                waves=1, charged=options.charged, uniform_slots=options.uniform_slots
            ),
        )


def steady_state(instance: Instance, *, more_gib: float = 0.0) -> SteadyState:
    """Read the mix of an instance.

    Parameters
    ----------
    instance : Instance
        The mix is ``joint.share``, or else the counts of its requests.
    more_gib : float
        Memory added to every GPU (negative: taken away).

    Raises
    ------
    InputError
        It has no latency in microseconds, nothing limits its requests, or not even one fits.
    """
    if more_gib:
        instance = with_memory(instance, more_gib)
    options = instance.joint or JointOptions()
    requests = instance.requests or ()
    shares = [
        float(r.count) if options.share is None else options.share.get(r.name, 0.0)
        for r in requests
    ]
    kept = tuple(r for r, share in zip(requests, shares, strict=True) if share > 0)
    if requests:
        instance = changed(
            instance,
            requests=kept,
            joint=options.model_copy(
                update={"waves": 1, "wave_steps": None, "wave_requests": None, "share": None}
            ),
        )
    data = prepare(instance, "joint")
    if data.layer_time.form == "unit":
        raise InputError("layer_time.form: a latency needs microseconds, not `unit`")
    weights = whole_weights([share for share in shares if share > 0])
    memory = memory_of(data)
    kv = np.array(memory.kv, dtype=object)
    if not (kv > 0).all():
        raise InputError("moe.kv_kib_per_token: is 0, so nothing limits the requests in flight")
    room = int(memory.free.sum()) - memory.copies * memory.expert
    # n·share rounded down, at least n·share − 1, is in flight of every class.
    mean = sum(w * int(b) for w, b in zip(weights, kv, strict=True)) / sum(weights)
    enough = max(0, int((room + int(kv.sum())) / mean * (1 + 1e-9)) + 1)
    if enough > REQUESTS_LIMIT:
        raise InputError(
            f"requests: about {enough:,} fit into the memory, more than {REQUESTS_LIMIT:,}"
        )
    counts = rounded_counts(weights, enough)
    fits = [n for n in range(1, enough + 1) if memory.additional(int(counts[n] @ memory.kv)) >= 0]
    if not fits:
        one = (kept[int(counts[1].argmax())].model_copy(update={"count": 1}),) if enough else kept
        reasons = explain_infeasible(prepare(changed(instance, requests=one), "joint"))
        raise InputError(reasons or ["requests: not even one fits beside one copy of each expert"])
    return SteadyState(instance, data, counts[: fits[-1] + 1])


def with_memory(instance: Instance, more_gib: float) -> Instance:
    """Return the instance with more memory on every GPU (GiB; negative: less)."""
    nodes = tuple(
        node.model_copy(update={"memory_mib": node.memory_mib + more_gib * _MIB_PER_GIB})
        for node in instance.cluster.nodes
        if node.memory_mib is not None
    )
    if len(nodes) < len(instance.cluster.nodes):
        raise InputError("cluster.nodes: memory_mib is needed in every node")
    return changed(instance, cluster=instance.cluster.model_copy(update={"nodes": nodes}))


def changed(instance: Instance, **parts: object) -> Instance:
    """Return a copy with other parts, checked anew."""
    document = {field: getattr(instance, field) for field in type(instance).model_fields}
    document["schema"] = document.pop("schema_")
    # Its arrays are in memory, whatever sidecar they came from.
    return Instance.model_validate({**document, "arrays": None, "arrays_sha256": None, **parts})
