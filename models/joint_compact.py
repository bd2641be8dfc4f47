"""Joint placement, replication and allocation of requests to waves and GPUs: compact formulation.

Equations (J1)-(J14), (J21): docs/formulations/joint_compact.md. Time inside the formulation is in
milliseconds (a step) and seconds (a wave), the objective in microseconds, to keep the matrix
within a few orders of magnitude.
"""

from __future__ import annotations

import numpy as np
import pyomo.environ as pyo
from moeopt.models import _parts as parts

from moeopt.linear import Values
from moeopt.problem import FloatArray, ProblemData, RequestClasses
from moeopt.solution import Solution

PROBLEM = "joint"
KIND = "exact"
TIGHTER_THAN: tuple[str, ...] = ()

kind = parts.kind_of_form

US_PER_MS = 1e3
MS_PER_S = 1e3
US_PER_S = 1e6


def supports(data: ProblemData) -> str | None:
    """Every joint instance whose GPUs have memory."""
    return None if data.free_mib is not None else "joint needs the memory of the GPUs"


def classes(data: ProblemData) -> RequestClasses:
    """Return the request classes, which every joint instance has."""
    assert data.requests is not None
    return data.requests


def lengths(data: ProblemData, w: int) -> list[int]:
    """Numbers of steps that wave w may run (besides 0)."""
    if data.wave_steps is not None:
        return [data.wave_steps[w]]
    return sorted(set(classes(data).output_tokens.tolist()))


def most_tokens(data: ProblemData) -> FloatArray:
    """U[l, e]: tokens of an expert when all requests decode together, shape (L, E)."""
    requests = classes(data)
    return np.einsum("c,cle->le", requests.count.astype(np.float64), requests.usage)


def longest_step_ms(data: ProblemData) -> float:
    """No step of any sensible plan is longer: all requests and all experts on one GPU."""
    tokens = most_tokens(data)
    layers = data.layer_time.of(np.count_nonzero(tokens, axis=1), tokens.sum(axis=1))
    requests = classes(data)
    attention = data.attention_us_per_mib * float(requests.kv_mib @ requests.count)
    total = data.attention_base_us + attention + float(layers.sum())
    return total * (1.0 + 1e-9) / US_PER_MS


def size(data: ProblemData) -> dict[str, int]:
    """Rows, columns, nonzeros, integers (docs page, size formula)."""
    requests = classes(data)
    wave_count, gpus, layers, experts = data.waves, data.gpus, data.layers, data.experts
    hosting = layers * experts * gpus
    pieces = data.layer_time.pieces()
    per_piece = sum((act > 0) + (tok > 0) for _, act, tok in pieces)
    used = int(np.count_nonzero(requests.usage))
    run = [lengths(data, w) for w in range(wave_count)]
    options = sum(len(r) for r in run)
    allowed = sum(
        int(output <= d) for r in run for d in r for output in requests.output_tokens.tolist()
    )
    served = len(requests.names) * wave_count * gpus
    slots = (layers * gpus, hosting) if data.slots is not None else (0, 0)
    cached = int(np.count_nonzero(requests.kv_mib)) * wave_count * gpus
    reads_kv = data.attention_us_per_mib > 0
    routed = wave_count * hosting + wave_count * gpus * used
    rows: dict[str, tuple[int, int]] = {
        "memory": (wave_count * gpus, wave_count * hosting + cached),
        "slots": slots,
        "hosted": (layers * experts, hosting),
        "served": (len(requests.names), served),
        "routed": (wave_count * layers * experts, routed),
        "activated": (
            wave_count * hosting,
            wave_count * (hosting + gpus * int(np.count_nonzero(most_tokens(data)))),
        ),
        "link": (wave_count * hosting, 2 * wave_count * hosting),
        "time": (
            wave_count * layers * gpus * len(pieces),
            wave_count * (layers * gpus * len(pieces) + per_piece * hosting),
        ),
        "attention": (wave_count * gpus, wave_count * gpus + (cached if reads_kv else 0)),
        "step": (wave_count, wave_count * (2 + layers)),
        "length": (wave_count, wave_count + options),
        "allowed": (len(requests.names) * wave_count, served + allowed),
        "cost": (options, 3 * options),
        "prescribed": (len(requests.names) * wave_count, served)
        if data.wave_requests is not None
        else (0, 0),
    }
    return {
        "rows": int(sum(r for r, _ in rows.values())),
        "columns": hosting
        + served
        + 2 * wave_count * hosting
        + wave_count * (layers + 3)
        + options
        + wave_count,
        "nonzeros": int(sum(n for _, n in rows.values())),
        "integers": hosting + served + wave_count * hosting + options + wave_count,
    }


def build(data: ProblemData) -> pyo.ConcreteModel:
    """Build the formulation."""
    requests = classes(data)
    m = pyo.ConcreteModel()
    parts.add_sets(m, data)
    parts.add_pieces(m, data)
    m.C = pyo.RangeSet(0, len(requests.names) - 1)
    m.W = pyo.RangeSet(0, data.waves - 1)
    m.count = _param(m.C, requests.count)
    m.kv_mib = _param(m.C, requests.kv_mib)
    m.expert_mib = pyo.Param(initialize=data.expert_mib)
    m.free_mib = _param(m.G, data.free_mib)
    m.usage = pyo.Param(m.C, m.L, m.E, initialize=dict(np.ndenumerate(requests.usage)))
    m.most = pyo.Param(m.L, m.E, initialize=dict(np.ndenumerate(most_tokens(data))))

    most_requests = int(requests.count.max())
    longest_ms = longest_step_ms(data)
    m.x = pyo.Var(m.L, m.E, m.G, domain=pyo.Binary, dense=False)
    m.z = pyo.Var(
        m.C, m.W, m.G, domain=pyo.NonNegativeIntegers, bounds=(0, most_requests), dense=False
    )
    m.y = pyo.Var(m.W, m.L, m.E, m.G, bounds=(0, float(most_tokens(data).max())), dense=False)
    m.u = pyo.Var(m.W, m.L, m.E, m.G, domain=pyo.Binary, dense=False)
    m.T = pyo.Var(m.W, m.L, bounds=(0, longest_ms), dense=False)
    m.T_att = pyo.Var(m.W, bounds=(0, longest_ms), dense=False)
    m.tau = pyo.Var(m.W, bounds=(0, longest_ms), dense=False)

    def served_rule(m, c):
        return sum(m.z[c, w, g] for w in m.W for g in m.G) == m.count[c]

    def hosted_rule(m, l, e):
        return sum(m.x[l, e, g] for g in m.G) >= 1

    def memory_rule(m, w, g):
        return (
            sum(m.expert_mib * m.x[l, e, g] for l in m.L for e in m.E)
            + sum(m.kv_mib[c] * m.z[c, w, g] for c in m.C)
            <= m.free_mib[g]
        )

    def routed_rule(m, w, l, e):
        return (
            sum(m.y[w, l, e, g] for g in m.G)
            - sum(m.usage[c, l, e] * m.z[c, w, g] for c in m.C for g in m.G)
            == 0
        )

    def activated_rule(m, w, l, e, g):
        return m.y[w, l, e, g] - m.most[l, e] * m.u[w, l, e, g] <= 0

    def link_rule(m, w, l, e, g):
        return m.u[w, l, e, g] - m.x[l, e, g] <= 0

    m.served_row = pyo.Constraint(m.C, rule=served_rule)  # (J2)
    m.hosted_row = pyo.Constraint(m.L, m.E, rule=hosted_rule)  # (J3)
    m.memory_row = pyo.Constraint(m.W, m.G, rule=memory_rule)  # (J4)
    if data.slots is not None:
        m.slots = pyo.Param(initialize=data.slots)

        def slots_rule(m, l, g):
            return sum(m.x[l, e, g] for e in m.E) <= m.slots

        m.slots_row = pyo.Constraint(m.L, m.G, rule=slots_rule)  # (J5)
    m.routed_row = pyo.Constraint(m.W, m.L, m.E, rule=routed_rule)  # (J6)
    m.activated_row = pyo.Constraint(m.W, m.L, m.E, m.G, rule=activated_rule)  # (J7)
    m.link_row = pyo.Constraint(m.W, m.L, m.E, m.G, rule=link_rule)  # (J8)
    if data.wave_requests is not None:
        m.in_wave = pyo.Param(m.C, m.W, initialize=dict(np.ndenumerate(data.wave_requests)))

        def prescribed_rule(m, c, w):
            return sum(m.z[c, w, g] for g in m.G) == m.in_wave[c, w]

        m.prescribed_row = pyo.Constraint(m.C, m.W, rule=prescribed_rule)  # (J21)
    _add_times(m, data)
    _add_lengths(m, data, longest_ms)
    return m


def _add_times(m: pyo.ConcreteModel, data: ProblemData) -> None:
    """Layer, attention and step time, in milliseconds."""
    m.att_base_ms = pyo.Param(initialize=data.attention_base_us / US_PER_MS)
    m.att_ms_per_mib = pyo.Param(initialize=data.attention_us_per_mib / US_PER_MS)
    m.us_per_ms = pyo.Param(initialize=US_PER_MS)

    def time_rule(m, w, l, g, j):
        return (
            sum(m.act[j] * m.u[w, l, e, g] + m.tok[j] * m.y[w, l, e, g] for e in m.E)
            - m.us_per_ms * m.T[w, l]
            <= -m.const[j]
        )

    def attention_rule(m, w, g):
        return (
            sum(m.att_ms_per_mib * m.kv_mib[c] * m.z[c, w, g] for c in m.C) - m.T_att[w]
            <= -m.att_base_ms
        )

    def step_rule(m, w):
        return m.tau[w] - m.T_att[w] - sum(m.T[w, l] for l in m.L) == 0

    m.time_row = pyo.Constraint(m.W, m.L, m.G, m.J, rule=time_rule)  # (J9)
    m.attention_row = pyo.Constraint(m.W, m.G, rule=attention_rule)  # (J10)
    m.step_row = pyo.Constraint(m.W, rule=step_rule)  # (J11)


def _add_lengths(m: pyo.ConcreteModel, data: ProblemData, longest_ms: float) -> None:
    """Length of each wave and its cost, in seconds: the product D·τ by choice of D."""
    requests = classes(data)
    run = {w: lengths(data, w) for w in range(data.waves)}
    longest = max(max(run[w]) for w in run)
    m.D = pyo.Set(m.W, initialize={w: [0, *run[w]] for w in run})
    m.WD = pyo.Set(dimen=2, initialize=[(w, d) for w in run for d in [0, *run[w]]])
    m.RUN = pyo.Set(dimen=2, initialize=[(w, d) for w in run for d in run[w]])
    m.ENOUGH = pyo.Set(
        m.C,
        m.W,
        initialize={
            (c, w): [d for d in run[w] if d >= requests.output_tokens[c]]
            for c in range(len(requests.names))
            for w in run
        },
    )
    m.longest_ms = pyo.Param(initialize=longest_ms)
    m.ms_per_s = pyo.Param(initialize=MS_PER_S)
    m.us_per_s = pyo.Param(initialize=US_PER_S)
    m.steps = pyo.Param(m.RUN, initialize={(w, d): d for w in run for d in run[w]})
    m.v = pyo.Var(m.WD, domain=pyo.Binary, dense=False)
    m.cost = pyo.Var(m.W, bounds=(0, longest * longest_ms / MS_PER_S), dense=False)

    def makespan_rule(m):
        return sum(m.us_per_s * m.cost[w] for w in m.W)

    m.makespan = pyo.Objective(rule=makespan_rule)  # (J1)

    def length_rule(m, w):
        return sum(m.v[w, d] for d in m.D[w]) == 1

    def allowed_rule(m, c, w):
        return (
            sum(m.z[c, w, g] for g in m.G) - sum(m.count[c] * m.v[w, d] for d in m.ENOUGH[c, w])
            <= 0
        )

    def cost_rule(m, w, d):
        return (
            m.steps[w, d] * m.tau[w]
            + m.steps[w, d] * m.longest_ms * m.v[w, d]
            - m.ms_per_s * m.cost[w]
            <= m.steps[w, d] * m.longest_ms
        )

    m.length_row = pyo.Constraint(m.W, rule=length_rule)  # (J12)
    m.allowed_row = pyo.Constraint(m.C, m.W, rule=allowed_rule)  # (J13)
    m.cost_row = pyo.Constraint(m.RUN, rule=cost_rule)  # (J14)


def _param(index: object, values: object) -> pyo.Param:
    return pyo.Param(index, initialize=dict(enumerate(np.asarray(values).tolist())))


def solution(values: Values, data: ProblemData) -> Solution:
    """Read hosts from x, requests from z and the tokens of each replica from y.

    A solver meets (J6) within its tolerance, CP-SAT on its grid: the tokens of each expert are
    scaled to the sum that the requests make.
    """
    z = np.rint(values["z"]).astype(np.int64)
    needed = np.einsum("cw,cle->wle", z.sum(axis=2).astype(np.float64), classes(data).usage)
    tokens = values["y"] * (values["u"] > 0.5)
    computed = tokens.sum(axis=3)
    dispatch = None
    if ((computed > 0) | (needed == 0)).all():
        share = np.divide(needed, computed, out=np.zeros_like(needed), where=computed > 0)
        dispatch = tokens * share[..., None]
    return Solution.from_arrays(data, values["x"] > 0.5, requests=z, dispatch=dispatch)


def start(data: ProblemData, solution: Solution) -> dict[str, FloatArray]:
    """Columns of a warm start; y and u where the plan gives its dispatch."""
    requests = classes(data)
    columns = {"x": solution.hosts_array(data.gpus).astype(np.float64)}
    used = solution.requests_array(list(requests.names), data.gpus)
    z = np.zeros((len(requests.names), data.waves, data.gpus))
    z[:, : used.shape[1]] = used[:, : data.waves]
    columns["z"] = z
    v = []
    for w in range(data.waves):
        present = z[:, w].sum(axis=1) > 0
        need = int(requests.output_tokens[present].max()) if present.any() else 0
        run = [0, *lengths(data, w)]
        chosen = min((d for d in run if d >= need), default=None)
        v += [float(d == chosen) for d in run]
    columns["v"] = np.array(v)
    if solution.dispatch is not None:
        y = np.zeros((data.waves, data.layers, data.experts, data.gpus))
        for l, waves in enumerate(solution.dispatch):
            for w, parts_of_wave in enumerate(waves[: data.waves]):
                for e, g, tokens in parts_of_wave:
                    y[w, l, int(e), int(g)] = tokens
        columns["y"] = y
        columns["u"] = (y > 0).astype(np.float64)
    return columns
