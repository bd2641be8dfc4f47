"""Expert choices of tokens, and requests, from plain files."""

from __future__ import annotations

import csv
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moeopt.errors import InputError
from moeopt.files import read_text
from moeopt.matrix_file import open_npz, read_npy

Arrays = dict[str, npt.NDArray[Any]]


def read_choices(path: Path, experts: int | None = None) -> Arrays:
    """Read expert choices: ``.npy`` [tokens, layers, k], or ``.npz`` with ``ids`` and ``offsets``.

    Parameters
    ----------
    experts : int, optional
        Experts of a layer; default: what the file says, else the largest choice and one.

    Raises
    ------
    InputError
    """
    if path.suffix == ".npy":
        arrays = {"ids": read_npy(path)}
    else:
        with open_npz(path) as archive:
            arrays = dict(archive)
    if "ids" not in arrays:
        raise InputError(f"{path}: there is no array 'ids' in it")
    ids = arrays["ids"]
    if ids.ndim != 3 or ids.size == 0 or not np.issubdtype(ids.dtype, np.integer):
        raise InputError(
            f"{path}: ids are {ids.dtype} of shape {ids.shape}, expected whole numbers "
            "[tokens, layers, k]"
        )
    if experts is None:
        experts = int(arrays["experts"]) if "experts" in arrays else int(ids.max()) + 1
    return {
        "ids": ids.astype(np.uint16),
        "offsets": arrays.get("offsets", np.array([0, len(ids)])).astype(np.int64),
        "experts": np.array(experts),
        "layers": np.asarray(arrays.get("layers", np.arange(ids.shape[1]))),
    }


def read_azure(path: Path) -> Arrays:
    """Read arrivals and lengths from a CSV of the Azure LLM inference traces.

    Raises
    ------
    InputError
    """
    rows = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for number, row in enumerate(csv.DictReader(file), 2):
                try:
                    time = datetime.fromisoformat(row["TIMESTAMP"][:26])
                    rows.append((time, int(row["ContextTokens"]), int(row["GeneratedTokens"])))
                except (KeyError, TypeError, ValueError) as error:
                    raise InputError(
                        f"{path}: line {number}: needs TIMESTAMP, ContextTokens and "
                        f"GeneratedTokens ({error!r})"
                    ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if not rows:
        raise InputError(f"{path}: there are no requests in it")
    first = min(row[0] for row in rows)
    return _arrivals(path, [((time - first).total_seconds() * 1000, p, o) for time, p, o in rows])


def read_mooncake(path: Path) -> Arrays:
    """Read arrivals and lengths from JSON lines of the Mooncake traces.

    Raises
    ------
    InputError
    """
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        try:
            entry = json.loads(line)
            rows.append(
                (
                    float(entry["timestamp"]),
                    int(entry["input_length"]),
                    int(entry["output_length"]),
                )
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: line {number}: needs timestamp, input_length and output_length "
                f"({error!r})"
            ) from error
    return _arrivals(path, rows)


def _arrivals(path: Path, rows: list[tuple[float, int, int]]) -> Arrays:
    """Requests with at least one output token, in the order of their arrival."""
    kept = sorted(row for row in rows if row[2] >= 1)
    if not kept or min(row[1] for row in kept) < 0:
        raise InputError(f"{path}: no request with output, or a negative length")
    first = kept[0][0]
    return {
        "arrival_ms": np.array([round(row[0] - first) for row in kept], dtype=np.int64),
        "prompt_tokens": np.array([row[1] for row in kept], dtype=np.int64),
        "output_tokens": np.array([row[2] for row in kept], dtype=np.int64),
    }
