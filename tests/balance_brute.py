"""The best plan of a tiny layer of ``balance``, by looking at all of them."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import numpy as np

from moeopt.balance.data import BalanceData, balance_data


@functools.cache
def all_hosts(experts: int, slots: tuple[int, ...]) -> np.ndarray:
    """Every plan without duplicates as hosts, shape (N, E, G)."""
    choices = []
    for q in slots:
        rows = [np.isin(np.arange(experts), c) for c in itertools.combinations(range(experts), q)]
        choices.append(np.array(rows))
    index = np.array(list(itertools.product(*(range(len(c)) for c in choices))))
    hosts = np.stack([c[index[:, g]] for g, c in enumerate(choices)], axis=2)
    return hosts[hosts.any(axis=2).all(axis=1)]


@functools.cache
def _neighbours(experts: int, slots: tuple[int, ...]) -> np.ndarray:
    """Number of GPUs that hold any expert of a set, shape (2^E − 1, N)."""
    hosts = all_hosts(experts, slots)
    sets = [np.array(bits) for bits in itertools.product((False, True), repeat=experts)][1:]
    return np.array([hosts[:, s].any(axis=1).sum(axis=1) for s in sets])


@dataclass
class Brute:
    """All plans of one layer: their values (mean over windows), and which are allowed."""

    values: np.ndarray
    hosts: np.ndarray

    @property
    def best(self) -> float:
        return float(self.values.min())


def brute(data: BalanceData, l: int = 0) -> Brute:
    """Evaluate every plan of a layer under the instance's rule."""
    slots = tuple(data.slots.tolist())
    hosts = all_hosts(data.experts, slots)
    values = np.zeros(len(hosts))
    for weight in data.loads[:, l]:
        if data.rule == "even":
            pieces = weight / hosts.sum(axis=2)
            values += np.einsum("ne,neg->ng", pieces, hosts).max(axis=1)
        else:
            bits = itertools.product((False, True), repeat=data.experts)
            loads = np.array([weight[np.array(s)].sum() for s in bits])[1:]
            values += (loads[:, None] / _neighbours(data.experts, slots)).max(axis=0)
    values /= data.windows
    allowed = np.ones(len(hosts), dtype=bool)
    if data.parts > 1:
        node = np.arange(data.gpus) // (data.gpus // data.nodes)
        group = np.arange(data.experts) // (data.experts // data.groups)
        on = np.zeros((len(hosts), data.groups, data.nodes), dtype=bool)
        for e, g in itertools.product(range(data.experts), range(data.gpus)):
            on[:, group[e], node[g]] |= hosts[:, e, g]
        equal = on.sum(axis=1) == data.groups // data.nodes
        allowed = (on.sum(axis=2) == 1).all(axis=1) & equal.all(axis=1)
    if data.previous is not None and data.most_moves is not None:
        held = np.zeros((data.experts, data.gpus), dtype=bool)
        held[data.previous[l], data.gpu_of_slot] = True
        allowed &= (hosts & ~held).sum(axis=(1, 2)) <= data.most_moves
    return Brute(values[allowed], hosts[allowed])


SHAPES = [
    (4, (2, 2, 2)),
    (5, (3, 3)),
    (6, (3, 3, 3)),
    (5, (2, 2, 2)),
    (6, (2, 2, 2, 2)),
    (5, (1, 2, 3)),
    (4, (3, 1, 2)),
    (6, (4, 4)),
    (5, (2, 1, 3, 1)),
]


def tiny(seed: int, **changes: object) -> BalanceData:
    """A random layer of one of the shapes."""
    rng = np.random.default_rng(seed)
    experts, slots = SHAPES[seed % len(SHAPES)]
    windows = 1 + (seed // 3) % 3 % 2
    kind = (seed // len(SHAPES)) % 4
    size = (windows, 1, experts)
    if kind == 0:
        loads = rng.random(size)
    elif kind == 1:
        loads = rng.lognormal(0, 1.5, size)
    elif kind == 2:
        loads = rng.integers(0, 12, size).astype(float)
    else:
        loads = rng.permuted(np.arange(1, experts + 1) ** -1.5 * np.ones(size), axis=2)
    arguments: dict[str, object] = {"gpus": len(slots), "slots": slots}
    return balance_data(loads, **(arguments | changes))  # type: ignore[arg-type]


#: Instances with groups on nodes: experts, slots, groups, nodes.
GROUPED = [
    (4, (2, 2, 2, 2), 2, 2),
    (6, (2, 2, 2, 2), 6, 2),
    (6, (2, 2, 2, 3), 6, 2),
    (6, (2, 3, 2, 3), 2, 2),
]


def grouped(seed: int, **changes: object) -> BalanceData:
    """A random layer with groups on nodes."""
    rng = np.random.default_rng(seed)
    experts, slots, groups, nodes = GROUPED[seed % len(GROUPED)]
    loads = rng.lognormal(0, 1, (1 + seed % 3 % 2, 1, experts))
    arguments: dict[str, object] = {
        "gpus": len(slots),
        "slots": slots,
        "groups": groups,
        "nodes": nodes,
    }
    return balance_data(loads, **(arguments | changes))  # type: ignore[arg-type]
