"""Compile every numba kernel once: ``python -m moeopt.kernels``.

The kernels are compiled when they are first used, and kept beside the source. That takes tens of
seconds, which a time limit should not have to pay: the set-up calls this instead.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import numpy as np

from moeopt.affining import solve_affinity
from moeopt.affinity.bounding import column_value
from moeopt.affinity.data import AffinityData
from moeopt.affinity.moetuner import moetuner_plan
from moeopt.balance import balance_data, solve_balance
from moeopt.batch_dispatch import dispatch_batch, layer_batch
from moeopt.bounds import joint_bound
from moeopt.grace import Nodes, Settings
from moeopt.grace import run as run_steps
from moeopt.heuristics import joint, placement, replication
from moeopt.make.traces_shipped import Trace
from moeopt.methods import methods_for
from moeopt.paging import best_evictions, replay, requests_of_lists
from moeopt.paging.comparing import POLICIES, misses_of
from moeopt.paging.flow import cheapest_loads
from moeopt.problem import LayerTime, ProblemData, RequestClasses, Scenarios
from moeopt.proving import one_layer, prove
from moeopt.simulate.sampled import sampled_step_time
from moeopt.topology import TopologyData, find_plan, hops_of

#: A compiling kernel is not interrupted; the limit only ends the loops behind it.
_LIMIT_S = 2.0


def compile_all() -> float:
    """Run every heuristic and every bound on tiny layers; return the seconds it took."""
    begin = time.monotonic()
    shapes = ((2, 6, 2, 4), (3, 6, 3, 2), (4, 8, 2, 4), (4, 8, 4, 2), (4, 12, 6, 2), (6, 8, 2, 4))
    for problem in ("placement", "replication"):
        for top_k, experts, gpus, slots in shapes:
            data = _layer(problem, top_k, experts, gpus, slots + (problem == "replication"))
            find = placement.place if problem == "placement" else replication.replicate
            plan = find(data, time_limit_s=_LIMIT_S)
            assert plan is not None
            for method in methods_for(data):
                # Patterns are a linear program for another process.
                if method.name != "patterns" and method.fits(one_layer(data, 0)) is None:
                    hosts = plan.hosts_array(gpus)
                    prove(data, [method], hosts=hosts, time_limit_s=_LIMIT_S)
    for form in ("sum", "max", "p2"):
        for uniform in (False, True):
            data = _joint(form, uniform=uniform)
            joint_bound(data, time_limit_s=_LIMIT_S)
            plan = joint.plan(data, time_limit_s=_LIMIT_S)
            assert plan is not None
            sampled_step_time(data, plan, samples=2)
        prescribed = replace(_joint(form, uniform=False), wave_requests=np.array([[6, 6]]))
        joint.plan(prescribed, time_limit_s=_LIMIT_S)
    for slots, rule in ((2, "even"), (3, "even"), (3, "optimal")):
        loads = np.arange(1.0, 9.0)
        solve_balance(balance_data(loads, gpus=4, replicas=4 * slots, rule=rule))
    for form in ("sum", "max", "p2"):
        hosts = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 1, 1], [0, 1, 0]], dtype=bool)
        dispatch_batch(layer_batch(hosts, [5, 9, 2, 7, 4], LayerTime(form, 1.0, 10.0, 1.0, 1.0)))
    requests = requests_of_lists(2, 2, [[0], [0, 1], [1], [0], [0, 1], [1], [1], [0]])
    for policy in POLICIES:
        misses_of(requests, policy, [2, 3])
    replay(requests, 2, best_evictions(requests, 2))
    cheapest_loads(requests, 2, np.arange(1, 5))
    ids = np.array([[[t % 4, (t + 1) % 4]] for t in range(32)], dtype=np.uint8)
    trace = Trace("kernels", 4, 2, ids, np.arange(0, 33, 4), np.zeros(8, dtype=np.int64))
    steps = Settings(Nodes(2, 2), ("affinity",), ("balance",), ("grace", "flow"), batch=4)
    list(run_steps(trace, steps))
    compile_affinity()
    compile_topology()
    return time.monotonic() - begin


def compile_topology() -> None:
    """Flow, copies and rents of four servers in two racks, tokens from all of them."""
    everywhere = np.tile(np.arange(4), (2, 1))
    for copies in (0, 4):
        find_plan(
            TopologyData(
                hops=hops_of("racks:2x2", 4),
                node_of_gpu=np.arange(4),
                dispatch=everywhere,
                collect=everywhere,
                share=np.full(4, 0.25),
                weight=np.arange(1.0, 17.0).reshape(2, 8),
                capacity=np.full(4, 6),
                capacity_per_layer=np.full(4, 3),
                replicas=copies,
            )
        )


def compile_affinity() -> None:
    """Search and bounds of ``affinity`` for both kinds."""
    flow = np.arange(32.0).reshape(2, 4, 4)
    node, load = np.array([0, 0]), np.ones((3, 4))
    chain = AffinityData("inter", node, load, flow)
    moetuner_plan(chain)
    column_value(chain)
    solve_affinity(chain, rounds=1)
    scenarios = _layer("placement", 2, 4, 2, 2).scenarios
    solve_affinity(AffinityData("intra", node, load[:1], flow[:0], scenarios), rounds=1)


def _joint(form: str, *, uniform: bool) -> ProblemData:
    """A tiny joint instance with room for replicas and, unless all fits, two waves."""
    usage = np.array([[[0.5, 0.5, 0.5, 0.5], [0.25, 0.25, 0.5, 1.0]]])
    return replace(
        _layer("joint", 2, 4, 2, 4),
        layers=2,
        slots=None,
        scenarios=(),
        load=usage[0] * 12,
        free_mib=np.array([16.0, 16.0]),
        layer_time=LayerTime(form, 1.0, 10.0, 1.0, 1.0),
        requests=RequestClasses(
            ("a",), np.array([12]), np.array([8]), np.array([8]), np.array([1.0]), usage
        ),
        waves=2,
        uniform_slots=uniform,
    )


def _layer(problem: str, top_k: int, experts: int, gpus: int, slots: int) -> ProblemData:
    """One small layer of random scenarios."""
    rng = np.random.default_rng(top_k)
    rows = np.unique(
        np.sort([rng.choice(experts, top_k, replace=False) for _ in range(30)], axis=1), axis=0
    )
    weight = rng.random(len(rows))
    scenarios = Scenarios(
        np.arange(0, rows.size + 1, top_k, dtype=np.int64),
        rows.ravel().astype(np.int64),
        np.ones(rows.size, dtype=np.int64),
        weight / weight.sum(),
    )
    return ProblemData(
        name="kernels",
        sha256="",
        problem=problem,
        layers=1,
        experts=experts,
        top_k=top_k,
        gpus=gpus,
        expert_mib=1.0,
        free_mib=None,
        slots=slots,
        layer_time=LayerTime(),
        scenarios=(scenarios,),
        load=np.ones((1, experts)),
        gpu_kind=np.zeros(gpus, dtype=np.int64),
    )


if __name__ == "__main__":
    print(f"kernels compiled in {compile_all():.0f} s", file=sys.stderr)
