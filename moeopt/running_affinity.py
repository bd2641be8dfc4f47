"""The phase of a solve that searches and bounds ``affinity``."""

from __future__ import annotations

import threading
import time

from moeopt.running import Run
from moeopt.solution import Solution


def affinity_phase(run: Run, seed: int, time_limit_s: float, stop: threading.Event) -> None:
    """Offer the best plan of the search and keep its bounds."""
    # The search is compiled: the other problems need not wait for its import.
    from moeopt.affining import solve_affinity
    from moeopt.affinity.data import hosts_of

    begin = time.monotonic()
    run.tell("heuristic")
    if run.data.affinity is None:
        raise ValueError("there is nothing to place")  # explain_infeasible said why
    found = solve_affinity(
        run.data.affinity, seed=seed, time_limit_s=time_limit_s, stop=stop.is_set
    )
    for bound in found.bounds:
        run.lower_bounds[bound.method] = bound.value
    if found.place is None:
        run.notes.append("the search found no plan with loads even enough")
    else:
        hosts = hosts_of(found.place, run.data.gpus)
        run.offer(Solution.from_arrays(run.data, hosts), "the search of affinity")
    run.seconds["heuristic"] = time.monotonic() - begin
    run.tell("proof")
