"""The checker: every kind of violation fires alone, and objectives are recomputed right."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
from brute import brute_optimum, brute_time
from make_data import FORMS, layer_time, random_data, scenarios_of

from moeopt.checker import check_solution
from moeopt.errors import InputError
from moeopt.problem import LayerTime, ProblemData
from moeopt.solution import Solution


def replication_data(**changes) -> ProblemData:
    """Two layers of three experts on two GPUs; room for five replicas a GPU, four a layer."""
    data = random_data(
        "replication", np.random.default_rng(0), layers=2, experts=3, form="sum", limit="both"
    )
    rows = (
        scenarios_of([[0, 1], [1, 2]], [[3, 1], [2, 2]], [1, 3]),
        scenarios_of([[0, 2]], [[1, 4]]),
    )
    free = np.full(2, 5 * data.expert_mib)
    base = replace(
        data, scenarios=rows, layer_time=LayerTime("sum", 1, 10, 0, 4), slots=3, free_mib=free
    )
    return replace(base, **changes)


def joint_data(**changes) -> ProblemData:
    """One layer of three experts, two GPUs, two classes of two requests, two waves."""
    data = random_data("joint", np.random.default_rng(0), experts=3, form="sum")
    requests = replace(
        data.requests,
        count=np.array([2, 2]),
        output_tokens=np.array([10, 30]),
        kv_mib=np.array([4.0, 2.0]),
        usage=np.array([[[1.0, 0.5, 0.5]], [[0.25, 0.75, 1.0]]]),
    )
    base = replace(
        data,
        requests=requests,
        layer_time=LayerTime("sum", 1, 10, 0, 4),
        free_mib=np.array([3 * 10.5 + 4.0, 2 * 10.5 + 4.0]),
        waves=2,
    )
    return replace(base, **changes)


HOSTS = [[[0], [1], [0, 1]], [[0], [1], [0, 1]]]
WAVES = [{"requests": {"class0": [1, 1]}}, {"requests": {"class1": [1, 1]}}]


def plan(data: ProblemData, hosts=None, waves=None, dispatch=None, objective=None) -> Solution:
    return Solution.model_validate(
        {
            "schema": "moeopt-solution/1",
            "instance": data.name,
            "problem": data.problem,
            "hosts": hosts if hosts is not None else copy.deepcopy(HOSTS[: data.layers]),
            "waves": waves,
            "dispatch": dispatch,
            "objective": objective,
        }
    )


def only(report, kind: str, amount: float, count: int = 1) -> None:
    """Exactly this kind fired, ``count`` times, the first time by ``amount``."""
    assert [v.kind for v in report.violations] == [kind] * count
    assert report.violations[0].amount == pytest.approx(amount, rel=1e-12)
    assert report.violations[0].where
    assert report.violations[0].where in report.violations[0].message or kind in (
        "wave_excess",
        "objective_mismatch",
    )


def test_a_clean_plan_has_no_violations():
    for data, waves in ((replication_data(), None), (joint_data(), WAVES)):
        report = check_solution(data, plan(data, waves=waves))
        assert report.violations == []
        assert report.exact
        claimed = plan(data, waves=waves, objective=report.objective)
        assert check_solution(data, claimed).violations == []


def test_reports_are_plain_data_with_a_summary():
    data = joint_data()
    report = check_solution(data, plan(data, waves=[*WAVES, {"requests": {"class0": [1, 0]}}]))
    document = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert document["violations"] == [v.as_dict() for v in report.violations]
    assert document["violations"][0]["kind"] == "requests_excess"
    assert document["objective"] == report.objective
    lines = dict(report.summary())
    assert "MiB of experts and 4 of KV cache" in lines["fullest GPU"]
    assert lines["waves"].startswith("2 requests, 10 steps of ")
    assert "tokens/s" in lines["decoding"]
    plain = replication_data()
    assert "KV" not in dict(check_solution(plain, plan(plain)).summary())["fullest GPU"]


def test_expert_not_hosted_by_anyone():
    data = replication_data()
    report = check_solution(data, plan(data, [[[0], [], [0]], HOSTS[1]]))
    only(report, "expert_not_hosted", 1)
    assert report.objective is None
    assert report.evaluated_by is None
    # Expert 1 of layer 1 has no tokens: still to be hosted, but the objective is defined.
    report = check_solution(data, plan(data, [HOSTS[0], [[0], [], [1]]]))
    only(report, "expert_not_hosted", 1)
    assert report.objective is not None


def test_expert_replicated_in_a_placement():
    data = replication_data(problem="placement")
    hosts = [[[0], [1], [0, 1]], [[0], [1], [0]]]
    only(check_solution(data, plan(data, hosts)), "expert_replicated", 1)
    assert check_solution(replication_data(), plan(replication_data(), hosts)).violations == []


def test_duplicate_replica():
    data = replication_data()
    hosts = [[[0], [1], [0, 0, 0]], HOSTS[1]]
    only(check_solution(data, plan(data, hosts)), "duplicate_replica", 2)


def test_slots_exceeded():
    data = replication_data(slots=1)
    hosts = [[[0], [0], [1]], [[0], [1], [1]]]
    report = check_solution(data, plan(data, hosts))
    only(report, "slots_exceeded", 1, count=2)
    assert [v.where for v in report.violations] == ["layer 0, GPU 0", "layer 1, GPU 1"]
    assert check_solution(replication_data(slots=2), plan(data, hosts)).violations == []


def test_memory_exceeded_by_experts():
    tight = 4 * 10.5 - 2.0**-20  # one byte short
    data = replication_data(free_mib=np.array([4 * 10.5, tight]))
    only(check_solution(data, plan(data)), "memory_exceeded", 2.0**-20)
    data = replication_data(free_mib=np.array([4 * 10.5, 4 * 10.5]))
    assert check_solution(data, plan(data)).violations == []
    data = replication_data(free_mib=None)
    assert check_solution(data, plan(data)).violations == []


def test_memory_exceeded_by_the_cache_of_one_wave():
    data = joint_data()
    # GPU 1: 21 MiB of experts, 4 of cache in one wave; 2 requests of class 0 in the other: 8.
    waves = [{"requests": {"class0": [0, 2]}}, {"requests": {"class1": [2, 0]}}]
    only(check_solution(data, plan(data, waves=waves)), "memory_exceeded", 4.0)


def test_requests_missing_and_in_excess():
    data = joint_data()
    waves = [{"requests": {"class0": [1, 0]}}, WAVES[1]]
    only(check_solution(data, plan(data, waves=waves)), "requests_missing", 1)
    waves = [WAVES[0], {"requests": {"class1": [1, 2]}}]
    only(check_solution(data, plan(data, waves=waves)), "requests_excess", 1)
    report = check_solution(data, plan(data, waves=None))
    only(report, "requests_missing", 2, count=2)
    assert report.objective == 0.0


def test_wave_excess_counts_waves_with_requests():
    data = joint_data()
    waves = [
        {"requests": {"class0": [1, 0]}},
        {"requests": {"class0": [0, 1]}},
        {"requests": {"class1": [1, 1]}},
    ]
    only(check_solution(data, plan(data, waves=waves)), "wave_excess", 1)
    idle = [WAVES[0], {"requests": {}}, WAVES[1]]
    report = check_solution(data, plan(data, waves=idle))
    assert report.violations == []
    assert report.objective == check_solution(data, plan(data, waves=WAVES)).objective
    assert report.details["waves"][1]["step_us"] == 0.0
    # Prescribed steps belong to positions: the third wave has none.
    data = joint_data(wave_steps=(30, 30))
    only(check_solution(data, plan(data, waves=idle)), "wave_excess", 1)


def test_wave_too_long():
    data = joint_data(wave_steps=(10, 29))
    only(check_solution(data, plan(data, waves=WAVES)), "wave_too_long", 1)
    data = joint_data(wave_steps=(12, 30))
    report = check_solution(data, plan(data, waves=WAVES))
    assert report.violations == []
    # A non-empty wave runs all its prescribed steps.
    assert [w["steps"] for w in report.details["waves"]] == [12, 30]


# Expert 2 of layer 0 computes two tokens in scenario 1: one on each GPU.
DISPATCH = [
    [[(0, 0, 3.0), (1, 1, 1.0)], [(1, 1, 2.0), (2, 0, 1.0), (2, 1, 1.0)]],
    [[(0, 0, 1.0), (2, 1, 4.0)]],
]


def with_part(change) -> list:
    dispatch = copy.deepcopy(DISPATCH)
    dispatch[0][1] = change
    return dispatch


@pytest.mark.parametrize(
    ("kind", "amount", "dispatch"),
    [
        ("dispatch_not_hosted", 2, with_part([(1, 0, 2.0), (2, 0, 2.0)])),
        ("dispatch_unbalanced", 1, with_part([(1, 1, 2.0), (2, 0, 1.0)])),
        ("dispatch_unbalanced", 1, with_part([(0, 0, 1.0), (1, 1, 2.0), (2, 0, 2.0)])),
        ("dispatch_negative", 1, with_part([(1, 1, 2.0), (2, 0, 3.0), (2, 1, -1.0)])),
        ("dispatch_shape", 1, with_part([(1, 1, 2.0), (2, 0, 2.0), (3, 0, 1.0)])),
        ("dispatch_shape", 1, with_part([(1, 1, 2.0), (2, 0, 2.0), (2, 2, 1.0)])),
        ("dispatch_shape", 1, [DISPATCH[0][:1], DISPATCH[1]]),
        ("dispatch_shape", 1, DISPATCH[:1]),
    ],
)
def test_wrong_dispatch(kind, amount, dispatch):
    data = replication_data()
    report = check_solution(data, plan(data, dispatch=dispatch))
    only(report, kind, amount)
    # What is wrong is not used: the time is that of the search, for layer 0 at least.
    clean = check_solution(data, plan(data))
    assert report.objective is not None
    assert report.objective >= clean.objective * (1 - 1e-12)
    assert "exact" in report.evaluated_by


def test_fractional_dispatch_of_whole_tokens():
    data = replication_data()
    halves = with_part([(1, 1, 2.0), (2, 0, 0.5), (2, 1, 1.5)])
    only(check_solution(data, plan(data, dispatch=halves)), "dispatch_fractional", 0.5, count=2)


def test_dispatch_is_evaluated_as_it_stands():
    data = replication_data()
    report = check_solution(data, plan(data, dispatch=DISPATCH))
    assert report.violations == []
    # Layer 1 uses an expert with two replicas in its only scenario; scenario 0 of layer 0 does not.
    assert report.evaluated_by == "dispatch of the solution; exact: one replica each"
    assert not report.exact
    # f = 1 + 10 A + 4 N. Scenario 0: GPU 0 alone with 3 tokens: 23. Scenario 1: GPU 1 has two
    # experts and 3 tokens: 33. Layer 1: GPU 1 with 4 tokens: 27.
    assert report.objective == pytest.approx(0.25 * 23 + 0.75 * 33 + 27, rel=1e-14)
    best = check_solution(data, plan(data))
    assert best.exact
    assert best.objective == pytest.approx(0.25 * 23 + 0.75 * 19 + 27, rel=1e-14)
    # Two entries of one replica are one activation.
    twice = with_part([(1, 1, 2.0), (2, 0, 1.0), (2, 0, 1.0)])
    again = check_solution(data, plan(data, dispatch=twice))
    assert again.violations == []
    assert "dispatch of the solution" in again.evaluated_by
    assert again.objective == pytest.approx(best.objective, rel=1e-14)


def test_dispatch_of_a_polynomial_case_is_checked_but_not_needed():
    data = replication_data(layer_time=LayerTime())
    report = check_solution(data, plan(data, dispatch=DISPATCH))
    assert report.violations == []
    assert report.evaluated_by == "exact: matching"
    assert report.exact
    assert report.objective == pytest.approx(2.0)


def test_real_dispatch_that_drops_tokens_within_the_tolerance_is_scaled_up():
    data = joint_data()
    tokens = [np.array([2.0, 1.0, 1.0]), np.array([0.5, 1.5, 2.0])]  # by wave

    def stated(factor):
        return [[[(0, 0, t[0]), (1, 1, t[1]), (2, 0, factor * t[2])] for t in tokens]]

    full = check_solution(data, plan(data, waves=WAVES, dispatch=stated(1.0)))
    less = check_solution(data, plan(data, waves=WAVES, dispatch=stated(1 - 9e-7)))
    assert full.violations == less.violations == []
    assert less.objective == pytest.approx(full.objective, rel=1e-15)
    far = check_solution(data, plan(data, waves=WAVES, dispatch=stated(1 - 2e-6)))
    only(far, "dispatch_unbalanced", 2e-6, count=2)


def test_joint_objective_by_hand():
    data = joint_data(layer_time=LayerTime("sum", 1, 10, 0, 0))
    report = check_solution(data, plan(data, waves=WAVES))
    # Three experts on two GPUs with a replica of the third: two activations, 21 a layer.
    first = 10 * (1.25 + 0.125 * 4 + 21)
    second = 30 * (1.25 + 0.125 * 2 + 21)
    assert report.objective == pytest.approx(first + second, rel=1e-15)
    assert report.details["memory"]["kv_mib"] == [4.0, 4.0]
    assert report.details["tokens_per_s"] == pytest.approx(1e6 * 80 / (first + second))
    assert report.details["layers"] == [pytest.approx(40 * 21)]
    # A wave of both classes runs as long as the longest.
    both = [{"requests": {"class0": [1, 1], "class1": [1, 1]}}]
    roomy = replace(data, free_mib=data.free_mib + 10)
    report = check_solution(roomy, plan(data, waves=both))
    assert report.violations == []
    assert report.objective == pytest.approx(30 * (1.25 + 0.125 * 6 + 21), rel=1e-15)


def test_objective_mismatch_both_ways():
    data = replication_data()
    value = check_solution(data, plan(data)).objective
    for claimed in (value * (1 + 3e-6), value * (1 - 3e-6), 0.0):
        report = check_solution(data, plan(data, objective=claimed))
        only(report, "objective_mismatch", abs(claimed - value))
    close = plan(data, objective=value * (1 + 5e-7))
    assert check_solution(data, close).violations == []
    # A stated dispatch is taken at its word: claiming better without it is wrong.
    only(
        check_solution(data, plan(data, dispatch=DISPATCH, objective=value)),
        "objective_mismatch",
        0.75 * 14,
    )


def test_claims_where_only_the_rule_can_evaluate():
    rng = np.random.default_rng(5)
    data = random_data(
        "replication",
        rng,
        form="sum",
        experts=24,
        gpus=6,
        top_k=24,
        scenarios=1,
        max_tokens=90,
        limit="slots",
    )
    data = replace(data, slots=None, layer_time=LayerTime("sum", 0, 60, 0, 1))
    hosts = [[[0, 1, 2, 3, 4, 5]] * 24]
    report = check_solution(data, plan(data, hosts))
    assert not report.exact
    assert report.evaluated_by.startswith("rule")
    value = report.objective
    # Below the rule's value nothing is refuted down to the proved bound; above it is wrong.
    assert check_solution(data, plan(data, hosts, objective=value * 0.9999)).violations == []
    only(
        check_solution(data, plan(data, hosts, objective=value * 1.01)),
        "objective_mismatch",
        value * 0.01,
    )
    only(
        check_solution(data, plan(data, hosts, objective=value / 2)),
        "objective_mismatch",
        value / 2,
    )


def test_solutions_of_something_else_are_refused():
    data = replication_data()
    with pytest.raises(InputError, match="placement"):
        check_solution(replace(data, problem="placement"), plan(data))
    with pytest.raises(InputError, match="1 layers of 3 experts, expected 2 of 3"):
        check_solution(data, plan(data, HOSTS[:1]))
    with pytest.raises(InputError, match="GPU 2"):
        check_solution(data, plan(data, [[[0], [1], [2]], HOSTS[1]]))
    data = joint_data()
    with pytest.raises(InputError, match="negative"):
        check_solution(data, plan(data, waves=[{"requests": {"class0": [3, -1]}}, WAVES[1]]))
    with pytest.raises(InputError, match="class7"):
        check_solution(data, plan(data, waves=[{"requests": {"class7": [1, 1]}}]))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("problem", ["placement", "replication", "joint"])
def test_optimal_plans_of_brute_force_are_clean(problem, form):
    rng = np.random.default_rng([len(form), len(problem)])
    for layers, gpus in ((1, 2), (2, 2), (1, 3)):
        data = random_data(
            problem,
            rng,
            form=form,
            layers=layers,
            gpus=gpus,
            experts=3,
            max_tokens=3,
            max_count=2,
            limit=("slots", "memory", "both")[gpus - 2 + layers - 1],
            prescribed=problem == "joint" and layers == 2,
            kinds=layers,
        )
        value, found = brute_optimum(data)
        waves = None
        if problem == "joint":
            waves = [
                {
                    "requests": {
                        name: list(found["requests"][c][w])
                        for c, name in enumerate(data.requests.names)
                    }
                }
                for w in range(data.waves)
            ]
        hosts = [[list(h) for h in layer] for layer in found["hosts"]]
        report = check_solution(data, plan(data, hosts, waves, objective=value))
        assert report.violations == []
        assert report.exact
        assert report.objective == pytest.approx(value, rel=1e-9)


def test_any_feasible_plan_is_evaluated_like_brute_force():
    rng = np.random.default_rng(11)
    for form in FORMS:
        data = random_data("replication", rng, form=form, experts=5, gpus=3, top_k=3, limit="slots")
        data = replace(data, slots=None, layer_time=layer_time(form, rng))
        x = rng.random((1, 5, 3)) < 0.5
        x[0, np.arange(5), rng.integers(3, size=5)] = True
        report = check_solution(data, Solution.from_arrays(data, x))
        rows = data.scenarios[0]
        expected = sum(
            rows.weight[s]
            * brute_time(
                data.layer_time,
                tuple(tuple(np.flatnonzero(x[0, e]).tolist()) for e in rows.members(s)),
                tuple(rows.counts(s).tolist()),
                True,
            )
            for s in range(len(rows))
        )
        assert report.objective == pytest.approx(expected, rel=1e-10)
        assert report.violations == []
