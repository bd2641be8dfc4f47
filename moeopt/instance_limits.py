"""What is too large to be read: caps of single numbers, and of the arrays and sums they lead to.

Memory is whole bytes below 2**53, which doubles and int64 hold exactly, sums included; arrays of
one number for each combination of a few index sets stay below 2**28 entries (2 GiB). The caps are
in the types of ``instance_parts`` and, for products and sums, in :func:`size_problems`: all of
them are checked before anything is allocated for what a file only claims.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

#: Layers, experts of a layer, GPUs of a node and in all: squares of them are arrays, too.
MOST_INDEX = 2**12
#: Whole numbers that are no index: tokens, slots, copies, pages.
MOST_COUNT = 10**9
#: Times in µs, hops, bandwidths, factors.
MOST_NUMBER = 1e9
#: Coefficients of layer times that are not 0, µs: solvers take smaller ones for 0.
LEAST_TIME_US = 1e-6
#: Entries of loads and weights, which may count the tokens of a long time.
MOST_LOAD = 1e12
#: Sizes and sums of sizes, MiB: 8 PiB, 2**53 bytes.
MOST_MIB = 2.0**33
#: Experts of all layers: a plan is a list of GPUs for each.
MOST_EXPERTS = 2**20
#: Requests that are planned together, one by one where that is best.
MOST_REQUESTS = 10**6
#: Waves: searches go through all of them.
MOST_WAVES = 1000
#: Classes of requests: searches go through pairs of them.
MOST_CLASSES = 10_000
#: Entries of one array.
MOST_CELLS = 2**28

#: A factor and what it counts.
Factor = tuple[float, str]


def size_problems(parts: Any) -> list[str]:
    """List what is too large together, each line starting with its JSON path.

    Parameters
    ----------
    parts : Instance
        Or any object with its attributes, where None stands for a part that could not be read.
    """
    requests = [r for r in parts.requests or () if r is not None]
    lines = [
        *_cluster(parts.cluster),
        *_moe(parts.moe, parts.cluster, parts.affinity),
        *_layer_time(parts.layer_time),
        *_requests(requests, parts.moe),
        *_joint(parts.joint, requests, parts.moe, parts.cluster),
        *_paging(parts.paging, parts.moe),
    ]
    for l, routed in enumerate(parts.routing or ()):
        if routed is not None and routed.scenarios is not None:
            lines += _scenarios(routed.scenarios, f"routing[{l}].scenarios.experts")
    if parts.activation is not None:
        for l, layer in enumerate(parts.activation.scenarios):
            for j, scenarios in enumerate(layer):
                lines += _scenarios(scenarios, f"activation.scenarios[{l}][{j}].experts")
    return lines


def product_problem(path: str, factors: Sequence[Factor], most: float) -> Iterator[str]:
    """Yield one line where a product of counts, or of counts and a size, is above ``most``.

    Parameters
    ----------
    factors : sequence of (number, what it counts)
    """
    found = math.prod(number for number, _ in factors)
    if found > most:
        words = " × ".join(f"{number:,.15g} {what}" for number, what in factors)
        yield f"{path}: {words}{f' are {found:,.15g}' if len(factors) > 1 else ''}{_at(most)}"


def wave_problems(path: str, waves: int, classes: int, experts: int, gpus: int) -> Iterator[str]:
    """Yield one line for each cap that so many waves exceed; ``path`` says where they come from."""
    yield from product_problem(path, [(waves, "waves")], MOST_WAVES)
    for number, what in ((classes, "classes"), (experts, "experts")):
        each = [(waves, "waves"), (number, what), (gpus, "GPUs")]
        yield from product_problem(path, each, MOST_CELLS)


def _at(most: float) -> str:
    return f", must be at most {most:,.15g}"


def _cluster(cluster: Any) -> Iterator[str]:
    if cluster is None:
        return
    yield from product_problem("cluster.nodes", [(cluster.gpus, "GPUs in all")], MOST_INDEX)
    memory_mib = math.fsum((node.memory_mib or 0.0) * node.gpus for node in cluster.nodes)
    if memory_mib > MOST_MIB:
        yield f"cluster.nodes: all memory_mib are {memory_mib:,.15g} MiB{_at(MOST_MIB)}"


def _moe(moe: Any, cluster: Any, affinity: Any) -> Iterator[str]:
    if moe is None:
        return
    all_experts = [(moe.layers, "layers"), (moe.experts, "experts")]
    yield from product_problem("moe", all_experts, MOST_EXPERTS)
    yield from product_problem("moe.expert_mib", [*all_experts, (moe.expert_mib, "MiB")], MOST_MIB)
    if cluster is not None:
        yield from product_problem("moe", [*all_experts, (cluster.gpus, "GPUs")], MOST_CELLS)
    if affinity is not None and affinity.kind == "inter":
        pairs = [*all_experts, (moe.experts, "experts of the next layer")]
        yield from product_problem("affinity", pairs, MOST_CELLS)


def _layer_time(spec: Any) -> Iterator[str]:
    for name, value in () if spec is None else spec:
        if isinstance(value, float) and 0 < value < LEAST_TIME_US:
            yield f"layer_time.{name}: must be 0 or at least {LEAST_TIME_US:g}, not {value:g}"


def _requests(requests: Sequence[Any], moe: Any) -> Iterator[str]:
    count = sum(r.count for r in requests)
    yield from product_problem("requests", [(count, "requests in all")], MOST_REQUESTS)
    yield from product_problem("requests", [(len(requests), "classes")], MOST_CLASSES)
    if not requests or moe is None:
        return
    usage = [(len(requests), "classes"), (moe.layers, "layers"), (moe.experts, "experts")]
    yield from product_problem("requests", usage, MOST_CELLS)
    tokens = sum(r.count * (r.prompt_tokens + r.output_tokens) for r in requests)
    cache_mib = tokens * (moe.kv_kib_per_token or 0.0) / 1024
    if cache_mib > MOST_MIB:
        yield f"requests: their KV caches are {cache_mib:,.15g} MiB{_at(MOST_MIB)}"


def _joint(joint: Any, requests: Sequence[Any], moe: Any, cluster: Any) -> Iterator[str]:
    if joint is None:
        return
    classes, experts = len(requests), 1 if moe is None else moe.experts
    gpus = 1 if cluster is None else cluster.gpus
    for name in ("waves", "wave_steps", "wave_requests"):
        value = getattr(joint, name)
        if value is not None:
            waves = value if isinstance(value, int) else len(value)
            yield from wave_problems(f"joint.{name}", waves, classes, experts, gpus)


def _paging(paging: Any, moe: Any) -> Iterator[str]:
    if paging is None or paging.load_gb_s is None or moe is None:
        return
    load_us = moe.expert_mib * 2**20 / (paging.load_gb_s * 1e3)
    if load_us > MOST_NUMBER:
        yield f"paging.load_gb_s: one expert takes {load_us:,.15g} µs{_at(MOST_NUMBER)}"


def _scenarios(scenarios: Any, path: str) -> Iterator[str]:
    # Scenarios are compared as rows of equal width.
    rows = scenarios.experts
    widest = int(rows.sizes.max(initial=0))
    yield from product_problem(path, [(len(rows), "scenarios"), (widest, "experts")], MOST_CELLS)
