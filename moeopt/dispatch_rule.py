"""A good dispatch for scenarios of any size, by a deterministic rule.

The mixed forms are NP-hard even on two GPUs, so large scenarios are judged by this rule: its time
is an upper bound of the layer time. It starts three times, from whole experts (longest first, each
to the replica whose GPU ends earliest), from a matching that levels activations alone and from the
split that levels tokens alone; improves the
worst GPU by moving, splitting and swapping as long as the two GPUs concerned both end below the
worst time; and finally splits tokens exactly over the replicas that are still active.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from moeopt.dispatch_flow import (
    DispatchResult,
    Flow,
    Hosts,
    plain_numbers,
    result_of,
    scalar_form,
    split_time,
)
from moeopt.problem import LayerTime

#: Time of the two GPUs concerned after it, and its shifts (expert, from GPU, to GPU, tokens).
Move = tuple[float, list[tuple[int, int, int, float]]]

METHOD = "rule: LPT, moves and splits"


def rule_time(
    layer_time: LayerTime,
    hosts: Hosts,
    tokens: Sequence[float] | npt.NDArray[np.generic],
    whole: bool,
    gpus: int | None = None,
) -> DispatchResult:
    """Dispatch a scenario by the rule; its time is an upper bound of the layer time.

    Parameters
    ----------
    hosts : for each expert, the GPUs that host it (at least one)
    tokens : tokens of each expert; experts without tokens are not activated
    whole : bool
        Whether tokens are indivisible.
    gpus : int, optional
        Number of GPUs; by default as many as ``hosts`` mentions. Idle ones change nothing.
    """
    gpus = gpus or 1 + max((g for h in hosts for g in h), default=0)
    tokens = plain_numbers(tokens)
    open_hosts = [h if n > 0 else () for h, n in zip(hosts, tokens, strict=True)]
    best: DispatchResult | None = None
    for start in (_longest_first, _level_activations, _level_tokens):
        plan = _Plan(
            layer_time, open_hosts, start(layer_time, open_hosts, tokens, gpus, whole), gpus
        )
        plan.improve(whole)
        used = [tuple(sorted(line)) for line in plan.flow]
        _, flow = split_time(layer_time, used, tokens, plan.activated, whole)
        assert flow is not None
        for candidate in (plan.flow, flow):
            result = result_of(layer_time, candidate, gpus, METHOD, False)
            if best is None or result.time < best.time:
                best = result
    assert best is not None
    return best


def _longest_first(
    layer_time: LayerTime, hosts: Hosts, tokens: Sequence[float], gpus: int, whole: bool
) -> Flow:
    f = scalar_form(layer_time)
    flow: Flow = [{} for _ in hosts]
    activated, load = [0] * gpus, [0.0] * gpus
    # Experts without a choice first: the others then go around them.
    for e in sorted(range(len(hosts)), key=lambda e: (len(hosts[e]) > 1, -tokens[e], e)):
        if tokens[e] > 0:
            g = min(
                hosts[e],
                key=lambda g: (f(activated[g] + 1, load[g] + tokens[e]), activated[g], load[g], g),
            )
            flow[e][g] = tokens[e]
            activated[g] += 1
            load[g] += tokens[e]
    return flow


def _level_activations(
    layer_time: LayerTime, hosts: Hosts, tokens: Sequence[float], gpus: int, whole: bool
) -> Flow:
    present = [int(n > 0) for n in tokens]
    _, flow = split_time(_TOKENS, hosts, present, [0] * gpus, True)
    assert flow is not None
    return [dict.fromkeys(line, n) for line, n in zip(flow, tokens, strict=True)]


def _level_tokens(
    layer_time: LayerTime, hosts: Hosts, tokens: Sequence[float], gpus: int, whole: bool
) -> Flow:
    _, flow = split_time(_TOKENS, hosts, tokens, [0] * gpus, whole)
    assert flow is not None
    return flow


_TOKENS = LayerTime("sum", token_us=1.0)


class _Plan:
    """A dispatch under improvement: flow, activations, tokens and time of each GPU."""

    def __init__(self, layer_time: LayerTime, hosts: Hosts, flow: Flow, gpus: int) -> None:
        self.f = scalar_form(layer_time)
        self.splits = layer_time.counts_tokens
        self.hosts = hosts
        self.flow = flow
        self.activated = [0] * gpus
        self.load = [0.0] * gpus
        self.on: list[set[int]] = [set() for _ in range(gpus)]
        for e, line in enumerate(flow):
            for g, n in line.items():
                self.activated[g] += 1
                self.load[g] += n
                self.on[g].add(e)
        self.time = [self.f(a, n) for a, n in zip(self.activated, self.load, strict=True)]

    def improve(self, whole: bool) -> None:
        """Relieve the worst GPU while some move makes both GPUs concerned end earlier."""
        for _ in range(4 * (len(self.hosts) + len(self.time))):
            worst = max(self.time)
            g = self.time.index(worst)
            limit = worst * (1 - 1e-9)
            move = min(self._moves(g, limit, whole), default=None)
            if move is None:
                move = min(self._swaps(g, limit), default=None)
            if move is None:
                return
            for e, source, target, amount in move[1]:
                self._shift(e, source, target, amount)

    def _moves(self, g: int, limit: float, whole: bool) -> Iterator[Move]:
        """Moves of an expert's share, or of a part of it, from GPU g to another replica."""
        f, a, n = self.f, self.activated, self.load
        for e in sorted(self.on[g]):
            share = self.flow[e][g]
            for h in self.hosts[e]:
                if h == g:
                    continue
                opened = a[h] + (h not in self.flow[e])
                if f(opened, n[h] + (1 if whole else 0)) >= limit:
                    continue
                time = max(f(a[g] - 1, n[g] - share), f(opened, n[h] + share))
                if time < limit:
                    yield time, [(e, g, h, share)]
                if self.splits and f(a[g], n[g] - share) < f(opened, n[h] + share):
                    part = self._part(g, h, opened, share, whole)
                    time = max(f(a[g], n[g] - part), f(opened, n[h] + part))
                    if 0 < part < share and time < limit:
                        yield time, [(e, g, h, part)]

    def _part(self, g: int, h: int, opened: int, share: float, whole: bool) -> float:
        """How much of a share levels two GPUs: the largest part that leaves g no better than h."""
        low, high = 0.0, share
        while high - low > (1 if whole else 1e-7 * share):
            part = (low + high) // 2 if whole else (low + high) / 2
            if self.f(self.activated[g], self.load[g] - part) >= self.f(
                opened, self.load[h] + part
            ):
                low = part
            else:
                high = part
        if whole:
            # Of the two neighbours of the level, the one that ends earlier.
            return min(
                (low, high),
                key=lambda part: max(
                    self.f(self.activated[g], self.load[g] - part),
                    self.f(opened, self.load[h] + part),
                ),
            )
        return low

    def _swaps(self, g: int, limit: float) -> Iterator[Move]:
        """Exchanges of two experts' shares between GPU g and another one."""
        f, a, n = self.f, self.activated, self.load
        for e in sorted(self.on[g]):
            share = self.flow[e][g]
            for h in self.hosts[e]:
                if h == g or h in self.flow[e]:
                    continue
                for i in sorted(self.on[h]):
                    other = self.flow[i][h]
                    if i != e and other < share and g in self.hosts[i] and g not in self.flow[i]:
                        change = other - share
                        time = max(f(a[g], n[g] + change), f(a[h], n[h] - change))
                        if time < limit:
                            yield time, [(e, g, h, share), (i, h, g, other)]

    def _shift(self, e: int, source: int, target: int, amount: float) -> None:
        line = self.flow[e]
        if amount >= line[source]:
            amount = line.pop(source)
            self.activated[source] -= 1
            self.on[source].discard(e)
        else:
            line[source] -= amount
        if target not in line:
            self.activated[target] += 1
            self.on[target].add(e)
        line[target] = line.get(target, 0) + amount
        for g in (source, target):
            # Summed afresh: differences would leave dust behind.
            self.load[g] = sum(self.flow[i][g] for i in sorted(self.on[g]))
            self.time[g] = self.f(self.activated[g], self.load[g])
