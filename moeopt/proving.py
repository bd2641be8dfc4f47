"""Lower bounds that take work, layer by layer: relaxations, searches, and which one fits where.

``placement`` and ``replication`` with slots separate by layer: the sum of the layers' lower bounds
is one of the instance. Memory that couples the layers is dropped, which only lowers the bound.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from moeopt import dispatch
from moeopt.bounds import combinatorial_bounds
from moeopt.problem import FloatArray, ProblemData

Stop = Callable[[], bool]
OnBound = Callable[[float], None]

#: Sums of so few terms lose less than this share; the total is lowered by it.
_SAFE = 1.0 - 2.0**-45
#: Share of the time left that a method gets for all layers while others wait.
FIRST_SHARE = 0.7
#: A layer's bound within this share of its plan needs no more work.
CLOSED = 1e-9


@dataclass(frozen=True)
class LayerProof:
    """What a method proves of one layer: a lower bound and, perhaps, a better plan (E, G)."""

    value: float
    hosts: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Task:
    """What a method is asked for beside its layer.

    Attributes
    ----------
    upper : float or None
        Value of the best plan known.
    hosts : bool array, shape (E, G), or None
        That plan.
    time_limit_s : float
    stop : callable
        Whether to end at once.
    on_bound : callable
        To be called with better bounds on the way.
    """

    upper: float | None
    hosts: npt.NDArray[np.bool_] | None
    time_limit_s: float
    stop: Stop
    on_bound: OnBound


@dataclass(frozen=True)
class Method:
    """A way to prove lower bounds of one layer.

    Attributes
    ----------
    fits : callable
        None, or why the method does not take the (one-layer) data, in words.
    run : callable
        ``run(layer, task)``.
    """

    name: str
    proof: str
    fits: Callable[[ProblemData], str | None]
    run: Callable[[ProblemData, Task], LayerProof]


@dataclass
class Proof:
    """Lower bound of an instance, summed over its layers.

    Attributes
    ----------
    value : float
    by_layer : float array, shape (L,)
    methods : list of str
        The method behind each layer's bound.
    hosts : bool array, shape (L, E, G), or None
        The given plan with the layers replaced for which a method found a better one.
    """

    value: float
    by_layer: FloatArray
    methods: list[str]
    hosts: npt.NDArray[np.bool_] | None
    seconds: float

    @property
    def source(self) -> str:
        """Names of the methods, with their numbers of layers where there are several."""
        counted = Counter(self.methods)
        if len(self.methods) == 1:
            return self.methods[0]
        return ", ".join(f"{name} ({n} layers)" for name, n in counted.most_common())


def one_layer(data: ProblemData, l: int) -> ProblemData:
    """Return layer l alone, limited by slots only."""
    return replace(
        data,
        layers=1,
        scenarios=(data.scenarios[l],),
        load=data.load[l : l + 1],
        free_mib=None,
        gpu_kind=np.zeros(data.gpus, dtype=np.int64),
        layer_numbers=data.layer_numbers[l : l + 1],
    )


def layer_values(data: ProblemData, hosts: npt.NDArray[np.bool_]) -> FloatArray:
    """Expected time of each layer of a plan, shape (L,)."""
    times, _ = dispatch.scenario_times(data, hosts)
    return np.array(
        [
            math.fsum((scenarios.weight * t).tolist())
            for scenarios, t in zip(data.scenarios, times, strict=True)
        ]
    )


def why_not(data: ProblemData) -> str | None:
    """None if layers can be bounded one by one, else the reason."""
    if data.problem not in ("placement", "replication"):
        return f"{data.problem} does not separate by layer"
    if data.layer_time.form != "unit":
        return "the layer time is not in expert-time units"
    if data.slots is None:
        return "memory alone limits: layers do not separate"
    return None


def prove(
    data: ProblemData,
    methods: list[Method],
    *,
    hosts: npt.NDArray[np.bool_] | None,
    time_limit_s: float,
    gap: float = CLOSED,
    stop: Stop = lambda: False,
    on_bound: OnBound = lambda value: None,
) -> Proof:
    """Bound every layer with one method after the other, each layer within its share of the time.

    Parameters
    ----------
    hosts : bool array, shape (L, E, G), or None
        The best plan known; the search methods want its value.
    gap : float
        A layer whose relative gap is at most this is left.
    on_bound : callable
        Called with the bound of the instance whenever it rises.
    """
    begin = time.monotonic()
    layers = [one_layer(data, l) for l in range(data.layers)]
    uppers: list[float | None] = [None] * data.layers
    if hosts is not None:
        uppers = layer_values(data, hosts).tolist()
    hosts = None if hosts is None else hosts.copy()
    bounds, names = np.zeros(data.layers), [""] * data.layers
    for l, layer in enumerate(layers):
        best = combinatorial_bounds(layer)[0]
        bounds[l], names[l] = best.value, best.method

    def total() -> float:
        return math.fsum(bounds.tolist()) * _SAFE

    def raised(l: int, value: float, name: str) -> None:
        if value > bounds[l]:
            bounds[l], names[l] = value, name
            on_bound(total())

    def is_open(l: int) -> bool:
        upper = uppers[l]
        return upper is None or upper - bounds[l] > gap * upper

    for i, method in enumerate(methods):
        left = time_limit_s - (time.monotonic() - begin)
        pass_end = left if i == len(methods) - 1 else FIRST_SHARE * left
        pass_end += time.monotonic() - begin
        waiting = [l for l in range(data.layers) if is_open(l) and method.fits(layers[l]) is None]
        for position, l in enumerate(waiting):
            left = pass_end - (time.monotonic() - begin)
            if left <= 0 or stop():
                break
            task = Task(
                uppers[l],
                None if hosts is None else hosts[l],
                left / (len(waiting) - position),
                stop,
                lambda value, l=l, name=method.name: raised(l, value, name),  # type: ignore[misc]
            )
            proof = method.run(layers[l], task)
            raised(l, proof.value, method.name)
            if proof.hosts is not None and hosts is not None:
                value = float(layer_values(layers[l], proof.hosts[None])[0])
                before = uppers[l]
                if before is None or value < before:
                    uppers[l], hosts[l] = value, proof.hosts
    return Proof(total(), bounds, names, hosts, time.monotonic() - begin)
