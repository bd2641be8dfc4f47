"""Simple plans: the published greedy, today's default (contiguous) and random ones.

*Greedy* (Beaumont et al., Euro-Par 2025, ``unit`` form): start empty, repeatedly add the copy
(expert, GPU) that decreases the expected cost most, until nothing fits, evaluated by matching. The
paper does not say what a scenario costs while one of its experts has no copy. Here that is

    cost of S = (experts of S without a copy, T of the others), compared lexicographically,

summed over the scenarios with their weights: a first copy always goes before any replica. Experts
that occur in no scenario get their copy last. Ties: the least (layer, expert, GPU).

A copy of expert i changes only scenarios with i, so only these are evaluated again; gains of other
copies are kept (gains are not submodular for k ≥ 3: a stale gain is no bound, and the usual lazy
queue would not be the same algorithm).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from moeopt import dispatch
from moeopt.heuristics.capacity import room, slots
from moeopt.problem import IntArray, ProblemData, Scenarios

BoolArray = npt.NDArray[np.bool_]
_LEAST_GAIN = 1e-12
#: GPUs of one mask.
GPUS_LIMIT = 62


class _Layer:
    """One layer's hosts, scenario times and the gain of every copy that could be added."""

    def __init__(self, data: ProblemData, scenarios: Scenarios, hosts: BoolArray) -> None:
        self.gpus, self.scenarios = data.gpus, scenarios
        sizes = scenarios.sizes
        self.row = np.repeat(np.arange(len(scenarios)), sizes)
        self.column = np.arange(len(scenarios.expert)) - scenarios.ptr[self.row]
        self.member = np.full((len(scenarios), int(sizes.max(initial=1))), -1, dtype=np.int64)
        self.member[self.row, self.column] = scenarios.expert
        self.weight = np.bincount(
            scenarios.expert, scenarios.weight[self.row], minlength=data.experts
        )
        self.mask = dispatch.host_masks(hosts)
        self.time = self._times(np.arange(len(scenarios)), -1, 0)
        #: decrease of T by a copy of occurrence o's expert on GPU g (negative: T grows)
        self.less = np.zeros((len(self.row), data.gpus), dtype=np.int64)
        self._refresh(np.arange(len(self.row)))

    def _times(self, rows: IntArray, expert: int | IntArray, extra: int) -> IntArray:
        """Times of scenarios with ``extra`` GPUs added to one expert of each."""
        members = self.member[rows]
        masks = np.where(members >= 0, self.mask[members], 0)
        masks |= np.where(members == np.reshape(expert, (-1, 1)), extra, 0)
        hosted = masks > 0
        times = np.zeros(len(rows), dtype=np.int64)
        some = hosted.any(axis=1)
        if some.any():
            times[some] = dispatch.unit_times(np.where(hosted, masks, -1)[some])
        return times

    def _refresh(self, occurrences: IntArray) -> None:
        rows, expert = self.row[occurrences], self.scenarios.expert[occurrences]
        for g in range(self.gpus):
            self.less[occurrences, g] = self.time[rows] - self._times(rows, expert, 1 << g)

    def add(self, e: int, g: int) -> None:
        """Add a copy; evaluate its scenarios again."""
        self.mask[e] |= 1 << g
        touched = np.zeros(len(self.time), dtype=bool)
        touched[self.row[self.scenarios.expert == e]] = True
        rows = np.flatnonzero(touched)
        self.time[rows] = self._times(rows, -1, 0)
        self._refresh(np.flatnonzero(touched[self.row]))

    @property
    def is_least(self) -> bool:
        """Whether no plan can do better."""
        return bool((self.time <= -(-self.scenarios.sizes // self.gpus)).all())

    def best(self, open_gpus: BoolArray) -> tuple[float, float, int, int]:
        """Return (first copy: weight of its scenarios + 1, gain, expert, GPU) of the best copy."""
        worth = self.scenarios.weight[self.row][:, None] * self.less
        gain = np.zeros((len(self.mask), self.gpus))
        for g in range(self.gpus):
            gain[:, g] = np.bincount(self.scenarios.expert, worth[:, g], len(self.mask))
        hosted = (self.mask[:, None] >> np.arange(self.gpus) & 1).astype(bool)
        first = np.where(self.mask == 0, 1.0 + self.weight, 0.0)
        closed = hosted | ~open_gpus
        if closed.all():
            return (-1.0, 0.0, -1, -1)
        needed = np.where(closed, -1.0, first[:, None])
        top = needed.max()
        candidates = np.where(needed == top, gain, -np.inf)
        e, g = divmod(int(np.argmax(candidates >= candidates.max() - _LEAST_GAIN)), self.gpus)
        return float(top), float(candidates[e, g]), e, g


def greedy(
    data: ProblemData,
    hosts: BoolArray | None = None,
    *,
    replicas: bool | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> BoolArray | None:
    """Add the best copy again and again (``unit`` form, at most 62 GPUs).

    Parameters
    ----------
    hosts : bool array, shape (L, E, G), optional
        Copies to start from; default none, as published.
    replicas : bool, optional
        False: end when every expert has a copy. Default: whether the problem is ``replication``.

    Returns
    -------
    bool array, shape (L, E, G), or None
        None if experts were left without a copy (no room, or stopped). The room is filled even
        where no single copy gains, as published; it ends early only if every scenario is at its
        least time ``ceil(|S|/G)``.
    """
    if data.layer_time.form != "unit" or data.gpus > GPUS_LIMIT:
        raise ValueError(f"greedy takes the unit form and at most {GPUS_LIMIT} GPUs")
    many = data.problem == "replication" if replicas is None else replicas
    shape = (data.layers, data.experts, data.gpus)
    hosts = np.zeros(shape, dtype=bool) if hosts is None else hosts.copy()
    left = room(data) - hosts.sum(axis=(0, 1))
    layers = [_Layer(data, s, hosts[l]) for l, s in enumerate(data.scenarios)]

    def open_gpus(l: int) -> BoolArray:
        return np.asarray((left > 0) & (hosts[l].sum(axis=0) < slots(data)))

    best = [layer.best(open_gpus(l)) for l, layer in enumerate(layers)]
    while not stop():
        l = max(range(data.layers), key=lambda l: (best[l][0], best[l][1], -l))
        top, _, e, g = best[l]
        if top < 0 or (top == 0 and (not many or all(layer.is_least for layer in layers))):
            break
        hosts[l, e, g] = True
        left[g] -= 1
        layers[l].add(e, g)
        for other in range(data.layers) if left[g] == 0 else (l,):
            best[other] = layers[other].best(open_gpus(other))
    return hosts if hosts.any(axis=2).all() else None


def contiguous(data: ProblemData) -> BoolArray | None:
    """Expert e on GPU ``e // (E/G)``: the default of serving systems.

    Returns
    -------
    bool array, shape (L, E, G), or None
        None if a GPU has not the room. Where G does not divide E, GPU ``e·G // E``.
    """
    order = np.tile(np.arange(data.experts), (data.layers, 1))
    return _in_order(data, order)


def random(data: ProblemData, seed: int = 0) -> BoolArray | None:
    """Like :func:`contiguous` with the experts of every layer in a random order."""
    rng = np.random.default_rng(seed)
    return _in_order(data, rng.permuted(np.tile(np.arange(data.experts), (data.layers, 1)), axis=1))


def _in_order(data: ProblemData, order: IntArray) -> BoolArray | None:
    hosts = np.zeros((data.layers, data.experts, data.gpus), dtype=bool)
    gpu = np.arange(data.experts) * data.gpus // data.experts
    hosts[np.arange(data.layers)[:, None], order, gpu[None, :]] = True
    per_gpu = hosts.sum(axis=1)
    fits = (per_gpu <= slots(data)).all() and (per_gpu.sum(axis=0) <= room(data)).all()
    return hosts if fits else None
