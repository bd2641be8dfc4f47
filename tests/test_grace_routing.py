"""Routing and its bounds: the flow is exact, rules do what they say, nothing beats a bound."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import linprog
from test_grace import random_trace
from typer.testing import CliRunner

from moeopt.cli import app
from moeopt.errors import InputError, MoeoptError
from moeopt.grace import means, run
from moeopt.grace.bounds import (
    least_away,
    least_imbalance,
    least_node_sends,
    pair_bounds,
    pair_counts,
)
from moeopt.grace.connectivity import expected_cost
from moeopt.grace.data import Batches, Nodes, Plan, even_loads, make_batches, plan_problems, profile
from moeopt.grace.least_sends import least_mean_sends
from moeopt.grace.measure import count_traffic, measure
from moeopt.grace.pipeline import Settings, make_plan
from moeopt.grace.replication import replicate
from moeopt.grace.routing import ROUTINGS, polling_weights, route, routing_problems
from moeopt.grace.routing_flow import REMOTE_PRICE, least_cost_shares, least_largest, pair_prices

NODES = Nodes(2, 2)


def random_plan(seed: int, experts: int = 8, layers: int = 2, copies: int = 5) -> Plan:
    rng = np.random.default_rng(seed)
    hosts = np.zeros((layers, experts, 4), dtype=bool)
    primary = rng.integers(4, size=(layers, experts))
    np.put_along_axis(hosts, primary[:, :, None], True, axis=2)
    for l in range(layers):
        hosts[l, rng.integers(experts, size=copies), rng.integers(4, size=copies)] = True
    return Plan(NODES, hosts, primary, even_loads(hosts, rng.integers(1, 9, (layers, experts))))


def one_token(experts: list[int], home: int) -> Batches:
    return Batches(np.array(experts, dtype=np.uint8)[None, None, None], np.array([home]))


# --- measure -------------------------------------------------------------------------------------


def test_traffic_by_hand() -> None:
    """Home 0 of nodes {0, 1}, {2, 3}: its own GPU, its neighbour, and both of the other node."""
    served = np.array([0, 1, 2, 3, 3], dtype=np.uint8)[None, None, None]
    seen = count_traffic(NODES, one_token([0, 1, 2, 3, 4], 0), served)
    assert (seen.same_gpu, seen.same_node, seen.remote) == (1, 1, 3)
    assert seen.node_sends == 1
    # One to GPU 1, and from GPU 2 (at the home's place, where it arrived) to 3.
    assert seen.gpu_sends == 2
    assert seen.load[0, 0].tolist() == [1, 1, 1, 2]
    assert seen.imbalance == pytest.approx(2 / 1.25)
    only_far = np.array([3], dtype=np.uint8)[None, None, None]
    seen = count_traffic(NODES, one_token([0], 0), only_far)
    assert (seen.node_sends, seen.gpu_sends) == (1, 1)


def test_checks_see_what_is_wrong() -> None:
    plan = random_plan(0)
    batches = make_batches(random_trace(0), NODES, 40, 0)
    served = route("primary", plan, batches)
    assert routing_problems(plan, batches, served) == []
    l, e = 0, int(batches.ids[0, 0, 0, 0])
    served[0, 0, 0, 0] = int((~plan.hosts[l, e]).argmax())
    assert f"does not hold expert {e}" in routing_problems(plan, batches, served)[0]
    with pytest.raises(MoeoptError, match="not feasible"):
        measure(plan, batches, served)
    served[0, 0, 0, 0] = 9
    assert routing_problems(plan, batches, served) == ["GPU 9 does not exist"]
    away = plan.hosts.copy()
    away[1, 3] = False
    assert "layer 1: expert 3 is on no GPU" in plan_problems(replace(plan, hosts=away))
    assert plan_problems(replace(plan, predicted=plan.predicted - np.inf)) != []


# --- rules ---------------------------------------------------------------------------------------


def served_of(name: str, hosts: list[bool], home: int, predicted: list[float]) -> np.ndarray:
    """GPUs that serve 4,000 tokens of one expert."""
    plan = Plan(
        NODES,
        np.array(hosts)[None, None],
        np.array([[int(np.argmax(hosts))]]),
        np.array([predicted]),
    )
    batches = Batches(np.zeros((1, 4000, 1, 1), dtype=np.uint8), np.full(4000, home))
    return np.bincount(route(name, plan, batches, 5).ravel(), minlength=4)


def test_tiers_and_weights() -> None:
    everywhere, loads = [True] * 4, [1.0, 2.0, 3.0, 6.0]
    assert served_of("grace", everywhere, 3, loads).tolist() == [0, 0, 0, 4000]
    # No copy at home: within the node, else by weights 1/2 and 1/6, that is 3 : 1.
    assert served_of("grace", [True, False, True, True], 1, loads).tolist() == [4000, 0, 0, 0]
    drawn = served_of("grace", [False, True, False, True], 0, loads)
    assert drawn.tolist() == [0, 4000, 0, 0]
    far = Nodes(1, 4)
    plan = Plan(far, np.array([[[False, True, False, True]]]), np.array([[1]]), np.array([loads]))
    batches = Batches(np.zeros((1, 4000, 1, 1), dtype=np.uint8), np.zeros(4000, dtype=np.int64))
    drawn = np.bincount(route("grace", plan, batches, 5).ravel(), minlength=4)
    assert drawn[1] == pytest.approx(3000, abs=120)  # 4.4 standard deviations
    drawn = served_of("weighted", everywhere, 3, loads)
    assert drawn == pytest.approx(4000 * np.array([6, 3, 2, 1]) / 12, abs=130)
    assert polling_weights(np.array([[0.0, 4.0]])).tolist() == [[1.0, 0.25]]


def test_other_rules() -> None:
    some = [False, True, True, True]
    loads = [1.0] * 4
    assert served_of("primary", some, 3, loads).tolist() == [0, 4000, 0, 0]
    assert served_of("nearest", some, 0, loads).tolist() == [0, 4000, 0, 0]
    assert served_of("nearest", [True, True, False, False], 3, loads).tolist() == [4000, 0, 0, 0]
    turns = served_of("round-robin", some, 3, loads)
    assert sorted(turns.tolist()) == [0, 1333, 1333, 1334]


@pytest.mark.parametrize("name", ROUTINGS)
def test_routings_are_feasible_and_repeat_themselves(name: str) -> None:
    plan, batches = random_plan(1), make_batches(random_trace(1), NODES, 40, 0)
    served = route(name, plan, batches, 2)
    assert routing_problems(plan, batches, served) == []
    assert (served == route(name, plan, batches, 2)).all()
    with pytest.raises(InputError, match="the plan has 2 layers"):
        route(name, plan, make_batches(random_trace(1, layers=3), NODES, 40, 0))


# --- flow ----------------------------------------------------------------------------------------


def linear_program(
    count: np.ndarray, open_: np.ndarray, cost: np.ndarray, fixed: np.ndarray, cap: int | None
) -> float:
    """Least price with loads at most ``cap``; with None the least largest load."""
    homes, several, gpus = open_.shape
    variables = [tuple(v) for v in np.argwhere(open_).tolist()]
    price = np.array([cost[h, r, g] for h, r, g in variables] + [0.0])
    groups = np.zeros((homes * several, len(variables) + 1))
    load = np.zeros((gpus, len(variables) + 1))
    for i, (h, r, g) in enumerate(variables):
        groups[h * several + r, i] = load[g, i] = 1
    load[:, -1] = -1
    if cap is None:
        price = np.r_[np.zeros(len(variables)), 1.0]
    found = linprog(
        price,
        A_eq=groups,
        b_eq=count.ravel(),
        A_ub=load,
        b_ub=-fixed,
        bounds=[(0, None)] * len(variables) + [(0, cap)],
    )
    return float(found.fun) if found.status == 0 else math.inf


@pytest.mark.parametrize("seed", range(25))
def test_shares_are_the_best_flow(seed: int) -> None:
    """Against a linear program, for many limits: least price, and the least possible limit."""
    rng = np.random.default_rng(seed)
    nodes = Nodes(2, int(rng.integers(1, 4)))
    gpus, several = nodes.gpus, int(rng.integers(1, 5))
    count = rng.integers(0, 12, (gpus, several))
    hosts = rng.random((several, gpus)) < 0.5
    hosts[np.arange(several), rng.integers(gpus, size=several)] = True
    open_ = np.broadcast_to(hosts, (gpus, several, gpus)).copy()
    fixed = rng.integers(0, 25, gpus)
    # Every second expert at other prices, as for tokens that are sent anyway.
    cost = np.stack([pair_prices(nodes, 1 + 9 * (r % 2)) for r in range(several)], axis=1)
    least = math.ceil(linear_program(count, open_, cost, fixed, None) - 1e-9)
    share, load = np.zeros(open_.shape, dtype=np.int64), np.zeros(gpus, dtype=np.int64)
    for cap in (0, least - 1, least, least + 3, least + 1000):
        limit = least_cost_shares(count, open_, cost, fixed, cap, share, load)
        assert limit == max(cap, least)
        assert (share.sum(axis=2) == count).all()
        assert (share >= 0).all()
        assert not share[~open_].any()
        assert (load == fixed + share.sum(axis=(0, 1))).all()
        assert load.max() <= limit
        price = int((share * cost).sum())
        assert price == pytest.approx(linear_program(count, open_, cost, fixed, limit))


def all_routings(plan: Plan, batches: Batches) -> list[np.ndarray]:
    choices = [
        np.flatnonzero(plan.hosts[l, e]).tolist()
        for l in range(plan.hosts.shape[0])
        for e in batches.ids[:, :, l].ravel().tolist()
    ]
    assert plan.hosts.shape[0] == 1
    return [
        np.array(row, dtype=np.uint8).reshape(batches.ids.shape)
        for row in itertools.product(*choices)
    ]


def price_of(plan: Plan, batches: Batches, served: np.ndarray) -> int:
    seen = count_traffic(plan.nodes, batches, served)
    return int(seen.same_node + REMOTE_PRICE * seen.remote)


def largest(batches: Batches, served: np.ndarray) -> int:
    return int(count_traffic(NODES, batches, served).load.max())


def sends_price(plan: Plan, batches: Batches, served: np.ndarray) -> int:
    """Pairs on the node cost 1, remote ones 10 where all experts of the token are on its node."""
    total = 0
    for t, home in enumerate(batches.home.tolist()):
        ids = batches.ids[0, t, 0].tolist()
        node = range(home - home % 2, home - home % 2 + 2)
        stays = all(plan.hosts[0, e, list(node)].any() for e in ids)
        for g in served[0, t, 0].tolist():
            total += 0 if g == home else 1 if g in node or not stays else REMOTE_PRICE
    return total


@pytest.mark.parametrize("seed", range(12))
def test_flow_routings_against_all_routings(seed: int) -> None:
    plan = random_plan(seed, experts=5, layers=1, copies=4)
    trace = random_trace(seed, tokens=40, layers=1, experts=5, top_k=2)
    batches = make_batches(trace, NODES, 4, seed)
    batches = Batches(batches.ids[:1], batches.home)
    found = [
        (count_traffic(NODES, batches, s), price_of(plan, batches, s))
        for s in all_routings(plan, batches)
    ]
    least_load = min(int(seen.load.max()) for seen, _ in found)
    assert least_largest(plan, batches).tolist() == [[least_load]]
    level = route("flow-level", plan, batches)
    assert count_traffic(NODES, batches, level).load.max() == least_load
    assert price_of(plan, batches, level) == min(
        price for seen, price in found if seen.load.max() == least_load
    )
    # Under the limit of 1.1 times the mean, 2.2: 2, or the least possible.
    cap = max(2, least_load)
    kept = [s for s in all_routings(plan, batches) if largest(batches, s) <= cap]
    assert price_of(plan, batches, route("flow", plan, batches)) == min(
        price_of(plan, batches, s) for s in kept
    )
    sent = route("flow-sends", plan, batches)
    assert largest(batches, sent) <= cap
    assert sends_price(plan, batches, sent) == min(sends_price(plan, batches, s) for s in kept)
    near = count_traffic(NODES, batches, route("flow-near", plan, batches))
    least_remote = min(seen.remote for seen, _ in found)
    assert near.remote == least_remote
    assert near.load.max() == min(
        seen.load.max() for seen, _ in found if seen.remote == least_remote
    )
    # No routing sends fewer copies between nodes than the bound; with two nodes one attains it.
    sends = least_node_sends(plan, batches)
    assert sends == min(seen.node_sends for seen, _ in found)
    assert count_traffic(NODES, batches, route("nearest", plan, batches)).node_sends == sends
    assert least_imbalance(plan, batches) == pytest.approx(least_load / 2)


def test_three_nodes_sends_bound() -> None:
    nodes = Nodes(3, 1)
    hosts = np.eye(3, dtype=bool)[None]
    plan = Plan(nodes, hosts, np.arange(3)[None], np.ones((1, 3)))
    batches = one_token([1, 2], 0)
    assert least_node_sends(plan, batches) == 1
    assert count_traffic(nodes, batches, route("nearest", plan, batches)).node_sends == 2


# --- bounds of all plans -------------------------------------------------------------------------


def test_least_away_by_hand() -> None:
    count = np.array([[5, 1, 2], [3, 4, 2]])
    assert least_away(count, 0) == 17 - 11
    assert least_away(count, 1) == 17 - 11 - 3
    assert least_away(count, 2) == 17 - 11 - 3 - 2
    assert least_away(count, 3) == 0


@pytest.mark.parametrize("seed", range(6))
def test_pair_bounds_are_those_of_the_best_plan(seed: int) -> None:
    """All plans of 4 experts on 2 × 2 GPUs with so many copies: the bound is attained."""
    rng = np.random.default_rng(seed)
    extra = int(rng.integers(0, 4))
    trace = random_trace(seed, tokens=40, layers=1, experts=4, top_k=2)
    batches = make_batches(trace, NODES, 16, seed)
    bounds = pair_bounds(NODES, batches, 4, np.array([extra]))
    remote, off_gpu = math.inf, math.inf
    masks = [m for m in range(1, 16) if bin(m).count("1") <= 1 + extra]
    for row in itertools.product(masks, repeat=4):
        if sum(bin(m).count("1") for m in row) != 4 + extra:
            continue
        hosts = np.array([[(m >> g) & 1 for g in range(4)] for m in row], dtype=bool)[None]
        plan = Plan(NODES, hosts, hosts.argmax(axis=2), np.ones((1, 4)))
        seen = count_traffic(NODES, batches, route("nearest", plan, batches))
        remote = min(remote, seen.remote)
        off_gpu = min(off_gpu, seen.remote + seen.same_node)
    assert (bounds.remote, bounds.off_gpu) == (remote, off_gpu)


def test_pair_counts() -> None:
    batches = Batches(np.array([[[[0, 2]], [[2, 1]]]], dtype=np.uint8), np.array([0, 3]))
    assert pair_counts(batches, NODES.node_of, 3).tolist() == [[[1, 0, 1]], [[0, 1, 1]]]


# --- the pipeline and its command ----------------------------------------------------------------


def test_pipeline_runs_all_and_keeps_order() -> None:
    trace = random_trace(9, tokens=400)
    settings = Settings(
        nodes=NODES,
        groupings=("contiguous", "grace"),
        replications=("none", "grace"),
        routings=("grace", "flow"),
        batch=40,
        seeds=2,
    )
    outcomes = list(run(trace, settings))
    rows = means(outcomes)
    assert [tuple(row[k] for k in ("grouping", "replication", "routing")) for row in rows] == [
        ("contiguous", "none", "primary"),
        ("contiguous", "grace", "grace"),
        ("contiguous", "grace", "flow"),
        ("grace", "none", "primary"),
        ("grace", "grace", "grace"),
        ("grace", "grace", "flow"),
    ]
    assert len(outcomes) == 12
    assert {row["seeds"] for row in rows} == {2}
    for outcome in outcomes:
        assert outcome.same_gpu + outcome.same_node + outcome.remote == pytest.approx(3)
        assert outcome.remote >= outcome.least_remote
        assert outcome.copies >= 1
    mean = np.mean([o.remote for o in outcomes if o.routing == "flow" and o.grouping == "grace"])
    assert rows[-1]["remote"] == pytest.approx(mean)
    with pytest.raises(InputError) as refused:
        Settings(groupings=("x",), routings=("y",), seeds=0)
    assert len(refused.value.problems) == 3


def test_plan_of_the_pipeline_is_the_published_one() -> None:
    trace = random_trace(10, tokens=400)
    settings = Settings(nodes=NODES, batch=40, load_of_copies=True)
    plan = make_plan(trace, settings, 0)
    statistics = profile(trace.split(0, 0.5)[0])
    other = replicate("grace", statistics, NODES, plan.primary, load_of_copies=True)
    assert (plan.hosts == other.hosts).all()
    assert plan.predicted == pytest.approx(other.predicted)
    assert plan.predicted == pytest.approx(even_loads(plan.hosts, statistics.load))


def test_command(tmp_path) -> None:  # type: ignore[no-untyped-def]
    trace = random_trace(11, tokens=600, layers=1)
    path = tmp_path / "small.npz"
    np.savez(path, ids=trace.ids, offsets=trace.offsets, experts=8)
    runner = CliRunner()
    arguments = ["grace", str(path), "--gpus", "4", "--batch", "40"]
    shown = runner.invoke(app, [*arguments, "--routing", "all"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert all(name in shown.output for name in ROUTINGS)
    told = runner.invoke(app, [*arguments, "--json", "--seeds", "2"])
    rows = json.loads(told.stdout)
    assert [row["seed"] for row in rows] == [0, 1]
    assert rows[0]["least_remote"] <= rows[0]["remote"]
    for wrong, why in (
        (["--nodes", "3"], "cannot be divided among 3 nodes"),
        (["--grouping", "mine"], "is unknown"),
        (["--ratio", "-1"], "must not be negative"),
        (["-o", str(tmp_path / "p.json")], "go together"),
        (
            ["-o", str(tmp_path / "p.json"), "--instance", "gpt-oss-20b_l10_8gpu_5slots"],
            "has 1 layers of 32 experts on 8 GPUs",
        ),
    ):
        done = runner.invoke(app, [*arguments, *wrong])
        assert isinstance(done.exception, InputError)
        assert why in str(done.exception)


def test_command_writes_a_solution(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """One layer of gpt-oss-20b: grouped anew, checked against an instance's slots."""
    from moeopt.make.traces_shipped import read_trace
    from moeopt.solution import read_solution_file

    trace = read_trace("gpt-oss-20b").take(range(20))
    path = tmp_path / "layer10.npz"
    np.savez(path, ids=trace.ids[:, 10:11], offsets=trace.offsets, experts=32)
    plan = tmp_path / "plan.json"
    runner = CliRunner()
    arguments = ["grace", str(path), "--batch", "64", "--instance", "gpt-oss-20b_l10_8gpu_5slots"]
    fits = [*arguments, "--grouping", "balance", "-o", str(plan)]
    done = runner.invoke(app, fits)
    assert done.exit_code == 0, done.output
    solution = read_solution_file(plan)
    assert solution.problem == "replication"
    assert sum(len(held) for held in solution.hosts[0]) > 32
    # The published groups differ in size: more than five experts on some GPU.
    refused = runner.invoke(app, [*arguments, "-o", str(plan), "--force"])
    assert refused.exit_code == 1
    assert "slots" in refused.output


@pytest.mark.parametrize("seed", range(4))
def test_mean_sends_bound_is_below_all_equal_divisions(seed: int) -> None:
    two = Nodes(2, 1)
    found = profile(random_trace(seed, layers=1, experts=8))
    least = least_mean_sends(found, two)
    costs = []
    for half in itertools.combinations(range(8), 4):
        node = np.ones(8, dtype=np.int64)
        node[list(half)] = 0
        costs.append(expected_cost(found.sets[0], found.weight[0], node, two, 1.0) / 240)
    # Every token touches a node at least, and half of the homes are elsewhere.
    assert 0.5 < least[0] <= min(costs)
    assert least[0] >= 0.8 * min(costs)
    with pytest.raises(InputError, match="cannot be divided equally among 3 nodes"):
        least_mean_sends(found, Nodes(3, 1))
    assert least_mean_sends(found, Nodes(1, 4)).tolist() == [0.0]
