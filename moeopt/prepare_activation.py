"""The part of :func:`moeopt.prepare.prepare` that is for ``activation``: masses, budget, hosts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np

from moeopt.activation.data import MASS_UNITS, ActivationData, BoolArray
from moeopt.errors import InputError
from moeopt.instance import Instance
from moeopt.instance_parts import ActivationOptions, ScenarioList
from moeopt.problem import FloatArray, IntArray, ProblemData, Scenarios


def missing_activation(instance: Instance) -> list[str]:
    """Say what ``activation`` needs that the instance does not have."""
    spec = instance.layer_time
    lines = []
    if instance.activation is None:
        lines.append("problem activation needs the block `activation`")
    if spec.form == "unit" and spec.attention_base_us:
        lines.append(
            "problem activation needs layer_time in microseconds where attention_base_us is "
            "given: `unit` counts expert-time units"
        )
    if instance.cluster.slots_per_gpu is None:
        lines.append("problem activation needs cluster.slots_per_gpu")
    return lines


def with_activation(
    data: ProblemData, instance: Instance, scenarios_of: Callable[[ScenarioList], Scenarios]
) -> ProblemData:
    """Return the data with its scenarios, masses and budget; slots alone limit.

    Parameters
    ----------
    scenarios_of : callable
        Makes scenarios of a list of the file.

    Raises
    ------
    InputError
        Memory does not hold as many experts as there are slots: layers would share it.
    """
    _require_room(data)
    options = instance.activation
    if options is None:
        raise ValueError("the instance has no block `activation`")  # missing_activation() said so
    hosts = None if options.hosts is None else _hosts(options, data)
    activation = ActivationData(
        scenarios=tuple(tuple(map(scenarios_of, layer)) for layer in options.scenarios),
        dropped=dropped_mass(options.gate_mass),
        budget=math.floor(Fraction(repr(options.budget)) * MASS_UNITS),
        batch=options.batch,
        hosts=hosts,
    )
    # GPUs that keep their experts have names.
    kind = np.arange(data.gpus) if hosts is not None else np.zeros(data.gpus)
    return replace(data, activation=activation, free_mib=None, gpu_kind=kind.astype(np.int64))


def _require_room(data: ProblemData) -> None:
    if data.free_mib is None or data.slots is None:
        return
    most = data.layers * min(data.slots, data.experts)
    rooms = [math.floor(free / data.expert_mib) for free in data.free_mib.tolist()]
    if lines := [
        f"problem activation needs memory for all slots: GPU {g} has room for {room:,} experts, "
        f"its slots are {most:,} in all layers"
        for g, room in enumerate(rooms)
        if room < most
    ]:
        raise InputError(lines)


def dropped_mass(gate_mass: FloatArray) -> IntArray:
    """Dropped mass of 1 to k kept experts, shape (L, k), from gate mass by rank (any scale).

    Decimal numbers of the file are exact here; what a layer drops is rounded up, once.
    """
    rows = []
    for row in gate_mass.tolist():
        mass = [Fraction(repr(float(value))) for value in row]
        total = sum(mass)
        dropped = [sum(mass[j:], Fraction(0)) / total for j in range(1, len(mass) + 1)]
        rows.append([math.ceil(share * MASS_UNITS) for share in dropped])
    return np.array(rows, dtype=np.int64)


def _hosts(options: ActivationOptions, data: ProblemData) -> BoolArray:
    hosts = np.zeros((data.layers, data.experts, data.gpus), dtype=bool)
    for layer, rows in zip(hosts, options.hosts or (), strict=True):
        layer[rows.row, rows.values] = True
    return hosts
