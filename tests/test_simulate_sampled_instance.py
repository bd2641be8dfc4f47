"""Sampled decode steps as scenarios: counts, memory kept for the cache, a better plan."""

from __future__ import annotations

import numpy as np
import pytest

from moeopt.calibrate.instances import Wanted, make_instance
from moeopt.checker import check_solution
from moeopt.errors import InputError
from moeopt.heuristics.replication import replicate
from moeopt.instance import read_instance_file, write_instance_file
from moeopt.make.traces_shipped import read_trace
from moeopt.prepare import free_memory_mib, prepare
from moeopt.simulate.baselines import BASELINES
from moeopt.simulate.sampled_instance import sampled_instance
from moeopt.simulate.simulating import Settings, simulate
from moeopt.solution import Solution

BATCH = 16


@pytest.fixture(scope="module")
def made():
    wanted = Wanted("l40s", "gpt-oss-20b", 4, form="p2", memory_mib=24_564.0)
    instance = make_instance(wanted).instance
    fitted = read_trace("gpt-oss-20b").split(0)[0]
    return instance, fitted, sampled_instance(instance, fitted, batch=BATCH, samples=40)


def test_steps_have_the_tokens_of_the_batch(made, tmp_path):
    _, fitted, sampled = made
    data = prepare(sampled, "replication")
    for scenarios in data.scenarios:
        assert len(scenarios) == 40
        counts = np.add.reduceat(scenarios.tokens, scenarios.ptr[:-1])
        assert (counts == BATCH * fitted.top_k).all()
        assert scenarios.tokens.max() <= BATCH
    path = tmp_path / "sampled.json"
    write_instance_file(sampled, path, sidecar=True)
    assert read_instance_file(path) == sampled


def test_memory_is_kept_for_the_cache_of_the_batch(made):
    instance, _, sampled = made
    kv_mib = prepare(instance, "joint").requests.kv_mib.max()
    before = prepare(instance, "joint").free_mib
    kept = before - prepare(sampled, "replication").free_mib
    assert kept == pytest.approx(np.full(4, BATCH / 4 * kv_mib))
    assert np.array_equal(prepare(sampled, "joint").free_mib, before)
    assert np.array_equal(free_memory_mib(sampled, with_cache=True), before)


def test_a_plan_for_the_batch_beats_the_published_greedy_on_held_out_steps(made):
    _, fitted, sampled = made
    data = prepare(sampled, "replication")
    plan = replicate(data, seed=0, time_limit_s=6.0)
    assert check_solution(data, plan).violations == []
    hosts = BASELINES["greedy"](prepare(sampled, "joint"), fitted, 1, 0)
    greedy = check_solution(data, Solution.from_arrays(data, hosts))
    assert check_solution(data, plan).objective < greedy.objective
    report = simulate(
        sampled,
        plan,
        read_trace("gpt-oss-20b"),
        settings=Settings(seeds=1, steps=100, batch_limit=BATCH, baselines=(), samples=20),
    )
    assert report["plan"]["batch"]["mean"] == BATCH
    assert report["plan"]["kv_reserved"]["max"] < 0.5


def test_errors_are_lines(made):
    instance, fitted, _ = made
    with pytest.raises(InputError, match="batch: must be at least 1"):
        sampled_instance(instance, fitted, batch=0)
    with pytest.raises(InputError, match="26 layers × 64 experts"):
        sampled_instance(instance, read_trace("deepseek-v2-lite"), batch=4)
