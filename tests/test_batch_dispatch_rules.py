"""Rules of serving systems, batches from traces, and the command ``dispatch``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from moeopt.balance import balance_data, solve_balance
from moeopt.batch_dispatch import RULES, balancedness, rule_time, spread_evenly
from moeopt.batch_dispatch.comparing import compare_rules
from moeopt.batch_dispatch.sampling import sample_counts, trace_layers
from moeopt.catalog import read_instance
from moeopt.commands.dispatching import dispatch
from moeopt.errors import InputError
from moeopt.make.traces_shipped import Trace
from moeopt.prepare import prepare
from moeopt.problem import LayerTime
from moeopt.solution import Solution, write_solution_file

#: Expert 0 on GPUs 0 and 2, expert 1 on all of the second node, expert 2 on all GPUs.
HOSTS = np.array([[1, 0, 1, 0], [0, 0, 1, 1], [1, 1, 1, 1]], dtype=bool)
NODES = np.array([0, 0, 1, 1])


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    hosts = rng.random((9, 6)) < 0.4
    hosts[np.arange(9), rng.integers(6, size=9)] = True
    return hosts, rng.integers(0, 30, (6, 9))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(10))
def test_rules_deal_out_all_tokens_on_replicas(rule: str, seed: int) -> None:
    hosts, counts = random_case(seed)
    tokens = RULES[rule](hosts, counts, np.arange(6) // 2, seed)
    assert (tokens.sum(axis=1) == counts.sum(axis=0)).all()
    assert not tokens[~hosts].any()
    assert (tokens >= 0).all()
    if rule != "nearest":
        for e in range(9):
            mine = tokens[e, hosts[e]]
            assert mine.max() - mine.min() <= 1


def test_nearest_prefers_the_gpu_then_the_node() -> None:
    counts = np.array([[1, 0, 1], [10, 0, 10], [100, 0, 100], [1000, 0, 1000]])
    tokens = RULES["nearest"](HOSTS, counts, NODES, 0)
    # Expert 0: GPU 1 sends to GPU 0 and GPU 3 to GPU 2, on their own nodes.
    assert tokens[0].tolist() == [11, 0, 1100, 0]
    assert tokens[2].tolist() == [1, 10, 100, 1000]


def test_nearest_is_fair_where_nothing_is_near() -> None:
    counts = np.ones((4, 3), dtype=np.int64)
    seen = set()
    for seed in range(20):
        tokens = RULES["nearest"](HOSTS, counts, NODES, seed)
        # Replicas of expert 1 are on their own GPUs; GPUs 0 and 1 are dealt out, one to each.
        assert tokens[1].tolist() == [0, 0, 2, 2]
        # With 3 replicas on one node, the node narrows nothing.
        other = RULES["nearest"](HOSTS[[1]], np.array([[5], [7], [0], [0]]), NODES, seed)
        seen.add(tuple(other[0].tolist()))
    assert seen == {(0, 0, 5, 7), (0, 0, 7, 5)}


def test_nearest_first_of_the_node() -> None:
    hosts = np.array([[0, 1, 1, 0, 0, 1]], dtype=bool)
    counts = np.array([[1], [0], [0], [10], [0], [0]])
    # GPU 0: the first of two on its node; GPU 3: the only one on its node.
    tokens = RULES["nearest"](hosts, counts, np.arange(6) // 3, 0)
    assert tokens.tolist() == [[0, 1, 0, 0, 0, 10]]


def test_nearest_needs_sources() -> None:
    with pytest.raises(InputError, match="source GPUs"):
        RULES["nearest"](HOSTS, np.ones(3, dtype=np.int64), NODES, 0)


@pytest.mark.parametrize("rule", RULES)
def test_rules_need_hosts(rule: str) -> None:
    with pytest.raises(InputError, match="no GPU hosts expert 1"):
        RULES[rule](HOSTS * np.array([[1], [0], [1]], dtype=bool), np.ones((4, 3), int), NODES, 0)


def test_spread_evenly() -> None:
    counts = np.array([5, 0, 6, 3])
    by_source = spread_evenly(counts, 4)
    assert by_source.sum(axis=0).tolist() == counts.tolist()
    assert by_source.max(axis=0).tolist() == [2, 0, 2, 1]
    assert np.ptp(by_source.sum(axis=1)) <= 1


def test_time_and_balancedness() -> None:
    tokens = np.array([[4, 0], [2, 1]])
    assert rule_time(tokens, LayerTime("sum", 1.0, 10.0, 0.0, 1.0)) == 27.0
    assert balancedness(tokens) == 3.5 / 6
    assert balancedness(0 * tokens) == 1.0


@pytest.mark.parametrize("form", ["unit", "sum", "max", "p2"])
def test_no_rule_beats_the_bound(form: str) -> None:
    time = LayerTime() if form == "unit" else LayerTime(form, 1.0, 14.78, 0.0, 0.9)
    for seed in range(10):
        hosts, counts = random_case(seed)
        (layer,) = compare_rules(hosts[None], counts[None], time, np.arange(6) // 2, seed=seed)
        assert set(layer.rules) == set(RULES)
        for value, balanced in layer.rules.values():
            assert layer.best.bound <= value
            assert 0 < balanced <= 1


def small_trace() -> Trace:
    ids = np.array([[[0, 1], [2, 3]], [[0, 2], [1, 3]], [[3, 1], [0, 1]]], dtype=np.uint8)
    return Trace("small", 4, 2, ids, np.array([0, 3]), np.zeros(1, dtype=np.int64))


def test_batch_of_a_trace() -> None:
    counts = sample_counts(small_trace(), np.array([1, 0]), 50, 3, np.random.default_rng(0))
    assert counts.shape == (2, 3, 4)
    assert counts.sum(axis=2).tolist() == [[34, 34, 32]] * 2
    assert counts[0, :, 3].sum() + counts[0, :, 0].sum() == 50  # 3 or 0 in every row of layer 1
    assert trace_layers(small_trace(), [7, 9], 20).tolist() == [0, 1]
    assert trace_layers(small_trace(), [19], 20).tolist() == [1]
    with pytest.raises(InputError, match="not those of the instance"):
        trace_layers(small_trace(), [17], 20)
    with pytest.raises(InputError, match="at least 1 token"):
        sample_counts(small_trace(), np.array([0]), 0, 3, np.random.default_rng(0))


# --- command -------------------------------------------------------------------------------------


def run(*arguments: object) -> str:
    app = typer.Typer()
    app.command()(dispatch)
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    if done.exception:
        raise done.exception
    return done.stdout


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    data = prepare(read_instance("smoke_replication_max"), "replication")
    hosts = np.ones((data.layers, data.experts, data.gpus), dtype=bool)
    path = tmp_path / "plan.json"
    write_solution_file(Solution.from_arrays(data, hosts), path)
    return path


def test_command(tmp_path: Path, plan: Path) -> None:
    read = read_instance("smoke_replication_max")
    shape = (read.moe.layers, read.moe.experts)
    counts = np.random.default_rng(0).integers(0, 50, shape)
    np.savetxt(tmp_path / "counts.csv", counts, delimiter=",")
    np.save(tmp_path / "counts.npy", counts)
    printed = run(read.name, plan, "--counts", tmp_path / "counts.csv")
    assert all(word in printed for word in ("bound", "best", "gap", *RULES))
    both = [
        run(read.name, plan, "--counts", tmp_path / name, "--json", "--rule", "even")
        for name in ("counts.csv", "counts.npy")
    ]
    assert both[0] == both[1]
    for l, layer in enumerate(json.loads(both[0])["layers"]):
        assert layer["layer"] == read.routing[l].layer
        assert layer["bound"] <= layer["time"] <= layer["rules"]["even"]["time"]
        assert sum(n for _, _, n in layer["dispatch"]) == counts[l].sum()
        assert list(layer["rules"]) == ["even"]


def test_command_draws_from_a_trace(tmp_path: Path, plan: Path) -> None:
    read = read_instance("smoke_replication_max")
    rng = np.random.default_rng(0)
    ids = np.argsort(rng.random((40, read.moe.layers, read.moe.experts)))[:, :, : read.moe.top_k]
    path = tmp_path / "trace.npz"
    np.savez(path, ids=ids.astype(np.uint8), experts=read.moe.experts, offsets=np.array([0, 40]))
    one, other = (
        json.loads(run(read.name, plan, "--trace", path, "--batch", 30, "--json", "--seed", s))
        for s in (1, 2)
    )
    for document in (one, other):
        for layer in document["layers"]:
            assert sum(n for _, _, n in layer["dispatch"]) == 30 * read.moe.top_k
    assert one["layers"] != other["layers"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "either --counts FILE or --trace NAME"),
        (("--counts", "counts.csv", "--trace", "gpt-oss-20b"), "either --counts"),
        (("--counts", "counts.txt"), "read from .npy or .csv"),
        (("--counts", "missing.npy"), "missing.npy"),
        (("--trace", "gpt-oss-20b"), "32 experts"),
    ],
)
def test_command_refuses(plan: Path, arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        run("smoke_replication_max", plan, *arguments)


def test_command_refuses_counts_that_do_not_fit(tmp_path: Path, plan: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((1, 2, 4)))
    with pytest.raises(InputError, match="experts are needed"):
        run("smoke_replication_max", plan, "--counts", tmp_path / "a.npy")
    experts = read_instance("smoke_replication_max").moe.experts
    np.save(tmp_path / "b.npy", np.ones((7, experts)))
    with pytest.raises(InputError, match="by source GPU"):
        run("smoke_replication_max", plan, "--counts", tmp_path / "b.npy")
    np.save(tmp_path / "c.npy", np.ones((1, experts)))
    with pytest.raises(InputError, match="rule 'odd' is unknown"):
        run("smoke_replication_max", plan, "--counts", tmp_path / "c.npy", "--rule", "odd")


def test_the_rule_changes_more_than_the_placement() -> None:
    loads = np.random.default_rng(0).lognormal(0, 1, 256)
    plan = solve_balance(balance_data(loads, gpus=32, replicas=288)).plan[0]
    hosts = np.zeros((256, 32), dtype=bool)
    hosts[plan, np.arange(288) // 9] = True
    by_source = spread_evenly(np.round(loads * 1e4).astype(np.int64), 32)
    nodes = np.arange(32) // 8
    balanced = {rule: balancedness(RULES[rule](hosts, by_source, nodes, 0)) for rule in RULES}
    assert balanced["even"] > 0.999
    assert balanced["round-robin"] > 0.999
    assert balanced["nearest"] < 0.95
