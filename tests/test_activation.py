"""``activation``: the knapsack, plans, bounds, the checker and the formulations agree."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from activation_data import FORMS, document, random_activation, with_budget, with_options
from brute import brute_optimum
from scipy.optimize import Bounds, LinearConstraint, milp

from moeopt.activating import activations_minorant, choices, solve_choice, value_layers
from moeopt.activation.choice import choose
from moeopt.activation.data import activation_of, dropped_of, kept_share
from moeopt.activation_front import budgets_of, four_ways
from moeopt.bounding import bounds
from moeopt.bounds import combinatorial_bounds
from moeopt.catalog import formulation_names, load_formulation, read_instance
from moeopt.checker import check_solution
from moeopt.choosing import choose as choose_formulation
from moeopt.compile import compile_model
from moeopt.declarative import declarative
from moeopt.errors import InputError
from moeopt.instance import Instance
from moeopt.instance_layer import layer_of
from moeopt.linear import Values
from moeopt.prepare import prepare
from moeopt.prepare_activation import dropped_mass
from moeopt.problem import LayerTime, ProblemData
from moeopt.solution import Solution, validate_against
from moeopt.solving import solve

RANDOM = {
    f"{form}_{'fixed' if fixed else 'free'}_{seed}": random_activation(seed, form=form, fixed=fixed)
    for seed, (form, fixed) in enumerate(product(FORMS, (False, True)))
}


@pytest.fixture(scope="module")
def optima() -> dict[str, float]:
    return {name: brute_optimum(data)[0] for name, data in RANDOM.items()}


def plan_of(data: ProblemData, hosts: Any, kept: list[int]) -> Solution:
    return Solution.from_arrays(data, hosts, activated=kept)


# --- the knapsack ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_the_knapsack_is_exact(seed: int) -> None:
    rng = np.random.default_rng(seed)
    times = rng.integers(1, 9, (4, 3)).astype(float)  # neither monotone nor convex
    dropped = np.sort(rng.integers(0, 12, (4, 3)), axis=1)[:, ::-1].copy()
    dropped[:, -1] = 0
    budgets = [0, 1, 5, 11, 17, 100]
    for budget, chosen in zip(budgets, choose(times, dropped, budgets), strict=True):
        assert sum(dropped[l, j] for l, j in enumerate(chosen)) <= budget
        best = min(
            sum(times[l, j] for l, j in enumerate(pick))
            for pick in product(range(3), repeat=4)
            if sum(dropped[l, j] for l, j in enumerate(pick)) <= budget
        )
        assert sum(times[l, j] for l, j in enumerate(chosen)) == best


def test_masses_of_a_file_are_exact_decimals() -> None:
    assert (
        dropped_mass(np.array([[0.6, 0.3, 0.1], [6, 3, 1]])).tolist() == [[40_000, 10_000, 0]] * 2
    )
    assert dropped_mass(np.array([[2.0, 1.0]])).tolist() == [[33_334, 0]]  # 1/3, rounded up


@pytest.mark.parametrize("form", FORMS)
def test_the_minorant_is_below_every_layer_time(form: str) -> None:
    for seed in range(5):
        time = random_activation(seed, form=form).layer_time
        base, slope = activations_minorant(time)
        a = np.arange(1, 9)[:, None]
        n = a + np.arange(12)
        assert (time.of(a, n) >= (base + slope * (a - 1)) * (1 - 1e-12)).all()
    assert activations_minorant(LayerTime()) == (1.0, 1.0)


# --- plans and bounds -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", RANDOM)
def test_search_and_bounds_hold(name: str, optima: dict[str, float]) -> None:
    data, optimum = RANDOM[name], optima[name]
    found = solve_choice(data, time_limit_s=20)
    report = check_solution(data, plan_of(data, found.hosts, found.kept))
    assert report.violations == []
    assert report.exact
    assert report.objective is not None
    assert found.lower <= optimum <= report.objective * (1 + 1e-12)
    assert report.objective <= optimum * 1.02  # tiny layers: descents find the best
    if "fixed" in name or "unit" in name:
        assert found.lower >= optimum * (1 - 1e-6)
    for bound in combinatorial_bounds(data):
        assert 0 < bound.value <= optimum


@pytest.mark.parametrize("name", [name for name in RANDOM if "free" in name])
def test_every_budget_is_bounded(name: str) -> None:
    data = RANDOM[name]
    values = value_layers(data, time_limit_s=20, proofs=False)
    budgets = budgets_of(data, 5)
    found = choices(data, values, budgets)
    assert [choice.budget for choice in found] == budgets
    for choice in found:
        asked = with_budget(data, choice.budget)
        optimum, _ = brute_optimum(asked)
        report = check_solution(asked, plan_of(data, choice.hosts, choice.kept))
        assert report.violations == []
        assert choice.lower <= optimum <= report.objective * (1 + 1e-12)
    assert found[0].kept == [data.top_k] * data.layers
    assert all(a.lower >= b.lower for a, b in pairwise(found))


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("formulation", formulation_names("activation"))
def test_formulations_find_the_optimum(
    name: str, formulation: str, optima: dict[str, float]
) -> None:
    data, module = RANDOM[name], load_formulation(formulation)
    if (reason := module.supports(data)) is not None:
        assert "plan is fixed" in reason
        assert ("fixed" in name) == (formulation == "activation_placement_ordered")
        return
    with declarative():
        linear = compile_model(module.build(data))
    assert linear.size == module.size(data)

    def solved(lower: np.ndarray, upper: np.ndarray) -> Any:
        result = milp(
            linear.cost,
            constraints=LinearConstraint(linear.matrix, linear.row_lower, linear.row_upper),
            bounds=Bounds(lower, upper),
            integrality=linear.integer.astype(int),
        )
        assert result.success, result.message
        return result

    result = solved(linear.lower, linear.upper)
    plan = module.solution(Values(linear, result.x), data)
    report = check_solution(data, plan)
    assert report.violations == []
    loss = 1.3e-3 if "p2" in name else 1e-6  # tangents
    assert report.objective == pytest.approx(optima[name], rel=loss)
    assert result.fun + linear.offset <= optima[name] * (1 + 1e-6)
    # The plan as a start keeps its value.
    lower, upper = linear.lower.copy(), linear.upper.copy()
    for component, values in module.start(data, plan).items():
        block = linear.columns[component]
        lower[block.start : block.start + block.size] = values.ravel()
        upper[block.start : block.start + block.size] = values.ravel()
    assert solved(lower, upper).fun == pytest.approx(result.fun, rel=1e-6)


def test_four_ways_of_the_front() -> None:
    ways = four_ways(RANDOM["max_free_4"], 4, time_limit_s=20)
    by_mass = {point.budget_share: point for point in ways["contiguous"]}
    for point in ways["placed"]:
        assert point.lower <= point.step <= by_mass[point.budget_share].step
        assert point.kept_share >= point.budget_share
        assert by_mass[point.budget_share].lower == pytest.approx(by_mass[point.budget_share].step)
    placed = {point.budget_share: point for point in ways["placed"]}
    for key in ("uniform_placed", "uniform_contiguous"):
        assert [point.mean_kept for point in ways[key]] == [1.0, 2.0, 3.0]
        for point in ways[key]:
            assert point.step >= placed[point.budget_share].step


def test_solve_and_bound_take_the_problem() -> None:
    instance = read_instance("smoke_activation_max")
    outcome = solve(instance, problem="activation", time_limit_s=20)
    assert outcome.record.status == "optimal"
    assert outcome.upper_bound == pytest.approx(20.0)
    assert outcome.solution is not None
    assert outcome.solution.activated == [2, 1, 2]
    assert validate_against(instance, outcome.solution) == []
    report = bounds(instance, problem="activation", methods=["layers", "combinatorial"])
    assert [bound.method for bound in report.bounds] == [
        "activation by layer",
        "scenario and knapsack",
    ]
    assert report.bounds[0].value == pytest.approx(20.0)


def test_a_large_program_is_not_started_unasked() -> None:
    data = prepare(read_instance("gpt-oss-20b_4gpu_activation_b1"), "activation")
    choice, why = choose_formulation(data, None, None)
    assert choice is None
    assert why is not None
    assert "too many to start unasked" in why


# --- the checker ----------------------------------------------------------------------------------


def test_the_checker_computes_the_step() -> None:
    data = prepare(Instance.from_document(document()), "activation")
    hosts = [[[0], [0], [1], [1]], [[0], [1], [0], [1]]]
    # Layer 3 keeps one: 3 + 1 on each GPU. Layer 4 keeps two: experts 0 and 2 on GPU 0.
    plan = Solution(
        instance="kept", problem="activation", hosts=hosts, activated=[1, 2], objective=17.0
    )
    report = check_solution(data, plan)
    assert report.violations == []
    assert report.objective == 5 + 4 + 8
    assert report.details["layers"] == [4.0, 8.0]
    assert report.details["dropped_mass"] == 0.3
    assert report.details["kept_mass"] == pytest.approx(0.85)
    assert report.details["tokens_per_s"] == pytest.approx(2e6 / 17)
    assert ("activated", "1 to 2 experts a layer, 1.500 on average") in report.summary()


def kinds(data: ProblemData, hosts: Any, kept: list[int] | None, **more: Any) -> list[str]:
    plan = Solution(instance="kept", problem="activation", hosts=hosts, activated=kept, **more)
    return sorted({violation.kind for violation in check_solution(data, plan).violations})


def test_every_violation() -> None:
    data = prepare(Instance.from_document(document()), "activation")
    good = [[0], [0], [1], [1]]
    assert kinds(data, [good, good], [2, 2]) == []
    assert kinds(data, [good, good], [1, 1]) == ["mass_dropped"]
    assert kinds(data, [good, good], [2, 2], objective=5.0) == ["objective_mismatch"]
    assert kinds(data, [good, [[0], [0], [0], [1]]], [2, 2]) == ["slots_exceeded"]
    assert kinds(data, [good, [[0, 1], [0], [1], []]], [2, 2]) == [
        "expert_not_hosted",
        "expert_replicated",
    ]
    fixed = prepare(Instance.from_document(with_options(hosts=[good, good])), "activation")
    assert kinds(fixed, [good, [[1], [1], [0], [0]]], [2, 2]) == ["host_moved"]
    for kept in (None, [2], [2, 3], [0, 2]):
        with pytest.raises(InputError, match="activated: must be 2 whole numbers from 1 to 2"):
            kinds(data, [good, good], kept)


def test_solution_files_are_checked_against_the_instance() -> None:
    instance = Instance.from_document(document())
    plan = Solution(instance="kept", problem="activation", hosts=[[[0]] * 4] * 2)
    assert validate_against(instance, plan) == ["activated: missing, the problem is activation"]
    wrong = plan.model_copy(update={"activated": [0, 1, 2]})
    assert validate_against(instance, wrong) == [
        "activated: has 3 layers, the instance 2",
        "activated[0]: must be from 1 to 2, is 0",
    ]
    other = plan.model_copy(update={"problem": "placement", "activated": [1, 1]})
    assert validate_against(instance, other) == ["activated: the problem placement has none"]


# --- the instance ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        (
            {"gate_mass": [[1, 2]]},
            ["activation.gate_mass: is 1 × 2, but there are 2 layers, top-2"],
        ),
        (
            {"gate_mass": [[1, 2], [0, 0]]},
            [
                "activation.gate_mass[0][0]: the heaviest rank comes first",
                "activation.gate_mass[1]: all entries are 0",
            ],
        ),
        (
            {"gate_mass": [[1, -1], [1, 0]]},
            ["activation.gate_mass[0][1]: must not be negative, is -1"],
        ),
        ({"budget": -1}, ["activation.budget: must be at least 0, not -1"]),
        (
            {"scenarios": [[{"experts": [[4]], "weight": [1]}]]},
            [
                "activation.scenarios: has 1 layers, not 2",
                "activation.scenarios[0]: has 1 entries, but top_k is 2",
                "activation.scenarios[0][0].experts[0][0]: expert 4 does not exist "
                "(experts are 0..3)",
            ],
        ),
        (
            {"hosts": [[[0], [0], [0], [1, 0]]]},
            [
                "activation.hosts: has 1 layers, not 2",
                "activation.hosts[0]: GPU 0 holds 4 experts, it has 2 slots",
                "activation.hosts[0][3]: 2 GPUs, not one",
            ],
        ),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], lines: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        Instance.from_document(with_options(**changes))
    assert caught.value.problems == lines


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"activation": None}, "needs the block `activation`"),
        ({"layer_time": {"form": "unit", "attention_base_us": 5}}, "in microseconds"),
        (
            {
                "cluster": {"nodes": [{"gpus": 2, "memory_mib": 30}], "slots_per_gpu": 2},
                "moe": document()["moe"] | {"dense_mib": 0},
            },
            "room for 3 experts, its slots are 4 in all layers",
        ),
    ],
)
def test_what_the_problem_needs(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        prepare(Instance.from_document(document(**changes)), "activation")


def test_a_layer_gets_its_share_of_the_budget() -> None:
    instance = Instance.from_document(with_options(hosts=[[[0], [0], [1], [1]]] * 2))
    data = prepare(layer_of(instance, 4), "activation")
    activation = activation_of(data)
    assert activation.budget == 15_000
    assert activation.dropped.tolist() == [[25_000, 0]]
    assert activation.hosts is not None
    assert activation.hosts.shape == (1, 4, 2)
    assert dropped_of(activation, [1]) == 25_000
    assert kept_share(activation, 25_000) == 0.75
    assert replace(activation, hosts=None).scenarios[0][0].expert.tolist() == [0, 2]
