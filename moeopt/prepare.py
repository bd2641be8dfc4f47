"""prepare: from an instance to the arrays that one problem needs."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from moeopt.errors import InputError
from moeopt.feasibility import explain_infeasible
from moeopt.instance import Instance
from moeopt.instance_limits import wave_problems
from moeopt.instance_parts import JointOptions, LayerRouting, RequestClass, ScenarioList
from moeopt.prepare_activation import missing_activation, with_activation
from moeopt.prepare_affinity import missing_for_affinity, with_affinity
from moeopt.prepare_balance import with_balance
from moeopt.prepare_paging import missing_for_paging, with_paging
from moeopt.prepare_topology import missing_for_topology, with_topology
from moeopt.problem import (
    PROBLEMS,
    FloatArray,
    IntArray,
    LayerTime,
    ProblemData,
    RequestClasses,
    Scenarios,
)
from moeopt.units import mib_down, mib_up

__all__ = ["explain_infeasible", "prepare"]

#: Problems whose objective is over the scenarios of the routing.
BY_SCENARIOS = ("placement", "replication", "affinity")

#: Most waves of ``joint`` where the instance does not say, unless the KV cache alone needs more.
DEFAULT_WAVES_LIMIT = 8


def prepare(instance: Instance, problem: str) -> ProblemData:
    """Derive the index sets and arrays of one problem from an instance.

    Sizes are rounded up and memory is rounded down to whole bytes; weights are normalised;
    scenarios that activate the same experts with the same tokens are merged (in the order of
    their first appearance), with ascending experts; a missing load is Σ p n of the scenarios; a
    missing usage is top_k · load / Σ load.

    Parameters
    ----------
    instance : Instance
    problem : str
        One of :data:`moeopt.problem.PROBLEMS`.

    Raises
    ------
    InputError
        The problem is unknown, or needs something that the instance does not have.
    """
    if lines := _missing_ingredients(instance, problem):
        raise InputError(lines)
    moe, spec = instance.moe, instance.layer_time
    scenarios = tuple(
        None if routed.scenarios is None else _scenarios(routed.scenarios)
        for routed in instance.routing
    )
    load = np.stack(
        [_load(r, s, moe.experts) for r, s in zip(instance.routing, scenarios, strict=True)]
    )
    joint = problem == "joint"
    free_mib = free_memory_mib(instance, with_cache=joint)
    requests = _requests(instance, load) if joint else None
    waves, wave_steps = 0, None
    options = instance.joint or JointOptions()
    if requests is not None and free_mib is not None:
        wave_steps = options.wave_steps
        one_copy_mib = moe.layers * moe.experts * mib_up(moe.expert_mib)
        waves = (
            options.waves
            or len(wave_steps or options.wave_requests or ())
            or _default_waves(requests, math.fsum(free_mib) - one_copy_mib)
        )
        sizes = (len(requests.names), moe.experts, instance.cluster.gpus)
        if lines := list(wave_problems("requests (without joint.waves)", waves, *sizes)):
            raise InputError(lines)
    data = ProblemData(
        name=instance.name,
        sha256=instance.sha256,
        problem=problem,
        layers=moe.layers,
        experts=moe.experts,
        top_k=moe.top_k,
        gpus=instance.cluster.gpus,
        expert_mib=mib_up(moe.expert_mib),
        free_mib=free_mib,
        slots=instance.cluster.slots_per_gpu,
        layer_time=LayerTime(
            spec.form, spec.base_us, spec.expert_us, spec.token_base_us, spec.token_us
        ),
        scenarios=(tuple(s for s in scenarios if s is not None) if problem in BY_SCENARIOS else ()),
        load=load,
        gpu_kind=_gpu_kind(free_mib, instance.cluster.gpus),
        requests=requests,
        waves=waves,
        wave_steps=wave_steps,
        wave_requests=None if requests is None else _wave_requests(options, requests),
        charged=options.charged or "activated" if joint else "activated",
        uniform_slots=bool(joint and options.uniform_slots),
        attention_base_us=spec.attention_base_us,
        attention_us_per_mib=spec.attention_us_per_mib,
        layer_numbers=tuple(routed.layer for routed in instance.routing),
    )
    if problem == "paging":
        return with_paging(data, instance)
    if problem == "topology":
        return with_topology(data, instance)
    if problem == "activation":
        return with_activation(data, instance, _scenarios)
    if problem == "affinity":
        return with_affinity(data, instance)
    return with_balance(data, instance) if problem == "balance" else data


def _missing_ingredients(instance: Instance, problem: str) -> list[str]:
    if problem not in PROBLEMS:
        return [f"problem {problem!r} is unknown (known: {', '.join(PROBLEMS)})"]
    if problem == "balance":
        lacks = instance.cluster.slots_per_gpu is None
        return ["problem balance needs cluster.slots_per_gpu"] if lacks else []
    if problem == "activation":
        return missing_activation(instance)
    if problem == "paging":
        return list(missing_for_paging(instance))
    if problem == "topology":
        return missing_for_topology(instance)
    if problem == "affinity":
        return list(missing_for_affinity(instance))
    if problem != "joint":
        lacking = [l for l, routed in enumerate(instance.routing) if routed.scenarios is None]
        if len(lacking) == len(instance.routing):
            return [f"problem {problem} needs routing[*].scenarios: no layer has any"]
        return [f"problem {problem} needs routing[{l}].scenarios" for l in lacking]
    lines = []
    spec = instance.layer_time
    if spec.form == "unit" and (spec.attention_base_us or spec.attention_us_per_mib):
        lines.append(
            "problem joint needs layer_time in microseconds where attention_*_us are given: "
            "`unit` counts expert-time units"
        )
    if instance.requests is None:
        lines.append("problem joint needs `requests`")
    if instance.moe.kv_kib_per_token is None:
        lines.append("problem joint needs moe.kv_kib_per_token")
    if any(node.memory_mib is None for node in instance.cluster.nodes):
        lines.append("problem joint needs memory_mib in every node of cluster.nodes")
    return lines


def _scenarios(listed: ScenarioList) -> Scenarios:
    """Sort experts inside each scenario, merge equal scenarios, normalise the weights."""
    rows = listed.experts
    tokens = np.ones_like(rows.values) if listed.tokens is None else listed.tokens.values
    order = np.lexsort((rows.values, rows.row))  # the rows stay where they are
    expert, tokens = rows.values[order], tokens[order]
    width = int(rows.sizes.max())
    # One fixed-width row of (expert + 1, tokens) pairs, zero padded: equal rows, equal scenarios.
    key = np.zeros((len(rows), width, 2), dtype=np.int64)
    key[np.arange(width) < rows.sizes[:, None]] = np.stack([expert + 1, tokens], axis=1)
    flat = _as_bytes(key.reshape(len(rows), 2 * width))
    _, first, group = np.unique(flat, return_index=True, return_inverse=True)
    weight = np.bincount(group, weights=listed.weight)
    appearance = np.argsort(first)
    kept = first[appearance]
    sizes = rows.sizes[kept]
    inside = np.repeat(rows.ptr[kept] - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())
    return Scenarios(
        ptr=np.concatenate(([0], np.cumsum(sizes))),
        expert=expert[inside],
        tokens=tokens[inside],
        weight=weight[appearance] / math.fsum(weight),
    )


def _as_bytes(rows: IntArray) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    # numpy sorts one void a row with memcmp, much faster than unique(axis=0) sorts records.
    small = np.ascontiguousarray(rows.astype(np.min_scalar_type(int(rows.max(initial=0)))))
    return small.view(np.dtype((np.void, small.shape[1] * small.itemsize))).ravel()


def _load(routed: LayerRouting, scenarios: Scenarios | None, experts: int) -> FloatArray:
    if routed.load is not None:
        return np.asarray(routed.load, dtype=np.float64)
    if scenarios is None:
        raise ValueError("a layer has neither load nor scenarios")  # refused by Instance
    expected = scenarios.tokens * np.repeat(scenarios.weight, scenarios.sizes)
    load: FloatArray = np.zeros(experts)
    np.add.at(load, scenarios.expert, expected)
    return load


def free_memory_mib(instance: Instance, *, with_cache: bool) -> FloatArray | None:
    """Return what is left of each GPU's memory, shape (G,); None where slots alone limit.

    ``with_cache``: for experts and KV cache together; else without what is kept for the cache.
    """
    free = []
    for node in instance.cluster.nodes:
        if node.memory_mib is None:
            return None
        # Differences of whole bytes below 8 PiB are exact in double precision.
        taken = mib_up(node.reserved_mib) + mib_up(instance.moe.dense_mib or 0.0)
        if node.kv_mib is not None and not with_cache:
            taken += mib_up(node.kv_mib)
        free += [mib_down(node.memory_mib) - taken] * node.gpus
    return np.array(free)


def _gpu_kind(free_mib: FloatArray | None, gpus: int) -> IntArray:
    if free_mib is None:
        return np.zeros(gpus, dtype=np.int64)
    return np.unique(free_mib, return_inverse=True)[1].astype(np.int64)


def _wave_requests(options: JointOptions, requests: RequestClasses) -> IntArray | None:
    if options.wave_requests is None:
        return None
    rows = [[wave.get(name, 0) for wave in options.wave_requests] for name in requests.names]
    return np.array(rows, dtype=np.int64)


def _requests(instance: Instance, load: FloatArray) -> RequestClasses:
    classes = instance.requests or ()
    profile = instance.moe.top_k * load / load.sum(axis=1, keepdims=True)
    return RequestClasses(
        names=tuple(c.name for c in classes),
        count=np.array([c.count for c in classes], dtype=np.int64),
        prompt_tokens=np.array([c.prompt_tokens for c in classes], dtype=np.int64),
        output_tokens=np.array([c.output_tokens for c in classes], dtype=np.int64),
        kv_mib=np.array([_kv_mib(instance.moe.kv_kib_per_token or 0.0, c) for c in classes]),
        usage=np.stack([profile if c.usage is None else c.usage for c in classes]),
    )


def _kv_mib(kv_kib_per_token: float, request: RequestClass) -> float:
    tokens = request.prompt_tokens + request.output_tokens
    return mib_up(Fraction(repr(kv_kib_per_token)) * tokens / 1024)


def _default_waves(requests: RequestClasses, kv_room_mib: float) -> int:
    """Waves that the KV cache needs, and one more for each output length, up to the limit."""
    total_mib = float(requests.count @ requests.kv_mib)
    needed = max(1, math.ceil(total_mib / kv_room_mib)) if kv_room_mib > 0 else 1
    lengths = len(np.unique(requests.output_tokens))
    limit = max(DEFAULT_WAVES_LIMIT, needed + 1)
    return min(needed + lengths, limit, int(requests.count.sum()))
