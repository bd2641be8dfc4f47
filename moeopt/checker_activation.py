"""The checker of ``activation``: kept experts, the budget of dropped mass, fixed hosts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from moeopt.activation.data import (
    MASS_UNITS,
    activation_of,
    dropped_of,
    kept_share,
    placement_of,
)
from moeopt.checker_dispatch import Violation
from moeopt.checker_times import BoolArray
from moeopt.errors import InputError
from moeopt.problem import ProblemData
from moeopt.solution import Solution


@dataclass(frozen=True)
class ActivationCheck:
    """What is wrong, and the ``placement`` problem whose times are the plan's."""

    violations: list[Violation]
    placement: ProblemData
    kept: list[int]


def check_activated(data: ProblemData, solution: Solution, hosts: BoolArray) -> ActivationCheck:
    """Check the kept experts of a plan, its dropped mass, and that fixed hosts are kept.

    Raises
    ------
    InputError
        ``activated`` is missing, or not a number from 1 to k for each layer.
    """
    kept = solution.activated
    if kept is None or len(kept) != data.layers or not all(1 <= j <= data.top_k for j in kept):
        raise InputError(
            f"activated: must be {data.layers} whole numbers from 1 to {data.top_k}, "
            "the kept experts of each layer"
        )
    violations = [*_budget(data, kept), *_fixed(data, hosts)]
    return ActivationCheck(violations, placement_of(data, kept), kept)


def _budget(data: ProblemData, kept: list[int]) -> Iterator[Violation]:
    activation = activation_of(data)
    dropped = dropped_of(activation, kept)
    if (over := dropped - activation.budget) > 0:
        text = (
            f"{dropped / MASS_UNITS:.5f} of gate mass dropped over all layers, "
            f"{activation.budget / MASS_UNITS:.5f} allowed"
        )
        yield Violation("mass_dropped", "all layers", over / MASS_UNITS, text)


def _fixed(data: ProblemData, hosts: BoolArray) -> Iterator[Violation]:
    given = activation_of(data).hosts
    if given is None:
        return
    for layer, e in np.argwhere((given != hosts).any(axis=2)).tolist():
        where = f"layer {layer}, expert {e}"
        text = f"{where}: not where the plan to be kept has it"
        yield Violation("host_moved", where, 1, text)


def details(data: ProblemData, kept: list[int], step: float) -> dict[str, Any]:
    """Figures of the report; ``step`` is the objective."""
    activation = activation_of(data)
    dropped = dropped_of(activation, kept)
    figures: dict[str, Any] = {
        "activated": kept,
        "dropped_mass": dropped / MASS_UNITS,
        "kept_mass": kept_share(activation, dropped),
    }
    if activation.batch is not None and data.layer_time.form != "unit":
        figures["tokens_per_s"] = 1e6 * activation.batch / step
    return figures


def summary(details: dict[str, Any]) -> list[tuple[str, str]]:
    """Lines for people, as (label, text), from :func:`details`."""
    kept = details["activated"]
    return [
        (
            "activated",
            f"{min(kept)} to {max(kept)} experts a layer, {np.mean(kept):.3f} on average",
        ),
        (
            "gate mass",
            f"{100 * details['kept_mass']:.3f} % kept, {details['dropped_mass']:.5f} dropped over "
            "all layers",
        ),
    ]
