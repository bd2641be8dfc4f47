"""Load traces: tokens of every expert of every layer, window by window."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moeopt.errors import InputError
from moeopt.make.traces_shipped import Trace
from moeopt.matrix_file import open_npz

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LoadTrace:
    """Loads of the experts.

    Attributes
    ----------
    load : float array, shape (W, L, E)
        Tokens of each window (a forward pass, an iteration, or whatever was recorded).
    layers : tuple of int
        Number of each layer in the LLM.
    """

    name: str
    load: FloatArray
    layers: tuple[int, ...]

    @property
    def total(self) -> FloatArray:
        """Loads summed over the windows, shape (L, E)."""
        return self.load.sum(axis=0)

    def to_bytes(self) -> bytes:
        """An ``.npz`` with ``load`` and ``layers``."""
        file = io.BytesIO()
        np.savez_compressed(file, load=self.load, layers=np.array(self.layers, dtype=np.int64))
        return file.getvalue()


def load_trace(
    name: str,
    load: npt.ArrayLike,
    layers: tuple[int, ...] | None = None,
    *,
    source: str | None = None,
) -> LoadTrace:
    """Make a load trace from numbers: [layers][experts] or [windows][layers][experts].

    Layers without any load (dense ones) and windows without any are dropped.

    Parameters
    ----------
    source : str, optional
        The file, for the error lines; default: the name.

    Raises
    ------
    InputError
    """
    where = source or name
    try:
        array = np.asarray(load, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: loads must be numbers: {error}") from error
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or 0 in array.shape:
        raise InputError(
            f"{where}: loads have shape {array.shape}, expected layers × experts, or windows before"
        )
    if not np.isfinite(array).all() or (array < 0).any():
        raise InputError(f"{where}: loads must be finite and not negative")
    numbers = tuple(range(array.shape[1])) if layers is None else layers
    if len(numbers) != array.shape[1]:
        raise InputError(f"{where}: {len(numbers)} layer numbers for {array.shape[1]} layers")
    used = array.any(axis=(0, 2))
    array = array[array.any(axis=(1, 2))][:, used]
    if 0 in array.shape:
        raise InputError(f"{where}: every load is zero")
    return LoadTrace(name, array, tuple(numbers[i] for i in np.flatnonzero(used).tolist()))


def loads_of_choices(trace: Trace, windows: int) -> LoadTrace:
    """Count the choices of a routing trace in windows of consecutive requests.

    Parameters
    ----------
    windows : int
        Parts of about equally many requests.

    Raises
    ------
    InputError
        There are fewer requests than windows, or no windows at all.
    """
    requests = len(trace.lengths)
    if not 1 <= windows <= requests:
        raise InputError(f"{trace.name}: {requests} requests make 1 to {requests} windows")
    size, first = trace.experts, trace.offsets
    load = np.zeros((windows, trace.layers, size))
    for w, part in enumerate(np.array_split(np.arange(requests), windows)):
        ids = trace.ids[first[part[0]] : first[part[-1] + 1]]
        for l in range(trace.layers):
            load[w, l] = np.bincount(ids[:, l].ravel(), minlength=size)
    return load_trace(trace.name, load)


def read_load_trace(path: str | os.PathLike[str]) -> LoadTrace:
    """Read what :meth:`LoadTrace.to_bytes` wrote.

    Raises
    ------
    InputError
    """
    path = Path(path)
    with open_npz(path) as archive:
        if "load" not in archive:
            raise InputError(f"{path}: no load trace: there is no array 'load' in it")
        layers = tuple(archive["layers"].tolist()) if "layers" in archive else None
        return load_trace(path.stem, archive["load"], layers, source=str(path))


def logical(physical: npt.ArrayLike, experts_of_slots: npt.ArrayLike, experts: int) -> FloatArray:
    """Loads of experts from loads of physical slots.

    Parameters
    ----------
    physical : float array, shape (L, P)
    experts_of_slots : int array, shape (L, P)
        -1 where a slot is empty.
    experts : int

    Returns
    -------
    float array, shape (L, E)

    Raises
    ------
    InputError
        Shapes that differ, or an expert that does not exist.
    """
    loads, slots = np.asarray(physical, dtype=np.float64), np.asarray(experts_of_slots)
    if loads.shape != slots.shape or loads.ndim != 2:
        raise InputError(f"loads of shape {loads.shape} for a map of shape {slots.shape}")
    if slots.max(initial=-1) >= experts:
        raise InputError(f"the map names expert {slots.max()} of {experts}")
    found = np.zeros((len(loads), experts))
    for l, (row, names) in enumerate(zip(loads, slots, strict=True)):
        np.add.at(found[l], names[names >= 0], row[names >= 0])
    return found
