"""Files with the same bytes every time: JSON laid out for people, ``.npz`` without dates."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

_DATE = (1980, 1, 1, 0, 0, 0)
_WIDTH = 100


def npz_bytes(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Pack arrays as ``.npz``, reproducibly.

    Members are sorted by name, carry one fixed date and are stored uncompressed (compressed bytes
    differ between versions of zlib).
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            member = io.BytesIO()
            array = np.ascontiguousarray(arrays[name])
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            np.lib.format.write_array(member, little, version=(1, 0), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=_DATE)
            info.create_system = 3  # Unix everywhere
            info.external_attr = 0o644 << 16
            archive.writestr(info, member.getvalue())
    return buffer.getvalue()


def json_bytes(document: Any) -> bytes:
    """Lay out a JSON document: what fits on a line is on one, and so is every flat list."""
    return (_layout(document, 0) + "\n").encode("utf-8")


def _layout(value: Any, indent: int) -> str:
    flat = json.dumps(value, ensure_ascii=False, allow_nan=False)
    nested = isinstance(value, dict) or (
        isinstance(value, list) and any(isinstance(item, dict | list) for item in value)
    )
    if not nested or len(flat) + indent <= _WIDTH:
        return flat
    pad = " " * (indent + 2)
    if isinstance(value, dict):
        items = [
            f"{pad}{json.dumps(key, ensure_ascii=False)}: {_layout(item, indent + 2)}"
            for key, item in value.items()
        ]
        return "{\n" + ",\n".join(items) + "\n" + " " * indent + "}"
    items = [pad + _layout(item, indent + 2) for item in value]
    return "[\n" + ",\n".join(items) + "\n" + " " * indent + "]"
