"""One decode step: the compiled rules against exact layer times; plans as they are served."""

from __future__ import annotations

import numpy as np
import pytest
from make_data import layer_time
from simulate_data import small_data

from moeopt import dispatch
from moeopt.dispatch_kernel import RULES, layer_step
from moeopt.dispatch_time import FORMS
from moeopt.errors import InputError
from moeopt.make.traces_shipped import read_trace
from moeopt.problem import LayerTime
from moeopt.simulate.baselines import BASELINES
from moeopt.simulate.served import served

# --- the kernel ----------------------------------------------------------------------------------


def kernel(hosts, counts, f, rule, share=None, turn=0):
    """Time and tokens of each replica of one layer."""
    first = np.concatenate([[0], np.cumsum(hosts.sum(axis=1))])
    gpu = np.nonzero(hosts)[1]
    flat = np.zeros(len(gpu)) if share is None else np.asarray(share, dtype=float)
    cost = np.array([f.base_us, f.expert_us, f.token_base_us, f.token_us])
    sent = np.zeros(len(gpu), dtype=np.int64)
    activated, load = np.zeros(hosts.shape[1]), np.zeros(hosts.shape[1])
    counts = np.asarray(counts, dtype=np.int64)
    time = layer_step(
        counts, first, gpu, flat, RULES[rule], turn, FORMS[f.form], cost, sent, activated, load
    )
    # Whatever the rule: every token is sent once, and the time is that of what was sent.
    assert np.add.reduceat(sent, first[:-1]).tolist() == counts.tolist()
    assert (sent >= 0).all()
    tokens = np.bincount(gpu, sent, hosts.shape[1])
    used = np.bincount(gpu, sent > 0, hosts.shape[1])
    assert load.tolist() == tokens.tolist()
    assert activated.tolist() == used.tolist()
    assert time == pytest.approx(float(f.of(used, tokens).max()), rel=1e-12)
    return time, sent.tolist()


def test_even_splits_go_round():
    hosts = np.array([[1, 1, 1], [0, 1, 0]], dtype=bool)
    f = layer_time("sum")
    assert kernel(hosts, [7, 2], f, "even")[1] == [3, 2, 2, 2]
    assert kernel(hosts, [7, 2], f, "even", turn=1)[1] == [2, 3, 2, 2]
    assert kernel(hosts, [1, 0], f, "even", turn=5)[1] == [0, 0, 1, 0]


def test_shares_are_kept_by_largest_remainder():
    hosts = np.array([[1, 1], [1, 1]], dtype=bool)
    f = layer_time("max")
    assert kernel(hosts, [10, 3], f, "plan", [0.25, 0.75, 1.0, 0.0])[1] == [3, 7, 3, 0]
    assert kernel(hosts, [1, 0], f, "plan", [0.4, 0.6, 0.5, 0.5])[1] == [0, 1, 0, 0]


@pytest.mark.parametrize("form", ["unit", "sum", "max", "p2", "tokens", "activations"])
def test_level_is_near_the_exact_layer_time(form):
    rng = np.random.default_rng(7)
    ratios = []
    for _ in range(80):
        experts, gpus = int(rng.integers(3, 10)), int(rng.integers(2, 5))
        hosts = rng.random((experts, gpus)) < 0.4
        hosts[np.arange(experts), rng.integers(gpus, size=experts)] = True
        counts = rng.integers(0, 12, experts)
        counts[0] += 1
        f = layer_time(form, rng)
        time, _ = kernel(hosts, counts, f, "level")
        best = dispatch.exact_time(f, dispatch.host_lists(hosts), counts, True, 5000)
        if best.method.startswith("exact"):
            assert time >= best.time * (1 - 1e-9)
            ratios.append(time / best.time)
        else:
            assert time >= dispatch.time_lower_bound(f, counts.tolist(), gpus, True) - 1e-9
    assert len(ratios) > 60
    assert np.mean(ratios) < 1.01


@pytest.mark.parametrize("rule", ["even", "level"])
def test_a_step_is_the_sum_of_its_layers(rule):
    rng = np.random.default_rng(1)
    data = small_data(gpus=3, experts=6, layers=4)
    hosts = rng.random((4, 6, 3)) < 0.5
    hosts[:, np.arange(6), np.arange(6) % 3] = True
    plan = served(data, hosts, name="plan")
    ids = np.array(
        [[rng.choice(6, 2, replace=False) for _ in range(4)] for _ in range(30)], np.uint8
    )
    tokens = rng.integers(30, size=9)
    times = []
    for l in range(4):
        counts = np.bincount(ids[tokens, l].ravel(), minlength=6)
        times.append(kernel(hosts[l], counts, data.layer_time, rule, turn=2)[0])
    layers_us, mean_us = plan.step(ids, tokens, rule, 2)
    assert layers_us == pytest.approx(sum(times))
    assert 0 < mean_us <= layers_us + 1e-9


def test_without_replicas_every_rule_is_exact():
    trace = read_trace("gpt-oss-20b")
    data = small_data(gpus=4, experts=32, layers=24, f=LayerTime("p2", 3.0, 18.0, 0.0, 0.3))
    hosts = BASELINES["random"](data, trace, 0, 5)
    plan = served(data, hosts, name="random")
    tokens = np.random.default_rng(0).integers(len(trace.ids), size=40)
    expected = 0.0
    for l in range(24):
        counts = np.bincount(trace.ids[tokens, l].ravel(), minlength=32)
        sent = hosts[l] * counts[:, None]
        expected += float(data.layer_time.of((sent > 0).sum(axis=0), sent.sum(axis=0)).max())
    for rule in ("even", "level"):
        assert plan.step(trace.ids, tokens, rule)[0] == pytest.approx(expected, rel=1e-12)


# --- served plans --------------------------------------------------------------------------------


def test_served_plans_refuse_what_does_not_fit():
    data = small_data(free_mib=np.array([8.0, 3.0]))
    hosts = np.zeros((2, 4, 2), dtype=bool)
    with pytest.raises(InputError, match="layer 0, expert 0: no GPU"):
        served(data, hosts, name="x")
    hosts[:, :, 1] = True
    with pytest.raises(InputError, match="GPU 1: 8 MiB of experts, 3 free"):
        served(data, hosts, name="x")
    hosts[:, :, 1], hosts[:, :, 0] = False, True
    plan = served(data, hosts, name="x")
    assert plan.kv_mib.tolist() == [0.0, 3.0]
    with pytest.raises(InputError, match="states no dispatch"):
        plan.step(np.zeros((1, 2, 2), np.uint8), np.zeros(1, np.int64), "plan")
    with pytest.raises(InputError, match="'fastest' is unknown"):
        plan.step(np.zeros((1, 2, 2), np.uint8), np.zeros(1, np.int64), "fastest")
