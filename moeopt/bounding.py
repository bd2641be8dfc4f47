"""All bounds of one problem of an instance: combinatorial ones and LP relaxations; MPS export."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeopt.bounds import Bound, combinatorial_bounds, joint_bound
from moeopt.catalog import LP_SOLVERS, formulation_names, is_native, load_formulation, read_instance
from moeopt.errors import InputError
from moeopt.heuristics import placement, replication
from moeopt.instance import Instance
from moeopt.limits import require_limits
from moeopt.methods import methods_for
from moeopt.prepare import explain_infeasible, prepare
from moeopt.problem import PROBLEMS, ProblemData, objective_unit
from moeopt.proving import one_layer, prove, why_not
from moeopt.solvers.base import SolveSettings
from moeopt.solvers.supervise import run_job

if TYPE_CHECKING:
    from moeopt.affinity.data import AffinityData
    from moeopt.balance.data import BalanceData
    from moeopt.topology.data import TopologyData

METHODS = ("combinatorial", "lp", "layers", "all")

#: LPs with more nonzeros go to the first-order solver, unless told.
MANY_NONZEROS = 300_000

#: Share of the time limit for the plan that the methods layer by layer start from.
_PLAN_SHARE = 0.25


@dataclass
class BoundReport:
    """Bounds of one problem, strongest first, and what could not be had.

    ``missing``: one line for each method that gave no bound, with the reason.
    """

    instance: str
    problem: str
    unit: str
    bounds: list[Bound] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    infeasible: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


def bounds(
    instance: Instance | str | os.PathLike[str],
    *,
    problem: str,
    methods: list[str],
    formulations: list[str] | None = None,
    solver: str | None = None,
    time_limit_s: float = 60.0,
    memory_limit_mib: float | None = None,
) -> BoundReport:
    """Compute lower bounds.

    Parameters
    ----------
    methods : list of {"combinatorial", "lp", "layers", "all"}
        ``layers``: the methods of :mod:`moeopt.methods`, each alone.
    formulations : list of str, optional
        Whose LP relaxations; default: every formulation of the problem that takes the instance.
    solver : {"highs", "pdlp"}, optional
        For the LPs; default: HiGHS, PDLP for large ones.
    time_limit_s : float
        For each LP. An LP cut short still gives a bound if its duals are usable.

    Raises
    ------
    InputError
    """
    for method in methods:
        if method not in METHODS:
            raise InputError(f"there is no method {method!r}; methods are {', '.join(METHODS)}")
    require_limits(time_limit_s, memory_limit_mib)
    if solver is not None and solver not in LP_SOLVERS:
        raise InputError(f"{solver!r} solves no LPs here; {' and '.join(LP_SOLVERS)} do")
    if not isinstance(instance, Instance):
        instance = read_instance(instance)
    data = prepare(instance, problem)
    report = BoundReport(data.name, problem, objective_unit(data))
    report.infeasible = explain_infeasible(data)
    if report.infeasible:
        return report
    if formulations or not set(methods).isdisjoint({"lp", "all"}):
        for name in formulations or formulation_names(problem):
            settings = SolveSettings(time_limit_s=time_limit_s, memory_limit_mib=memory_limit_mib)
            _add_relaxation(report, data, name, solver, settings, asked=bool(formulations))
    if not set(methods).isdisjoint({"layers", "all"}):
        _add_proofs(report, data, time_limit_s, asked="layers" in methods)
    if not set(methods).isdisjoint({"combinatorial", "all"}):
        report.bounds += combinatorial_bounds(data)
    report.bounds.sort(key=lambda bound: -bound.value)
    return report


def _add_proofs(
    report: BoundReport, data: ProblemData, time_limit_s: float, *, asked: bool
) -> None:
    """Run every method that works layer by layer on its own."""
    if data.problem == "joint":
        report.bounds.append(joint_bound(data, time_limit_s=time_limit_s)[0])
        return
    if data.balance is not None:
        report.bounds.append(_balance_bound(data.balance, time_limit_s))
        return
    if data.topology is not None:
        _add_servers(report, data.topology, time_limit_s)
        return
    if data.affinity is not None:
        report.bounds += _affinity_bounds(data.affinity, time_limit_s)
        return
    if data.activation is not None:
        report.bounds.append(_activation_bound(data, time_limit_s))
        return
    if (reason := why_not(data)) is not None:
        if asked:
            report.missing.append(f"layers: {reason}")
        return
    begin = time.monotonic()
    find = placement.place if data.problem == "placement" else replication.replicate
    plan = find(data, time_limit_s=_PLAN_SHARE * time_limit_s)
    hosts = None if plan is None else plan.hosts_array(data.gpus)
    left = time_limit_s - (time.monotonic() - begin)
    for method in methods_for(data):
        reason = method.fits(one_layer(data, 0))
        if reason is not None:
            report.missing.append(f"{method.name}: {reason}")
            continue
        proof = prove(data, [method], hosts=hosts, time_limit_s=left)
        report.bounds.append(Bound(method.name, proof.value, method.proof, proof.seconds))


def _add_servers(report: BoundReport, data: TopologyData, time_limit_s: float) -> None:
    """Bound ``topology`` by the flow, or by rents where copies are worth something."""
    from moeopt.topology.solve import bound

    begin = time.perf_counter()
    found = bound(data, time_limit_s=time_limit_s)
    if found is None:
        report.missing.append("server rents: the time limit ended the search for rents")
        return
    name, value, proof = found
    report.bounds.append(Bound(name, value, proof, time.perf_counter() - begin))


def _balance_bound(data: BalanceData, time_limit_s: float) -> Bound:
    """Bound every layer of ``balance``, with the search's plans to say where more is worth it."""
    from moeopt.balancing import balance_layers

    begin = time.perf_counter()
    found = balance_layers(data, time_limit_s=time_limit_s)
    return Bound("balance by layer", found.value, found.source, time.perf_counter() - begin)


def _affinity_bounds(data: AffinityData, time_limit_s: float) -> list[Bound]:
    """Semidefinite bound, and the column bound where its sets can be listed."""
    from moeopt.affining import affinity_bounds, proof_of

    begin = time.monotonic()
    found = affinity_bounds(data, stop=lambda: time.monotonic() - begin > time_limit_s)
    return [Bound(b.method, b.value, proof_of(data, b), b.seconds) for b in found]


def _activation_bound(data: ProblemData, time_limit_s: float) -> Bound:
    """Bound every layer under every number of kept experts; their best choice bounds the plan."""
    from moeopt.activating import solve_choice

    begin = time.perf_counter()
    found = solve_choice(data, time_limit_s=time_limit_s)
    proof = f"every layer under every number of kept experts, {found.source}"
    return Bound("activation by layer", found.lower, proof, time.perf_counter() - begin)


def _add_relaxation(
    report: BoundReport,
    data: ProblemData,
    name: str,
    solver: str | None,
    settings: SolveSettings,
    *,
    asked: bool,
) -> None:
    """Solve one LP relaxation in a worker and add its safe bound."""
    formulation = load_formulation(name)
    if data.problem != formulation.PROBLEM:
        raise InputError(f"formulation {name} is for {formulation.PROBLEM}, not for {data.problem}")
    if is_native(formulation):
        if asked:
            raise InputError(f"{name} is a native CP model: it has no LP relaxation")
        return
    reason = formulation.supports(data)
    if reason is not None:
        report.missing.append(f"lp {name}: {reason}")
        return
    begin = time.perf_counter()
    outcome = run_job(
        data,
        name,
        solver or ("pdlp" if formulation.size(data)["nonzeros"] > MANY_NONZEROS else "highs"),
        settings,
        relax=True,
    )
    if outcome.input_error:
        raise InputError(outcome.input_error)
    result = outcome.result
    if result is None or result.dual_bound is None:
        why = outcome.message or (result.limit and f"{result.limit} limit") if result else None
        report.missing.append(f"lp {name}: {why or outcome.cause}")
        return
    report.bounds.append(
        Bound(
            f"lp {name}",
            result.dual_bound,
            result.dual_bound_from or "LP relaxation",
            time.perf_counter() - begin,
        )
    )


def write_formulation(
    instance: Instance | str | os.PathLike[str],
    problem: str,
    formulation: str,
    path: Path,
    *,
    relax: bool = False,
) -> dict[str, int]:
    """Write a formulation of an instance as an MPS file; return its size.

    Raises
    ------
    InputError
    """
    from moeopt.compile import compile_model
    from moeopt.declarative import declarative
    from moeopt.mps import write_mps

    if problem not in PROBLEMS:
        raise InputError(f"there is no problem {problem!r}; problems are {', '.join(PROBLEMS)}")
    if not isinstance(instance, Instance):
        instance = read_instance(instance)
    data = prepare(instance, problem)
    module = load_formulation(formulation)
    if problem != module.PROBLEM:
        raise InputError(f"formulation {formulation} is for {module.PROBLEM}, not for {problem}")
    if is_native(module):
        raise InputError(f"{formulation} is a native CP model: it has no rows to write")
    if (reason := module.supports(data)) is not None:
        raise InputError(f"formulation {formulation} does not take this instance: {reason}")
    with declarative():
        model = module.build(data)
    linear = compile_model(model)
    write_mps(linear.relax() if relax else linear, path)
    return linear.size
