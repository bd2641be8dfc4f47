"""Arrays in instance files: strict JSON lists, or ``{"npz": "KEY"}`` in a sidecar file."""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt
from pydantic import GetJsonSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from moeopt.errors import InputError
from moeopt.files import limited, read_bytes, shown
from moeopt.instance_limits import MOST_CELLS, product_problem

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Rows:
    """Ragged integer rows: row ``r`` is ``values[ptr[r]:ptr[r + 1]]``."""

    ptr: npt.NDArray[np.int64]
    values: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ptr) - 1

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Entries of each row, shape (rows,)."""
        return np.diff(self.ptr)

    @property
    def row(self) -> npt.NDArray[np.int64]:
        """Row of each entry, shape (entries,)."""
        return np.repeat(np.arange(len(self)), self.sizes)

    def tolist(self) -> list[list[int]]:
        """Return the rows as lists."""
        values = self.values.tolist()
        bounds = self.ptr.tolist()
        return [values[a:b] for a, b in pairwise(bounds)]

    def padded(self) -> npt.NDArray[np.int64]:
        """Return the rows as a rectangle, short rows filled with −1."""
        width = int(self.sizes.max(initial=0))
        rectangle = np.full((len(self), width), -1, dtype=np.int64)
        rectangle[np.arange(width) < self.sizes[:, None]] = self.values
        return rectangle


def one_a_row(value: Any) -> Any:
    """Put each number of a plain list into a row of its own; leave everything else as it is."""
    if isinstance(value, list | tuple) and value and all(type(entry) is int for entry in value):
        return [[entry] for entry in value]
    return value


@dataclass(frozen=True)
class ArrayField:
    """Pydantic annotation of a field that holds numbers.

    Attributes
    ----------
    kind : {"integers", "numbers"}
        int64 and float64 when read. Booleans, texts and numbers that are not finite are refused.
    shape : {"list", "table", "rows"}
        One dimension, two, or ragged rows (:class:`Rows`). In a sidecar ragged rows are a
        rectangle whose short rows are filled with −1.
    most : float
        Largest entry; entries below its negative are refused, too.
    columns : int, optional
        Required width of a table.
    single : bool
        Whether a list of one number may stand without its brackets; or a row of one number, all
        rows so or none: :func:`one_a_row` reads those.
    """

    kind: Literal["integers", "numbers"]
    shape: Literal["list", "table", "rows"]
    most: float
    columns: int | None = None
    single: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(self._read)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        inline: dict[str, Any] = {"type": "integer" if self.kind == "integers" else "number"}
        inline["maximum"] = self.most
        if self.shape != "list":
            inline = {"type": "array", "items": inline}
            if self.columns is not None:
                inline |= {"minItems": self.columns, "maxItems": self.columns}
        reference = {
            "type": "object",
            "properties": {"npz": {"type": "string"}},
            "required": ["npz"],
            "additionalProperties": False,
        }
        lists = [{"type": "array", "items": inline}]
        if self.single:
            lists.append(inline)
        return {"anyOf": [*lists, reference]}

    def _read(self, value: Any, info: ValidationInfo) -> Array | Rows:
        if isinstance(value, Mapping):
            value = self._referenced(value, info.context)
        if isinstance(value, Rows) and self.shape == "rows":
            return value
        if isinstance(value, np.ndarray):
            return self._from_array(value)
        if self.single and self.shape == "list" and type(value) in (int, float):
            value = [value]
        if not isinstance(value, list | tuple):
            what = "a number, a list" if self.single and self.shape == "list" else "a list"
            refuse(f': must be {what} or {{"npz": "KEY"}}, not {shown(value)}')
        return self._from_lists(value)

    def _referenced(self, value: Mapping[str, Any], context: Any) -> Array:
        if set(value) != {"npz"} or not isinstance(value["npz"], str):
            refuse(f': must be a list or {{"npz": "KEY"}}, not {shown(dict(value))}')
        if context is None:
            refuse(': {"npz": …} needs `arrays`, the file that holds it')
        lookup: Callable[[str], Array] = context
        return lookup(value["npz"])

    def _from_array(self, value: Array) -> Array | Rows:
        dimensions = 1 if self.shape == "list" else 2
        if value.ndim != dimensions:
            refuse(f": must have {dimensions} dimensions, not {value.ndim}")
        if value.dtype.kind not in ("iu" if self.kind == "integers" else "iuf"):
            refuse(f": must hold {self.kind}, not {value.dtype}")
        if value.dtype.kind == "u" and value.size and value.max() > np.iinfo(np.int64).max:
            refuse(": holds a number that is too large")
        if self.shape != "rows":
            return self._finished(value)
        present = value != -1
        ptr = np.concatenate(([0], np.cumsum(present.sum(axis=1))))
        return self._rows(ptr, value[present])

    def _from_lists(self, value: list[Any] | tuple[Any, ...]) -> Array | Rows:
        if self.shape == "list":
            self._check_numbers(value, lambda i: f"[{i}]")
            return self._finished(self._flat(value))
        bad = [i for i, row in enumerate(value) if not isinstance(row, list | tuple)]
        if bad:
            lines = [f"[{i}]: must be a list, not {shown(value[i])}" for i in bad[:20]]
            refuse(*limited(lines, len(bad)))
        sizes = np.fromiter(map(len, value), dtype=np.int64, count=len(value))
        ptr = np.concatenate(([0], np.cumsum(sizes)))

        flat = list(chain.from_iterable(value))
        self._check_numbers(flat, partial(_place_in_rows, ptr))
        if self.shape == "rows":
            return self._rows(ptr, self._flat(flat))
        width = self.columns or int(sizes.max(initial=0))
        wrong = np.flatnonzero(sizes != width)
        if len(wrong):
            lines = [f"[{i}]: has {sizes[i]} entries, not {width}" for i in wrong[:20]]
            refuse(*limited(lines, len(wrong)))
        return self._finished(self._flat(flat).reshape(len(value), width))

    def _check_numbers(self, flat: Any, place: Callable[[int], str]) -> None:
        allowed = {int} if self.kind == "integers" else {int, float}
        if set(map(type, flat)) <= allowed:  # runs in C: lists have millions of entries
            return
        good = (int, np.integer) if self.kind == "integers" else (int, float, np.number)
        bad = [i for i, v in enumerate(flat) if isinstance(v, bool) or not isinstance(v, good)]
        word = "whole number" if self.kind == "integers" else "number"
        lines = [f"{place(i)}: must be a {word}, not {shown(flat[i])}" for i in bad[:20]]
        if bad:
            refuse(*limited(lines, len(bad)))

    def _flat(self, flat: Any) -> Array:
        try:
            return np.array(flat, dtype=np.int64 if self.kind == "integers" else np.float64)
        except OverflowError:
            refuse(": holds a number that is too large")

    def _finished(self, value: Array) -> Array:
        if value.ndim == 2 and self.columns not in (None, value.shape[1]):
            refuse(f": has {value.shape[1]} columns, not {self.columns}")
        finite = np.isfinite(value)
        if not finite.all():
            where = np.argwhere(~finite)
            lines = [
                "".join(f"[{i}]" for i in place) + ": must be a finite number"
                for place in where[:20].tolist()
            ]
            refuse(*limited(lines, len(where)))
        self._check_size(
            value,
            lambda i: "".join(f"[{j}]" for j in np.unravel_index(i, value.shape)),
        )
        return _frozen(value, np.int64 if self.kind == "integers" else np.float64)

    def _rows(self, ptr: Array, values: Array) -> Rows:
        self._check_size(values, partial(_place_in_rows, ptr))
        return Rows(_frozen(ptr, np.int64), _frozen(values, np.int64))

    def _check_size(self, values: Array, place: Callable[[int], str]) -> None:
        wrong = np.flatnonzero((values > self.most) | (values < -self.most))
        if len(wrong):
            given = values.ravel()[wrong[:20]].tolist()
            lines = [
                f"{place(i)}: must be at {word} {limit:,.15g}, not {v}"
                for i, v in zip(wrong.tolist(), given, strict=False)
                for word, limit in [("most", self.most) if v > 0 else ("least", -self.most)]
            ]
            refuse(*limited(lines, len(wrong)))


def _place_in_rows(ptr: Array, i: int) -> str:
    row = int(np.searchsorted(ptr, i, side="right")) - 1
    return f"[{row}][{i - ptr[row]}]"


def refuse(*lines: str) -> NoReturn:
    """Report problems of a field; each line continues the field's JSON path."""
    raise PydanticCustomError("array", "does not fit", {"lines": list(lines)})


def open_sidecar(path: Path, sha256: str) -> Callable[[str], Array]:
    """Open an ``.npz`` file whose bytes have the given SHA-256.

    Returns
    -------
    callable
        Looks an array up by its key; an unknown key is a problem of the field that asks for it.

    Raises
    ------
    InputError
        The file is missing, differs from its hash or is no npz file.
    """
    try:
        raw = read_bytes(path)
    except InputError as error:
        raise InputError(f"arrays: {error}") from None
    found = hashlib.sha256(raw).hexdigest()
    if found != sha256.lower():
        raise InputError(f"arrays_sha256: {path} has SHA-256 {found}, not {sha256}")
    try:
        archive = np.load(io.BytesIO(raw), allow_pickle=False)
        keys = set(archive.files)
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(f"arrays: {path} is no npz file ({error})") from None

    def lookup(key: str) -> Array:
        if key not in keys:
            refuse(f": {path.name} has no array {key!r}")
        try:
            numbers = _numbers_claimed(archive, key)
            lines = list(product_problem("", [(numbers, "numbers")], MOST_CELLS))
            array: Array = np.zeros(0) if lines else archive[key]
        except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
            refuse(f": the array {key!r} of {path.name} cannot be read ({error})")
        if lines:
            refuse(*lines)
        return array

    return lookup


def _numbers_claimed(archive: Any, key: str) -> int:
    """Return how many numbers an array of an archive has, by its header alone."""
    with archive.zip.open(f"{key}.npy") as file:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            header = np.lib.format.read_array_header_2_0
        shape, _, _ = header(file)
    return math.prod(shape)


def sidecar_bytes(arrays: Mapping[str, Array]) -> bytes:
    """Pack arrays as ``.npz``; the same arrays give the same bytes."""
    packed = io.BytesIO()
    # np.savez writes today's date into the archive; a fixed date keeps hashes reproducible.
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for key in sorted(arrays):
            one = io.BytesIO()
            np.save(one, _compact(arrays[key]), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{key}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, one.getvalue())
    return packed.getvalue()


def _compact(array: Array) -> Array:
    if array.size and array.dtype.kind == "f" and (np.abs(array) < 2**53).all():
        whole = array.astype(np.int64)
        if (whole == array).all():
            array = whole
    if array.size and array.dtype.kind == "i":
        for small in (np.uint8, np.int8, np.int16, np.int32):
            if np.iinfo(small).min <= array.min() and array.max() <= np.iinfo(small).max:
                return array.astype(small)
    return array


def _frozen(array: Array, dtype: type[np.generic]) -> Array:
    kept = np.array(array, dtype=dtype, order="C")
    if kept.dtype.kind == "f":
        kept += 0.0  # −0.0 becomes 0.0: equal numbers, equal hashes
    kept.setflags(write=False)
    return kept
