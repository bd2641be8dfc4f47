"""What ``moeopt advise`` is asked: loads, GPUs with slots, the map in use, memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moeopt.balance.data import BalanceData, FloatArray, IntArray, balance_data
from moeopt.errors import InputError
from moeopt.files import read_text
from moeopt.instance import Instance
from moeopt.instance_parts import BalanceOptions
from moeopt.matrix_file import read_npy
from moeopt.prepare import explain_infeasible, prepare
from moeopt.serving.exchange import format_named
from moeopt.trace.loads import LoadTrace


@dataclass(frozen=True)
class Question:
    """What is to be advised on.

    Attributes
    ----------
    name : str
    loads : float array, shape (W, L, E)
        Tokens of each expert in each window of time, in order.
    slots : int array, shape (G,)
        Slots of each GPU that a new map may fill.
    nodes, groups : int
        As :class:`moeopt.balance.BalanceData`.
    today : int array, shape (L, P'), or None
        Expert in every slot of the map in use, equally many on each GPU; None: no replicas, the
        experts in their order.
    expert_mib : float or None
        Memory of one expert of one layer.
    kv_kib_per_token : float or None
        KV cache of one token, all layers.
    most_moves : int or None
        Copies that a new map may bring to GPUs that did not hold them, over all layers; only with
        a map in use of as many slots.
    """

    name: str
    loads: FloatArray
    slots: IntArray
    nodes: int = 1
    groups: int = 1
    today: IntArray | None = None
    expert_mib: float | None = None
    kv_kib_per_token: float | None = None
    most_moves: int | None = None

    @property
    def gpus(self) -> int:
        """Number of GPUs."""
        return len(self.slots)

    @property
    def experts(self) -> int:
        """Experts of a layer."""
        return int(self.loads.shape[2])

    @property
    def layers(self) -> int:
        """Number of layers."""
        return int(self.loads.shape[1])

    def balance(self, loads: FloatArray) -> BalanceData:
        """Return the problem of the new map for some loads (W, L, E)."""
        previous = None if self.most_moves is None else self.today
        return BalanceData(
            loads,
            self.slots,
            self.nodes,
            self.groups,
            previous=previous,
            most_moves=self.most_moves,
        )

    def unreplicated(self, loads: FloatArray) -> BalanceData | None:
        """Return the problem of a map without replicas; None where GPUs cannot share equally."""
        each, rest = divmod(self.experts, self.gpus)
        if rest:
            return None
        return BalanceData(loads, np.full(self.gpus, each), self.nodes, self.groups)

    def in_use(self) -> tuple[IntArray, IntArray]:
        """Return the map in use, shape (L, P'), and its slots of each GPU."""
        if self.today is not None:
            return self.today, np.full(self.gpus, self.today.shape[1] // self.gpus)
        parts = np.array_split(np.arange(self.experts), self.gpus)
        return np.tile(np.arange(self.experts), (self.layers, 1)), np.array([len(p) for p in parts])


def from_trace(
    trace: LoadTrace,
    *,
    gpus: int,
    slots: int,
    nodes: int = 1,
    groups: int = 1,
    today: IntArray | None = None,
    expert_mib: float | None = None,
    kv_kib_per_token: float | None = None,
    most_moves: int | None = None,
) -> Question:
    """Ask about a load trace.

    Parameters
    ----------
    slots : int
        Slots of a layer on all GPUs together, equally many on each.

    Raises
    ------
    InputError
        The numbers do not fit each other, or the map in use does not fit the trace.
    """
    previous = None if most_moves is None else today
    data = balance_data(
        trace.load,
        gpus=gpus,
        replicas=slots,
        nodes=nodes,
        groups=groups,
        previous=previous,
        most_moves=most_moves,
    )
    _require_positive(expert_mib=expert_mib, kv_kib_per_token=kv_kib_per_token)
    layers, experts = data.layers, data.experts
    if today is not None:
        _require_map(today, layers, experts, gpus)
    elif experts < gpus:
        raise InputError(
            f"{experts} experts on {gpus} GPUs need replicas already: the map in use is needed"
        )
    return Question(
        trace.name,
        data.loads,
        data.slots,
        nodes,
        groups,
        today,
        expert_mib,
        kv_kib_per_token,
        most_moves,
    )


def from_instance(instance: Instance) -> Question:
    """Ask about an instance: its windows, its slots, its plan in use.

    Raises
    ------
    InputError
        It is no instance of ``balance``, or a GPU of its plan in use has empty slots.
    """
    data = prepare(instance, "balance")
    if reasons := explain_infeasible(data):
        raise InputError(reasons)
    balance = data.balance
    if balance is None:
        raise InputError(f"{instance.name}: there are no loads to balance")
    options = instance.balance or BalanceOptions()
    if options.rule != "even":
        raise InputError("balance.rule: advice is for the even split of the serving systems")
    if balance.previous is None and balance.experts < balance.gpus:
        raise InputError("balance.previous: needed, fewer experts than GPUs need replicas already")
    if balance.previous is not None:
        _require_map(balance.previous, data.layers, data.experts, data.gpus)
    return Question(
        instance.name,
        balance.loads,
        balance.slots,
        balance.nodes,
        balance.groups,
        balance.previous,
        data.expert_mib,
        instance.moe.kv_kib_per_token,
        balance.most_moves,
    )


def read_map(path: Path, layers: Sequence[int], form: str | None = None) -> IntArray:
    """Read the expert of every slot, shape (L, P): an array (.npy), or a file of a serving system.

    Parameters
    ----------
    layers : sequence of int
        Numbers of the layers in the LLM.
    form : str, optional
        One of :data:`moeopt.serving.formats.FORMATS`; needed but for ``.npy``.

    Raises
    ------
    InputError
    """
    try:
        if form is None:
            if path.suffix != ".npy":
                raise InputError(
                    f"{path}: say in which format it is (sglang, vllm, …), or use .npy"
                )
            return read_npy(path)
        rows = format_named(form).read(read_text(path), layers)
    except ValueError as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if len({len(row) for row in rows}) != 1:
        raise InputError(f"{path}: layers with different numbers of slots")
    return np.array(rows, dtype=np.int64)


def _require_map(today: IntArray, layers: int, experts: int, gpus: int) -> None:
    what = "the map in use"
    if today.dtype.kind not in "iu" or today.ndim != 2 or len(today) != layers:
        raise InputError(f"{what}: whole numbers, {layers} layers of slots, are needed")
    if today.shape[1] % gpus:
        raise InputError(f"{what}: {today.shape[1]} slots are not equally many on {gpus} GPUs")
    if today.min(initial=0) < 0 or today.max(initial=0) >= experts:
        raise InputError(f"{what}: experts are 0 to {experts - 1}, no slot is empty")
    for l, row in enumerate(today):
        missing = np.setdiff1d(np.arange(experts), row)
        if len(missing):
            raise InputError(f"{what}: layer {l} has no expert {missing[0]}")


def _require_positive(**sizes: float | None) -> None:
    lines = [
        f"{name}: must be above 0, not {size:g}"
        for name, size in sizes.items()
        if size is not None and not size > 0
    ]
    if lines:
        raise InputError(lines)
