"""Solutions in the words of the domain, as data and as ``moeopt-solution/1`` files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from operator import index
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError

from moeopt.errors import InputError
from moeopt.files import (
    check_version,
    json_bytes,
    limited,
    problem_lines,
    read_json_object,
    write_bytes_atomic,
)
from moeopt.instance_limits import MOST_COUNT, MOST_LOAD
from moeopt.instance_parts import Number, Text
from moeopt.problem import PROBLEMS

if TYPE_CHECKING:
    from moeopt.instance import Instance
    from moeopt.problem import ProblemData

SCHEMA: Literal["moeopt-solution/1"] = "moeopt-solution/1"

Integer = Annotated[int, Strict(), Field(ge=-MOST_COUNT, le=MOST_COUNT)]

#: Tokens computed by one replica: (expert, gpu, tokens).
Part = tuple[Integer, Integer, Annotated[Number, Field(ge=-MOST_LOAD, le=MOST_LOAD)]]
#: What leaves a cache: (request, layer, expert).
Eviction = tuple[Integer, Integer, Integer]


class Wave(BaseModel):
    """Requests decoded together. ``requests[class][gpu]`` = how many; absent classes have none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests: dict[Text, list[Integer]]


class Solution(BaseModel):
    """One plan, as it is written to a file.

    Attributes
    ----------
    instance, instance_sha256 : str
        Name and content hash of the instance that the plan is for.
    problem : str
    objective : float or None
        What the author of the plan claims; the checker recomputes it.
    hosts : list, [layers][experts] of lists of GPUs
        GPUs that hold a replica of the expert.
    waves : list of Wave or None
        Only for ``joint``.
    dispatch : list, [layers][scenarios or waves] of (expert, gpu, tokens), or None
        Tokens that each replica computes. Scenarios are numbered as in
        :class:`moeopt.problem.ProblemData` (as in the instance, repeated scenarios merged).
    evictions : list of (request, layer, expert), or None
        What leaves the cache at a request, before its experts are loaded; only for ``paging``.
    activated : list of int, [layers], or None
        Experts that every token keeps; only for ``activation``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_: Literal["moeopt-solution/1"] = Field(default=SCHEMA, alias="schema")
    instance: Text
    instance_sha256: Text | None = None
    problem: Text
    objective: Number | None = None
    hosts: list[list[list[Integer]]]
    waves: list[Wave] | None = None
    dispatch: list[list[list[Part]]] | None = None
    activated: list[Integer] | None = None
    evictions: list[Eviction] | None = None

    @classmethod
    def from_arrays(
        cls,
        data: ProblemData,
        hosts: npt.ArrayLike,
        *,
        requests: npt.ArrayLike | None = None,
        dispatch: npt.ArrayLike | Sequence[Sequence[Sequence[Any]]] | None = None,
        activated: Sequence[int] | None = None,
        objective: float | None = None,
    ) -> Solution:
        """Make a solution from arrays.

        Parameters
        ----------
        data : ProblemData
        hosts : bool array, shape (L, E, G)
        requests : int array, shape (C, W, G), optional
            Waves without requests are dropped, but where ``data.wave_steps`` gives each wave
            its own length, or ``data.wave_requests`` its requests.
        dispatch : float array, shape (W, L, E, G), or nested lists, optional
            Tokens of each replica: as an array by wave (zeros are left out), as lists
            [layer][scenario or wave] of (expert, gpu, tokens). Dropped waves are dropped here too.
        activated : sequence of int, [layers], optional
        objective : float, optional

        Raises
        ------
        ValueError
            A shape does not fit ``data``.
        """
        x = np.asarray(hosts, dtype=bool)
        _expect_shape("hosts", x, (data.layers, data.experts, data.gpus))
        waves, kept = None, None
        if requests is not None:
            z = np.asarray(requests)
            names = () if data.requests is None else data.requests.names
            _expect_shape("requests", z, (len(names), None, data.gpus))
            if not np.array_equal(z, z.astype(np.int64)):
                raise ValueError("requests must be whole numbers")
            z = z.astype(np.int64)
            present: npt.NDArray[np.bool_] = np.any(z, axis=2)
            kept = np.any(present, axis=0) | (data.wave_steps is not None)
            kept |= data.wave_requests is not None
            waves = [
                Wave(requests={names[c]: z[c, w].tolist() for c in np.flatnonzero(present[:, w])})
                for w in np.flatnonzero(kept)
            ]
        return cls(
            instance=data.name,
            instance_sha256=data.sha256,
            problem=data.problem,
            objective=None if objective is None else float(objective),
            hosts=_hosts_lists(x),
            waves=waves,
            dispatch=_dispatch_lists(dispatch, kept, data),
            activated=None if activated is None else [int(j) for j in activated],
        )

    def hosts_array(self, gpus: int) -> npt.NDArray[np.bool_]:
        """Return hosts as a bool array, shape (L, E, ``gpus``).

        Raises
        ------
        InputError
            A GPU does not exist, layers differ in their number of experts, or it is of ``paging``.
        """
        if self.problem == "paging":
            raise InputError("hosts: a plan of paging has none: it says what leaves a cache")
        sizes = {len(layer) for layer in self.hosts}
        if len(sizes) > 1:
            raise InputError("hosts: layers have different numbers of experts")
        if lines := _hosts_outside(self, gpus):
            raise InputError(lines)
        x = np.zeros((len(self.hosts), max(sizes, default=0), gpus), dtype=bool)
        for l, layer in enumerate(self.hosts):
            for e, held in enumerate(layer):
                x[l, e, held] = True
        return x

    def requests_array(self, class_names: Sequence[str], gpus: int) -> npt.NDArray[np.int64]:
        """Return requests as an int array, shape (len(class_names), W, ``gpus``).

        Raises
        ------
        InputError
            A class is unknown, or a list has not one entry a GPU.
        """
        if lines := _requests_misfits(self, class_names, gpus):
            raise InputError(lines)
        waves = self.waves or []
        z = np.zeros((len(class_names), len(waves), gpus), dtype=np.int64)
        row = {name: c for c, name in enumerate(class_names)}
        for w, wave in enumerate(waves):
            for name, counts in wave.requests.items():
                z[row[name], w] = counts
        return z


def read_solution_file(path: str | os.PathLike[str]) -> Solution:
    """Read a ``.json`` or ``.json.gz`` solution; InputError with one line for each problem."""
    document = read_json_object(path)
    check_version(document, SCHEMA)
    try:
        return Solution.model_validate(document)
    except ValidationError as error:
        raise InputError(problem_lines(error, Solution)) from None


def write_solution_file(
    solution: Solution, path: str | os.PathLike[str], *, force: bool = False
) -> None:
    """Write a solution atomically; InputError where the file exists and ``force`` is false."""
    text = solution.model_dump_json(by_alias=True, exclude_none=True)
    write_bytes_atomic(path, json_bytes(path, text + "\n"), force=force)


def _expect_shape(name: str, array: npt.NDArray[Any], shape: tuple[int | None, ...]) -> None:
    fits = array.ndim == len(shape) and all(
        n is None or n == m for n, m in zip(shape, array.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} has shape {array.shape}, expected {shape}")


def _hosts_lists(x: npt.NDArray[np.bool_]) -> list[list[list[int]]]:
    layers, experts, _ = x.shape
    # One pass over the set bits instead of one numpy call for each of the L·E experts.
    lists: list[list[list[int]]] = [[[] for _ in range(experts)] for _ in range(layers)]
    for l, e, g in np.argwhere(x).tolist():
        lists[l][e].append(g)
    return lists


def _dispatch_lists(
    dispatch: Any, kept: npt.NDArray[np.bool_] | None, data: ProblemData
) -> list[list[list[Part]]] | None:
    if dispatch is None:
        return None
    lists = _array_lists(dispatch, data) if isinstance(dispatch, np.ndarray) else dispatch
    if kept is not None and any(len(layer) != len(kept) for layer in lists):
        raise ValueError(f"dispatch and requests differ in waves, requests have {len(kept)}")
    # Lists may hold numpy's numbers; a file holds plain ones.
    return [
        [
            [(index(e), index(g), float(tokens)) for e, g, tokens in computed]
            for s, computed in enumerate(layer)
            if kept is None or kept[s]
        ]
        for layer in lists
    ]


def _array_lists(y: npt.NDArray[Any], data: ProblemData) -> list[list[list[Part]]]:
    _expect_shape("dispatch", y, (None, data.layers, data.experts, data.gpus))
    lists: list[list[list[Part]]] = [[[] for _ in range(len(y))] for _ in range(data.layers)]
    where = np.argwhere(y)
    for (w, l, e, g), tokens in zip(where.tolist(), y[tuple(where.T)].tolist(), strict=True):
        lists[l][w].append((e, g, tokens))
    return lists


def validate_against(instance: Instance, solution: Solution) -> list[str]:
    """List what keeps a solution from being one of the instance at all.

    These are mismatches of names, shapes and indices; limits (memory, slots, requests served) are
    the checker's.

    Returns
    -------
    list of str
        One line for each problem, starting with its JSON path; empty where the solution fits.
    """
    if other := _other_instance(instance, solution):
        return [other]  # that its shapes differ as well is no news
    return [
        *_problem_misfits(solution),
        *_hosts_misfits(instance, solution),
        *_hosts_outside(solution, instance.cluster.gpus),
        *_waves_misfits(instance, solution),
        *_activated_misfits(instance, solution),
        *_evictions_misfits(instance, solution),
        *_dispatch_misfits(instance, solution),
    ]


def _other_instance(instance: Instance, solution: Solution) -> str | None:
    if solution.instance != instance.name:
        return (
            f"instance: this solution is for another instance, {solution.instance!r}, "
            f"not {instance.name!r}"
        )
    if solution.instance_sha256 not in (None, instance.sha256):
        return (
            "instance_sha256: this solution is for another instance "
            f"of the name {instance.name!r} (its content hash differs)"
        )
    return None


def _problem_misfits(solution: Solution) -> Iterator[str]:
    if solution.problem not in PROBLEMS:
        yield f"problem: {solution.problem!r} is unknown (known: {', '.join(PROBLEMS)})"


def _hosts_misfits(instance: Instance, solution: Solution) -> Iterator[str]:
    layers, experts = instance.moe.layers, instance.moe.experts
    if solution.problem == "paging":
        if solution.hosts:
            yield "hosts: a plan of paging has none"
        return
    if len(solution.hosts) != layers:
        yield f"hosts: has {len(solution.hosts)} layers, the instance {layers}"
    lines = [
        f"hosts[{l}]: has {len(layer)} experts, the instance {experts}"
        for l, layer in enumerate(solution.hosts)
        if len(layer) != experts
    ]
    yield from limited(lines, len(lines))


def _waves_misfits(instance: Instance, solution: Solution) -> Iterator[str]:
    if solution.problem == "joint" and solution.waves is None:
        yield "waves: missing, the problem is joint"
    if solution.problem != "joint" and solution.waves is not None:
        yield f"waves: the problem {solution.problem} has none"
        return
    names = [c.name for c in instance.requests or ()]
    yield from _requests_misfits(solution, names, instance.cluster.gpus)
    lines = [
        f"waves[{w}].requests.{name}[{g}]: must not be negative, is {count}"
        for w, wave in enumerate(solution.waves or ())
        for name, counts in wave.requests.items()
        for g, count in enumerate(counts)
        if count < 0
    ]
    yield from limited(lines, len(lines))


def _activated_misfits(instance: Instance, solution: Solution) -> Iterator[str]:
    kept, layers, top_k = solution.activated, instance.moe.layers, instance.moe.top_k
    if solution.problem != "activation":
        if kept is not None:
            yield f"activated: the problem {solution.problem} has none"
    elif kept is None:
        yield "activated: missing, the problem is activation"
    else:
        if len(kept) != layers:
            yield f"activated: has {len(kept)} layers, the instance {layers}"
        lines = [
            f"activated[{l}]: must be from 1 to {top_k}, is {j}"
            for l, j in enumerate(kept)
            if not 1 <= j <= top_k
        ]
        yield from limited(lines, len(lines))


def _evictions_misfits(instance: Instance, solution: Solution) -> Iterator[str]:
    evictions, layers, experts = solution.evictions, instance.moe.layers, instance.moe.experts
    if solution.problem != "paging":
        if evictions is not None:
            yield f"evictions: the problem {solution.problem} has none"
    elif evictions is None:
        yield "evictions: missing, the problem is paging"
    else:
        lines = [
            f"evictions[{i}]: request {t}, layer {l} or expert {e} does not exist"
            for i, (t, l, e) in enumerate(evictions)
            if not (t >= 0 and 0 <= l < layers and 0 <= e < experts)
        ]
        yield from limited(lines, len(lines))


def _dispatch_misfits(instance: Instance, solution: Solution) -> Iterator[str]:
    if solution.dispatch is None:
        return
    if len(solution.dispatch) != instance.moe.layers:
        yield f"dispatch: has {len(solution.dispatch)} layers, the instance {instance.moe.layers}"
    if solution.waves is not None:
        for l, waves in enumerate(solution.dispatch):
            if len(waves) != len(solution.waves):
                yield f"dispatch[{l}]: has {len(waves)} waves, `waves` has {len(solution.waves)}"
    experts, gpus = instance.moe.experts, instance.cluster.gpus
    lines = [
        f"dispatch[{l}][{s}][{i}]: expert {e} or GPU {g} does not exist "
        f"(experts are 0..{experts - 1}, GPUs are 0..{gpus - 1})"
        for l, layer in enumerate(solution.dispatch)
        for s, computed in enumerate(layer)
        for i, (e, g, _) in enumerate(computed)
        if not (0 <= e < experts and 0 <= g < gpus)
    ]
    yield from limited(lines, len(lines))


def _hosts_outside(solution: Solution, gpus: int) -> list[str]:
    lines = [
        f"hosts[{l}][{e}][{j}]: GPU {g} does not exist (GPUs are 0..{gpus - 1})"
        for l, layer in enumerate(solution.hosts)
        for e, held in enumerate(layer)
        for j, g in enumerate(held)
        if not 0 <= g < gpus
    ]
    return limited(lines, len(lines))


def _requests_misfits(solution: Solution, class_names: Sequence[str], gpus: int) -> list[str]:
    lines = []
    known = set(class_names)
    for w, wave in enumerate(solution.waves or []):
        for name, counts in wave.requests.items():
            path = f"waves[{w}].requests.{name}"
            if name not in known:
                lines.append(f"{path}: the instance has no such request class")
            elif len(counts) != gpus:
                lines.append(f"{path}: {len(counts)} entries, one for each of {gpus} GPUs expected")
    return limited(lines, len(lines))
