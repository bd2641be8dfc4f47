"""The three steps one after the other, fitted on some requests and measured on others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from moeopt.errors import InputError, MoeoptError
from moeopt.grace.bounds import least_imbalance, least_node_sends, pair_bounds
from moeopt.grace.data import Batches, Nodes, Plan, make_batches, plan_problems, profile
from moeopt.grace.grouping import GROUPINGS, group
from moeopt.grace.measure import Traffic, measure
from moeopt.grace.replication import REPLICATIONS, replicate
from moeopt.grace.routing import ROUTINGS, route
from moeopt.make.traces_shipped import Trace


@dataclass(frozen=True)
class Settings:
    """What is run, and how it is measured.

    Attributes
    ----------
    nodes : Nodes
    groupings, replications, routings : tuple of str
        Strategies of the steps; every combination is run.
    batch : int
        Tokens of a batch.
    seeds : int
        Runs: seed s splits the requests, deals them to GPUs, and seeds the random steps.
    fit_share : float
        Part of the requests that grouping and replication see; the others are measured.
    ratio, node_ratio : float or None
        Sizes of the published groups; None: as published.
    extra : int or None
        Copies added to each layer; None: as many as the published rule adds.
    load_of_copies : bool
        The other reading of the published prediction
        (:func:`moeopt.grace.replication.hot_copies`).
    """

    nodes: Nodes = field(default_factory=lambda: Nodes(2, 4))
    groupings: tuple[str, ...] = ("grace",)
    replications: tuple[str, ...] = ("grace",)
    routings: tuple[str, ...] = ("grace",)
    batch: int = 512
    seeds: int = 1
    fit_share: float = 0.5
    ratio: float | None = None
    node_ratio: float | None = None
    extra: int | None = None
    load_of_copies: bool = False

    def __post_init__(self) -> None:
        lines = [
            f"{step} {name!r} is unknown (known: {', '.join(known)})"
            for step, names, known in (
                ("grouping", self.groupings, GROUPINGS),
                ("replication", self.replications, REPLICATIONS),
                ("routing", self.routings, ROUTINGS),
            )
            for name in names
            if name not in known
        ]
        if self.seeds < 1:
            lines.append(f"seeds: must be at least 1, not {self.seeds}")
        if lines:
            raise InputError(lines)


@dataclass(frozen=True)
class Outcome:
    """One combination under one seed, everything on held-out tokens.

    Counts of traffic are for each token and layer; those with ``least_`` are lower bounds.

    Attributes
    ----------
    same_gpu, same_node, remote : float
        Pairs (token, expert) by where they are computed.
    least_remote, least_off_gpu : float
        No plan with as many copies of each layer has fewer, even one made for these very tokens.
    node_sends, gpu_sends : float
        Copies sent between nodes and within them (:class:`moeopt.grace.measure.Traffic`).
    least_node_sends : float
        No routing on this plan sends fewer copies between nodes.
    imbalance, deviation : float
        Largest load, and standard deviation of the loads, over the mean load: mean over batches
        and layers.
    least_imbalance : float
        No routing on this plan is below it.
    copies : float
        Experts held over experts there are: 1 without replicas.
    fullest : float
        Experts that the fullest GPU holds, over the mean without replicas: memory.
    """

    grouping: str
    replication: str
    routing: str
    seed: int
    same_gpu: float
    same_node: float
    remote: float
    least_remote: float
    least_off_gpu: float
    node_sends: float
    least_node_sends: float
    gpu_sends: float
    imbalance: float
    least_imbalance: float
    deviation: float
    copies: float
    fullest: float


#: The numbers of an outcome, in their order.
NUMBERS = tuple(f.name for f in fields(Outcome))[4:]


def make_plan(trace: Trace, settings: Settings, seed: int) -> Plan:
    """Make the plan of the first grouping and replication on the fitted part of a trace."""
    fitted, _ = trace.split(seed, settings.fit_share)
    return next(_plans(fitted, settings, seed))[2]


def _plans(fitted: Trace, settings: Settings, seed: int) -> Iterator[tuple[str, str, Plan]]:
    statistics = profile(fitted)
    for grouping in settings.groupings:
        gpu = group(
            grouping,
            statistics,
            settings.nodes,
            seed,
            ratio=settings.ratio,
            node_ratio=settings.node_ratio,
        )
        for replication in settings.replications:
            plan = replicate(
                replication,
                statistics,
                settings.nodes,
                gpu,
                extra=settings.extra,
                load_of_copies=settings.load_of_copies,
            )
            if lines := plan_problems(plan):
                raise MoeoptError(["the plan is not feasible: report this", *lines])
            yield grouping, replication, plan


def run(trace: Trace, settings: Settings) -> Iterator[Outcome]:
    """Run every combination under every seed.

    Without copies there is nothing to route: such a plan is measured once, as routed ``primary``.

    Raises
    ------
    InputError
        The settings do not fit the trace.
    MoeoptError
        A plan or a routing is not feasible, or better than a bound: an error of moeopt.
    """
    for seed in range(settings.seeds):
        fitted, held = trace.split(seed, settings.fit_share)
        batches = make_batches(held, settings.nodes, settings.batch, seed)
        for grouping, replication, plan in _plans(fitted, settings, seed):
            several = plan.extra_copies.any()
            yield from _measured(
                plan,
                batches,
                (grouping, replication),
                settings.routings if several else ("primary",),
                seed,
            )


def _measured(
    plan: Plan, batches: Batches, steps: tuple[str, str], routings: Sequence[str], seed: int
) -> Iterator[Outcome]:
    layers, experts, gpus = plan.hosts.shape
    pairs = pair_bounds(plan.nodes, batches, experts, plan.extra_copies)
    sends, imbalance = least_node_sends(plan, batches), least_imbalance(plan, batches)
    for routing in routings:
        seen = measure(plan, batches, route(routing, plan, batches, seed))
        _require(seen, pairs.remote, pairs.off_gpu, sends, imbalance)
        yield Outcome(
            *steps,
            routing,
            seed,
            same_gpu=seen.per_token(seen.same_gpu),
            same_node=seen.per_token(seen.same_node),
            remote=seen.per_token(seen.remote),
            least_remote=seen.per_token(pairs.remote),
            least_off_gpu=seen.per_token(pairs.off_gpu),
            node_sends=seen.per_token(seen.node_sends),
            least_node_sends=seen.per_token(sends),
            gpu_sends=seen.per_token(seen.gpu_sends),
            imbalance=seen.imbalance,
            least_imbalance=imbalance,
            deviation=seen.deviation,
            copies=float(plan.hosts.sum() / (layers * experts)),
            fullest=float(plan.hosts.sum(axis=(0, 1)).max() * gpus / (layers * experts)),
        )


def _require(seen: Traffic, remote: int, off_gpu: int, sends: int, imbalance: float) -> None:
    """Refuse what is better than a lower bound."""
    found = [
        f"{name}: {value} is below the bound {least}"
        for name, value, least in (
            ("remote pairs", seen.remote, remote),
            ("pairs off the GPU", seen.remote + seen.same_node, off_gpu),
            ("copies between nodes", seen.node_sends, sends),
            # A mean of quotients: the last digits are rounding.
            ("imbalance", seen.imbalance * (1 + 1e-12), imbalance),
        )
        if value < least
    ]
    if found:
        raise MoeoptError(["a routing is better than a lower bound: report this", *found])


def means(outcomes: Sequence[Outcome]) -> list[dict[str, str | float | int]]:
    """Means over seeds, a row for each combination, in the order in which they were run."""
    cells: dict[tuple[str, str, str], list[Outcome]] = {}
    for outcome in outcomes:
        key = (outcome.grouping, outcome.replication, outcome.routing)
        cells.setdefault(key, []).append(outcome)
    return [
        {
            "grouping": grouping,
            "replication": replication,
            "routing": routing,
            "seeds": len(these),
            **{name: float(np.mean([getattr(o, name) for o in these])) for name in NUMBERS},
        }
        for (grouping, replication, routing), these in cells.items()
    ]
