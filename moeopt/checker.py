"""The checker: data and a solution -> violations and objective. No solver, no formulation.

It is the specification of the problems. Memory is summed in whole bytes, exactly (see
:mod:`moeopt.units`). Every layer time is evaluated

1. exactly where that is polynomial (see :mod:`moeopt.dispatch`),
2. else from the dispatch that the solution states, if it states a valid one,
3. else by enumeration, where it ends within its limit,
4. else by a rule whose time is an upper bound.

Objectives: ``placement`` and ``replication``: ``Σ_l Σ_ω p_ω T_ω``; ``joint``: the makespan
``Σ_w D_w τ_w`` with ``D_w`` the largest output of the classes present in wave w (or the prescribed
steps), ``τ_w = attention_base + attention_per_mib · max_g KV_g + Σ_l T[w, l]``, and
``Σ_c usage[c, l, e] n_cw`` real tokens of expert e. A wave without requests takes no time.
Where every resident replica is charged, only the split of the tokens is left: a flow, exact.
``topology``: hops of the tokens, each by way of the nearest copy of its expert.
``paging``: loads of the replayed evictions, or their time.
``balance``: ``Σ_l`` of the mean over windows of the tokens on the fullest GPU. ``activation``: as
``placement``, of the scenarios that are left, and ``attention_base``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from moeopt import (
    checker_activation,
    checker_affinity,
    checker_balance,
    checker_paging,
    checker_topology,
)
from moeopt.checker_dispatch import Violation, read_dispatch
from moeopt.checker_hosts import HostsCheck
from moeopt.checker_times import BY_DISPATCH, BoolArray, Cases, JointCases, ScenarioCases, Stated
from moeopt.errors import InputError
from moeopt.problem import FloatArray, IntArray, ProblemData
from moeopt.solution import Solution

__all__ = ["CLAIM_TOLERANCE", "CheckReport", "Violation", "check_solution"]

#: Relative difference allowed between a claimed objective and the recomputed one.
CLAIM_TOLERANCE = 1e-6

_WAVES_SHOWN = 4


@dataclass(frozen=True)
class CheckReport:
    """What the checker found.

    Attributes
    ----------
    objective : float or None
        Recomputed; None where an expert with tokens is hosted nowhere. With violations it is the
        value of the plan as it stands.
    evaluated_by : str or None
        How the layer times were computed; several ways are joined by "; ".
    exact : bool
        Whether no dispatch of the same hosts and requests is faster; else ``objective`` is an
        upper bound of what the plan needs.
    violations : list of Violation
        Empty if and only if the plan is feasible and its claimed objective is right.
    details : dict
        ``memory`` by GPU (``experts_mib``, ``free_mib``, and ``kv_mib`` of the fullest wave);
        ``layers``: objective of each layer; for ``joint`` ``waves`` (``steps``, ``step_us``,
        ``attention_us``, ``layer_us``, ``kv_mib``, ``requests``) and ``tokens_per_s``; for
        ``balance`` ``balancedness`` ([windows][layers]) and ``moves``. Plain lists and numbers.
    """

    objective: float | None
    evaluated_by: str | None
    exact: bool
    violations: list[Violation]
    details: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def summary(self) -> list[tuple[str, str]]:
        """A few lines for people, as (label, text)."""
        memory = self.details["memory"]
        lines = []
        if "free_mib" in memory:
            kv = memory.get("kv_mib", [0.0] * len(memory["free_mib"]))
            left = [
                free - experts - cached
                for free, experts, cached in zip(
                    memory["free_mib"], memory["experts_mib"], kv, strict=True
                )
            ]
            g = left.index(min(left))
            cache = f" and {kv[g]:,.0f} of KV cache" if "kv_mib" in memory else ""
            lines.append(
                (
                    "fullest GPU",
                    f"{g}: {memory['experts_mib'][g]:,.0f} MiB of experts{cache}, "
                    f"{memory['free_mib'][g]:,.0f} free for them",
                )
            )
        waves = [w for w in self.details.get("waves", ()) if w["requests"]]
        if waves:
            text = "; ".join(
                f"{w['requests']} requests, {w['steps']} steps of {w['step_us']:,.0f} µs"
                for w in waves[:_WAVES_SHOWN]
            )
            more = len(waves) - _WAVES_SHOWN
            lines.append(("waves", text + (f"; and {more} more" if more > 0 else "")))
        if self.details.get("tokens_per_s"):
            rate = f"{self.details['tokens_per_s']:,.0f} tokens/s"
            lines.append(("decoding", f"{rate} (prefill and communication are not counted)"))
        if "balancedness" in self.details:
            lines += checker_balance.summary(self.details)
        if "hops_a_visit" in self.details:
            lines += checker_topology.summary(self.details)
        if "misses" in self.details:
            lines += checker_paging.summary(self.details)
        if "activated" in self.details:
            lines += checker_activation.summary(self.details)
        if "crossing_gpus" in self.details:
            lines += checker_affinity.summary(self.details)
        return lines


def check_solution(data: ProblemData, solution: Solution) -> CheckReport:
    """Check a solution and recompute its objective.

    Raises
    ------
    InputError
        The solution is for another problem, or its shapes, GPUs or classes do not fit the data.

    Notes
    -----
    A claimed objective must equal the recomputed one within ``CLAIM_TOLERANCE`` where layer times
    are exact or those of the stated dispatch. Where the rule had to be used, the recomputed value
    is only an upper bound of the plan's: then a claim may lie below it, down to the proved lower
    bound of the layer times, for a better dispatch may exist that the solution did not state; a
    claim above it is wrong in any case.
    """
    if solution.problem != data.problem:
        raise InputError(f"problem: the solution is for {solution.problem}, not {data.problem}")
    if data.problem == "paging":
        return _check_paging(data, solution)
    hosts = solution.hosts_array(data.gpus)
    if hosts.shape[:2] != (data.layers, data.experts):
        raise InputError(
            f"hosts: {hosts.shape[0]} layers of {hosts.shape[1]} experts, expected "
            f"{data.layers} of {data.experts}"
        )
    if data.problem == "activation":
        return _check_activation(data, solution, hosts)
    violations = [*_check_hosts(data, solution, hosts), *_check_slots(data, hosts)]
    if data.problem in _BY_HOSTS:
        return _check_by_hosts(data, solution, hosts, violations)
    z = _requests(data, solution)
    if data.problem == "joint":
        violations += _check_requests(data, z)
    cases: Cases = JointCases(data, z) if data.problem == "joint" else ScenarioCases(data)
    memory = _memory(data, hosts, cases)
    violations += _check_memory(data, memory)
    stated, broken = _stated_dispatch(cases, solution, hosts)
    violations += broken

    details: dict[str, Any] = {"memory": {k: v.tolist() for k, v in memory.items()}}
    if (cases.needed() & ~hosts.any(axis=2)).any():
        return CheckReport(None, None, False, violations, details)
    times, methods = cases.times(hosts, stated)
    objective = cases.objective(times)
    exact = all(name.startswith("exact") for name in methods)
    if solution.objective is not None:
        by_rule = any(not name.startswith("exact") and name != BY_DISPATCH for name in methods)
        least = cases.objective(cases.least_times()) if by_rule else objective
        violations += _check_claim(solution.objective, least, objective)
    evaluated_by = "; ".join(sorted(methods))
    return CheckReport(objective, evaluated_by, exact, violations, details | cases.details(times))


#: Problems whose objective needs the hosts alone, and why they state no dispatch.
_BY_HOSTS: dict[str, tuple[Callable[[ProblemData, BoolArray], HostsCheck], str]] = {
    "balance": (checker_balance.check_hosts, "its rule splits the tokens"),
    "affinity": (checker_affinity.check_hosts, "every expert has one GPU"),
    "topology": (checker_topology.check_hosts, "tokens go to the nearest copy"),
}


def _check_by_hosts(
    data: ProblemData, solution: Solution, hosts: BoolArray, violations: list[Violation]
) -> CheckReport:
    check, why_no_dispatch = _BY_HOSTS[data.problem]
    found = check(data, hosts)
    memory = _memory(data, hosts, None)
    violations = [*violations, *found.violations, *_check_memory(data, memory)]
    if solution.dispatch is not None:
        text = f"dispatch: a plan of {data.problem} states none, {why_no_dispatch}"
        violations.append(Violation("dispatch_shape", "dispatch", 1, text))
    if solution.objective is not None and found.objective is not None:
        violations += _check_claim(solution.objective, found.objective, found.objective)
    details = {"memory": {k: v.tolist() for k, v in memory.items()}} | found.details
    exact = found.evaluated_by is not None and found.evaluated_by.startswith("exact")
    return CheckReport(found.objective, found.evaluated_by, exact, violations, details)


def _check_paging(data: ProblemData, solution: Solution) -> CheckReport:
    found = checker_paging.check_evictions(data, solution)
    violations = list(found.violations)
    if solution.objective is not None:
        violations += _check_claim(solution.objective, found.objective, found.objective)
    return CheckReport(found.objective, checker_paging.REPLAYED, True, violations, found.details)


def _check_activation(data: ProblemData, solution: Solution, hosts: BoolArray) -> CheckReport:
    """Check as a ``placement`` of the scenarios that the kept experts leave."""
    found = checker_activation.check_activated(data, solution, hosts)
    placed = {"problem": "placement", "objective": None}
    report = check_solution(found.placement, solution.model_copy(update=placed))
    violations = [*report.violations, *found.violations]
    if report.objective is None:
        return CheckReport(None, None, False, violations, report.details)
    objective = math.fsum([data.attention_base_us, *report.details["layers"]])
    if solution.objective is not None:
        violations += _check_claim(solution.objective, objective, objective)
    details = report.details | checker_activation.details(data, found.kept, objective)
    return CheckReport(objective, report.evaluated_by, report.exact, violations, details)


# --- rules of the plan ------------------------------------------------------------------------


def _check_hosts(data: ProblemData, solution: Solution, hosts: BoolArray) -> Iterator[Violation]:
    copies = hosts.sum(axis=2)
    for layer, row in enumerate(solution.hosts):
        for e, held in enumerate(row):
            where = f"layer {layer}, expert {e}"
            if not held:
                yield Violation("expert_not_hosted", where, 1, f"{where}: no GPU hosts it")
            if extra := len(held) - int(copies[layer, e]):
                text = f"{where}: a GPU is listed more than once"
                yield Violation("duplicate_replica", where, extra, text)
            if data.problem == "placement" and (extra := int(copies[layer, e]) - 1) > 0:
                text = f"{where}: {extra + 1} replicas, a placement has one"
                yield Violation("expert_replicated", where, extra, text)


def _check_slots(data: ProblemData, hosts: BoolArray) -> Iterator[Violation]:
    held = hosts.sum(axis=1)
    if data.uniform_slots and (spread := int(held.max() - held.min())) > 0:
        text = f"GPUs host {held.min()} to {held.max()} experts of a layer, all must host the same"
        yield Violation("slots_not_uniform", "all layers", spread, text)
    if data.slots is None:
        return
    for layer, g in np.argwhere(held > data.slots).tolist():
        where = f"layer {layer}, GPU {g}"
        text = f"{where}: {held[layer, g]} experts, {data.slots} slots"
        yield Violation("slots_exceeded", where, int(held[layer, g]) - data.slots, text)


def _requests(data: ProblemData, solution: Solution) -> IntArray:
    """Requests by class, wave and GPU; no classes where the problem has none."""
    if data.problem != "joint" or data.requests is None:
        return np.zeros((0, 0, data.gpus), dtype=np.int64)
    names = data.requests.names
    z = solution.requests_array(names, data.gpus)
    if (z < 0).any():
        raise InputError(
            [
                f"waves[{w}].requests.{names[c]}[{g}]: {z[c, w, g]} is negative"
                for c, w, g in np.argwhere(z < 0).tolist()
            ]
        )
    return z


def _check_requests(data: ProblemData, z: IntArray) -> Iterator[Violation]:
    requests = data.requests
    assert requests is not None
    served = z.sum(axis=(1, 2))
    for c, name in enumerate(requests.names):
        missing = int(requests.count[c] - served[c])
        text = f"class {name}: {served[c]} of {requests.count[c]} requests are decoded"
        if missing > 0:
            yield Violation("requests_missing", f"class {name}", missing, text)
        if missing < 0:
            yield Violation("requests_excess", f"class {name}", -missing, text)
    present = z.sum(axis=2) > 0
    busy = np.flatnonzero(present.any(axis=0))
    # Prescribed steps belong to positions: a wave beyond them has none.
    last = math.inf if data.wave_steps is None else len(data.wave_steps)
    beyond = int((busy >= last).sum())
    if (excess := max(len(busy) - data.waves, beyond)) > 0:
        text = f"{len(busy)} waves decode requests, {data.waves} are allowed"
        yield Violation("wave_excess", "waves", excess, text)
    yield from _check_wave_requests(data, z)
    if data.wave_steps is None:
        return
    for c, w in np.argwhere(present).tolist():
        if w < last and (more := int(requests.output_tokens[c]) - data.wave_steps[w]) > 0:
            where = f"wave {w}, class {requests.names[c]}"
            text = f"{where}: {requests.output_tokens[c]} steps, the wave has {data.wave_steps[w]}"
            yield Violation("wave_too_long", where, more, text)


def _check_wave_requests(data: ProblemData, z: IntArray) -> Iterator[Violation]:
    """Compare the waves with the prescribed ones, where there are any."""
    wanted, requests = data.wave_requests, data.requests
    if wanted is None or requests is None:
        return
    found = np.zeros((len(wanted), max(wanted.shape[1], z.shape[1])), dtype=np.int64)
    found[:, : z.shape[1]] = z.sum(axis=2)
    expected = np.zeros_like(found)
    expected[:, : wanted.shape[1]] = wanted
    for c, w in np.argwhere(found != expected).tolist():
        where = f"wave {w}, class {requests.names[c]}"
        text = f"{where}: {found[c, w]} requests, {expected[c, w]} are prescribed"
        yield Violation("wave_requests", where, abs(int(found[c, w] - expected[c, w])), text)


def _memory(data: ProblemData, hosts: BoolArray, cases: Cases | None) -> dict[str, FloatArray]:
    """MiB by GPU: of experts, of the fullest wave's KV cache, and free for both."""
    # Multiples of 2**-20 far below 2**33: these sums and products are exact.
    memory = {"experts_mib": hosts.sum(axis=(0, 1)) * data.expert_mib}
    if isinstance(cases, JointCases):
        memory["kv_mib"] = cases.kv_mib.max(axis=0, initial=0.0)
    if data.free_mib is not None:
        memory["free_mib"] = data.free_mib
    return memory


def _check_memory(data: ProblemData, memory: dict[str, FloatArray]) -> Iterator[Violation]:
    if data.free_mib is None:
        return
    used = memory["experts_mib"] + memory.get("kv_mib", 0.0)
    for g in np.flatnonzero(used > data.free_mib).tolist():
        kv = f" and {memory['kv_mib'][g]:g} of KV cache" if "kv_mib" in memory else ""
        text = (
            f"GPU {g}: {memory['experts_mib'][g]:g} MiB of experts{kv}, {data.free_mib[g]:g} free"
        )
        yield Violation("memory_exceeded", f"GPU {g}", float(used[g] - data.free_mib[g]), text)


def _check_claim(claimed: float, least: float, objective: float) -> Iterator[Violation]:
    slack = CLAIM_TOLERANCE * max(abs(objective), 1e-9)
    if not least - slack <= claimed <= objective + slack:
        text = f"the objective is {objective:.9g}, the solution claims {claimed:.9g}"
        yield Violation("objective_mismatch", "objective", abs(claimed - objective), text)


# --- layer times ------------------------------------------------------------------------------


def _stated_dispatch(
    cases: Cases, solution: Solution, hosts: BoolArray
) -> tuple[Stated, list[Violation]]:
    """Valid stated dispatches by (layer, case), and what is wrong with the others."""
    stated: Stated = {}
    violations: list[Violation] = []
    if solution.dispatch is None:
        return stated, violations
    if len(solution.dispatch) != len(hosts):
        text = f"dispatch: {len(solution.dispatch)} layers, expected {len(hosts)}"
        return stated, [Violation("dispatch_shape", "dispatch", 1, text)]
    for layer, rows in enumerate(solution.dispatch):
        expected = cases.count(layer)
        if len(rows) != expected:
            where = f"layer {layer}"
            text = f"{where}: dispatch of {len(rows)} {cases.noun}s, expected {expected}"
            violations.append(Violation("dispatch_shape", where, abs(len(rows) - expected), text))
            continue
        for s, parts in enumerate(rows):
            where = f"layer {layer}, {cases.noun} {s}"
            tokens = cases.tokens(layer, s)
            found, wrong = read_dispatch(parts, tokens, hosts[layer], cases.whole, where)
            violations += wrong
            if found is not None:
                stated[layer, s] = found
    return stated, violations
