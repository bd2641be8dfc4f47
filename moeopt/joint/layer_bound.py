"""Lower bounds of one layer's time as a function of its additional replicas.

``at_once``: one wave, or every resident replica charged. ``mean``: several waves whose replicas
are charged only where they are activated; then the bound is one of the mean of the waves' times,
as a function of the mean of their tokens (the waves weighted by their steps).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moeopt.joint.cost import Cost
from moeopt.joint.partition_bound import EXPERTS_LIMIT, partition_bounds
from moeopt.joint.threshold_bound import threshold_bounds
from moeopt.problem import FloatArray, IntArray

# A few hundred rounded operations of one sign: far below this, by which bounds are lowered.
_SAFE = 1.0 - 2.0**-36


@dataclass(frozen=True)
class Groups:
    """Groups of experts that attain a partition bound, for each number of additional replicas.

    Attributes
    ----------
    experts : int array
        The experts that the groups are of.
    group, size : int arrays, shape (G, len(experts))
        Group of each of them; GPUs of each group.
    """

    experts: IntArray
    group: IntArray
    size: IntArray


def layer_bound(
    cost: Cost,
    tokens: FloatArray,
    gpus: int,
    *,
    charged: IntArray,
    tree: bool,
    quick: bool = False,
) -> tuple[FloatArray, Groups | None]:
    """Bounds for r = 0, …, G − 1 additional replicas (more never help), non-increasing.

    Parameters
    ----------
    tokens : float array, shape (E,)
        Tokens of a step.
    charged : int array, shape (E,)
        1 for each expert of which surely a replica is charged.
    tree : bool
        Whether a group of experts that share k GPUs is charged k − 1 replicas more.
    quick : bool
        Leave out the enumeration of partitions.

    Returns
    -------
    time : float array, shape (G,)
        Microseconds (expert-time units for ``unit``).
    groups : Groups or None
    """
    there = np.flatnonzero((tokens > 0) | (charged > 0))
    w = np.ascontiguousarray(tokens[there], dtype=np.float64)
    p = np.ascontiguousarray(charged[there], dtype=np.int64)
    time = threshold_bounds(cost, w, p, int(tree), gpus)
    groups = None
    if not quick and 0 < len(there) <= EXPERTS_LIMIT:
        exact, group, size = partition_bounds(cost, w, p, int(tree), gpus)
        time = np.maximum(time, exact)
        groups = Groups(there, group, size)
    return time * _SAFE, groups
