"""Numbers from ``.npy``, ``.npz`` and ``.csv`` files, with the place of what is none."""

from __future__ import annotations

import contextlib
import io
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moeopt.errors import InputError
from moeopt.files import read_bytes, read_text
from moeopt.words import counted


def read_matrix(path: Path, what: str) -> npt.NDArray[Any]:
    """Read an array of numbers; a ``.csv`` has two dimensions, and comments after ``#``.

    Parameters
    ----------
    what : str
        What the numbers are, for the error lines: ``loads``.

    Raises
    ------
    InputError
        The file cannot be read, or a value of it is no number: line and column are told.
    """
    if path.suffix not in (".npy", ".csv"):
        raise InputError(f"{path}: {what} are read from .npy or .csv")
    array = read_npy(path) if path.suffix == ".npy" else _read_csv(path, what)
    if array.dtype.kind not in "fiu":
        raise InputError(f"{path}: numbers are needed, not {array.dtype}")
    return array


def read_npy(path: Path) -> npt.NDArray[Any]:
    """Read a ``.npy`` file of any type but Python objects.

    Raises
    ------
    InputError
    """
    raw = read_bytes(path)
    try:
        array: npt.NDArray[Any] = np.lib.format.read_array(io.BytesIO(raw), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"{path}: not a .npy file of numbers: {error}") from error
    return array


@contextlib.contextmanager
def open_npz(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """Open an ``.npz`` file; its arrays are read when they are asked for, in the ``with`` block.

    Raises
    ------
    InputError
        The file cannot be read, or an array of it cannot.
    """
    raw = read_bytes(path)
    try:
        # What is no zip file numpy would take for a single array, or for a pickle.
        if not zipfile.is_zipfile(io.BytesIO(raw)):
            raise InputError(f"{path}: not an .npz file")
        with np.load(io.BytesIO(raw), allow_pickle=False) as archive:
            yield archive
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: not an .npz file that can be read: {error}") from error


def _read_csv(path: Path, what: str) -> npt.NDArray[Any]:
    rows: list[list[float]] = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        numbers = line.partition("#")[0].strip()
        if not numbers:
            continue
        row = []
        for column, text in enumerate(numbers.split(","), 1):
            try:
                row.append(float(text))
            except ValueError:
                where = f"{path}: line {number}, column {column}"
                raise InputError(f"{where}: {text.strip()!r} is not a number") from None
        if rows and len(row) != len(rows[0]):
            values = counted(len(row), "value", "values")
            raise InputError(
                f"{path}: line {number}: {values}, the lines before have {len(rows[0])}"
            )
        rows.append(row)
    if not rows:
        raise InputError(f"{path}: there are no {what} in it")
    return np.array(rows)
