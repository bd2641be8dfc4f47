"""Replays: the loop by hand, sampled routing, predictions on held-out requests, the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
import typer
from simulate_data import small_data
from typer.testing import CliRunner

from moeopt.calibrate.instances import Wanted, make_instance
from moeopt.commands import simulating
from moeopt.errors import InputError
from moeopt.instance import write_instance_file
from moeopt.make.traces_shipped import Arrivals, Trace, read_arrivals, read_trace
from moeopt.prepare import prepare
from moeopt.problem import LayerTime, ProblemData, RequestClasses
from moeopt.simulate.baselines import BASELINES
from moeopt.simulate.gains import gain, interval
from moeopt.simulate.predict import predict_mean, predict_sampled
from moeopt.simulate.replay import replay
from moeopt.simulate.sampled import draw_experts, sampled_step_time
from moeopt.simulate.served import serve_solution, served
from moeopt.simulate.simulating import Settings, simulate
from moeopt.simulate.workload import make_workload
from moeopt.solution import Solution, write_solution_file

# --- the loop, by hand ---------------------------------------------------------------------------


def one_layer_trace(lengths, prompts=None):
    """Tokens of one layer, 2 experts, top-1: request r always chooses expert r mod 2."""
    ids = np.concatenate([np.full((n, 1, 1), r % 2, np.uint8) for r, n in enumerate(lengths)])
    offsets = np.cumsum([0, *lengths])
    prompt = np.zeros(len(lengths), np.int64) if prompts is None else np.array(prompts)
    return Trace("hand", 2, 1, ids, offsets, prompt)


def one_layer_plan(free_mib, **attention):
    # f = 10·A + N, expert e on GPU e.
    data = small_data(layers=1, experts=2, top_k=1, free_mib=np.asarray(free_mib), **attention)
    return served(data, np.eye(2, dtype=bool)[None], name="hand")


def test_replay_by_hand():
    # 1 MiB a token; each GPU keeps 4 MiB for KV; requests of 3 and 2 tokens, one on each GPU.
    plan = one_layer_plan([5.0, 5.0], attention_base_us=100.0, attention_us_per_mib=1.0)
    arrivals = Arrivals("hand", np.array([0.0, 0.0, 1.0]), np.array([0, 0, 1]), np.array([3, 2, 1]))
    work = make_workload(one_layer_trace([1]), 1024.0, arrivals, rate_per_s=2.0)
    assert work.arrival_s.tolist() == [0.0, 0.0, 1.0]
    seen = replay(plan, work, warmup_steps=0, steps=10)
    # All choose expert 0 on GPU 0: 12, 12, 11 us; attention 100 + tokens of the longest.
    assert seen.layers_us.tolist() == [12.0, 12.0, 11.0, 11.0]
    assert seen.step_us.tolist() == [113.0, 114.0, 114.0, 113.0]
    assert seen.mean_gpu_us.tolist() == [6.0, 6.0, 5.5, 5.5]
    assert seen.batch.tolist() == [2, 2, 1, 1]
    assert seen.kv_reserved.tolist() == [5 / 8, 5 / 8, 3 / 8, 2 / 8]
    assert seen.kv_used.tolist() == [2 / 8, 4 / 8, 3 / 8, 2 / 8]
    assert seen.request_tpot_us.tolist() == [113.5, 341 / 3, 113.0]
    assert seen.request_wait_us.tolist() == [0.0, 0.0, 0.0]
    # The third comes after one second: the time before it is idle.
    assert seen.elapsed_us == 1e6 + 113.0
    assert seen.tokens_per_s == pytest.approx(6 / 1.000113)


def test_nobody_overtakes_and_caches_never_overflow():
    # 4 MiB of KV a GPU. Tokens: 4, 4, 4 (waits), 1 (would fit later than it could).
    plan = one_layer_plan([5.0, 5.0])
    output = np.array([4, 3, 4, 1])
    arrivals = Arrivals("hand", np.array([0.0, 0.0, 0.0, 1e-9]), np.zeros(4, int), output)
    work = make_workload(one_layer_trace([1]), 1024.0, arrivals, rate_per_s=1e12)
    seen = replay(plan, work, warmup_steps=0, steps=50)
    # Request 3 needs 1 MiB, which GPU 1 has, but request 2 is before it and needs 4.
    assert seen.batch.tolist() == [2, 2, 2, 2, 2, 1, 1]
    assert (seen.kv_reserved <= 1).all()
    assert seen.refused == 0


def test_requests_that_fit_nowhere_are_refused_and_counted():
    plan = one_layer_plan([5.0, 5.0])
    arrivals = Arrivals("hand", np.array([0.0, 0.1]), np.array([90, 0]), np.array([1, 2]))
    work = make_workload(one_layer_trace([1]), 1024.0, arrivals, rate_per_s=1.0)
    seen = replay(plan, work, warmup_steps=0, steps=50)
    assert (seen.refused, seen.batch.tolist()) == (1, [1, 1])
    never = make_workload(one_layer_trace([9]), 1024.0)
    with pytest.raises(InputError, match="no request's KV cache fits"):
        replay(plan, never)


def test_replay_refuses_what_does_not_fit():
    work = make_workload(one_layer_trace([3]), 1024.0)
    with pytest.raises(InputError, match="how many requests decode at once"):
        replay(served(small_data(layers=1, experts=2), np.ones((1, 2, 2), bool), name="x"), work)
    with pytest.raises(InputError, match="1 layers of 2 experts, the plan has 2 of 4"):
        replay(served(small_data(), np.ones((2, 4, 2), bool), name="x"), work, batch_limit=1)
    with pytest.raises(InputError, match="a rate must be positive"):
        make_workload(one_layer_trace([3]), 1.0, rate_per_s=1.0)
    arrivals = Arrivals("hand", np.zeros(1), np.zeros(1, int), np.ones(1, int))
    short = make_workload(one_layer_trace([3]), 1.0, arrivals, rate_per_s=1.0)
    with pytest.raises(InputError, match="nothing is left to decode"):
        replay(one_layer_plan([5.0, 5.0]), short, warmup_steps=5)


def test_random_tokens_are_those_of_a_step():
    trace = one_layer_trace([1, 3], prompts=[10, 0])
    work = make_workload(trace, 1024.0)
    tokens, used, reserved = work.random_tokens(np.random.default_rng(0), 40_000)
    assert np.bincount(tokens) / 40_000 == pytest.approx([0.25] * 4, abs=0.01)
    assert sorted(set(zip(tokens.tolist(), used.tolist(), reserved.tolist(), strict=True))) == [
        (0, 11.0, 11.0),
        (1, 1.0, 3.0),
        (2, 2.0, 3.0),
        (3, 3.0, 3.0),
    ]


# --- sampled routing -----------------------------------------------------------------------------


def test_drawn_experts_have_their_usage():
    rng = np.random.default_rng(3)
    usage = np.array([0.9, 0.05, 0.55, 0.0, 1.0, 0.5])
    seen = np.zeros(6)
    for _ in range(400):
        ids = np.zeros((25, 3), np.uint8)
        draw_experts(usage, 25, 3, rng.permutation(6), rng.random(25), ids)
        assert (np.diff(np.sort(ids, axis=1), axis=1) > 0).all()
        seen += np.bincount(ids.ravel(), minlength=6)
    assert seen[3] == 0
    assert seen[4] == 10_000
    assert np.abs(seen / 10_000 - usage).max() < 0.02


def joint_data(usage, count, gpus=2, **more):
    layers, experts = usage.shape
    requests = RequestClasses(
        ("a",),
        np.array([count]),
        np.array([5]),
        np.array([7]),
        np.array([2.0]),
        usage[None],
    )
    data = small_data(
        gpus, experts, layers, np.full(gpus, 1000.0), top_k=round(usage[0].sum()), **more
    )
    return ProblemData(**{**vars(data), "problem": "joint", "requests": requests, "waves": 2})


def test_sampled_equals_mean_where_nothing_is_random():
    # Every token takes every expert.
    data = joint_data(np.ones((3, 4)), 6, attention_base_us=50.0, attention_us_per_mib=2.0)
    hosts = np.zeros((3, 4, 2), dtype=bool)
    hosts[:, np.arange(4), np.arange(4) % 2] = True
    plan = Solution.from_arrays(data, hosts, requests=[[[4, 2]]])
    found = sampled_step_time(data, plan, samples=3)
    # Three layers of 2 experts and 12 pairs on the GPU; 4 requests of 2 MiB.
    assert found.mean_us.tolist() == found.sampled_us.tolist() == [3 * 32.0 + 50.0 + 16.0]
    assert found.error_us.tolist() == [0.0]
    assert found.sampled_makespan_us == found.mean_makespan_us == 7 * 162.0
    assert found.mean_error == 0.0


def test_mean_routing_bounds_sampled_on_neither_side():
    hosts = np.zeros((1, 8, 2), dtype=bool)
    hosts[:, np.arange(8), np.arange(8) % 2] = True
    even = np.full((1, 8), 0.25)
    few = joint_data(even, 2)  # activates all 8 in the mean, at most 4 in a step
    plan = Solution.from_arrays(few, hosts, requests=[[[1, 1]]])
    assert sampled_step_time(few, plan, samples=100).mean_error > 0.2
    many = joint_data(even, 40, f=LayerTime("sum", 0.0, 0.0, 0.0, 1.0))
    plan = Solution.from_arrays(many, hosts, requests=[[[20, 20]]])
    assert sampled_step_time(many, plan, samples=100).mean_error < -0.02


def test_sampled_refuses():
    data = small_data()
    plan = Solution.from_arrays(data, np.ones((2, 4, 2), bool))
    with pytest.raises(InputError, match="needs a plan of the problem joint"):
        sampled_step_time(data, plan)
    data = joint_data(np.ones((1, 2)), 1)
    plan = Solution.from_arrays(data, np.ones((1, 2, 2), bool), requests=[[[1, 0]]])
    with pytest.raises(InputError, match="at least 2 samples"):
        sampled_step_time(data, plan, samples=1)


def test_the_dispatch_of_a_plan_gives_the_shares():
    data = joint_data(np.ones((1, 2)), 8)
    requests = [[[4, 4]]]
    sent = np.array([[[[6.0, 2.0], [0.0, 8.0]]]])
    plan = Solution.from_arrays(data, np.ones((1, 2, 2), bool), requests=requests, dispatch=sent)
    assert serve_solution(data, plan).share.tolist() == [0.75, 0.25, 0.0, 1.0]
    # 8 tokens: 6 on GPU 0; 2 and 8 on GPU 1, two experts.
    found = sampled_step_time(data, plan, samples=2)
    assert found.rule == "plan"
    assert found.sampled_us.tolist() == [30.0]


# --- gains ---------------------------------------------------------------------------------------


def test_intervals():
    one = interval([3.0])
    assert (one.mean, one.low, one.high) == (3.0, None, None)
    # Student's 97.5 % quantile with 2 degrees of freedom: 4.302653.
    found = interval([1.0, 2.0, 3.0])
    assert found.high - found.mean == pytest.approx(4.302653 / np.sqrt(3), rel=1e-6)
    assert gain([11.0, 24.0], [10.0, 20.0]).mean == pytest.approx(0.15)
    with pytest.raises(ValueError, match="shorter"):
        gain([1.0, 2.0], [1.0])


# --- the whole -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """gpt-oss-20b on 4 GPUs, contiguous, one wave: instance and plan, and their files."""
    made = make_instance(
        Wanted("l40s", "gpt-oss-20b", 4, form="p2", memory_mib=24564.0, requests=60, classes=3)
    )
    data = prepare(made.instance, "joint")
    hosts = BASELINES["contiguous"](data, read_trace("gpt-oss-20b"), 0, 0)
    z = np.zeros((3, 1, 4), dtype=np.int64)
    for c, count in enumerate(data.requests.count.tolist()):
        z[c, 0] = [(count + g) // 4 for g in range(4)]
    solution = Solution.from_arrays(data, hosts, requests=z)
    folder = tmp_path_factory.mktemp("planned")
    write_instance_file(made.instance, folder / "instance.json")
    write_solution_file(solution, folder / "plan.json")
    return made.instance, solution, folder


@pytest.mark.parametrize("batch", [16, 64])
@pytest.mark.parametrize("arrivals", [None, "azure-conv"])
def test_predicted_step_is_within_five_percent_on_held_out_requests(planned, batch, arrivals):
    instance, solution, _ = planned
    report = simulate(
        instance,
        solution,
        read_trace("gpt-oss-20b"),
        None if arrivals is None else read_arrivals(arrivals),
        settings=Settings(seeds=2, steps=300, batch_limit=batch, baselines=()),
    )
    assert report["prediction"]["sampled"]["largest_error"] < 0.05
    assert abs(report["prediction"]["sampled"]["layers_error"]["mean"]) < 0.05
    assert report["plan"]["batch"]["mean"] == batch
    # Few requests do not touch every expert: mean routing charges them all.
    if batch == 16:
        assert report["prediction"]["mean_against_sampled"] > 0.05


def test_prediction_errs_where_the_fitted_part_is_another(planned):
    """The comparison can fail: fitted on tokens that all choose the same experts."""
    instance, solution, _ = planned
    data = prepare(instance, "joint")
    plan = serve_solution(data, solution)
    trace = read_trace("gpt-oss-20b")
    seen = replay(plan, make_workload(trace, 48.0), steps=100, warmup_steps=10, batch_limit=32)
    narrow = trace.take([0])
    narrow.ids[:] = np.arange(4)
    predicted = predict_sampled(plan, make_workload(narrow, 48.0), seen.batch, samples=20)
    assert abs(predicted.layers_us / seen.layers_us.mean() - 1) > 0.2
    assert predict_mean(plan, make_workload(narrow, 48.0), 32.0).layers_us != predicted.layers_us


def test_simulate_reports_every_baseline(planned):
    instance, solution, _ = planned
    trace = read_trace("gpt-oss-20b")
    settings = Settings(seeds=2, steps=40, warmup_steps=5, batch_limit=24, samples=20)
    report = simulate(instance, solution, trace, settings=settings)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert set(report["baselines"]) == set(BASELINES)
    # The plan is the contiguous one.
    same = report["baselines"]["contiguous"]
    assert same["gain"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "seeds": 2}
    assert same["step_us"] == report["plan"]["step_us"]
    assert report["baselines"]["greedy"]["replicas"] == 24 * 4
    assert report["plan"]["wait_us"] is None
    assert len(report["waves"]["steps"]) == 1
    again = simulate(instance, solution, trace, settings=settings)
    assert again == report


def test_a_baseline_that_does_not_fit_is_told(planned):
    instance, solution, _ = planned
    settings = Settings(
        seeds=1, steps=5, warmup_steps=0, batch_limit=2, baselines=("greedy",), samples=2
    )
    small = instance.model_copy(
        update={
            "cluster": instance.cluster.model_copy(
                update={
                    "nodes": (instance.cluster.nodes[0].model_copy(update={"memory_mib": 9700.0}),)
                }
            )
        }
    )
    plan = solution.model_copy(update={"instance_sha256": None})
    report = simulate(small, plan, read_trace("gpt-oss-20b"), settings=settings)
    assert "MiB of experts" in report["baselines"]["greedy"]["does_not_fit"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seeds": 0}, "seeds: must be at least 1"),
        ({"batch_limit": 0}, "batch_limit: must be at least 1"),
        ({"baselines": ("best",)}, "baseline 'best' is unknown"),
    ],
)
def test_bad_settings_are_refused(settings, words):
    with pytest.raises(InputError, match=words):
        Settings(**settings)


@pytest.fixture
def app():
    application = typer.Typer()
    application.command("simulate")(simulating.simulate)
    application.command("nothing")(lambda: None)
    return application


def test_simulate_command(app, planned):
    _, _, folder = planned
    files = [str(folder / "instance.json"), str(folder / "plan.json")]
    few = ["--steps", "30", "--warmup", "2", "--seeds", "2", "--batch", "8"]
    command = ["simulate", *files, "--trace", "gpt-oss-20b", *few]
    done = CliRunner().invoke(app, [*command, "--baseline", "random", "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert list(report["baselines"]) == ["random"]
    done = CliRunner().invoke(app, [*command, "--arrivals", "azure-conv", "--rate", "2"])
    assert done.exit_code == 0, done.output
    for words in ("not included: prefill", "wait, us", "sampled routing", "load-balanced"):
        assert words in done.stdout
    # Another GPU's layer time in place of the instance's.
    faster = CliRunner().invoke(app, [*command, "--baseline", "none", "--gpu", "h100", "--json"])
    assert json.loads(faster.stdout)["plan"]["step_us"]["mean"] < report["plan"]["step_us"]["mean"]
    refused = CliRunner().invoke(app, [*command, "--dispatch", "plan"])
    assert isinstance(refused.exception, InputError)
