"""The pair search against brute force: every bound it reports, and each of its parts."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
from brute import brute_optimum
from make_data import random_data, scenarios_of

from moeopt import dispatch
from moeopt.catalog import read_instance
from moeopt.heuristics.anneal import exact_value
from moeopt.prepare import prepare
from moeopt.problem import Scenarios
from moeopt.proofs import pair_search as module
from moeopt.proofs.pair_search import pair_search, supports
from moeopt.proofs.pair_search_count import counting_bound
from moeopt.proofs.pair_search_kernel import build_child, raise_bound, restrict
from moeopt.proofs.pair_search_masks import MaskTables, MaskTree
from moeopt.proofs.pair_search_root import typical_pairs, whole_weights
from moeopt.proofs.pair_search_terms import GRID, excess_table, pair_terms
from moeopt.proofs.pair_search_tree import leaf_value


def plans(experts: int, gpus: int, slots: int):
    """Every vector of masks within the slots, as one row each; and a bool array of the hosts."""
    rows = np.array(list(product(range(1, 1 << gpus), repeat=experts)))
    hosts = (rows[:, :, None] >> np.arange(gpus) & 1).astype(bool)
    fits = hosts.sum(axis=1).max(axis=1) <= slots
    return rows[fits], hosts[fits]


def reference_search(scenarios: Scenarios, experts: int, gpus: int, slots: int, upper: float):
    """Depth-first over masks; a node's bound is the time of the placed experts alone."""
    sets = [(set(scenarios.members(s).tolist()), p) for s, p in enumerate(scenarios.weight)]
    best = upper

    def time(members: set[int], masks: list[int]) -> int:
        rows = [masks[e] for e in members if e < len(masks)]
        return max(
            -(-len(some) // bin(int(np.bitwise_or.reduce(some))).count("1"))
            for size in range(1, len(rows) + 1)
            for some in combinations(rows, size)
        ) if rows else 1  # fmt: skip

    def place(masks: list[int]) -> None:
        nonlocal best
        bound = sum(p * time(members, masks) for members, p in sets)
        if bound >= best - 1e-12:
            return
        if len(masks) == experts:
            best = bound
            return
        for mask in range(1, 1 << gpus):
            here = [*masks, mask]
            if all(sum(m >> g & 1 for m in here) <= slots for g in range(gpus)):
                place(here)

    place([])
    return best


def optimum_of(scenarios: Scenarios, experts: int, gpus: int, slots: int) -> float:
    """Least expected time over every vector of masks."""
    rows, _ = plans(experts, gpus, slots)
    padded = np.concatenate([rows, np.full((len(rows), 1), -1)], axis=1)
    members = np.full((len(scenarios), 4), experts)
    for s in range(len(scenarios)):
        members[s, : scenarios.sizes[s]] = scenarios.members(s)
    value = np.zeros(len(rows))
    for some, p in zip(members, scenarios.weight, strict=True):
        value += p * dispatch.unit_times(padded[:, some])
    return float(value.min())


def check(layer: Scenarios, experts: int, gpus: int, slots: int, optimum: float) -> None:
    for upper, rungs, count, trees in (
        (optimum, module.RUNGS, True, module.TREES),
        (optimum, (0.9,), False, ("masks",)),
        (optimum, (0.96,), False, ("masks",)),
        (optimum, (0.99,), False, ("masks",)),
        (1.15 * optimum, (0.9, 1.0), False, ("masks",)),
    ):
        seen: list[float] = []
        result = pair_search(
            layer, experts, gpus, slots,
            upper=upper, rungs=rungs, count=count, trees=trees, threads=1, on_bound=seen.append,
        )  # fmt: skip
        assert seen == sorted(seen)
        assert max(seen) <= optimum * (1 + 1e-12)
        assert result.lower <= optimum * (1 + 1e-12)
        assert result.lower >= min(max(rungs) * upper, optimum) * (1 - 1e-9)
        if 1.0 in rungs:
            assert result.complete
            assert result.value == pytest.approx(optimum, rel=1e-12)
        if result.hosts is not None:
            assert result.hosts.any(axis=1).all()
            assert result.hosts.sum(axis=0).max() <= slots
            assert exact_value(layer, result.hosts) == pytest.approx(result.value, rel=1e-12)


SIZES = [(7, 2), (6, 2), (6, 3), (5, 3), (5, 4)]


@pytest.mark.parametrize("seed", range(30))
def test_bounds_against_all_plans(seed: int) -> None:
    """Every rung is valid, and the last finds and proves the optimum: E 5-7, G 2-4, k 1-4."""
    rng = np.random.default_rng(seed)
    experts, gpus = SIZES[seed % len(SIZES)]
    spare = seed // len(SIZES) % 2
    data = random_data(
        "replication",
        rng,
        experts=experts,
        top_k=(4, 3, 2, 1)[seed // 2 % 4],
        max_members=4 if seed % 2 else None,
        gpus=gpus,
        scenarios=int(rng.integers(3, 16)),
        spare=spare,
    )
    assert data.slots is not None
    layer = data.scenarios[0]
    check(layer, experts, gpus, data.slots, optimum_of(layer, experts, gpus, data.slots))


@pytest.mark.parametrize("seed", range(6))
def test_bounds_against_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = random_data(
        "replication", rng, experts=5, top_k=2, max_members=4, gpus=2 + seed % 2, scenarios=8
    )
    assert data.slots is not None
    check(data.scenarios[0], 5, data.gpus, data.slots, brute_optimum(data)[0])


@pytest.mark.parametrize(("experts", "gpus", "slots", "top"), [(7, 2, 5, 3), (6, 3, 3, 3)])
def test_against_plain_search(experts: int, gpus: int, slots: int, top: int) -> None:
    rng = np.random.default_rng(experts)
    sets = list(combinations(range(experts), top))
    layer = scenarios_of(sets, weight=rng.exponential(size=len(sets)))  # not whole numbers
    value = reference_search(layer, experts, gpus, slots, 4.0)
    result = pair_search(layer, experts, gpus, slots, upper=4.0, threads=2)
    assert result.complete
    assert result.value == pytest.approx(value, rel=1e-12)
    assert value * (1 - 1e-5) <= result.lower <= value * (1 + 1e-12)
    again = pair_search(layer, experts, gpus, slots, upper=value, incumbent=result.hosts)
    assert again.complete
    assert again.lower == pytest.approx(result.lower, rel=1e-6)


@pytest.mark.parametrize("gpus", [2, 3, 4])
@pytest.mark.parametrize("base", [1, 2])
def test_excess_is_the_exact_time(gpus: int, base: int) -> None:
    table = excess_table(gpus, base)
    rows = np.array(list(product(range(1 << gpus), repeat=4)))
    rows = rows[(rows > 0).any(axis=1)]
    times = dispatch.unit_times(np.where(rows > 0, rows, -1))
    np.testing.assert_array_equal(table[tuple(rows.T)], np.maximum(times, base) - base)


@pytest.mark.parametrize("gpus", [2, 3, 4])
@pytest.mark.parametrize("slots", [3, 4, 5])
def test_terms_never_exceed_the_excess(gpus: int, slots: int) -> None:
    base = -(-3 // gpus)
    experts = 3 * gpus
    hosts = np.zeros((experts, gpus), dtype=bool)
    for copy in range(gpus * slots):
        hosts[copy % experts, (copy + copy // experts) % gpus] = True
    often = typical_pairs(experts, gpus, slots, None if slots == 4 else hosts)
    assert often.sum() == pytest.approx(1.0)
    terms = pair_terms(gpus, base, often)
    rng = np.random.default_rng(0)
    masks = rng.integers(1, 1 << gpus, (4000, 4))
    x, y, i, j = masks.T
    excess = terms.excess[x, y, i, j]
    opened = sum(terms.open4[masks[:, a], masks[:, b]] for a, b in combinations(range(4), 2))
    first = opened + terms.gain3[x, y, i] + terms.gain3[x, y, j] + terms.gain3[x, i, j]
    assert (opened <= excess).all()
    assert (first <= excess).all()
    np.testing.assert_array_equal(first + terms.gain2[x, y, i, j], excess)
    # The LP finds something: experts with one copy each pay when two share a GPU.
    if slots == 3 and base == 1:
        assert terms.open4.max() > 0


@pytest.mark.parametrize("seed", range(6))
def test_node_bounds_against_all_completions(seed: int) -> None:
    """At random nodes the bound is at most the best completion; the tables agree at leaves."""
    rng = np.random.default_rng(seed)
    data = random_data(
        "replication", rng, experts=5, top_k=2, max_members=4, gpus=3, scenarios=12, spare=1
    )
    tree = MaskTree(data.scenarios[0], 5, 3, data.slots, 4.0, None, 1)
    rows, hosts = plans(5, 3, data.slots)
    rows = rows[(hosts.sum(axis=1) == data.slots).all(axis=1)]  # every GPU full
    values = np.array(
        [
            leaf_value(tree.members, tree.weight, np.append(row, 0), tree.terms.excess)
            for row in rows
        ]
    )
    target = int(values.max()) + 1
    for _ in range(8):
        own = MaskTables(tree)
        own.reset(tree.root_pair)
        plan = rows[rng.integers(len(rows))]
        masks = np.zeros(6, dtype=np.int64)
        placed = np.zeros(6, dtype=np.int64)
        opened, allowed = np.arange(5), own.allowed.copy()
        room, spare = np.full(3, data.slots), 3 * data.slots - 5
        for depth in range(5):
            assert restrict(opened, allowed, room, spare, tree.size)
            completions = (rows[:, placed[:depth]] == masks[placed[:depth]]).all(axis=1)
            bound = raise_bound(
                depth, opened, allowed, room, own.const, own.unary, own.pair, target, 10
            )
            assert bound <= values[completions].min()
            expert = int(rng.choice(opened))
            masks[expert], placed[depth] = plan[expert], expert
            opened = opened[opened != expert]
            build_child(
                depth, expert, plan[expert], opened, own.const, own.unary, own.pair,
                tree.weight4, masks, placed, *tree.tables32,
            )  # fmt: skip
            room = room - (plan[expert] >> np.arange(3) & 1)
            spare -= int(tree.size[plan[expert]]) - 1
        exact = leaf_value(tree.members, tree.weight, masks, tree.terms.excess)
        assert own.const[5] == exact


@pytest.mark.parametrize("seed", range(10))
def test_counting_bound(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gpus, experts, top = int(rng.integers(2, 4)), int(rng.integers(4, 6)), int(rng.integers(2, 5))
    slots = -(-experts // gpus) + int(rng.integers(0, 2))
    sets = list(combinations(range(experts), top))
    weight = np.ones(len(sets)) if seed % 2 else rng.integers(1, 9, len(sets)).astype(float)
    layer = scenarios_of(sets, weight=weight)
    rows, _ = plans(experts, gpus, slots)
    members = np.array(sets)
    times = dispatch.unit_times(rows[:, members].reshape(-1, top)).reshape(len(rows), -1)
    values = times @ layer.weight
    bound = counting_bound(layer.weight, experts, gpus, slots, top, 9.0)
    if slots >= experts:
        assert bound is None
        return
    small = np.sort(layer.weight)
    by_hand = 1 + sum(
        np.concatenate([[0], np.cumsum(small)])[(times >= t).sum(axis=1)] for t in range(2, top + 1)
    )
    assert bound == pytest.approx(by_hand.min(), rel=1e-9)
    assert bound <= values.min() * (1 + 1e-12)
    if seed % 2:  # equal weights: exact
        assert bound == pytest.approx(values.min(), rel=1e-9)


def test_whole_weights() -> None:
    counts = np.array([3, 10, 17, 400])
    whole, ratio = whole_weights(counts / counts.sum(), 2.0**24)
    np.testing.assert_array_equal(whole * counts[0], counts * whole[0])
    assert ratio == pytest.approx(1 / whole.sum(), rel=1e-11)
    rough = np.random.default_rng(0).exponential(size=50)
    rough /= rough.sum()
    whole, ratio = whole_weights(rough, 2.0**20)
    assert whole.sum() <= 2**20
    assert (whole * ratio <= rough).all()


def test_interruption_leaves_a_valid_bound() -> None:
    data = prepare(read_instance("dbrx_16x4_seed0"), "placement")
    layer = data.scenarios[0]
    asked = []

    def stop() -> bool:
        asked.append(True)
        return len(asked) > 3

    result = pair_search(
        layer, 16, 4, 7, upper=1.2377134485798589, count=False, trees=("masks",), stop=stop
    )
    assert not result.complete
    assert result.lower == pytest.approx(1.0)
    assert result.method == "scenario"


@pytest.mark.parametrize(
    ("seed", "slots", "upper", "share"),
    [
        (0, 12, 1.0000078, 0.99999),
        (1, 12, 1.000003, 0.99999),
        (2, 5, 1.737746, 0.993),
        (2, 8, 1.159101, 0.993),
        (1, 16, 1.0, 1.0),
    ],
)
def test_shipped_instances(seed: int, slots: int, upper: float, share: float) -> None:
    """Plans of annealing are never below the bound; the bound is close."""
    data = prepare(read_instance(f"dbrx_16x4_seed{seed}"), "placement")
    data = replace(data, slots=slots, problem="replication")
    result = pair_search(data.scenarios[0], 16, 4, slots, upper=upper, rungs=())
    assert share * upper * (1 - 1e-9) <= result.lower <= upper


@pytest.mark.slow
def test_shipped_instance_is_solved() -> None:
    data = prepare(read_instance("dbrx_16x4_seed1"), "placement")
    layer = data.scenarios[0]
    result = pair_search(layer, 16, 4, 5, upper=1.43, time_limit_s=900)
    assert result.complete
    assert result.value == pytest.approx(1.41833, abs=1e-5)


def test_what_it_cannot_take() -> None:
    pairs = scenarios_of([[0, 1], [1, 2]])
    assert supports(pairs, 3, 2, 2) is None
    assert "GPUs" in str(supports(pairs, 9, 6, 2))
    assert "slots" in str(supports(pairs, 5, 2, 2))
    assert "four" in str(supports(scenarios_of([[0, 1, 2, 3, 4]]), 5, 2, 3)) or "4" in str(
        supports(scenarios_of([[0, 1, 2, 3, 4]]), 5, 2, 3)
    )
    with pytest.raises(ValueError, match="slots"):
        pair_search(pairs, 5, 2, 2, upper=2.0)


def test_grid_divides_every_excess() -> None:
    assert GRID % 12 == 0
    assert (pair_terms(2, 1, np.ones((4, 4))).excess % GRID == 0).all()
