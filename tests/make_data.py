"""Small random ProblemData for tests, built by hand: no file, no ``prepare``.

Every instance is feasible by construction, sizes of memory are whole bytes, and usages are
multiples of 1/64, so that sums of them are exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moeopt.problem import LayerTime, ProblemData, RequestClasses, Scenarios

#: Names for :func:`layer_time`: the four forms, then the two one-sided special cases.
FORMS = ("unit", "sum", "max", "p2", "tokens", "activations")


def layer_time(form: str, rng: np.random.Generator | None = None) -> LayerTime:
    """A layer time whose two sides matter alike for a few tokens an expert.

    Without ``rng`` the constants are round numbers.
    """
    if form == "unit":
        return LayerTime()
    a, b, c, beta = (2.0, 3.0, 1.0, 1.5)
    if rng is not None:
        a, b, c, beta = (float(v) for v in rng.uniform([0, 1, 0, 0.5], [4, 8, 4, 3]).round(3))
    if form == "tokens":
        return LayerTime("sum", base_us=a, token_us=beta)
    if form == "activations":
        return LayerTime("sum", base_us=a, expert_us=b)
    return LayerTime(form, a, b, c if form == "max" else 0.0, beta)


def scenarios_of(
    members: Sequence[Sequence[int]],
    tokens: Sequence[Sequence[int]] | None = None,
    weight: Sequence[float] | None = None,
) -> Scenarios:
    """Scenarios from lists of experts; one token each and equal weights by default."""
    rows = [list(m) for m in members]
    counts = [[1] * len(m) for m in rows] if tokens is None else [list(t) for t in tokens]
    p = np.ones(len(rows)) if weight is None else np.asarray(weight, dtype=float)
    return Scenarios(
        np.cumsum([0] + [len(m) for m in rows], dtype=np.int64),
        np.array([e for m in rows for e in m], dtype=np.int64),
        np.array([n for t in counts for n in t], dtype=np.int64),
        p / p.sum(),
    )


def random_scenarios(
    rng: np.random.Generator,
    experts: int,
    top_k: int,
    scenarios: int,
    max_tokens: int = 1,
    max_members: int | None = None,
) -> Scenarios:
    """Distinct expert sets of ``top_k`` members (or up to ``max_members``), random weights."""
    rows: dict[tuple[int, ...], list[int]] = {}
    for _ in range(20 * scenarios):
        size = top_k if max_members is None else int(rng.integers(top_k, max_members + 1))
        row = tuple(sorted(rng.choice(experts, size, replace=False).tolist()))
        rows.setdefault(row, rng.integers(1, max_tokens + 1, size).tolist())
        if len(rows) == scenarios:
            break
    # Weights are multiples of 1/64 before they are normalised, as counts in a file would be.
    return scenarios_of(
        list(rows), list(rows.values()), rng.integers(1, 65, len(rows)).astype(float).tolist()
    )


def random_data(
    problem: str,
    rng: np.random.Generator,
    *,
    form: str = "unit",
    layers: int = 1,
    experts: int = 4,
    top_k: int = 2,
    gpus: int = 2,
    scenarios: int = 4,
    max_tokens: int | None = None,
    max_members: int | None = None,
    limit: str = "slots",
    spare: int = 1,
    kinds: int = 1,
    classes: int = 2,
    max_count: int = 3,
    waves: int = 2,
    prescribed: bool = False,
) -> ProblemData:
    """One feasible random instance.

    Parameters
    ----------
    form : one of ``FORMS``
    max_tokens : int, optional
        Largest count of a scenario; default 1 for ``unit``, else 6.
    max_members : int, optional
        Scenarios have ``top_k`` to ``max_members`` experts instead of exactly ``top_k``.
    limit : {"slots", "memory", "both"}
        What limits replicas (``joint`` always has memory; "slots" then means "memory").
    spare : int
        Replicas a GPU can take beyond an even share of one copy each.
    kinds : int
        1: equal GPUs; 2: every second GPU has room for one more expert.
    classes, max_count, waves, prescribed
        ``joint``: request classes, largest count of a class, waves, and whether the steps of
        the waves are given (the first wave is long enough for every class).
    """
    joint = problem == "joint"
    time = layer_time(form, rng)
    most = max_tokens or (1 if form == "unit" else 6)
    rows = tuple(
        random_scenarios(rng, experts, top_k, scenarios, most, max_members)
        for _ in range(0 if joint else layers)
    )
    load = np.zeros((layers, experts))
    for line, s in zip(load, rows, strict=False):
        np.add.at(line, s.expert, np.repeat(s.weight, s.sizes) * s.tokens)

    expert_mib = 10.5
    each = -(-layers * experts // gpus) + spare
    free = np.full(gpus, each * expert_mib)
    kind = np.arange(gpus, dtype=np.int64) % kinds
    free += kind * expert_mib
    slots = -(-experts // gpus) + spare if limit in ("slots", "both") and not joint else None

    requests = None
    steps = None
    if joint:
        requests = _random_requests(rng, layers, experts, top_k, classes, max_count)
        load = np.einsum("c,cle->le", requests.count.astype(float), requests.usage)
        # Requests dealt out one by one fit: at most this many of the largest a GPU.
        shared = gpus if prescribed else gpus * waves
        free += -(-int(requests.count.sum()) // shared) * requests.kv_mib.max()
        if prescribed:
            output = requests.output_tokens
            steps = (int(output.max()), *rng.choice(output, waves - 1).tolist())
    return ProblemData(
        name=f"random_{problem}_{form}",
        sha256="0" * 64,
        problem=problem,
        layers=layers,
        experts=experts,
        top_k=top_k,
        gpus=gpus,
        expert_mib=expert_mib,
        free_mib=None if limit == "slots" and not joint else free,
        slots=slots,
        layer_time=time,
        scenarios=rows,
        load=load,
        gpu_kind=kind if joint or limit != "slots" else np.zeros(gpus, dtype=np.int64),
        requests=requests,
        waves=waves if joint else 0,
        wave_steps=steps,
        attention_base_us=1.25 if joint else 0.0,
        attention_us_per_mib=0.125 if joint else 0.0,
        layer_numbers=tuple(range(layers)),
    )


def _random_requests(
    rng: np.random.Generator, layers: int, experts: int, top_k: int, classes: int, max_count: int
) -> RequestClasses:
    popularity = rng.dirichlet(np.full(experts, 2.0), (classes, layers))
    usage = np.array([[rng.multinomial(64 * top_k, p) for p in row] for row in popularity]) / 64
    return RequestClasses(
        names=tuple(f"class{c}" for c in range(classes)),
        count=rng.integers(1, max_count + 1, classes),
        prompt_tokens=rng.integers(1, 9, classes) * 16,
        output_tokens=rng.integers(1, 9, classes) * 8,
        kv_mib=rng.integers(4, 33, classes) / 4,
        usage=usage,
    )
