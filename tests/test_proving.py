"""Bounds layer by layer: sums of bounds, better plans, methods that fit, and the time they get."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from brute import brute_optimum
from make_data import random_data

from moeopt.catalog import read_instance
from moeopt.heuristics.placement import place
from moeopt.methods import methods_for
from moeopt.prepare import prepare
from moeopt.proving import LayerProof, Method, layer_values, one_layer, prove, why_not


def constant(name, value, hosts=None, seconds=0.0):
    def run(layer, task):
        time.sleep(seconds)
        task.on_bound(value / 2)
        return LayerProof(value, hosts)

    return Method(name, "made up", lambda layer: None, run)


@pytest.fixture
def data():
    rng = np.random.default_rng(3)
    return random_data("placement", rng, experts=6, gpus=3, layers=3, scenarios=6)


def test_layers_are_summed_and_named(data):
    heard = []
    proof = prove(
        data,
        [constant("weak", 1.5), constant("strong", 2.0)],
        hosts=None,
        time_limit_s=10,
        on_bound=heard.append,
    )
    assert proof.value == pytest.approx(6.0)
    assert proof.value <= 6.0
    assert proof.source == "strong (3 layers)"
    assert heard == sorted(heard)


def test_a_method_that_does_not_fit_is_left_out(data):
    refused = replace(constant("refused", 99.0), fits=lambda layer: "too large")
    proof = prove(data, [refused], hosts=None, time_limit_s=10)
    assert "refused" not in proof.methods


def test_closed_layers_are_left(data):
    hosts = place(data, time_limit_s=1.0).hosts_array(data.gpus)
    values = layer_values(data, hosts)
    calls = []
    method = constant("exact", 0.0)

    def run(layer, task):
        calls.append(task.upper)
        return LayerProof(task.upper)

    exact = replace(method, run=run)
    prove(data, [exact, exact], hosts=hosts, time_limit_s=10)
    assert len(calls) <= data.layers
    assert set(calls) <= set(values.tolist())


def test_time_is_shared_over_layers_and_methods(data):
    begin = time.monotonic()
    slow = constant("slow", 1.0, seconds=0.4)
    prove(data, [slow, slow], hosts=None, time_limit_s=0.5)
    assert time.monotonic() - begin < 1.8


def test_stop_is_obeyed(data):
    proof = prove(data, [constant("a", 9.0)], hosts=None, time_limit_s=10, stop=lambda: True)
    assert "a" not in proof.methods


def test_methods_prove_small_instances_and_never_exceed_the_optimum():
    closed = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        problem = ("placement", "replication")[seed % 2]
        data = random_data(
            problem, rng, experts=5, gpus=2 + seed % 2, top_k=2 + seed % 3, scenarios=6, layers=2
        )
        if why_not(data) is not None:
            continue
        optimum = brute_optimum(data)[0]
        for method in methods_for(data):
            if method.name == "patterns" or method.fits(one_layer(data, 0)) is not None:
                continue  # patterns start a worker each: tested on their own
            proof = prove(data, [method], hosts=None, time_limit_s=20)
            assert proof.value <= optimum * (1 + 1e-12), (seed, method.name)
            closed += proof.value >= optimum * (1 - 1e-9)
    assert closed >= 6


def test_better_plans_are_taken_over(data):
    rng = np.random.default_rng(0)
    best = place(data, time_limit_s=1.0).hosts_array(data.gpus)
    worse = best.copy()
    worse[0] = worse[0][rng.permutation(data.experts)]
    finder = Method("finder", "made up", lambda layer: None, lambda *a: LayerProof(0.0, best[0]))
    one = one_layer(data, 0)
    proof = prove(one, [finder], hosts=worse[:1], time_limit_s=5)
    assert layer_values(one, proof.hosts)[0] <= layer_values(one, best[:1])[0] + 1e-12


def test_why_not_says_why():
    joint = prepare(read_instance("smoke_joint_one_wave"), "joint")
    assert "does not separate" in why_not(joint)
    timed = prepare(read_instance("smoke_replication_sum"), "replication")
    assert "expert-time units" in why_not(timed)
