"""The formulations in pairs, triples and quadruples against every placement of small shapes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from brute import brute_optimum
from compare_linear import assert_same_rows
from make_data import random_data, scenarios_of
from solve_jobs import solve_jobs

from moeopt.catalog import formulation_names, load_formulation, read_instance
from moeopt.checker import check_solution
from moeopt.compile import compile_model, compile_stock
from moeopt.declarative import TemplateIndexedConstraint, declarative
from moeopt.linear import LinearModel, Values
from moeopt.prepare import prepare
from moeopt.problem import LayerTime
from moeopt.solution import Solution

NAMES = ("placement_pairs", "placement_triangles", "placement_patterns3", "placement_patterns")
EXACT = NAMES[1:]

load_formulation("placement_patterns")
from moeopt.models import _patterns as patterns  # noqa: E402
from moeopt.models import _patterns_times as times  # noqa: E402


def instance(experts, gpus, slots, sizes=(2, 3, 4), layers=1, scenarios=8, seed=0):
    """A random instance with scenarios of several sizes."""
    rng = np.random.default_rng(seed)
    data = random_data(
        "placement", rng, experts=experts, gpus=gpus, top_k=1, layers=layers, scenarios=1
    )

    def layer():
        sets = {
            tuple(sorted(rng.choice(experts, min(int(rng.choice(sizes)), experts), replace=False)))
            for _ in range(scenarios)
        }
        members = [[int(e) for e in s] for s in sorted(sets)]
        return scenarios_of(members, weight=rng.integers(1, 30, len(members)).tolist())

    return replace(data, slots=slots, scenarios=tuple(layer() for _ in range(layers)))


SHAPES = [
    instance(4, 2, 2),
    instance(4, 4, 1),
    instance(5, 1, 5, (1, 2, 5)),
    instance(6, 3, 2, (3, 4, 5, 6)),
    instance(6, 2, 3, (4, 5), layers=2),
    instance(5, 2, 3, (2, 4)),  # a dummy
    instance(5, 3, 3, (3, 5)),  # four dummies, and an empty slot on every GPU
    instance(7, 3, 3, (5, 6, 7)),
    instance(6, 4, 2, (2, 3, 6)),
    instance(4, 2, 4, (3, 4)),  # groups of up to three
]


def partitions(items, largest, most):
    """All partitions of ``items`` into at most ``most`` groups of at most ``largest``."""
    if not items:
        yield []
        return
    first, rest = items[0], items[1:]
    for size in range(min(largest, len(items))):
        for mates in itertools.combinations(rest, size):
            left = [x for x in rest if x not in mates]
            if most > 0:
                for others in partitions(left, largest, most - 1):
                    yield [(first, *mates), *others]


def full_groups(data, groups):
    """Fill groups (and empty GPUs) up with dummies."""
    c, dummies = patterns.group_size(data), itertools.count(data.experts)
    padded = [*groups, *[()] * (data.gpus - len(groups))]
    return [[*g, *itertools.islice(dummies, c - len(g))] for g in padded]


def compiled(name, data) -> LinearModel:
    with declarative():
        built = load_formulation(name).build(data)
    return compile_model(built)


def members_of(block):
    if block.index is not None:
        return block.index
    return list(itertools.product(*(range(n) for n in block.shape)))


def point(model, data, layer_groups):
    """Columns of a placement, computed from its groups alone."""
    group = [{e: g for g, members in enumerate(gs) for e in members} for gs in layer_groups]

    def together(l, experts):
        return len({group[l][e] for e in experts}) == 1

    def split(l, quad, h):
        a, b, d, e = quad
        first, second = (((a, b), (d, e)), ((a, d), (b, e)), ((a, e), (b, d)))[h]
        return together(l, first) and together(l, second) and not together(l, quad)

    def counts(l, s, v):
        experts = data.scenarios[l].members(s).tolist()
        if v < 3:
            return sum(together(l, u) for u in itertools.combinations(experts, v + 2))
        quads = itertools.combinations(experts, 4)
        return sum(split(l, quad, h) for quad in quads for h in range(3))

    value = {
        "z": lambda l, *pair: together(l, pair),
        "t": lambda l, *triple: together(l, triple),
        "q": lambda l, *quad: together(l, quad),
        "w": lambda l, *quad_h: split(l, quad_h[:-1], quad_h[-1]),
        "n": counts,
        "T": lambda l, s: max(
            np.bincount([group[l][e] for e in data.scenarios[l].members(s).tolist()])
        ),
    }
    return np.concatenate(
        [[float(value[name](*i)) for i in members_of(b)] for name, b in model.columns.items()]
    )


def hosts_of(data, layer_groups):
    hosts = np.zeros((data.layers, data.experts, data.gpus), dtype=bool)
    for l, groups in enumerate(layer_groups):
        for g, members in enumerate(groups):
            hosts[l, [e for e in members if e < data.experts], g] = True
    return hosts


@pytest.mark.parametrize("data", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_rows_hold_on_every_placement_and_the_objective_is_its_time(name, data):
    model = compiled(name, data)
    c, found = patterns.group_size(data), 0
    for groups in partitions(list(range(data.experts)), c, data.gpus):
        plan = [full_groups(data, groups)] * data.layers
        x = point(model, data, plan)
        activity = model.matrix @ x
        assert (activity >= model.row_lower - 1e-9).all()
        assert (activity <= model.row_upper + 1e-9).all()
        assert (x >= model.lower).all()
        assert (x <= model.upper).all()
        report = check_solution(data, Solution.from_arrays(data, hosts_of(data, plan)))
        assert not report.violations
        assert model.cost @ x + model.offset == pytest.approx(report.objective, abs=1e-12)
        # No T may be lower than the time.
        if "T" in model.columns:
            block = model.columns["T"]
            for j in range(block.start, block.start + block.size):
                short = model.matrix[:, [j]].toarray()[:, 0] + model.row_lower > activity + 1e-9
                assert short.any() or x[j] - 1 < model.lower[j]
        found += 1
    assert found > 0


@pytest.mark.parametrize("data", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_templates_sizes_and_stock_compile(name, data):
    formulation = load_formulation(name)
    if formulation.supports(data) is not None:
        pytest.skip("not taken")
    with declarative():
        built = formulation.build(data)
    rules = list(built.component_objects(ctype=None, active=True))
    rows = [c for c in rules if c.name.endswith("_row")]
    assert rows
    assert all(type(c) is TemplateIndexedConstraint for c in rows)
    model = compile_model(built)
    assert model.size == formulation.size(data)
    if model.size["rows"] < 700:
        assert_same_rows(model, compile_stock(formulation.build(data)))


def test_lp_values_are_ordered_bounds_and_mips_exact(tmp_path):
    jobs, keys = [], []
    for number, data in enumerate(SHAPES):
        for name in (*NAMES, "placement_assignment"):
            for relax in (True, False):
                if load_formulation(name).supports(data) is None and (relax or name != NAMES[0]):
                    jobs.append(("highs", data, name, relax))
                    keys.append((number, name, relax))
    answers = dict(zip(keys, solve_jobs(tmp_path, jobs), strict=True))
    for number, data in enumerate(SHAPES):
        optimum = brute_optimum(data)[0]
        lps = {k[1]: a[2] for k, a in answers.items() if k[0] == number and k[2]}
        assert len(lps) == 5
        for name, value in lps.items():
            assert value <= optimum + 1e-9, (number, name)
            for weaker in load_formulation(name).__dict__.get("TIGHTER_THAN", ()):
                assert value >= lps[weaker] - 1e-6, (number, name, weaker)
        for name in EXACT:
            reason, value, _, plan = answers[number, name, False]
            assert reason == "optimal"
            assert value == pytest.approx(optimum, abs=1e-6), (number, name)
            report = check_solution(data, plan)
            assert not report.violations
            assert report.objective == pytest.approx(optimum, abs=1e-6)


def test_the_pattern_lp_is_mostly_the_optimum(tmp_path):
    """Groups of two to four, up to four experts a scenario; popularity-weighted scenarios."""
    shapes = [(4, 2, 2), (6, 3, 2), (6, 2, 3), (7, 3, 3), (8, 2, 4), (8, 4, 2), (5, 2, 3)]
    datas = [
        instance(e, g, c, (min(4, e),) if seed % 2 else (2, 3, 4), scenarios=15, seed=seed)
        for seed, (e, g, c) in enumerate(shapes * 4)
    ]
    jobs = [("highs", data, "placement_patterns", True) for data in datas]
    tight = 0
    for data, answer in zip(datas, solve_jobs(tmp_path, jobs), strict=True):
        optimum = brute_optimum(data)[0]
        assert answer[2] <= optimum + 1e-9
        tight += answer[2] >= optimum - 1e-6
    assert tight >= 26  # of 28


PINNED = {
    ("smoke_placement_unit", "placement_pairs"): 1.1,
    ("smoke_placement_unit", "placement_patterns"): 1.1,
    ("smoke_placement_spare_slots", "placement_pairs"): 1.2,
    ("smoke_placement_spare_slots", "placement_triangles"): 1.2,
    ("smoke_placement_spare_slots", "placement_patterns3"): 1.2,
    ("smoke_placement_spare_slots", "placement_patterns"): 1.2,
}


def test_pinned_lp_values(tmp_path):
    jobs = [
        ("highs", prepare(read_instance(name), "placement"), formulation, True)
        for name, formulation in PINNED
    ]
    for key, answer in zip(PINNED, solve_jobs(tmp_path, jobs), strict=True):
        assert answer[2] == pytest.approx(PINNED[key], abs=1e-6), key


# -- facets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "lower"), [(5, 4), (6, 13), (7, 29), (8, 53)])
def test_facets_hold_and_are_exact(k, lower):
    for level in (3, 4):
        points = times.shape_points(k, level)
        rows = times.symmetric_facets(k, level)
        for *counts, time in points:
            terms = [(row[0] - int(np.dot(row[1:-1], counts)), row[-1]) for row in rows]
            assert all(rest <= on_time * time for rest, on_time in terms)
            best = max(Fraction(rest, on_time) for rest, on_time in terms if on_time)
            # Level 4 tells the time of every shape; level 3 bounds it.
            assert best == time if level == 4 else best <= time
        if level == 4:
            assert sum(row[-1] > 0 for row in rows) == lower


@pytest.mark.parametrize("k", [4, 5, 6, 7])
def test_shape_points_are_those_of_all_partitions(k):
    """Counted from the groups of every set partition, not from its shape."""
    found = set()
    for groups in partitions(list(range(k)), k, k):
        of = {e: g for g, members in enumerate(groups) for e in members}
        one = [
            sum(len({of[e] for e in u}) == 1 for u in itertools.combinations(range(k), size))
            for size in (2, 3, 4)
        ]
        apart = sum(
            of[a] == of[b] != of[d] == of[e]
            for quad in itertools.combinations(range(k), 4)
            for a, b, d, e in (
                quad,
                [quad[i] for i in (0, 2, 1, 3)],
                [quad[i] for i in (0, 3, 1, 2)],
            )
        )
        found.add((*one, apart, max(map(len, groups))))
    assert found == set(times.shape_points(k, 4))


def test_the_time_of_up_to_four_experts_is_linear():
    for k in (1, 2, 3, 4):
        for pairs, triples, quads, apart, time in times.shape_points(k, 4):
            assert time == 1 + pairs - triples + quads - apart


# -- plans, refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize("data", SHAPES)
def test_plans_survive_the_way_through_pairs(data):
    formulation = load_formulation("placement_patterns")
    model = compiled("placement_pairs", data)
    for groups in partitions(list(range(data.experts)), patterns.group_size(data), data.gpus):
        hosts = hosts_of(data, [full_groups(data, groups)] * data.layers)
        plan = Solution.from_arrays(data, hosts)
        z = formulation.start(data, plan)["z"]
        x = np.zeros(len(model.cost))
        x[: z.size] = z.ravel()
        back = formulation.solution(Values(model, x), data).hosts_array(data.gpus)
        for l in range(data.layers):
            mine = sorted(tuple(np.flatnonzero(back[l, :, g])) for g in range(data.gpus))
            assert mine == sorted(tuple(np.flatnonzero(hosts[l, :, g])) for g in range(data.gpus))


def test_fractional_values_are_rounded_to_a_plan():
    data = SHAPES[7]
    model = compiled("placement_pairs", data).relax()
    for seed in range(20):
        x = np.random.default_rng(seed).random(len(model.cost))
        plan = load_formulation("placement_pairs").solution(Values(model, x), data)
        assert not check_solution(data, plan).violations


def test_start_of_a_group_that_is_too_large():
    data = instance(4, 2, 4)  # all experts on one GPU is allowed, and never needed
    hosts = np.zeros((1, 4, 2), dtype=bool)
    hosts[0, :, 1] = True
    plan = Solution.from_arrays(data, hosts)
    assert not check_solution(data, plan).violations
    assert load_formulation("placement_patterns").start(data, plan) == {}


def test_what_is_refused():
    data = instance(6, 3, 2)
    formulation = load_formulation("placement_patterns")
    assert formulation.supports(data) is None
    memory = replace(data, free_mib=np.full(3, 2 * data.expert_mib))
    assert formulation.supports(memory) is None
    for other, message in (
        (replace(memory, free_mib=memory.free_mib - 1.0), "memory"),
        (replace(data, slots=None), "slots"),
        (replace(data, slots=1), "hold"),
        (replace(data, layer_time=LayerTime("sum", 1, 1, 0, 1)), "unit"),
        (instance(3, 3, 1, (2,)), "fewer than four"),
        (replace(data, experts=120, gpus=30, slots=4), "nonzeros"),
    ):
        assert message in formulation.supports(other)


def test_contracts():
    assert set(NAMES) <= set(formulation_names("placement"))
    for name in NAMES:
        formulation = load_formulation(name)
        assert ("relaxation" if name == NAMES[0] else "exact") == formulation.KIND
    two, three = instance(6, 3, 2), instance(6, 2, 3)
    assert load_formulation(NAMES[0]).kind(two) == "exact"
    assert load_formulation(NAMES[0]).kind(three) == "relaxation"
