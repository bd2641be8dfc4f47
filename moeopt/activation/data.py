"""What ``activation`` decides on: each layer's scenarios under every number of kept experts.

A token's chosen experts are ranked by gate weight. Keeping the ``j`` heaviest of the top ``k``
drops the gate mass of the others. Masses are whole hundred-thousandths: budgets are kept exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from moeopt.problem import IntArray, ProblemData, Scenarios

BoolArray = npt.NDArray[np.bool_]

#: Units of dropped mass in the gate mass of one token in one layer.
MASS_UNITS = 100_000


@dataclass(frozen=True)
class ActivationData:
    """Scenarios and dropped gate mass of every choice.

    Attributes
    ----------
    scenarios : tuple of tuple of Scenarios, [L][k]
        ``scenarios[l][j - 1]``: layer l with the j heaviest experts of every token.
    dropped : int array, shape (L, k)
        Mean gate mass that j kept experts drop, in units of 1/:data:`MASS_UNITS`, rounded up; 0
        in the last column.
    budget : int
        Most dropped mass of all layers together, same unit, rounded down.
    batch : int or None
        Tokens of a step, for throughputs; None where the instance does not say.
    hosts : bool array, shape (L, E, G), or None
        The plan to be kept; None where experts may be placed.
    """

    scenarios: tuple[tuple[Scenarios, ...], ...]
    dropped: IntArray
    budget: int
    batch: int | None = None
    hosts: BoolArray | None = None


def activation_of(data: ProblemData) -> ActivationData:
    """Return the part of the data that is for ``activation``."""
    if data.activation is None:
        raise ValueError(f"{data.problem} decides no activation")
    return data.activation


def placement_of(data: ProblemData, kept: Sequence[int]) -> ProblemData:
    """Return the ``placement`` problem that is left when each layer keeps so many experts.

    Parameters
    ----------
    kept : sequence of int, [L]
        1 to k for each layer.
    """
    rows = activation_of(data).scenarios
    chosen = tuple(layer[j - 1] for layer, j in zip(rows, kept, strict=True))
    return replace(data, problem="placement", scenarios=chosen, activation=None)


def dropped_of(activation: ActivationData, kept: Sequence[int]) -> int:
    """Return the dropped mass of a choice, all layers together, in units of the data."""
    return sum(int(row[j - 1]) for row, j in zip(activation.dropped, kept, strict=True))


def kept_share(activation: ActivationData, dropped: int) -> float:
    """Mean kept gate mass of the layers that dropped so much together (1: all of it)."""
    return 1.0 - dropped / (MASS_UNITS * len(activation.dropped))


def layer_problem(data: ProblemData, l: int, j: int) -> ProblemData:
    """Return ``placement`` of layer l alone with j kept experts, limited by slots."""
    return replace(
        data,
        problem="placement",
        layers=1,
        scenarios=(activation_of(data).scenarios[l][j - 1],),
        load=data.load[l : l + 1],
        free_mib=None,
        gpu_kind=np.zeros(data.gpus, dtype=np.int64),
        layer_numbers=data.layer_numbers[l : l + 1],
        activation=None,
    )
