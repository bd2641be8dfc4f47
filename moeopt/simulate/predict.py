"""What the model says of a step, from the part of a trace on which the plan was fitted.

Two readings of the routing. ``mean``: every expert of a layer gets its expected (real) tokens, as
in ``joint``; every expert that is ever used counts as activated, and the balance of the
expectation is better than that of its steps. ``sampled``: K steps with whole tokens, each of B
tokens drawn from the trace, dispatched by the rule of the replay.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from moeopt import dispatch
from moeopt.problem import FloatArray, IntArray
from moeopt.simulate.served import ServedPlan
from moeopt.simulate.workload import Workload

SAMPLES = 400


@dataclass(frozen=True)
class Prediction:
    """Predicted mean step, in us. ``error_us``: standard error of the mean (0 for ``mean``)."""

    reading: str
    step_us: float
    layers_us: float
    error_us: float


def predict_sampled(
    plan: ServedPlan,
    work: Workload,
    batch: IntArray,
    *,
    rule: str | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Prediction:
    """Mean of sampled steps.

    Parameters
    ----------
    plan : ServedPlan
    work : Workload
        Of the fitted part of the trace.
    batch : int array
        Batch sizes, one of which is drawn for each sample.
    rule : str, optional
    samples, seed : int
    """
    rule = rule or plan.default_rule
    rng = np.random.default_rng(seed)
    step_us, layers_us = np.zeros(samples), np.zeros(samples)
    for i in range(samples):
        size = int(rng.choice(batch))
        tokens, used_mib, reserved_mib = work.random_tokens(rng, size)
        layers_us[i] = plan.step(work.trace.ids, tokens, rule, i)[0]
        step_us[i] = layers_us[i] + plan.attention_us(_on_gpus(used_mib, reserved_mib, plan.gpus))
    return Prediction(
        "sampled",
        float(step_us.mean()),
        float(layers_us.mean()),
        float(step_us.std(ddof=1)) / math.sqrt(samples) if samples > 1 else math.nan,
    )


def _on_gpus(used_mib: FloatArray, reserved_mib: FloatArray, gpus: int) -> FloatArray:
    """Cache by GPU when what is reserved is level: largest first, forth and back over the GPUs."""
    turn = np.arange(len(used_mib)) % (2 * gpus)
    gpu = np.minimum(turn, 2 * gpus - 1 - turn)
    order = np.argsort(-reserved_mib, kind="stable")
    return np.bincount(gpu, used_mib[order], gpus).astype(np.float64)


def predict_mean(
    plan: ServedPlan, work: Workload, batch: float, *, rule: str | None = None
) -> Prediction:
    """One step of expected tokens: ``batch`` times the usage of the fitted part.

    Attention: the mean cache of a request at a random token, evenly over the GPUs.
    """
    rule = rule or plan.default_rule
    tokens = batch * work.trace.usage()
    layers_us = math.fsum(_mean_layer(plan, l, tokens[l], rule) for l in range(work.trace.layers))
    context = work.prompt_tokens + (work.output_tokens + 1) / 2
    mean_kv_mib = float(np.average(context, weights=work.output_tokens)) * work.kv_mib_per_token
    attention_us = plan.attention_us([batch * mean_kv_mib / plan.gpus])
    return Prediction("mean", layers_us + attention_us, layers_us, 0.0)


def _mean_layer(plan: ServedPlan, l: int, tokens: FloatArray, rule: str) -> float:
    hosts = plan.hosts[l]
    if rule == "level":
        where = dispatch.host_lists(hosts)
        return dispatch.rule_time(plan.layer_time, where, tokens, whole=False, gpus=plan.gpus).time
    share = hosts / hosts.sum(axis=1, keepdims=True)
    if rule == "plan" and plan.share is not None:
        share = np.zeros(hosts.shape)
        share[hosts] = plan.share[plan.first[l, 0] : plan.first[l, -1]]
    sent = share * tokens[:, None]
    return float(plan.layer_time.of((sent > 0).sum(axis=0), sent.sum(axis=0)).max())
