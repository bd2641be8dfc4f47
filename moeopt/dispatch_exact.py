"""The exact layer time of one scenario.

Polynomial cases are flows: tokens only (``b = 0``), activations only (``unit``, or ``β = 0``), no
expert with a choice. Mixed forms are solved by branch and bound over the non-empty set of replicas
that each expert activates; for a complete choice the split of tokens is a flow (see
:mod:`moeopt.dispatch_flow`).

Three facts keep the search small. Positive shares of some optimal dispatch form a forest on
experts and GPUs: along a cycle tokens shift around, whole ones too, until an edge vanishes, every
GPU keeping its tokens and none gaining an activation. Experts with equal replicas and equal tokens
may be taken in any order. And an undecided expert costs at least its activation, spread like its
tokens: with f ≥ p + q·A + r·N, a share y of n tokens costs at least (r + q/n)·y, so it counts as
n + q/r tokens in a flow without activations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt

from moeopt.dispatch_flow import DispatchResult, Flow, Hosts, plain_numbers, result_of, split_time
from moeopt.dispatch_rule import rule_time
from moeopt.problem import LayerTime

#: Nodes of the search after which the rule's (or a better) dispatch is returned as a bound.
NODES_LIMIT = 20_000


def exact_time(
    layer_time: LayerTime,
    hosts: Hosts,
    tokens: Sequence[float] | npt.NDArray[np.generic],
    whole: bool,
    nodes_limit: int = NODES_LIMIT,
) -> DispatchResult:
    """Layer time of one scenario under given replicas, with a dispatch that attains it.

    Parameters
    ----------
    hosts : for each expert, the GPUs that host it (at least one)
    tokens : tokens of each expert; experts without tokens are not activated
    whole : bool
        Whether tokens are indivisible (then they must be whole numbers).
    nodes_limit : int
        Nodes of the search for mixed forms; 0 leaves only the rule and its lower bound.

    Returns
    -------
    DispatchResult
        ``exact`` is False only if the search was cut off. Exact means to a relative 1e-12;
        ``time`` is always attained by ``assignment``.

    Raises
    ------
    ValueError
        An expert with tokens has no GPU.
    """
    tokens = plain_numbers(tokens)
    active = [e for e, n in enumerate(tokens) if n > 0]
    if any(not hosts[e] for e in active):
        raise ValueError("an expert with tokens is hosted nowhere")
    h = [tuple(sorted(hosts[e])) for e in active]
    n = [tokens[e] for e in active]
    result = _active_time(layer_time, h, n, whole, nodes_limit)
    named = [(active[i], g, amount) for i, g, amount in result.assignment]
    return DispatchResult(result.time, named, result.method, result.exact)


def _active_time(
    layer_time: LayerTime, hosts: Hosts, tokens: Sequence[float], whole: bool, nodes_limit: int
) -> DispatchResult:
    gpus = 1 + max((g for h in hosts for g in h), default=0)
    if all(len(h) == 1 for h in hosts):
        only: Flow = [{h[0]: n} for h, n in zip(hosts, tokens, strict=True)]
        return result_of(layer_time, only, gpus, "exact: one replica each", True)
    if not layer_time.counts_tokens:
        _, flow = split_time(_TOKENS, hosts, [1] * len(hosts), [0] * gpus, True)
        assert flow is not None
        chosen: Flow = [{next(iter(f)): n} for f, n in zip(flow, tokens, strict=True)]
        return result_of(layer_time, chosen, gpus, "exact: matching", True)
    if layer_time.expert_us == 0:
        _, flow = split_time(layer_time, hosts, tokens, [0] * gpus, whole)
        assert flow is not None
        return result_of(layer_time, flow, gpus, "exact: max-flow", True)
    return _Search(layer_time, hosts, tokens, whole, nodes_limit).run()


_TOKENS = LayerTime("sum", token_us=1.0)


class _Search:
    """Depth-first search over the replicas that each expert activates."""

    def __init__(
        self,
        layer_time: LayerTime,
        hosts: Hosts,
        tokens: Sequence[float],
        whole: bool,
        nodes_limit: int,
    ) -> None:
        # Experts without a choice first, then many tokens first; equal ones side by side.
        self.order = sorted(
            range(len(hosts)), key=lambda e: (len(hosts[e]) > 1, -tokens[e], hosts[e])
        )
        self.layer_time = layer_time
        self.hosts = [tuple(hosts[e]) for e in self.order]
        self.tokens = [tokens[e] for e in self.order]
        self.whole = whole
        self.nodes_left = nodes_limit
        self.gpus = 1 + max(g for h in hosts for g in h)
        self.choices = [
            [s for size in range(1, len(h) + 1) for s in combinations(h, size)] for h in self.hosts
        ]
        self.best = rule_time(layer_time, self.hosts, self.tokens, whole)
        self.pieces = _pieces(layer_time, self.tokens)
        # The node: replicas used by decided experts (the others may use all), and activations.
        self.used = list(self.hosts)
        self.activated = [0] * self.gpus
        self.picked = [0] * len(self.hosts)

    def run(self) -> DispatchResult:
        decided = sum(len(h) == 1 for h in self.hosts)
        for (g,) in self.hosts[:decided]:
            self.activated[g] += 1
        finished = self._visit(decided, tuple(range(self.gpus)))
        method = "exact: enumeration" if finished else self.best.method
        assignment = sorted((self.order[e], g, n) for e, g, n in self.best.assignment)
        return DispatchResult(self.best.time, assignment, method, finished)

    def _visit(self, depth: int, tree: tuple[int, ...]) -> bool:
        """Search below a node; False if the limit cut it off.

        ``tree[g]`` names the tree of GPU g, joined by the experts decided so far.
        """
        if self._closed(depth):
            return True
        same_as_before = depth > 0 and (
            (self.hosts[depth], self.tokens[depth])
            == (self.hosts[depth - 1], self.tokens[depth - 1])
        )
        for pick in range(
            self.picked[depth - 1] if same_as_before else 0, len(self.choices[depth])
        ):
            if self.nodes_left <= 0:
                return False
            chosen = self.choices[depth][pick]
            joined = {tree[g] for g in chosen}
            if len(joined) < len(chosen):
                continue  # a cycle
            self.nodes_left -= 1
            self.picked[depth], self.used[depth] = pick, chosen
            for g in chosen:
                self.activated[g] += 1
            finished = self._visit(
                depth + 1, tuple(min(joined) if t in joined else t for t in tree)
            )
            for g in chosen:
                self.activated[g] -= 1
            self.used[depth] = self.hosts[depth]
            if not finished:
                return False
        return True

    def _closed(self, depth: int) -> bool:
        """Whether no better dispatch lies below the node (a leaf is evaluated and closed)."""
        target = self.best.time * (1 - 1e-12)
        _, flow = split_time(
            self.layer_time, self.used, self.tokens, self.activated, self.whole, target
        )
        if flow is None:
            return True
        if depth == len(self.hosts):
            found = result_of(self.layer_time, flow, self.gpus, "enumeration cut off", False)
            if found.time < self.best.time:
                self.best = found
            return True
        for constant, activation, token in self.pieces:
            if token > 0:
                extra = activation / token
                loads = [n + extra * (e >= depth) for e, n in enumerate(self.tokens)]
                form = LayerTime("sum", constant, activation, token_us=token)
            else:
                loads = [float(e >= depth) for e in range(len(self.tokens))]
                form = LayerTime("sum", constant, activation, token_us=activation)
            bound, _ = split_time(form, self.used, loads, self.activated, token == 0, target)
            if bound >= target:
                return True
        return False


def _pieces(layer_time: LayerTime, tokens: Sequence[float]) -> list[tuple[float, float, float]]:
    """Affine lower bounds of f for nodes: (constant, an activation, a token)."""
    if layer_time.form != "p2":
        return [piece for piece in layer_time.pieces() if piece[1] > 0]
    # Of the tangents of p2 the one at the mean GPU tells most.
    x = layer_time.expert_us * len(tokens)
    y = layer_time.token_us * math.fsum(tokens)
    length = math.hypot(x, y) * (1 + 1e-15)
    return [
        (layer_time.base_us, layer_time.expert_us * x / length, layer_time.token_us * y / length)
    ]
