"""Instances from an MoE, a GPU and a number of GPUs: ``moeopt instance make --gpu … --moe …``."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moeopt.calibrate.hardware import RESERVED_MIB, TABLE, Gpu, gpu_named
from moeopt.calibrate.layer_cost import layer_time
from moeopt.calibrate.moes import Moe, moe_named
from moeopt.catalog import read_instance
from moeopt.errors import InputError
from moeopt.instance import Instance
from moeopt.make import traces_shipped
from moeopt.make.azure import length_classes, sample
from moeopt.make.recipe import mib
from moeopt.prepare import explain_infeasible, prepare
from moeopt.routing import USAGE_STEP, usage_profile

#: MoEs without a shipped trace whose load another shipped instance has.
LOAD_FROM = {"mixtral-8x7b": "mixtral-8x7b_8gpu_azure"}
LENGTH_COLUMNS = ("name", "count", "prompt_tokens", "output_tokens")

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Wanted:
    """What to make an instance of.

    Attributes
    ----------
    gpu, moe : str
        Names of the tables of GPUs and MoEs.
    gpus, nodes : int
        GPUs in all, in nodes of equal size.
    form : {"sum", "max", "p2"}
    precision : str or None
        Of the expert weights; None: the published one.
    memory_mib : float or None
        Of a GPU, where not all of it is meant.
    lengths : str
        A shipped trace of arrivals, or a CSV of classes (:data:`LENGTH_COLUMNS`).
    requests, classes : int
        How many requests of the trace, in how many classes.
    skew : float
        Standard deviation of the logarithm of the loads, where no trace of the MoE is shipped.
    seed : int
        Of these loads, and of the split of a shipped trace.
    fit_share : float
        Part of a shipped trace's requests whose usage is taken; ``simulate`` replays the others.
    waves : int
        Most waves.
    """

    gpu: str
    moe: str
    gpus: int
    nodes: int = 1
    form: str = "max"
    precision: str | None = None
    memory_mib: float | None = None
    lengths: str = "azure-conv"
    requests: int = 600
    classes: int = 8
    skew: float = 0.5
    seed: int = 0
    fit_share: float = 0.5
    waves: int = 4
    name: str | None = None


@dataclass(frozen=True)
class Made:
    """An instance, and everything that was assumed to make it, a line each."""

    instance: Instance
    assumed: list[str]


def make_instance(wanted: Wanted) -> Made:
    """Make a complete instance of ``joint``.

    Raises
    ------
    InputError
        An unknown name, numbers that do not fit, or GPUs that cannot hold the MoE.
    """
    card, llm = gpu_named(wanted.gpu), moe_named(wanted.moe)
    if wanted.gpus < 1 or wanted.nodes < 1 or wanted.gpus % wanted.nodes:
        raise InputError(f"{wanted.gpus} GPUs do not make {wanted.nodes} equal nodes")
    if not 0 <= wanted.skew < 3:
        raise InputError(f"skew: must be at least 0 and below 3, not {wanted.skew:g}")
    precision = llm.precision(wanted.precision)
    cost = layer_time(wanted.gpu, wanted.moe, wanted.form, precision)
    usage, routing = _usage(wanted, llm)
    requests, about_requests = _requests(wanted)
    assumed = [
        f"{llm.name}: {mib(round(llm.expert_bytes(precision))):,.1f} MiB an expert ({precision}), "
        f"{mib(round(llm.dense_bytes(precision))):,.0f} MiB of everything else on every GPU, KV "
        f"cache {llm.kv_kib_per_token:g} KiB a token (bf16)",
        _memory_line(wanted, card),
        *(f"{key} {cost.block[key]:g}: {source}" for key, source in cost.sources.items()),
        f"routing: {routing}",
        f"requests: {about_requests}",
        "prefill and communication take no time",
    ]
    instance = Instance.from_document(
        {
            "schema": "moeopt-instance/1",
            "name": wanted.name or f"{llm.name}_{wanted.gpus}x{card.name}_{wanted.form}",
            "source": {
                "title": f"{llm.name} on {wanted.gpus} {card.name}, by moeopt instance make",
                "notes": "; ".join(assumed),
            },
            "moe": _moe(llm, precision),
            "cluster": _cluster(wanted, card),
            "layer_time": cost.block,
            "routing": [
                {"layer": llm.dense_layers + l, "load": usage[l]} for l in range(llm.moe_layers)
            ],
            "requests": requests,
            "joint": {"waves": wanted.waves},
        }
    )
    if reasons := explain_infeasible(prepare(instance, "joint")):
        raise InputError([f"{instance.name}: {reason}" for reason in reasons])
    return Made(instance, assumed)


def _memory_line(wanted: Wanted, card: Gpu) -> str:
    memory_mib = wanted.memory_mib or card.memory_mib
    source = "as given" if wanted.memory_mib else TABLE
    return f"{card.name}: {memory_mib:,.0f} MiB ({source}), {RESERVED_MIB:,.0f} reserved ({TABLE})"


def _moe(llm: Moe, precision: str) -> dict[str, Any]:
    return {
        "name": llm.name,
        "layers": llm.moe_layers,
        "layers_total": llm.layers,
        "experts": llm.experts,
        "top_k": llm.top_k,
        "expert_mib": mib(round(llm.expert_bytes(precision))),
        "dense_mib": mib(round(llm.dense_bytes(precision))),
        "kv_kib_per_token": llm.kv_kib_per_token,
        "hidden_size": llm.hidden,
    }


def _cluster(wanted: Wanted, card: Gpu) -> dict[str, Any]:
    node = {
        "gpus": wanted.gpus // wanted.nodes,
        "memory_mib": float(wanted.memory_mib or card.memory_mib),
        "reserved_mib": RESERVED_MIB,
    }
    hops = 1.0 - np.eye(wanted.nodes)
    return {
        "nodes": [node] * wanted.nodes,
        "hops": hops.tolist(),
        "intra_node_gb_s": float(card.intra_node_gb_s),
        "inter_node_gb_s": float(card.inter_node_gb_s),
    }


def _usage(wanted: Wanted, llm: Moe) -> tuple[FloatArray, str]:
    """Expected activations a token, shape (L, E), and where they come from."""
    if llm.name in traces_shipped.ROUTING:
        trace = traces_shipped.read_trace(llm.name)
        fitted, held = trace.split(wanted.seed, wanted.fit_share)
        text = (
            f"usage of {len(fitted.lengths)} requests of the shipped trace {trace.name}, "
            f"{traces_shipped.ROUTING[llm.name]}; the other {len(held.lengths)} are held out "
            f"(split seed {wanted.seed})"
        )
        return usage_profile(fitted.usage(), llm.top_k), text
    if llm.name in LOAD_FROM:
        shipped = read_instance(LOAD_FROM[llm.name])
        load = np.stack([np.asarray(layer.load) for layer in shipped.routing])
        return usage_profile(load, llm.top_k), f"load of the shipped instance {shipped.name}"
    rng = np.random.default_rng(wanted.seed)
    weight = rng.lognormal(sigma=wanted.skew, size=(llm.moe_layers, llm.experts))
    return usage_at_most_one(weight, llm.top_k), (
        f"no trace of {llm.name} is shipped: lognormal loads, sigma {wanted.skew:g}, "
        f"seed {wanted.seed}, no expert chosen by more than every token"
    )


def usage_at_most_one(weight: npt.ArrayLike, top_k: int) -> FloatArray:
    """Usage proportional to weights but for what would exceed 1, shape (..., E).

    A token chooses an expert at most once: what a heavy expert cannot take goes to the others.
    """
    weights = np.asarray(weight, dtype=np.float64)
    full = np.zeros(weights.shape, dtype=bool)
    while True:
        left = top_k - full.sum(axis=-1, keepdims=True)
        open_weight = np.where(full, 0.0, weights)
        usage = left * open_weight / open_weight.sum(axis=-1, keepdims=True)
        # A step below 1, so that rounding to whole steps cannot pass it.
        over = usage > 1.0 - USAGE_STEP
        if not over.any():
            break
        full |= over
    return usage_profile(np.where(full, 1.0, usage), top_k)


def _requests(wanted: Wanted) -> tuple[list[dict[str, Any]], str]:
    if wanted.lengths not in traces_shipped.ARRIVALS:
        entries = read_classes(wanted.lengths)
        return entries, f"{sum(e['count'] for e in entries):,} in {len(entries)} classes, as given"
    arrivals = traces_shipped.read_arrivals(wanted.lengths)
    lengths = np.stack([arrivals.prompt_tokens, arrivals.output_tokens], axis=1)
    prefix = wanted.lengths.rpartition("-")[2]
    groups = length_classes(prefix, sample(lengths, wanted.requests), wanted.classes)
    entries = [
        {
            "name": group.name,
            "count": group.count,
            "prompt_tokens": group.prompt_tokens,
            "output_tokens": group.output_tokens,
        }
        for group in groups
    ]
    about = traces_shipped.ARRIVALS[wanted.lengths]
    return entries, (
        f"{wanted.requests:,} lengths of {wanted.lengths} ({about}) in {wanted.classes} classes; a "
        "class has its longest output and its largest total"
    )


def read_classes(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read request classes from a CSV with the columns :data:`LENGTH_COLUMNS`.

    Raises
    ------
    InputError
        No such file or shipped trace, missing columns, or a value that is no whole number.
    """
    if not Path(path).is_file():
        known = ", ".join(traces_shipped.ARRIVALS)
        raise InputError(f"{path}: neither a CSV file nor a shipped trace ({known})")
    with Path(path).open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        missing = [name for name in LENGTH_COLUMNS if name not in (reader.fieldnames or [])]
        if missing:
            raise InputError(f"{path}: lacks the columns {', '.join(missing)}")
        entries: list[dict[str, Any]] = []
        problems: list[str] = []
        for row in reader:
            try:
                numbers = {name: int(row[name]) for name in LENGTH_COLUMNS[1:]}
            except (TypeError, ValueError):
                problems.append(f"{path}: line {reader.line_num}: needs three whole numbers")
                continue
            entries.append({"name": row["name"]} | numbers)
    if problems or not entries:
        raise InputError(problems or f"{path}: no classes")
    return entries
