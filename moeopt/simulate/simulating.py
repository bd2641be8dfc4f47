"""``simulate``: a plan and its baselines under one replay, and the model's prediction beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from moeopt.errors import InputError
from moeopt.instance import Instance
from moeopt.make.traces_shipped import Arrivals, Trace
from moeopt.prepare import free_memory_mib, prepare
from moeopt.problem import FloatArray, LayerTime, ProblemData
from moeopt.simulate.baselines import BASELINES
from moeopt.simulate.gains import gain, interval
from moeopt.simulate.predict import SAMPLES, Prediction, predict_mean, predict_sampled
from moeopt.simulate.replay import Replay, replay
from moeopt.simulate.sampled import sampled_step_time
from moeopt.simulate.served import ServedPlan, serve_solution, served
from moeopt.simulate.workload import Workload, make_workload
from moeopt.solution import Solution, validate_against

#: What no figure of a replay contains.
NOT_INCLUDED = ("prefill", "communication between GPUs")


@dataclass(frozen=True)
class Settings:
    """How a plan is replayed.

    Attributes
    ----------
    fit_share, split_seed : float, int
        Part of the trace's requests that baselines and predictions see; the rest is replayed.
    seeds : int
        Replays, each with another order (and pairing) of the requests.
    steps, warmup_steps, batch_limit, rule :
        See :func:`moeopt.simulate.replay.replay`.
    rate_per_s : float or None
        See :func:`moeopt.simulate.workload.make_workload`.
    baselines : tuple of str
        Names in :data:`moeopt.simulate.baselines.BASELINES`.
    extra_slots : int
        Slots for replicas, of a GPU and layer, of the baselines that replicate.
    samples : int
        Sampled steps of a prediction.
    """

    fit_share: float = 0.5
    split_seed: int = 0
    seeds: int = 5
    steps: int = 1000
    warmup_steps: int = 300
    batch_limit: int | None = None
    rule: str | None = None
    rate_per_s: float | None = None
    baselines: tuple[str, ...] = tuple(BASELINES)
    extra_slots: int = 1
    samples: int = SAMPLES

    def __post_init__(self) -> None:
        lines = [
            f"{name}: must be at least {least}, not {getattr(self, name)}"
            for name, least in (
                ("seeds", 1),
                ("steps", 1),
                ("warmup_steps", 0),
                ("extra_slots", 0),
                ("samples", 2),
            )
            if getattr(self, name) < least
        ]
        if self.batch_limit is not None and self.batch_limit < 1:
            lines.append(f"batch_limit: must be at least 1, not {self.batch_limit}")
        unknown = [name for name in self.baselines if name not in BASELINES]
        lines += [f"baseline {n!r} is unknown (known: {', '.join(BASELINES)})" for n in unknown]
        if lines:
            raise InputError(lines)


@dataclass
class _Measured:
    """Replays of one plan, one a seed."""

    plan: ServedPlan
    rule: str
    replays: list[Replay] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> list[float]:
        return [r.tokens_per_s for r in self.replays]


def simulate(
    instance: Instance,
    solution: Solution,
    trace: Trace,
    arrivals: Arrivals | None = None,
    *,
    settings: Settings | None = None,
    layer_time: LayerTime | None = None,
    attention_us: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Replay a plan and its baselines on held-out requests; compare with the prediction.

    Parameters
    ----------
    instance, solution : Instance, Solution
        Any problem; the plan must be feasible in memory.
    trace : Trace
        With the instance's layers and experts.
    arrivals : Arrivals, optional
        Lengths (and with ``settings.rate_per_s`` arrival times) of the requests.
    settings : Settings, optional
    layer_time : LayerTime, optional
        In place of the instance's, which must be in microseconds otherwise.
    attention_us : tuple of two floats, optional
        Base and us per MiB, in place of the instance's.

    Returns
    -------
    dict
        Plain data for JSON: ``plan``, ``prediction``, ``baselines``, ``waves`` (``joint`` only).

    Raises
    ------
    InputError
        Something does not fit together.
    """
    settings = settings or Settings()
    if lines := validate_against(instance, solution):
        raise InputError(lines)
    if instance.moe.kv_kib_per_token is None:
        raise InputError("a replay needs moe.kv_kib_per_token")
    # What a plan leaves of the memory is for the cache, whatever its problem kept for it.
    data = replace(
        prepare(instance, solution.problem), free_mib=free_memory_mib(instance, with_cache=True)
    )
    if layer_time is not None:
        data = replace(data, layer_time=layer_time)
    if attention_us is not None:
        data = replace(
            data, attention_base_us=attention_us[0], attention_us_per_mib=attention_us[1]
        )
    if data.layer_time.form == "unit":
        raise InputError("a replay needs layer_time in microseconds: `unit` counts expert times")
    fitted, held = trace.split(settings.split_seed, settings.fit_share)

    def work(part: Trace, seed: int) -> Workload:
        kib = instance.moe.kv_kib_per_token
        assert kib is not None
        return make_workload(part, kib, arrivals, seed=seed, rate_per_s=settings.rate_per_s)

    works = [work(held, seed) for seed in range(settings.seeds)]
    plan = serve_solution(data, solution)
    measured = _replays(plan, works, settings)
    report: dict[str, Any] = {
        "instance": instance.name,
        "trace": trace.name,
        "arrivals": None if arrivals is None else arrivals.name,
        "requests_fitted": len(fitted.lengths),
        "requests_held_out": len(held.lengths),
        "settings": asdict(settings) | {"baselines": list(settings.baselines)},
        "dispatch": measured.rule,
        "not_included": list(NOT_INCLUDED),
        "plan": _figures(measured, settings.rate_per_s is not None),
        "prediction": _predictions(measured, work(fitted, settings.split_seed), settings),
        "baselines": _baselines(data, fitted, measured, works, settings),
    }
    if solution.problem == "joint":
        report["waves"] = _waves(data, solution, settings)
    return report


def _replays(plan: ServedPlan, works: Sequence[Workload], settings: Settings) -> _Measured:
    # A baseline states no dispatch: only the plan itself can be served by the rule `plan`.
    rule = settings.rule or plan.default_rule
    if rule == "plan" and plan.share is None and plan.name != "plan":
        rule = "level"
    measured = _Measured(plan, rule)
    for work in works:
        measured.replays.append(
            replay(
                plan,
                work,
                rule=rule,
                steps=settings.steps,
                warmup_steps=settings.warmup_steps,
                batch_limit=settings.batch_limit,
            )
        )
    return measured


def _figures(measured: _Measured, arrive: bool) -> dict[str, Any]:
    """Throughput with its interval, and distributions over all seeds together.

    Without arrivals every request waits for ever: no wait is told.
    """
    replays = measured.replays

    def all_of(name: str) -> FloatArray:
        return np.concatenate([getattr(r, name) for r in replays]).astype(np.float64)

    return {
        "replicas": measured.plan.replicas,
        "dispatch": measured.rule,
        "tokens_per_s": interval(measured.tokens_per_s).as_dict(),
        "batch": _distribution(all_of("batch")),
        "step_us": _distribution(all_of("step_us")),
        "layers_us": float(all_of("layers_us").mean()),
        "tpot_us": _distribution(all_of("request_tpot_us")),
        "wait_us": _distribution(all_of("request_wait_us")) if arrive else None,
        "kv_reserved": _share(all_of("kv_reserved")),
        "kv_used": _share(all_of("kv_used")),
        "gpu_imbalance": float(np.mean([r.gpu_imbalance for r in replays])),
        "refused": sum(r.refused for r in replays),
    }


def _distribution(values: FloatArray) -> dict[str, float | None]:
    if not len(values):
        return dict.fromkeys(("mean", "p50", "p90", "p99"))
    p50, p90, p99 = np.percentile(values, [50, 90, 99]).tolist()
    return {"mean": float(values.mean()), "p50": p50, "p90": p90, "p99": p99}


def _share(values: FloatArray) -> dict[str, float] | None:
    """Mean and largest share; None without a memory limit."""
    if not np.isfinite(values).all() or not values.any():
        return None
    return {"mean": float(values.mean()), "max": float(values.max())}


def _predictions(measured: _Measured, work: Workload, settings: Settings) -> dict[str, Any]:
    """Both readings, seed by seed at the batch sizes of the replay."""
    found: dict[str, list[tuple[Prediction, Replay]]] = {"mean": [], "sampled": []}
    for seed, seen in enumerate(measured.replays):
        found["mean"].append(
            (
                predict_mean(measured.plan, work, float(seen.batch.mean()), rule=measured.rule),
                seen,
            )
        )
        sampled = predict_sampled(
            measured.plan,
            work,
            seen.batch,
            rule=measured.rule,
            samples=settings.samples,
            seed=seed,
        )
        found["sampled"].append((sampled, seen))
    readings: dict[str, Any] = {}
    for reading, pairs in found.items():
        steps = [p.step_us / float(r.step_us.mean()) - 1.0 for p, r in pairs]
        layers = [p.layers_us / float(r.layers_us.mean()) - 1.0 for p, r in pairs]
        readings[reading] = {
            "step_us": float(np.mean([p.step_us for p, _ in pairs])),
            "standard_error_us": float(np.mean([p.error_us for p, _ in pairs])),
            "error": interval(steps).as_dict(),
            "largest_error": float(np.abs(steps).max()),
            "layers_error": interval(layers).as_dict(),
        }
    pairs_of = zip(found["mean"], found["sampled"], strict=True)
    apart = [mean.step_us / sampled.step_us - 1.0 for (mean, _), (sampled, _) in pairs_of]
    readings["mean_against_sampled"] = float(np.mean(apart))
    return readings


def _baselines(
    data: ProblemData,
    fitted: Trace,
    ours: _Measured,
    works: Sequence[Workload],
    settings: Settings,
) -> dict[str, Any]:
    results: dict[str, Any] = {}
    arrive = settings.rate_per_s is not None
    for name in settings.baselines:
        try:
            hosts = BASELINES[name](data, fitted, settings.extra_slots, settings.split_seed)
            plan = served(data, hosts, name=name)
            theirs = _replays(plan, works, settings)
        except InputError as error:
            # A baseline that the memory does not hold is an answer, not a failure of the command.
            results[name] = {"does_not_fit": "; ".join(error.problems)}
            continue
        throughput = gain(ours.tokens_per_s, theirs.tokens_per_s)
        results[name] = {**_figures(theirs, arrive), "gain": throughput.as_dict()}
    return results


def _waves(data: ProblemData, solution: Solution, settings: Settings) -> dict[str, Any]:
    found = sampled_step_time(data, solution, settings.samples, settings.split_seed)
    return {
        "steps": found.steps.tolist(),
        "mean_us": found.mean_us.tolist(),
        "sampled_us": found.sampled_us.tolist(),
        "standard_error_us": found.error_us.tolist(),
        "mean_makespan_us": found.mean_makespan_us,
        "sampled_makespan_us": found.sampled_makespan_us,
        "mean_error": found.mean_error,
    }
