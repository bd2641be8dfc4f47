"""Step 3, routing: which copy computes which token. Every strategy by its name.

The answer of all of them is the GPU of every (token, expert) pair, so that one checker and one
measure serve them all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numba import njit

from moeopt.errors import InputError
from moeopt.grace.data import Batches, ByteArray, FloatArray, Plan
from moeopt.grace.routing_flow import CAPPED, LEVEL, NEAR, SENDS, flow

_PRIMARY, _NEAREST, _ROUND_ROBIN, _WEIGHTED, _TIERS = range(5)


@njit(cache=True, nogil=True)
def _pick(weights: Any, gpus: Any, count: int, random: np.random.Generator) -> int:
    """Draw a GPU with the chance of its weight (the paper's Algorithm 3)."""
    total = 0.0
    for i in range(count):
        total += weights[gpus[i]]
    at = random.random() * total
    for i in range(count):
        at -= weights[gpus[i]]
        if at < 0.0:
            return int(gpus[i])
    return int(gpus[count - 1])


@njit(cache=True, nogil=True)
def _copies(hosts: Any, home: int, per_node: int, found: Any, count: Any) -> None:
    """List the GPUs of each expert (E, G) as its tokens at ``home`` see them.

    In a ring that begins at home, the GPUs of its node before the others. ``count`` (E, 2): how
    many are on its node, and in all.
    """
    experts, gpus = hosts.shape
    for e in range(experts):
        at = 0
        for far in range(2):
            for step in range(gpus):
                g = (home + step) % gpus
                if hosts[e, g] and (g // per_node != home // per_node) == (far == 1):
                    found[e, at] = g
                    at += 1
            count[e, far] = at


@njit(cache=True, nogil=True)
def _route(
    ids: Any,
    home: Any,
    hosts: Any,
    primary: Any,
    weights: Any,
    per_node: int,
    rule: int,
    random: np.random.Generator,
    served: Any,
) -> None:
    batches, tokens, layers, top_k = ids.shape
    experts, gpus = hosts.shape[1], hosts.shape[2]
    found = np.empty((gpus, experts, gpus), dtype=np.int64)
    count = np.empty((gpus, experts, 2), dtype=np.int64)
    for l in range(layers):
        for h in range(gpus):
            _copies(hosts[l], h, per_node, found[h], count[h])
        turn = np.zeros(experts, dtype=np.int64)
        for b in range(batches):
            for t in range(tokens):
                h = home[t]
                for i in range(top_k):
                    e = ids[b, t, l, i]
                    close, copies = count[h, e, 0], count[h, e, 1]
                    if rule == _PRIMARY:
                        served[b, t, l, i] = primary[l, e]
                    elif copies == 1:
                        served[b, t, l, i] = found[h, e, 0]
                    elif rule == _ROUND_ROBIN:
                        # In the order of one GPU for all: whose turn it is does not depend on home.
                        served[b, t, l, i] = found[0, e, turn[e] % copies]
                        turn[e] += 1
                    elif rule == _WEIGHTED:
                        served[b, t, l, i] = _pick(weights[l], found[h, e], copies, random)
                    elif rule == _NEAREST or hosts[l, e, h]:
                        served[b, t, l, i] = found[h, e, 0]
                    else:
                        among = close if close > 0 else copies
                        served[b, t, l, i] = _pick(weights[l], found[h, e], among, random)


def _by_rule(rule: int, plan: Plan, batches: Batches, seed: int) -> ByteArray:
    served = np.zeros(batches.ids.shape, dtype=np.uint8)
    _route(
        batches.ids,
        batches.home,
        plan.hosts,
        plan.primary,
        polling_weights(plan.predicted),
        plan.nodes.gpus_per_node,
        rule,
        np.random.default_rng(seed),
        served,
    )
    return served


def polling_weights(predicted: FloatArray) -> FloatArray:
    """Weights inversely proportional to predicted loads, shape (L, G); no load counts as one token.

    A prediction of the published rule can be 0, and a weight must be finite.
    """
    return np.asarray(1.0 / np.maximum(predicted, 1.0))


def _by_flow(kind: str, plan: Plan, batches: Batches, seed: int) -> ByteArray:
    return flow(plan, batches, kind)


#: Random only where a weighted choice is drawn: `grace` and `weighted`.
ROUTINGS: dict[str, Callable[[Plan, Batches, int], ByteArray]] = {
    # Published: same GPU, else same node, else anywhere; weighted by predicted loads in a tier.
    "grace": partial(_by_rule, _TIERS),
    # Published without tiers: weighted by predicted loads over all copies.
    "weighted": partial(_by_rule, _WEIGHTED),
    "nearest": partial(_by_rule, _NEAREST),
    "round-robin": partial(_by_rule, _ROUND_ROBIN),
    "primary": partial(_by_rule, _PRIMARY),
    # Ours: least traffic with no load above 1.1 times the mean (or the least possible).
    "flow": partial(_by_flow, CAPPED),
    # Ours: the same, remote pairs of tokens that are sent to the other node anyway at a low price.
    "flow-sends": partial(_by_flow, SENDS),
    # Ours: least remote pairs, then the least largest load.
    "flow-near": partial(_by_flow, NEAR),
    # Ours: the least largest load, then least traffic.
    "flow-level": partial(_by_flow, LEVEL),
}


def route(name: str, plan: Plan, batches: Batches, seed: int = 0) -> ByteArray:
    """Route by the strategy of this name.

    Returns
    -------
    uint8 array, shape (B, T, L, k)
        GPU that computes each expert of each token.

    Raises
    ------
    InputError
        No such strategy, or the trace is not the plan's.
    """
    if name not in ROUTINGS:
        raise InputError(f"routing {name!r} is unknown (known: {', '.join(ROUTINGS)})")
    layers, experts, _ = plan.hosts.shape
    if batches.ids.shape[2] != layers or int(batches.ids.max()) >= experts:
        raise InputError(f"the plan has {layers} layers of {experts} experts, the tokens others")
    return ROUTINGS[name](plan, batches, seed)


def routing_problems(plan: Plan, batches: Batches, served: ByteArray) -> list[str]:
    """Check a routing: every pair is computed on a GPU that holds the expert."""
    if served.shape != batches.ids.shape:
        return [f"a routing of shape {served.shape} for tokens of shape {batches.ids.shape}"]
    if served.max(initial=0) >= plan.nodes.gpus:
        return [f"GPU {served.max()} does not exist"]
    b, t, l, i = _first_wrong(plan.hosts, batches.ids, served)
    if b < 0:
        return []
    expert = int(batches.ids[b, t, l, i])
    return [
        f"batch {b}, token {t}, layer {l}: GPU {served[b, t, l, i]} does not hold expert {expert}"
    ]


@njit(cache=True, nogil=True)
def _first_wrong(hosts: Any, ids: Any, served: Any) -> Any:
    """Place of the first pair on a GPU without its expert; -1 for the batch if there is none."""
    batches, tokens, layers, top_k = ids.shape
    for b in range(batches):
        for t in range(tokens):
            for l in range(layers):
                for i in range(top_k):
                    if not hosts[l, ids[b, t, l, i], served[b, t, l, i]]:
                        return b, t, l, i
    return -1, -1, -1, -1
