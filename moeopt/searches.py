"""Problems with a search of their own: it plans and bounds at once, before any exact search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from moeopt.problem import ProblemData
from moeopt.solution import Solution


@dataclass(frozen=True)
class Searched:
    """What a search found.

    Attributes
    ----------
    bounds : dict of str to float
        Lower bounds by their proofs.
    plan : Solution or None
    source : str
        Who made the plan; where there is none, why.
    """

    bounds: dict[str, float]
    plan: Solution | None
    source: str


@dataclass(frozen=True)
class OwnSearch:
    """One search: ``run(data, *, seed, time_limit_s, stop)``, and what it is in a few words."""

    words: str
    run: Callable[..., Searched]


# The searches are compiled: each problem waits for the import of its own only.


def _balance(
    data: ProblemData, *, seed: int, time_limit_s: float, stop: Callable[[], bool]
) -> Searched:
    from moeopt.balancing import balance_layers

    if data.balance is None:
        raise ValueError("there are no loads to balance")  # explain_infeasible said why
    found = balance_layers(data.balance, seed=seed, time_limit_s=time_limit_s, stop=stop)
    plan = Solution.from_arrays(data, found.hosts)
    return Searched({found.source: found.value}, plan, "the search of balance")


def _topology(
    data: ProblemData, *, seed: int, time_limit_s: float, stop: Callable[[], bool]
) -> Searched:
    from moeopt.topology.solve import find_plan
    from moeopt.topology.spread import hosts_of

    if data.topology is None:
        raise ValueError("no servers are known")
    found = find_plan(data.topology, seed=seed, time_limit_s=time_limit_s, stop=stop)
    if found is None:
        raise ValueError("no room for a plan")  # explain_infeasible said why
    bounds = {} if found.value is None else {found.method: found.value}
    plan = Solution.from_arrays(data, hosts_of(data.topology, found.plan))
    return Searched(bounds, plan, f"the search by {found.method}")


def _affinity(
    data: ProblemData, *, seed: int, time_limit_s: float, stop: Callable[[], bool]
) -> Searched:
    from moeopt.affining import solve_affinity
    from moeopt.affinity.data import hosts_of

    if data.affinity is None:
        raise ValueError("there is nothing to place")  # explain_infeasible said why
    found = solve_affinity(data.affinity, seed=seed, time_limit_s=time_limit_s, stop=stop)
    bounds = {bound.method: bound.value for bound in found.bounds}
    if found.place is None:
        return Searched(bounds, None, "the search found no plan with loads even enough")
    plan = Solution.from_arrays(data, hosts_of(found.place, data.gpus))
    return Searched(bounds, plan, "the search of affinity")


def _activation(
    data: ProblemData, *, seed: int, time_limit_s: float, stop: Callable[[], bool]
) -> Searched:
    from moeopt.activating import solve_choice

    found = solve_choice(data, seed=seed, time_limit_s=time_limit_s, stop=stop)
    plan = Solution.from_arrays(data, found.hosts, activated=found.kept)
    return Searched({found.source: found.lower}, plan, "the search by layer")


#: By problem; the others have a heuristic, and proofs by layer or of waves.
OWN_SEARCHES = {
    "balance": OwnSearch("a search and bounds by layer", _balance),
    "activation": OwnSearch("a search and bounds by layer", _activation),
    "topology": OwnSearch("a flow, or copies and rents of places", _topology),
    "affinity": OwnSearch("annealing, semidefinite and column bounds", _affinity),
}
