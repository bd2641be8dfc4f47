"""``affinity``: plans, bounds and baselines against enumeration."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from affinity_brute import brute_affinity

from moeopt.affinity import columns, columns_touch
from moeopt.affinity.bounding import column_value, partners_bound, psd_value
from moeopt.affinity.data import AffinityData, contiguous, pair_of
from moeopt.affinity.evaluate import evaluate, gpu_loads
from moeopt.affinity.moetuner import moetuner_plan
from moeopt.affinity.pair_lines import lines
from moeopt.affinity.psd import Level, Limit, psd_bound
from moeopt.affinity.psd_certificate import certify
from moeopt.affinity.psd_certificate import evaluate as evaluate_certificate
from moeopt.affinity.search import find_plan, polish, relabel, sweep, within
from moeopt.affinity.staged import exflow_plan, hierarchical_plan
from moeopt.affinity.start import start_plan
from moeopt.errors import InputError
from moeopt.problem import Scenarios

SHAPES = (
    (6, [3], 3),
    (6, [1, 1, 1], 3),
    (6, [2], 4),
    (8, [2, 2], 2),
    (4, [1, 1], 4),
    (6, [1, 2], 2),
)


def chain(
    seed: int, experts: int, gpus: list[int], layers: int, *, whole: bool = True, **more
) -> AffinityData:
    rng = np.random.default_rng(seed)
    flow = rng.integers(0, 9, (layers - 1, experts, experts)).astype(float)
    if not whole:
        flow *= rng.random(flow.shape)
    load = rng.integers(1, 9, (layers, experts)).astype(float)
    node = np.repeat(np.arange(len(gpus)), gpus)
    return AffinityData("inter", node, load, flow, **({"near": 1.0, "far": 3.0} | more))


def touching(seed: int, experts: int, gpus: list[int], k: int, layers: int = 2) -> AffinityData:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(layers):
        sizes = rng.integers(2, k + 1, 6)
        sets = [np.sort(rng.choice(experts, size, replace=False)) for size in sizes]
        weight = rng.random(6)
        ptr = np.concatenate(([0], np.cumsum(sizes)))
        expert = np.concatenate(sets)
        rows.append(Scenarios(ptr, expert, np.ones_like(expert), weight / weight.sum()))
    node = np.repeat(np.arange(len(gpus)), gpus)
    load = rng.random((layers, experts)) + 0.5
    empty = np.zeros((0, experts, experts))
    return AffinityData("intra", node, load, empty, tuple(rows), 1.0, 2.5)


CASES = [chain(s, *shape) for s, shape in enumerate(SHAPES)]
CASES += [chain(9, 6, [3], 3, whole=False, near=0.7), chain(10, 6, [3], 3, max_load=1.4)]
CASES += [touching(s, 6, gpus, 4) for s, gpus in enumerate(([3], [1, 2], [2], [1, 1, 1]))]
CASES += [touching(7, 8, [2, 2], 5, layers=1)]


@pytest.fixture(scope="module")
def optima() -> list[tuple[float, np.ndarray]]:
    return [brute_affinity(data) for data in CASES]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_bounds_and_plans(case: int, optima) -> None:
    data, (optimum, best) = CASES[case], optima[case]
    assert evaluate(data, best).objective == pytest.approx(optimum, rel=1e-12)
    plan = find_plan(data, rounds=2)
    assert plan is not None
    assert within(data, plan)
    found = evaluate(data, plan).objective
    assert found >= optimum * (1 - 1e-12)
    assert found <= optimum * 1.05
    for bound in (psd_value(data), column_value(data)):
        assert 0 < bound.value <= optimum * (1 + 1e-12), bound.method
        if bound.method == "psd" and data.even_nodes:
            assert bound.value >= 0.6 * optimum
    assert 0 <= partners_bound(data) <= optimum * (1 + 1e-12)


@pytest.mark.parametrize("whole", [True, False])
def test_the_largest_load_is_in_the_bound(whole: bool) -> None:
    """No bound exceeds the best plan within the limit; some exceed the best plan without."""
    above = 0
    for seed in range(3):
        free = chain(seed, 6, [3], 3, near=1.0, far=1.0, whole=whole)
        least = min(evaluate(free, plan).imbalance.max() for plan in _even_plans(free))
        data = replace(free, max_load=1.02 * least)
        optimum, _ = brute_affinity(data)
        relaxed = psd_value(data).value
        assert max(relaxed, column_value(data).value) <= optimum * (1 + 1e-12)
        above += relaxed > brute_affinity(free)[0]
    assert above >= 1


def _even_plans(data: AffinityData) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    row = contiguous(data)[0]
    return [np.stack([rng.permutation(row) for _ in range(data.layers)]) for _ in range(100)]


@pytest.mark.parametrize("seed", range(3))
def test_any_prices_of_loads_are_a_bound(seed: int) -> None:
    data = chain(seed, 6, [3], 3, near=1.0, far=1.0, max_load=1.5)
    kept = data.flow.sum() - brute_affinity(data)[0]
    limit = Limit(data.load, data.most_load)
    level = Level(3, data.flow, np.zeros((3, 6, 6)))
    rng = np.random.default_rng(seed)
    for scale in (0.0, 0.5, 4.0):
        price = np.rint(scale * rng.random((3, 6)) * 64) / 64
        priced, worth = limit.priced([level], price)
        found = certify(priced, 3.0 * rng.normal(size=(1, 2, 12, 12)), 6)
        assert found.value + worth >= kept


def test_bounds_close_pairs_of_layers() -> None:
    closed = 0
    for seed in range(6):
        data = chain(seed, 6, [2], 2)
        optimum, _ = brute_affinity(data)
        found = [column_value(data).value, psd_value(data).value]
        assert max(found) <= optimum
        closed += max(found) == optimum
    assert closed >= 4


@pytest.mark.parametrize("seed", range(4))
def test_any_certificate_is_a_bound(seed: int) -> None:
    """The evaluation in whole numbers bounds every plan, whatever factor and gauge are."""
    data = chain(seed, 6, [3], 3, near=1.0, far=1.0)
    kept = data.flow.sum() - brute_affinity(data)[0]
    level = Level(3, data.flow, np.zeros((3, 6, 6)))
    rng = np.random.default_rng(seed)
    for scale in (0.0, 1.0, 30.0):
        factor = [np.rint(scale * rng.normal(size=(2, 12, 12))).astype(np.int64)]
        gauge = [np.rint(scale * rng.normal(size=(2, 2, 12))).astype(np.int64)]
        assert evaluate_certificate([level], factor, gauge, 1, 6) >= kept
    assert certify([level], rng.normal(size=(1, 2, 12, 12)), 6).value >= kept


def test_a_wrong_certificate_would_be_seen() -> None:
    """The gauge counts E/K a row: with another number the bound falls below a plan."""
    data = chain(1, 6, [3], 2, near=1.0, far=1.0)
    level = Level(3, data.flow, np.zeros((2, 6, 6)))
    kept = Fraction(data.flow.sum()) - Fraction(brute_affinity(data)[0])
    found = psd_bound([level]).certificate
    parts = (found.factor, found.gauge, found.half, 6)
    assert evaluate_certificate([level], *parts) == found.value >= kept
    assert evaluate_certificate([replace(level, parts=6)], *parts) < kept


@pytest.mark.parametrize("seed", range(3))
def test_any_prices_bound_the_columns(seed: int) -> None:
    data = chain(seed, 6, [3], 2, near=1.0, far=1.0)
    kept = data.flow.sum() - brute_affinity(data)[0]
    rng = np.random.default_rng(seed)
    sets, whole = columns.sets_of(6, 2), columns.whole(data.flow[0])
    for scale in (0, 10_000, 40_000):
        u, v = rng.integers(-scale, scale + 1, (2, 6))
        assert columns.most_kept(whole, 3, u, v, sets) >= kept


def test_touching_sets() -> None:
    scenarios = touching(0, 6, [3], 4).scenarios[0]
    sets = columns_touch.sets_of(6, 2)
    found = np.ldexp(columns_touch.touching(scenarios, sets).astype(float), -columns_touch.BITS)
    for members, share in zip(sets, found, strict=True):
        meets = [np.isin(members, scenarios.members(s)).any() for s in range(len(scenarios))]
        assert share == pytest.approx(scenarios.weight[meets].sum(), abs=1e-12)


@pytest.mark.parametrize(("k", "parts"), [(4, 8), (6, 8), (6, 2), (5, 3), (1, 4), (8, 4)])
def test_lines_hold_for_every_division(k: int, parts: int) -> None:
    def divisions(left: int, most: int, room: int):
        if left == 0:
            yield ()
        for first in range(min(left, most), 0, -1) if room else ():
            for rest in divisions(left - first, first, room - 1):
                yield (first, *rest)

    tight = set()
    for division in divisions(k, k, parts):
        pairs = sum(n * (n - 1) // 2 for n in division)
        values = [constant - slope * pairs for constant, slope in lines(k, parts)]
        assert max(values) <= len(division) + 1e-9, division
        tight |= {i for i, v in enumerate(values) if v > len(division) - 1e-9}
    assert tight == set(range(len(lines(k, parts))))


@pytest.mark.parametrize("gpus", [[3], [1, 1, 1], [2, 2]])
def test_moves_of_layers_and_ends_never_hurt(gpus: list[int]) -> None:
    rng = np.random.default_rng(0)
    data = chain(0, 12, gpus, 4, max_load=2.0)
    for _ in range(5):
        place = np.stack([rng.permutation(contiguous(data)[0]) for _ in range(4)])
        value = evaluate(data, place).objective
        renamed = relabel(data, place)
        assert evaluate(data, renamed).objective <= value
        assert (np.sort(gpu_loads(data, renamed)) == np.sort(gpu_loads(data, place))).all()
        assert evaluate(data, sweep(data, place)).objective <= value
        assert evaluate(data, polish(data, place)).objective <= value


@pytest.mark.parametrize("gpus", [[4], [2, 2]])
def test_published_methods_give_plans(gpus: list[int]) -> None:
    data = chain(3, 8, gpus, 3)
    ours = evaluate(data, find_plan(data, rounds=2)).objective
    for place in (exflow_plan(data), hierarchical_plan(data), moetuner_plan(data)):
        assert place is not None
        assert (np.sort(place, axis=1) == contiguous(data)).all()
        assert evaluate(data, place).objective >= ours * (1 - 1e-12)
    even = evaluate(data, moetuner_plan(data)).imbalance
    assert even.mean() < evaluate(data, contiguous(data)).imbalance.mean()


def test_each_layer_may_have_its_own_largest_load() -> None:
    data = chain(0, 6, [3], 3)
    own = evaluate(data, contiguous(data)).imbalance
    limited = replace(data, max_load=own)
    plan = find_plan(limited, rounds=1, start=contiguous(data))
    assert plan is not None
    assert (evaluate(data, plan).imbalance <= own + 1e-9).all()
    assert (pair_of(limited, 1).most_load == limited.most_load[1:]).all()
    assert start_plan(replace(data, max_load=1.0)) is None


def test_data_is_checked() -> None:
    data = chain(0, 6, [3], 3)
    with pytest.raises(InputError, match="divided equally among 3"):
        replace(data, load=np.ones((3, 5)), flow=np.zeros((2, 5, 5)))
    with pytest.raises(InputError, match="does not fit 3 layers"):
        replace(data, flow=data.flow[:1])
    with pytest.raises(InputError, match="0 <= near <= far"):
        replace(data, near=4.0)
    with pytest.raises(InputError, match="max_load is at least 1"):
        replace(data, max_load=0.5)
