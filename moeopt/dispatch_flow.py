"""The least layer time once it is known which replicas are activated: a flow problem.

GPU g can take ``cap(T, A_g)`` tokens within time T, where cap inverts f in its second argument.
T is attainable if and only if, for every set U of GPUs, the tokens of experts all of whose
replicas lie in U are at most ``Σ_{g∈U} cap(T, A_g)`` (max-flow, min-cut). The search is Newton's:
start from a time that is surely needed, route, and where routing fails raise T just enough for
the violated set U. Each step is a proved lower bound, the last one is attained.

Whole tokens are computed exactly; real ones to a few units in the last place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moeopt.problem import LayerTime

Hosts = Sequence[Sequence[int]]
Flow = list[dict[int, float]]
Scalar = Callable[[int, float], float]


def plain_numbers(tokens: Sequence[float] | npt.NDArray[np.generic]) -> list[float]:
    """Python numbers: whole ones stay exact and loops stay fast."""
    return tokens.tolist() if isinstance(tokens, np.ndarray) else list(tokens)


def scalar_form(layer_time: LayerTime) -> Scalar:
    """f(A, N) for two numbers: :meth:`LayerTime.of` without the price of an array."""
    a, b, c, beta = (
        layer_time.base_us,
        layer_time.expert_us,
        layer_time.token_base_us,
        layer_time.token_us,
    )
    forms: dict[str, Scalar] = {
        "unit": lambda activated, tokens: float(activated),
        "sum": lambda activated, tokens: a + b * activated + beta * tokens,
        "max": lambda activated, tokens: max(a + b * activated, c + beta * tokens),
        "p2": lambda activated, tokens: a + math.hypot(b * activated, beta * tokens),
    }
    return forms[layer_time.form]


def capacity(layer_time: LayerTime, time: float, activated: int, whole: bool) -> float:
    """Tokens that a GPU with ``activated`` replicas computes within ``time``.

    ``-inf`` where even no token fits, ``inf`` where tokens cost nothing.
    """
    f = scalar_form(layer_time)
    if f(activated, 0) > time:
        return -math.inf
    tokens = _inverse(layer_time, time, activated)
    if not whole or math.isinf(tokens):
        return tokens
    # The formula may be off by an ulp; f itself decides.
    n = math.floor(tokens)
    while f(activated, n + 1) <= time:
        n += 1
    while n > 0 and f(activated, n) > time:
        n -= 1
    return n


def _inverse(layer_time: LayerTime, time: float, activated: int) -> float:
    beta = layer_time.token_us
    if layer_time.form == "unit" or beta == 0.0:
        return math.inf
    if layer_time.form == "max":
        return max(0.0, (time - layer_time.token_base_us) / beta)
    over = time - layer_time.base_us
    fixed = layer_time.expert_us * activated
    if layer_time.form == "sum":
        return max(0.0, (over - fixed) / beta)
    return math.sqrt(max(0.0, (over - fixed) * (over + fixed))) / beta


def route(hosts: Hosts, tokens: Sequence[float], room: Sequence[float]) -> tuple[Flow, set[int]]:
    """Send every expert's tokens to its replicas within each GPU's room, if possible.

    Parameters
    ----------
    hosts : for each expert, the GPUs it may use
    tokens : tokens of each expert; whole numbers stay whole
    room : tokens that each GPU takes

    Returns
    -------
    flow : for each expert, tokens by GPU; incomplete if there is a cut
    cut : GPUs whose room is too small together for the experts hosted only there; empty if
        everything fits
    """
    flow: Flow = [{} for _ in hosts]
    free = list(room)
    tiny = 1e-13 * max(math.fsum(tokens), 1e-300)
    left = list(tokens)
    for e in sorted(range(len(hosts)), key=lambda e: (len(hosts[e]), -tokens[e], e)):
        for g in sorted(hosts[e], key=lambda g: -free[g]):
            sent = min(left[e], free[g])
            if sent > 0:
                flow[e][g] = sent
                free[g] -= sent
                left[e] -= sent
        while left[e] > tiny:
            path, reached = _augmenting_path(hosts, flow, free, e, tiny)
            if path is None:
                return flow, reached
            sent = min(left[e], free[path[-1][1]], *(flow[i][g] for i, g in path[1::2]))
            for step, (i, g) in enumerate(path):
                if step % 2 == 0:
                    flow[i][g] = flow[i].get(g, 0) + sent
                else:
                    flow[i][g] -= sent
                    if flow[i][g] <= 0:
                        del flow[i][g]
            free[path[-1][1]] -= sent
            left[e] -= sent
        if left[e] > 0:
            g = max(flow[e], key=lambda g: flow[e][g], default=hosts[e][0])
            flow[e][g] = flow[e].get(g, 0) + left[e]
            left[e] = 0
    return flow, set()


def _augmenting_path(
    hosts: Hosts, flow: Flow, free: Sequence[float], source: int, tiny: float
) -> tuple[list[tuple[int, int]] | None, set[int]]:
    """Shortest path from an expert to a GPU with room, breadth first.

    The path alternates: tokens of expert i go to g, tokens of another expert i' leave g, go to
    g', … The GPUs reached are a cut when there is none.
    """
    on: list[list[int]] = [[] for _ in free]
    for i, line in enumerate(flow):
        for g, amount in line.items():
            if amount > tiny:
                on[g].append(i)
    came: dict[int, tuple[int, int | None]] = dict.fromkeys(hosts[source], (source, None))
    queue = list(came)
    tried = {source}
    for g in queue:
        if free[g] > tiny:
            path: list[tuple[int, int]] = []
            at: int | None = g
            while at is not None:
                expert, before = came[at]
                path.append((expert, at))
                if before is not None:
                    path.append((expert, before))
                at = before
            path.reverse()
            # Reversed: (source, g0), (i, g0), (i, g1), …: to, from, to, from, …, to.
            return path, set()
        for i in on[g]:
            if i not in tried:
                tried.add(i)
                for other in hosts[i]:
                    if other not in came:
                        came[other] = (i, g)
                        queue.append(other)
    return None, set(came)


def split_time(
    layer_time: LayerTime,
    hosts: Hosts,
    tokens: Sequence[float],
    activated: Sequence[int],
    whole: bool,
    stop_at: float = math.inf,
) -> tuple[float, Flow | None]:
    """Least time with tokens split over given replicas, ``activated[g]`` charged on GPU g.

    Parameters
    ----------
    stop_at : float
        Give up as soon as the time is proved to be at least this.

    Returns
    -------
    time : float
        The least T, or a proved lower bound of it that is at least ``stop_at``.
    flow : for each expert, tokens by GPU; None if given up
    """
    f = scalar_form(layer_time)
    time = max(f(count, 0) for count in activated)
    nudge = 1e-15
    while True:
        if time >= stop_at:
            return time, None
        room = [capacity(layer_time, time, count, whole) for count in activated]
        flow, cut = route(hosts, tokens, room)
        if not cut:
            return time, flow
        inside = math.fsum(n for h, n in zip(hosts, tokens, strict=True) if cut.issuperset(h))
        raised = _time_for(layer_time, [activated[g] for g in sorted(cut)], inside, whole, time)
        if raised <= time:
            # Real tokens: the cut is violated by rounding alone. Round T up until it is not.
            raised = time * (1 + nudge)
            nudge *= 2
        time = raised


def _time_for(
    layer_time: LayerTime, activated: Sequence[int], tokens: float, whole: bool, least: float
) -> float:
    """Least T ≥ ``least`` at which GPUs with these activations take ``tokens`` together."""
    real = max(least, _time_for_real(layer_time, activated, tokens, least))
    if not whole:
        return real
    # T is some f(A_g, n): from just below the real answer, admit one token at a time.
    f = scalar_form(layer_time)
    room = [int(capacity(layer_time, max(least, real * (1 - 1e-12)), a, True)) for a in activated]
    time = least
    missing = tokens - sum(room)
    while missing > 0:
        time, g = min(
            (f(a, n + 1), g) for g, (a, n) in enumerate(zip(activated, room, strict=True))
        )
        room[g] += 1
        missing -= 1
    if time == least:
        time = max([least, *(f(a, n) for a, n in zip(activated, room, strict=True))])
    return time


def _time_for_real(
    layer_time: LayerTime, activated: Sequence[int], tokens: float, least: float
) -> float:
    beta_tokens = layer_time.token_us * tokens
    b = layer_time.expert_us
    size = len(activated)
    if layer_time.form == "sum":
        return layer_time.base_us + (beta_tokens + b * sum(activated)) / size
    if layer_time.form == "max":
        return layer_time.token_base_us + beta_tokens / size
    fixed = [b * a for a in activated]

    def room(over: float) -> float:
        return math.fsum(math.sqrt(max(0.0, (over - x) * (over + x))) for x in fixed)

    low = max(least - layer_time.base_us, max(fixed))
    high = max(low, math.hypot(max(fixed), beta_tokens / size))
    if room(low) >= beta_tokens:
        return layer_time.base_us + low
    # room is concave and increasing: Newton from the right crosses once, then climbs from the
    # left; bisection guards the square root's vertical tangent.
    at = high
    for _ in range(200):
        excess = room(at) - beta_tokens
        low, high = (low, at) if excess >= 0 else (at, high)
        slope = math.fsum(at / math.sqrt((at - x) * (at + x)) for x in fixed if at > x)
        step = excess / slope if slope else 0.0
        if abs(step) <= 4e-16 * at:
            break
        at -= step
        if not low < at < high:
            at = (low + high) / 2
    return layer_time.base_us + at


@dataclass(frozen=True)
class DispatchResult:
    """One dispatch of a scenario and its time.

    Attributes
    ----------
    time : float
        ``max_g f(A_g, N_g)`` of ``assignment``, over all GPUs.
    assignment : list of (expert, gpu, tokens)
        Experts are numbered by position in the call; entries without tokens are left out.
    method : str
    exact : bool
        Whether no dispatch has a smaller time; else ``time`` is an upper bound.
    """

    time: float
    assignment: list[tuple[int, int, float]]
    method: str
    exact: bool


def given_time(
    layer_time: LayerTime, assignment: Iterable[tuple[int, int, float]], gpus: int
) -> float:
    """Layer time of a given dispatch: the largest f(A_g, N_g) over all ``gpus`` GPUs.

    An idle GPU counts as f(0, 0), which never exceeds the time of one that works; only where no
    GPU works does it show. A pair without tokens activates nothing.
    """
    parts: list[list[float]] = [[] for _ in range(gpus)]
    for _, g, tokens in assignment:
        if tokens > 0:
            parts[g].append(tokens)
    return float(layer_time.of([len(p) for p in parts], [math.fsum(p) for p in parts]).max())


def result_of(
    layer_time: LayerTime, flow: Flow, gpus: int, method: str, exact: bool
) -> DispatchResult:
    """Evaluate a flow, expert by expert tokens by GPU."""
    assignment = [
        (e, g, n) for e, line in enumerate(flow) for g, n in sorted(line.items()) if n > 0
    ]
    return DispatchResult(given_time(layer_time, assignment, gpus), assignment, method, exact)
