"""Pieces that several formulations share: index sets, hosting, capacity and symmetry rows.

Every function adds components to a Pyomo model, named as in the docs pages. Rules are written so
that Pyomo can templatize them (one call a component): plain ``sum``, sets of the model, no ``if``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyomo.environ as pyo

from moeopt.problem import ProblemData
from moeopt.solution import Solution


def add_sets(m: pyo.ConcreteModel, data: ProblemData) -> None:
    """Layers L, experts E, GPUs G."""
    m.L = pyo.RangeSet(0, data.layers - 1)
    m.E = pyo.RangeSet(0, data.experts - 1)
    m.G = pyo.RangeSet(0, data.gpus - 1)


def add_scenarios(m: pyo.ConcreteModel, data: ProblemData) -> None:
    """Scenarios OMEGA = (l, s), their experts A[l, s] and weights p[l, s]."""
    pairs = [(l, s) for l, layer in enumerate(data.scenarios) for s in range(len(layer))]
    weights = [layer.weight.tolist() for layer in data.scenarios]

    def members_rule(m, l, s):
        return data.scenarios[l].members(s).tolist()

    def weight_rule(m, l, s):
        return weights[l][s]

    m.OMEGA = pyo.Set(dimen=2, initialize=pairs)
    m.A = pyo.Set(m.OMEGA, dimen=1, initialize=members_rule)
    # A default is computed only where it is read: no dict of all of them.
    m.p = pyo.Param(m.OMEGA, default=weight_rule)


def expected_time_rule(m):
    """Expected layer time, summed over the layers."""
    return sum(m.p[l, s] * m.T[l, s] for l, s in m.OMEGA)


def scenario_experts(data: ProblemData) -> list[tuple[int, int, int]]:
    """All (layer, scenario, expert) with the expert in the scenario, in that order."""
    return [
        (l, s, e)
        for l, layer in enumerate(data.scenarios)
        for s in range(len(layer))
        for e in layer.members(s).tolist()
    ]


def add_tokens(m: pyo.ConcreteModel, data: ProblemData) -> None:
    """Scenario experts OE = (l, s, e) and tokens n[l, s, e] of each."""
    keys = scenario_experts(data)
    tokens = np.concatenate([layer.tokens for layer in data.scenarios]).tolist()
    m.OE = pyo.Set(dimen=3, initialize=keys)
    m.n = pyo.Param(m.OE, initialize=dict(zip(keys, tokens, strict=True)))


def add_capacity(m: pyo.ConcreteModel, data: ProblemData) -> None:
    """Slots a layer and memory over all layers, for the hosting variables x[l, e, g]."""
    if data.slots is not None:
        m.slots = pyo.Param(initialize=data.slots)

        def slots_rule(m, l, g):
            return sum(m.x[l, e, g] for e in m.E) <= m.slots

        m.slots_row = pyo.Constraint(m.L, m.G, rule=slots_rule)
    if data.free_mib is not None:
        m.expert_mib = pyo.Param(initialize=data.expert_mib)
        m.free_mib = pyo.Param(m.G, initialize=dict(enumerate(data.free_mib.tolist())))

        def memory_rule(m, g):
            return sum(m.expert_mib * m.x[l, e, g] for l in m.L for e in m.E) <= m.free_mib[g]

        m.memory_row = pyo.Constraint(m.G, rule=memory_rule)


def capacity_size(data: ProblemData) -> tuple[int, int]:
    """(rows, nonzeros) of :func:`add_capacity`."""
    rows = nonzeros = 0
    hosting = data.layers * data.experts * data.gpus
    if data.slots is not None:
        rows, nonzeros = rows + data.layers * data.gpus, nonzeros + hosting
    if data.free_mib is not None:
        rows, nonzeros = rows + data.gpus, nonzeros + hosting
    return rows, nonzeros


def add_pieces(m: pyo.ConcreteModel, data: ProblemData) -> None:
    """Affine pieces j of the layer time: const[j] + act[j]·A + tok[j]·N."""
    pieces = data.layer_time.pieces()
    m.J = pyo.RangeSet(0, len(pieces) - 1)
    m.const = pyo.Param(m.J, initialize={j: piece[0] for j, piece in enumerate(pieces)})
    m.act = pyo.Param(m.J, initialize={j: piece[1] for j, piece in enumerate(pieces)})
    m.tok = pyo.Param(m.J, initialize={j: piece[2] for j, piece in enumerate(pieces)})


def time_bounds(data: ProblemData) -> tuple[float, float]:
    """Bounds that hold for the layer time of every scenario."""
    sizes = np.concatenate([layer.sizes for layer in data.scenarios])
    if data.layer_time.form == "unit":
        return float(np.ceil(sizes.min() / data.gpus)), float(sizes.max())
    tokens = np.concatenate(
        [np.add.reduceat(layer.tokens, layer.ptr[:-1]) for layer in data.scenarios]
    )
    return 0.0, float(data.layer_time.of(sizes, tokens).max())


def time_domain(data: ProblemData) -> object:
    """Layer times are whole in expert-time units, real in microseconds."""
    return pyo.NonNegativeIntegers if data.layer_time.form == "unit" else pyo.NonNegativeReals


def kind_of_form(data: ProblemData) -> str:
    """Exact, but for ``p2``: its tangents lie below the true form."""
    return "relaxation" if data.layer_time.form == "p2" else "exact"


def symmetric_layers(data: ProblemData) -> range:
    """Layers in which GPU labels may be chosen freely.

    All of them where slots alone limit (each layer has its own labels); the first where memory
    couples the layers.
    """
    return range(data.layers) if data.free_mib is None else range(1)


def successors(data: ProblemData) -> Iterator[tuple[int, int]]:
    """Pairs (g, h): h is the GPU before g among those interchangeable with g."""
    last: dict[int, int] = {}
    for g, kind in enumerate(data.gpu_kind.tolist()):
        if kind in last:
            yield g, last[kind]
        last[kind] = g


def add_order(m: pyo.ConcreteModel, data: ProblemData, *, strict: bool) -> None:
    """Interchangeable GPUs in the order of their smallest expert.

    ``x[l,e,g] <= sum of x[l,j,h] over j < e`` (``strict``: single copies) or ``j <= e``, for h the
    GPU before g of the same kind.
    """
    rows = [
        (l, e, g, h)
        for l in symmetric_layers(data)
        for g, h in successors(data)
        for e in range(data.experts)
    ]
    m.ORDER = pyo.Set(dimen=4, initialize=rows)
    m.UPTO = pyo.Set(
        m.E, initialize={e: list(range(e if strict else e + 1)) for e in range(data.experts)}
    )

    def order_rule(m, l, e, g, h):
        return m.x[l, e, g] - sum(m.x[l, j, h] for j in m.UPTO[e]) <= 0

    m.order_row = pyo.Constraint(m.ORDER, rule=order_rule)


def order_size(data: ProblemData, *, strict: bool) -> tuple[int, int]:
    """(rows, nonzeros) of :func:`add_order`."""
    chains = len(list(successors(data))) * len(symmetric_layers(data))
    experts = data.experts
    smaller = experts * (experts - 1) // 2 if strict else experts * (experts + 1) // 2
    return chains * experts, chains * (experts + smaller)


def grown(size: dict[str, int], *, rows: int, nonzeros: int) -> dict[str, int]:
    """Return a size with rows added."""
    return size | {"rows": size["rows"] + rows, "nonzeros": size["nonzeros"] + nonzeros}


def in_order(data: ProblemData, solution: Solution) -> Solution:
    """Rename interchangeable GPUs so that a plan satisfies the rows of :func:`add_order`."""
    hosts = solution.hosts_array(data.gpus)
    for l in symmetric_layers(data):
        order = gpu_order(data, hosts[l])
        for other in [l] if data.free_mib is None else range(data.layers):
            hosts[other] = hosts[other][:, order]
    return Solution.from_arrays(data, hosts, objective=solution.objective)


def gpu_order(data: ProblemData, hosts: npt.NDArray[np.bool_]) -> list[int]:
    """Permutation of the GPUs: within each kind, by smallest hosted expert, empty ones last."""
    smallest = np.where(hosts.any(axis=0), hosts.argmax(axis=0), hosts.shape[0])
    order = list(range(data.gpus))
    for kind in set(data.gpu_kind.tolist()):
        places = [g for g in range(data.gpus) if data.gpu_kind[g] == kind]
        for place, g in zip(places, sorted(places, key=lambda g: int(smallest[g])), strict=True):
            order[place] = g
    return order


def hosts_of(data: ProblemData, x: dict[tuple[int, int, int], int]) -> npt.NDArray[np.bool_]:
    """Hosts (L, E, G) from the values of x[l, e, g]."""
    hosts = np.zeros((data.layers, data.experts, data.gpus), dtype=bool)
    for key, value in x.items():
        hosts[key] = bool(value)
    return hosts
