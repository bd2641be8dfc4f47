"""Brute force over whole plans of tiny instances: the judge of every solver and bound.

Nothing here is shared with the package's own evaluation: layer times are found by enumerating
dispatches (whole tokens) or activation patterns with the min-cut condition over sets of experts
(real tokens). Written to be obviously right, not to be fast.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from functools import cache
from itertools import combinations, product

from affinity_brute import brute_affinity
from paging_brute import brute_paging
from topology_brute import brute_topology

from moeopt.problem import LayerTime, ProblemData

Hosts = tuple[tuple[int, ...], ...]  # GPUs of each expert
Counts = tuple[int, ...]  # experts on each GPU


def subsets(items: Iterable[int]) -> list[tuple[int, ...]]:
    """All non-empty subsets."""
    pool = tuple(items)
    return [s for size in range(1, len(pool) + 1) for s in combinations(pool, size)]


@cache
def brute_time(
    layer_time: LayerTime, hosts: Hosts, tokens: tuple[float, ...], whole: bool
) -> float:
    """T of one scenario: ``tokens[i]`` of an expert with replicas on ``hosts[i]``."""
    active = [(h, n) for h, n in zip(hosts, tokens, strict=True) if n > 0]
    if whole:
        return _by_dispatches(layer_time, active)
    return _by_patterns(layer_time, active)


def _by_dispatches(layer_time: LayerTime, active: list[tuple[tuple[int, ...], int]]) -> float:
    """Every way to deal out whole tokens; equal loads of the GPUs are kept once."""
    gpus = 1 + max((g for h, _ in active for g in h), default=0)
    states = {((0, 0),) * gpus}
    for host, count in active:
        reached = set()
        for state in states:
            for split in _splits(count, len(host)):
                new = list(state)
                for g, n in zip(host, split, strict=True):
                    if n:
                        new[g] = (new[g][0] + 1, new[g][1] + n)
                reached.add(tuple(new))
        states = reached
    return min(max(float(layer_time.of(a, n)) for a, n in state) for state in states)


def _splits(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    if parts == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in _splits(total - first, parts - 1):
            yield (first, *rest)


def _by_patterns(layer_time: LayerTime, active: list[tuple[tuple[int, ...], float]]) -> float:
    """Every choice of activated replicas; then T is forced by some set of experts."""
    gpus = 1 + max((g for h, _ in active for g in h), default=0)
    best = math.inf
    for used in product(*(subsets(h) for h, _ in active)):
        activated = [sum(g in u for u in used) for g in range(gpus)]
        time = max(float(layer_time.of(a, 0)) for a in activated)
        for members in subsets(range(len(active))):
            if time >= best:
                break  # T only grows from here
            # The tokens of these experts must fit on the GPUs that they use.
            load = math.fsum(active[i][1] for i in members)
            open_gpus = sorted({g for i in members for g in used[i]})
            time = least_time(layer_time, [activated[g] for g in open_gpus], load, time)
        best = min(best, time)
    return best


def least_time(lt: LayerTime, activated: Sequence[int], load: float, start: float) -> float:
    """Least T ≥ start such that GPUs with these activations take ``load`` real tokens."""
    a, b, c, beta = lt.base_us, lt.expert_us, lt.token_base_us, lt.token_us
    if lt.form == "unit" or beta == 0:
        return start
    if lt.form == "sum":
        return max(start, a + (b * sum(activated) + beta * load) / len(activated))
    if lt.form == "max":
        return max(start, c + beta * load / len(activated))

    def room(time: float) -> float:
        return sum(math.sqrt(max(0.0, (time - a) ** 2 - (b * x) ** 2)) for x in activated) / beta

    low, high = start, start + beta * load
    if room(low) >= load:
        return low
    while high - low > 1e-13 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if room(middle) >= load else (middle, high)
    return high


def brute_optimum(data: ProblemData) -> tuple[float, dict]:
    """Optimal value, and a plan that attains it.

    Returns
    -------
    value : float
        ``inf`` if there is no feasible plan.
    plan : dict
        ``hosts``: [layer][expert] -> GPUs; for ``joint`` also ``requests``: [class][wave][gpu].
    """
    if data.problem == "joint":
        return _joint(data)
    if data.problem == "balance":
        return _balance(data)
    if data.paging is not None:
        value, evictions = brute_paging(data.paging)
        return value, {"evictions": evictions}
    if data.problem == "activation":
        return _activation(data)
    if data.problem == "affinity":
        if data.affinity is None:
            return math.inf, {}
        value, place = brute_affinity(data.affinity)
        return value, {"hosts": tuple(tuple((int(g),) for g in row) for row in place)}
    if data.topology is not None:
        value, servers = brute_topology(data.topology)
        return value, {"servers": servers}
    weights = [s.weight.tolist() for s in data.scenarios]

    def cost(layer: int, hosts: Hosts) -> float:
        rows = data.scenarios[layer]
        return math.fsum(
            p
            * brute_time(
                data.layer_time,
                *_sorted_scenario(hosts, rows.members(s).tolist(), rows.counts(s).tolist()),
                True,
            )
            for s, p in enumerate(weights[layer])
        )

    room = [math.inf] * data.gpus
    if data.free_mib is not None:
        room = [math.floor(m / data.expert_mib) for m in data.free_mib]
    plans = _cheapest(data, cost)
    fitting = [
        v for used, v in plans.items() if all(u <= r for u, r in zip(used, room, strict=True))
    ]
    if not fitting:
        return math.inf, {}
    value, hosts = min(fitting)
    return value, {"hosts": hosts}


def _balance(data: ProblemData) -> tuple[float, dict]:
    """Every way to fill the slots of every layer; layers share nothing but the budget of moves."""
    balance = data.balance
    if balance is None:
        return math.inf, {}
    gpus, q = range(data.gpus), int(balance.slots[0])
    contents = list(combinations(range(data.experts), q))
    exact = [[list(map(Fraction, row.tolist())) for row in window] for window in balance.loads]
    best: dict[int, tuple[Fraction, Hosts]] = {0: (Fraction(0), ())}
    for layer in range(data.layers):
        loads = [window[layer] for window in exact]
        held: list[set[int]] = [set(range(data.experts)) for _ in gpus]
        if balance.previous is not None:
            held = [set(balance.previous[layer, g * q : (g + 1) * q].tolist()) for g in gpus]
        found: dict[int, tuple[Fraction, Hosts]] = {}
        for chosen in product(contents, repeat=data.gpus):
            hosts = tuple(tuple(g for g in gpus if e in chosen[g]) for e in range(data.experts))
            if not all(hosts):
                continue
            value = sum(_largest(w, hosts, balance.rule) for w in loads) / len(loads)
            moves = sum(len(set(c) - h) for c, h in zip(chosen, held, strict=True))
            if moves not in found or value < found[moves][0]:
                found[moves] = (value, hosts)
        grown: dict[int, tuple[Fraction, Hosts]] = {}
        for (before, (sofar, rows)), (moves, (value, hosts)) in product(
            best.items(), found.items()
        ):
            total = before + moves
            if total not in grown or sofar + value < grown[total][0]:
                grown[total] = (sofar + value, (*rows, hosts))  # type: ignore[arg-type]
        best = grown
    most = math.inf if balance.most_moves is None else balance.most_moves
    allowed = [plan for moves, plan in best.items() if moves <= most]
    if not allowed:
        return math.inf, {}
    value, hosts = min(allowed)
    return float(value), {"hosts": hosts}


def _activation(data: ProblemData) -> tuple[float, dict]:
    """Every number of kept experts of every layer, each with every placement (or the fixed one)."""
    given = data.activation
    assert given is not None

    def cost(l: int, j: int, hosts: Hosts) -> float:
        rows = given.scenarios[l][j]
        members = (
            _sorted_scenario(hosts, rows.members(s).tolist(), rows.counts(s).tolist())
            for s in range(len(rows))
        )
        return math.fsum(
            p * brute_time(data.layer_time, *scenario, True)
            for p, scenario in zip(rows.weight.tolist(), members, strict=True)
        )

    def plans(l: int) -> Iterable[Hosts]:
        if given.hosts is None:
            return layer_plans(data)
        return [tuple((int(row.argmax()),) for row in given.hosts[l])]

    cheapest = [
        [min((cost(l, j, hosts), hosts) for hosts in plans(l)) for j in range(data.top_k)]
        for l in range(data.layers)
    ]
    best: tuple[float, dict] = (math.inf, {})
    for kept in product(range(data.top_k), repeat=data.layers):
        if sum(int(given.dropped[l, j]) for l, j in enumerate(kept)) > given.budget:
            continue
        chosen = [cheapest[l][j] for l, j in enumerate(kept)]
        value = math.fsum([data.attention_base_us, *(time for time, _ in chosen)])
        if value < best[0]:
            hosts = tuple(plan for _, plan in chosen)
            best = (value, {"hosts": hosts, "activated": [j + 1 for j in kept]})
    return best


def _largest(loads: Sequence[Fraction], hosts: Hosts, rule: str) -> Fraction:
    """Load of the fullest GPU; under the best split some set of experts needs so much."""
    if rule == "even":
        used = {g for h in hosts for g in h}
        return max(
            sum((w / len(h) for w, h in zip(loads, hosts, strict=True) if g in h), Fraction(0))
            for g in used
        )
    return max(
        sum((loads[e] for e in members), Fraction(0)) / len({g for e in members for g in hosts[e]})
        for members in subsets(range(len(loads)))
    )


def _sorted_scenario(
    hosts: Hosts, members: Sequence[int], tokens: Sequence[float]
) -> tuple[Hosts, tuple[float, ...]]:
    # The order of experts does not matter: sorting lets the cache see it.
    rows = sorted((hosts[e], n) for e, n in zip(members, tokens, strict=True))
    return tuple(h for h, _ in rows), tuple(n for _, n in rows)


def layer_plans(data: ProblemData) -> Iterator[Hosts]:
    """Every way to host one layer within the slots."""
    gpus = range(data.gpus)
    single = data.problem in ("placement", "activation")
    choices = [(g,) for g in gpus] if single else subsets(gpus)
    for hosts in product(choices, repeat=data.experts):
        if data.slots is None or max(_used(hosts, data.gpus)) <= data.slots:
            yield hosts


def _used(hosts: Hosts, gpus: int) -> Counts:
    return tuple(sum(g in h for h in hosts) for g in range(gpus))


def _cheapest(data: ProblemData, cost) -> dict[Counts, tuple[float, tuple[Hosts, ...]]]:
    """For every total of experts a GPU, the cheapest plan of all layers.

    Layers share nothing but memory, so the best of each total is enough.
    """
    plans: dict[Counts, tuple[float, tuple[Hosts, ...]]] = {(0,) * data.gpus: (0.0, ())}
    for layer in range(data.layers):
        best: dict[Counts, tuple[float, Hosts]] = {}
        for hosts in layer_plans(data):
            used = _used(hosts, data.gpus)
            value = cost(layer, hosts)
            if used not in best or value < best[used][0]:
                best[used] = (value, hosts)
        grown: dict[Counts, tuple[float, tuple[Hosts, ...]]] = {}
        for before, (value, chosen) in plans.items():
            for used, (extra, hosts) in best.items():
                total = tuple(x + y for x, y in zip(before, used, strict=True))
                if total not in grown or value + extra < grown[total][0]:
                    grown[total] = (value + extra, (*chosen, hosts))
        plans = grown
    return plans


def _joint(data: ProblemData) -> tuple[float, dict]:
    requests, free = data.requests, data.free_mib
    assert requests is not None
    assert free is not None
    cells = data.waves * data.gpus
    spreads: dict[tuple, list[tuple]] = {}  # requests by class and wave -> their spreads over GPUs
    for z in product(*(_splits(int(m), cells) for m in requests.count)):
        by_gpu = tuple(
            tuple(line[w * data.gpus : (w + 1) * data.gpus] for w in range(data.waves))
            for line in z
        )
        spreads.setdefault(tuple(tuple(sum(w) for w in line) for line in by_gpu), []).append(by_gpu)

    best: tuple[float, dict] = (math.inf, {})
    wanted = None if data.wave_requests is None else data.wave_requests.tolist()
    for totals, options in spreads.items():
        if wanted is not None and [list(line) for line in totals] != wanted:
            continue
        steps = _steps(data, totals)
        if steps is None:
            continue
        waves = [w for w in range(data.waves) if any(line[w] for line in totals)]

        def cost(layer: int, hosts: Hosts, waves=waves, totals=totals, steps=steps) -> float:
            value = 0.0
            for w in waves:
                tokens = [
                    sum(float(a) * line[w] for a, line in zip(usage, totals, strict=True))
                    for usage in requests.usage[:, layer, :].T
                ]
                scenario = _sorted_scenario(hosts, range(data.experts), tokens)
                value += steps[w] * brute_time(data.layer_time, *scenario, False)
            return value

        plans = _cheapest(data, cost)
        for z in options:
            kv = [
                [
                    math.fsum(k * z[c][w][g] for c, k in enumerate(requests.kv_mib))
                    for g in range(data.gpus)
                ]
                for w in range(data.waves)
            ]
            attention = sum(
                steps[w] * (data.attention_base_us + data.attention_us_per_mib * max(kv[w]))
                for w in waves
            )
            room = [
                math.floor((m - max(line[g] for line in kv)) / data.expert_mib)
                for g, m in enumerate(free)
            ]
            for used, (value, hosts) in plans.items():
                if value + attention < best[0] and all(
                    u <= r for u, r in zip(used, room, strict=True)
                ):
                    best = (value + attention, {"hosts": hosts, "requests": z})
    return best


def _steps(data: ProblemData, totals: Sequence[Sequence[int]]) -> list[int] | None:
    """Decode steps of every wave; None if a prescribed wave is too short for its requests."""
    assert data.requests is not None
    steps = []
    for w in range(data.waves):
        output = [
            int(o) for o, line in zip(data.requests.output_tokens, totals, strict=True) if line[w]
        ]
        longest = max(output, default=0)
        if data.wave_steps is None or not output:
            steps.append(longest)
        elif longest > data.wave_steps[w]:
            return None
        else:
            steps.append(int(data.wave_steps[w]))
    return steps
