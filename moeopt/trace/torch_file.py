"""Tensors of ``torch.save`` files, without torch.

The zip format of torch 1.6 and later: ``<name>/data.pkl`` is a pickle whose tensors refer to raw
storages ``<name>/data/<key>``. The pickle may name nothing but tensors, dtypes and containers (as
``torch.load(weights_only=True)`` allows); anything else is refused before it is called.
"""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moeopt.errors import InputError

#: Storage classes (and dtypes) of torch, as numpy types; bfloat16 is widened when it is read.
_TYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_DTYPES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


def read_torch_file(path: str | os.PathLike[str]) -> Any:
    """Read what ``torch.save`` wrote; tensors become numpy arrays.

    Raises
    ------
    InputError
        Not such a file, or it holds something else than tensors, numbers, text and containers.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            pickles = [name for name in names if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise InputError(f"{path}: not written by torch.save (no data.pkl in it)")
            root = pickles[0].removesuffix("data.pkl")
            order = root + "byteorder"
            if order in names and archive.read(order) != b"little":
                raise InputError(f"{path}: written on a big-endian machine")
            return _Reader(archive, root).load()
    except zipfile.BadZipFile:
        raise InputError(
            f"{path}: not a zip file: torch.save wrote such files before torch 1.6; save it again"
        ) from None
    except (OSError, KeyError, EOFError, pickle.UnpicklingError, ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read as a torch file: {error}") from error


class _Reader(pickle.Unpickler):
    """Unpickler that knows tensors and containers only."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{root}data.pkl")))
        self._archive, self._root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor"):
            return _rebuild
        if module in ("torch", "torch.storage") and name in _TYPES:
            return name
        if module == "torch" and name in _DTYPES:
            return name
        raise pickle.UnpicklingError(
            f"it holds {module}.{name}: no tensor, number, text or container"
        )

    def persistent_load(self, pid: Any) -> npt.NDArray[Any]:
        kind, storage, key, _, count = pid
        if kind != "storage":
            raise pickle.UnpicklingError(f"it refers to a {kind}")
        raw = self._archive.read(f"{self._root}data/{key}")
        values = np.frombuffer(raw, dtype=_TYPES[storage])
        if len(values) < count:
            raise pickle.UnpicklingError(f"storage {key} is too short")
        if storage == "BFloat16Storage":  # the upper half of a float32
            values = (values.astype("<u4") << 16).view("<f4")
        return values


def _rebuild(
    storage: npt.NDArray[Any], offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> npt.NDArray[Any]:
    """Return a copy of the strided view of a storage."""
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min(size, default=1) > 0 and not (
        0 <= offset <= last < len(storage) and min(stride, default=0) >= 0
    ):
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    if 0 in size:
        return np.zeros(size, dtype=storage.dtype)
    steps = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps).copy()
