"""GRACE-MoE's rules on examples worked out by hand, and what its steps must keep."""

from __future__ import annotations

import math

import numpy as np
import pytest

from moeopt.errors import InputError
from moeopt.grace.connectivity import Effort, anneal_layer, expected_cost, into_nodes
from moeopt.grace.data import Nodes, Profile, even_loads, make_batches, plan_problems, profile
from moeopt.grace.grouping import GROUPINGS, group
from moeopt.grace.grouping_published import (
    controlled_groups,
    grouped,
    knee,
    ratio_curve,
    size_deviation,
    size_limits,
    utilisation,
)
from moeopt.grace.measure import count_traffic
from moeopt.grace.replication import REPLICATIONS, first_copies, hot_copies, replicate
from moeopt.grace.spectral import spectral_clusters
from moeopt.make.traces_shipped import Trace

NODES = Nodes(2, 2)


def random_trace(
    seed: int, tokens: int = 240, layers: int = 2, experts: int = 8, top_k: int = 3
) -> Trace:
    """Skewed choices: low experts are chosen more often, and with their neighbours."""
    rng = np.random.default_rng(seed)
    chance = 1.0 / (1 + np.arange(experts))
    first = rng.choice(experts, (tokens, layers), p=chance / chance.sum())
    ids = np.stack([(first + step) % experts for step in range(top_k)], axis=2)
    far = rng.random((tokens, layers)) < 0.5
    ids[..., -1] = np.where(far, (first + experts - 1) % experts, ids[..., -1])
    offsets = np.arange(0, tokens + 1, 10)
    return Trace(
        "random", experts, top_k, ids.astype(np.uint8), offsets, np.zeros(len(offsets) - 1, int)
    )


def hand_profile(sets: list[list[int]], weight: list[int], experts: int) -> Profile:
    tokens = np.repeat(np.array(sets), weight, axis=0)[:, None, :]
    offsets = np.array([0, len(tokens)])
    return profile(Trace("hand", experts, 2, tokens.astype(np.uint8), offsets, np.zeros(1, int)))


# --- statistics ----------------------------------------------------------------------------------


def test_profile_counts_tokens() -> None:
    found = hand_profile([[0, 1], [1, 2]], [3, 5], 4)
    assert found.load.tolist() == [[3, 8, 5, 0]]
    assert found.affinity[0].tolist() == [[0, 3, 0, 0], [3, 0, 5, 0], [0, 5, 0, 0], [0, 0, 0, 0]]


def test_batches_use_tokens_once_and_keep_homes() -> None:
    trace = random_trace(0)
    marked = Trace(
        "m",
        255,
        1,
        np.arange(240, dtype=np.uint8)[:, None, None],
        trace.offsets,
        trace.prompt_tokens,
    )
    batches = make_batches(marked, NODES, 20, seed=3)
    flat = batches.ids[..., 0, 0]
    assert len(np.unique(flat)) == flat.size == 240
    assert np.bincount(batches.home).tolist() == [5, 5, 5, 5]
    request_home = {
        (int(t) // 10, int(h)) for row in flat for t, h in zip(row, batches.home, strict=True)
    }
    assert len(request_home) == 24  # all tokens of a request on one GPU
    with pytest.raises(InputError, match="cannot be divided among 4 GPUs"):
        make_batches(marked, NODES, 30, seed=3)
    with pytest.raises(InputError, match="no batch of 400"):
        make_batches(marked, NODES, 400, seed=3)


# --- grouping ------------------------------------------------------------------------------------


def test_spectral_clustering_finds_blocks() -> None:
    block = np.kron(np.eye(3), np.ones((4, 4))) + 0.01
    order = np.random.default_rng(0).permutation(12)
    label = spectral_clusters(block[np.ix_(order, order)], 3, seed=0)
    found = {frozenset(order[label == c].tolist()) for c in range(3)}
    assert found == {frozenset(range(4 * b, 4 * b + 4)) for b in range(3)}


def test_sizes_of_algorithm_2() -> None:
    assert size_limits(64, 8, 0.15) == (7, 9)
    assert size_limits(64, 8, 0.25) == (6, 10)
    assert size_limits(32, 8, 0.01) == (3, 5)  # at least 1
    assert size_limits(10, 4, 0.0) == (2, 3)
    assert size_limits(3, 2, 5.0) == (1, 6)
    assert size_limits(64, 8, math.inf) == (1, 64)


def test_too_large_cluster_gives_its_weakest() -> None:
    # Experts 0-3 hang together, 3 least; 4 and 5 are the other cluster.
    affinity = np.zeros((6, 6))
    for i, j, value in ((0, 1, 9), (0, 2, 9), (1, 2, 9), (0, 3, 6), (3, 4, 1), (4, 5, 9)):
        affinity[i, j] = affinity[j, i] = value
    assert len(set(spectral_clusters(affinity, 2, 0)[:4].tolist())) == 1
    label = controlled_groups(affinity, 2, 3, 3, seed=0)
    assert len(set(label[[0, 1, 2]].tolist())) == 1
    assert len(set(label[[3, 4, 5]].tolist())) == 1
    with pytest.raises(InputError, match="do not make 2 groups"):
        controlled_groups(affinity, 2, 1, 2, seed=0)


@pytest.mark.parametrize("ratio", [0.0, 0.15, 0.5, math.inf])
def test_published_groups_keep_their_sizes(ratio: float) -> None:
    found = profile(random_trace(1, experts=20))
    gpu = grouped(found, NODES, 0, ratio=ratio, node_ratio=0.0 if ratio == 0 else math.inf)
    for row in gpu:
        size = np.bincount(row, minlength=4).reshape(2, 2)
        assert size.min() >= 1
        for node in size:
            least, most = size_limits(int(node.sum()), 2, ratio)
            assert least <= node.min() <= node.max() <= most
        if ratio == 0:
            assert size.tolist() == [[5, 5], [5, 5]]


def test_use_deviation_and_knee() -> None:
    affinity = np.array([[0, 2, 1], [2, 0, 1], [1, 1, 0]], dtype=float)
    group_ = np.array([0, 0, 1])
    assert utilisation(affinity, group_) == 0.5  # 2 of 4
    assert size_deviation(group_, 2) == 0.5
    # (0, 0), (1, 8), (2, 9), (10, 10): the second bends most.
    assert knee(np.array([0.0, 1, 2, 10]), np.array([0.0, 8, 9, 10])) == 1
    deviation, use, chosen = ratio_curve(profile(random_trace(2)), NODES, 0, (0.0, 0.5, 1.0))
    assert deviation[0] == 0
    assert ((use >= 0) & (use <= 1)).all()
    assert chosen in (0.0, 0.5, 1.0)


def all_groupings(experts: int, nodes: Nodes) -> list[np.ndarray]:
    """Every grouping with equal sizes."""
    size = experts // nodes.gpus
    found: list[np.ndarray] = []

    def extend(row: list[int]) -> None:
        if len(row) == experts:
            found.append(np.array(row))
            return
        for g in range(nodes.gpus):
            if row.count(g) < size:
                extend([*row, g])

    extend([])
    return found


def test_annealing_finds_the_best_groups() -> None:
    found = profile(random_trace(3, experts=8, layers=1))
    costs = [
        (expected_cost(found.sets[0], found.weight[0], gpu, NODES), gpu)
        for gpu in all_groupings(8, NODES)
    ]
    best = min(cost for cost, _ in costs)
    start = np.arange(8) % 4
    gpu = anneal_layer(found, 0, start, NODES, math.inf, Effort(proposals=4000), 0)
    assert expected_cost(found.sets[0], found.weight[0], gpu, NODES) == pytest.approx(best)
    # Under a limit on the loads: the best of those that keep it.
    load = found.load[0]
    limit = min(float(np.bincount(g, load, minlength=4).max()) for _, g in costs) * 1.1
    kept = [(c, g) for c, g in costs if np.bincount(g, load, minlength=4).max() <= limit]
    gpu = anneal_layer(found, 0, kept[0][1], NODES, limit, Effort(proposals=4000), 0)
    assert np.bincount(gpu, load, minlength=4).max() <= limit
    cost = expected_cost(found.sets[0], found.weight[0], gpu, NODES)
    assert cost == pytest.approx(min(c for c, _ in kept))
    assert min(c for c, _ in kept) > best


def test_expected_cost_is_the_mean_over_homes() -> None:
    """Tokens that live once on every GPU are sent as often as the closed form says."""
    nodes = Nodes(3, 2)
    trace = random_trace(4, tokens=40, layers=1, experts=12)
    gpu = np.random.default_rng(0).permutation(12) % 6
    found = profile(trace)
    everywhere = make_batches(trace, Nodes(1, 1), 40, 0)
    total = 0.0
    for g in range(6):
        homed = type(everywhere)(everywhere.ids, np.full(40, g))
        seen = count_traffic(nodes, homed, gpu[homed.ids].astype(np.uint8))
        total += (10 * seen.node_sends + seen.gpu_sends) / 6
    assert expected_cost(found.sets[0], found.weight[0], gpu, nodes, 10.0) == pytest.approx(total)


def test_groups_used_together_share_a_node() -> None:
    found = hand_profile([[0, 3], [1, 2]], [1, 1], 4)
    gpu = into_nodes(found, 0, np.arange(4), NODES)
    assert gpu[0] // 2 == gpu[3] // 2 != gpu[1] // 2
    assert sorted(gpu.tolist()) == [0, 1, 2, 3]
    three = hand_profile([[0, 3], [1, 4], [2, 5]], [1, 1, 1], 6)
    gpu = into_nodes(three, 0, np.arange(6), Nodes(3, 2))
    assert [gpu[e] // 2 == gpu[e + 3] // 2 for e in range(3)] == [True] * 3


@pytest.mark.parametrize("name", GROUPINGS)
def test_groupings_are_plans_and_repeat_themselves(name: str) -> None:
    found = profile(random_trace(5))
    gpu = group(name, found, NODES, 1)
    assert gpu.shape == (2, 8)
    for row in gpu:
        size = np.bincount(row, minlength=4)
        assert len(size) == 4
        assert size.min() >= 1
        if not name.startswith("grace") or name == "grace-uniform":
            assert size.tolist() == [2, 2, 2, 2]
    assert (gpu == group(name, found, NODES, 1)).all()


def test_improved_groups_are_better_in_both() -> None:
    found = profile(random_trace(6, experts=16, tokens=400))
    before, after = (group(name, found, NODES, 0) for name in ("grace", "grace-improved"))
    for l in range(2):
        cost = [expected_cost(found.sets[l], found.weight[l], g[l], NODES) for g in (before, after)]
        load = [np.bincount(g[l], found.load[l]).max() for g in (before, after)]
        assert cost[1] <= cost[0] + 1e-9
        assert load[1] <= load[0]
        assert np.bincount(before[l]).tolist() == np.bincount(after[l]).tolist()


# --- replication ---------------------------------------------------------------------------------


def test_published_copies_by_hand() -> None:
    # Loads of the GPUs: 60, 10, 20, 30; mean 30; n = floor(2) = 2; threshold 60 · 2/3 = 40.
    gpu = np.array([0, 0, 0, 1, 2, 3])
    load = np.array([20, 25, 15, 10, 20, 30])
    found = hot_copies(gpu, load, 4)
    assert found.heaviest == 0
    assert found.hot.tolist() == [1, 0]  # 25 is not above 40, 25 + 20 is
    assert found.targets.tolist() == [1, 2]
    # As written: W_p = 60/3 = 20; W'_max = 60 − 45 + 20, the targets have 20 more.
    assert found.predicted.tolist() == [35, 30, 40, 30]
    other = hot_copies(gpu, load, 4, load_of_copies=True)  # W_p = 45/3 = 15
    assert other.predicted.tolist() == [30, 25, 35, 30]
    hosts = first_copies(gpu[None], Nodes(2, 2))
    hosts[0][np.ix_(found.hot, found.targets)] = True
    # The other reading is even split of what is copied.
    assert even_loads(hosts, load[None])[0].tolist() == [30, 25, 35, 30]


def test_published_number_of_copies_has_limits() -> None:
    even = hot_copies(np.array([0, 1, 2, 3]), np.array([5, 5, 5, 5]), 4)
    assert len(even.targets) == 1  # max(1, floor(1))
    extreme = hot_copies(np.array([0, 1, 2, 3]), np.array([100, 0, 0, 0]), 4)
    assert extreme.targets.tolist() == [1, 2, 3]  # floor(4), at most 3
    assert extreme.hot.tolist() == [0]
    alone = hot_copies(np.array([0, 0]), np.array([3, 1]), 1)
    assert len(alone.hot) == len(alone.targets) == 0


@pytest.mark.parametrize("name", REPLICATIONS)
@pytest.mark.parametrize("extra", [None, 0, 5, 24])
def test_replications_are_plans_with_as_many_copies(name: str, extra: int | None) -> None:
    found = profile(random_trace(7))
    gpu = group("grace", found, NODES, 0)
    plan = replicate(name, found, NODES, gpu, extra=extra)
    assert plan_problems(plan) == []
    published = replicate("grace", found, NODES, gpu).extra_copies.tolist()
    expected = published if extra is None or name == "grace" else [extra, extra]
    assert plan.extra_copies.tolist() == ([0, 0] if name == "none" else expected)
    if name not in ("balance", "none"):
        assert (plan.primary == gpu).all()


def test_searched_copies_are_no_worse() -> None:
    found = profile(random_trace(8, experts=16, tokens=400))
    gpu = group("grace", found, NODES, 0)
    counted, searched = (
        replicate(name, found, NODES, gpu, extra=6) for name in ("counts", "balance")
    )
    largest = [even_loads(p.hosts, found.load).max(axis=1) for p in (counted, searched)]
    assert (largest[1] <= largest[0] * (1 + 1e-12)).all()
    assert largest[1].sum() < largest[0].sum()


def test_locality_ends_transmissions_first() -> None:
    # Node 0 has 0 and 1, node 1 has 2 and 3. Sets {0, 2} weigh 5, {0, 3} weigh 1.
    found = hand_profile([[0, 2], [0, 3]], [5, 1], 4)
    plan = replicate("locality", found, NODES, np.arange(4)[None], extra=1)
    # A copy of 0 on node 1 keeps all 6 at home there, one of 2 on node 0 only 5.
    assert plan.hosts[0, 0, 2:].any()
    with pytest.raises(InputError, match="extra copies"):
        replicate("locality", found, NODES, np.arange(4)[None], extra=13)
    with pytest.raises(InputError, match="unknown"):
        replicate("mine", found, NODES, np.arange(4)[None])
