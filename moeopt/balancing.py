"""``balance`` of an instance: a plan of every layer within a time limit, and a bound of each.

Layers are searched one by one, as long as the time lasts; those after it get the greedy plan or
that of the published heuristic, and the bounds that take no time.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from moeopt.balance.bounding import LayerBound, bound_layer
from moeopt.balance.check import check_balance
from moeopt.balance.data import BalanceData, IntArray
from moeopt.balance.exact import sum_below
from moeopt.balance.hosts import hosts_of
from moeopt.balance.layer import Effort
from moeopt.balance.optimal import best_shares
from moeopt.balance.solve import find_plan

#: Effort of a layer when the time is up: its first plan.
_NONE = Effort(rounds=0)


@dataclass(frozen=True)
class Balanced:
    """A plan and bounds, one of each layer.

    Attributes
    ----------
    hosts : bool array, shape (L, E, G)
    bounds : list of LayerBound
    """

    hosts: npt.NDArray[np.bool_]
    bounds: list[LayerBound]

    @property
    def value(self) -> float:
        """Sum of the layers' bounds, in tokens, rounded down."""
        return sum_below(bound.value for bound in self.bounds)

    @property
    def source(self) -> str:
        """Names of the proofs, with their numbers of layers."""
        counted = Counter(bound.method for bound in self.bounds)
        if len(self.bounds) == 1:
            return self.bounds[0].method
        return ", ".join(f"{name} ({n} layers)" for name, n in counted.most_common())


def balance_layers(
    data: BalanceData,
    *,
    seed: int = 0,
    time_limit_s: float = np.inf,
    stop: Callable[[], bool] = lambda: False,
) -> Balanced:
    """Find a plan for every layer and bound it.

    Parameters
    ----------
    time_limit_s : float
        Looked at between layers. A budget of moves couples the layers: then one search plans them
        all, and only the bounds look at the time.

    Raises
    ------
    InputError
        The plan in use cannot be made feasible within its budget of moves.
    """
    begin = time.monotonic()

    def late() -> bool:
        return stop() or time.monotonic() - begin > time_limit_s

    layers = [layer_data(data, l) for l in range(data.layers)]
    plans: list[IntArray] = []
    if data.most_moves is not None:
        plans = list(find_plan(data, Effort(seed=seed))[:, None])
    bounds = []
    for l, layer in enumerate(layers):
        if len(plans) == l:
            plans.append(find_plan(layer, _NONE if late() else Effort(seed=seed)))
        bounds.append(bound_layer(layer, 0, None if late() else _largest(layer, plans[l])))
    return Balanced(hosts_of(np.concatenate(plans), data.slots, data.experts), bounds)


def layer_data(data: BalanceData, l: int) -> BalanceData:
    """Return one layer alone, without a budget of moves."""
    previous = None if data.previous is None else data.previous[l : l + 1]
    return replace(data, loads=data.loads[:, l : l + 1], previous=previous, most_moves=None)


def _largest(layer: BalanceData, plan: IntArray) -> npt.NDArray[np.float64]:
    """Tokens on the fullest GPU in each window, shape (W,)."""
    shares = best_shares(layer, plan) if layer.rule == "optimal" else None
    return check_balance(layer, plan, shares).largest[:, 0]
