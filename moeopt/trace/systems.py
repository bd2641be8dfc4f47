"""Load statistics of TensorRT-LLM and vLLM, and plain matrices."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moeopt import matrix_file
from moeopt.errors import InputError
from moeopt.files import read_text
from moeopt.trace.loads import LoadTrace, load_trace, logical


def read_tensorrt(path: Path) -> LoadTrace:
    """Read an ``expert_statistic`` folder of TensorRT-LLM, one window for each iteration.

    ``rank<r>.safetensors`` hold counts named ``<iteration>_<layer>``; ranks are summed. Other files
    of some versions (raw choices, co-occurrences) are left alone.

    Raises
    ------
    InputError
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    files = [f for f in sorted(path.glob("rank*.safetensors")) if re.fullmatch(r"rank\d+", f.stem)]
    if not files:
        raise InputError(f"{path}: no rank<number>.safetensors in this folder")
    counts: dict[tuple[int, int], npt.NDArray[np.float64]] = {}
    for file in files:
        try:
            arrays = load_file(file)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{file}: cannot be read: {error}") from error
        for name, array in arrays.items():
            found = re.fullmatch(r"(\d+)_(\d+)", name)
            if found is None:
                raise InputError(f"{file}: {name!r} is not named <iteration>_<layer>")
            key = int(found[1]), int(found[2])
            counts[key] = counts.get(key, 0.0) + array.astype(np.float64)
    iterations, layers = (sorted({key[i] for key in counts}) for i in (0, 1))
    missing = [(i, l) for i in iterations for l in layers if (i, l) not in counts]
    if missing:
        raise InputError(f"{path}: iteration {missing[0][0]} has no layer {missing[0][1]}")
    if len({len(array) for array in counts.values()}) != 1:
        raise InputError(f"{path}: layers with different numbers of experts")
    load = np.stack([[counts[i, l] for l in layers] for i in iterations])
    return load_trace(path.name, load, tuple(layers))


def read_vllm(path: Path) -> LoadTrace:
    """Read ``eplb_load_stats`` records (JSON lines; vLLM pull request 41141), one window each.

    Loads are those of physical slots; each record has its map.

    Raises
    ------
    InputError
    """
    windows = []
    experts = 0
    for number, line in enumerate(read_text(path).splitlines(), 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}: line {number}: not JSON: {error}") from error
        if not isinstance(record, dict) or record.get("record_type") != "eplb_load_stats":
            continue
        try:
            loads = np.asarray(record["expert_load"], dtype=np.float64)
            slots = np.asarray(record["p2l_map"], dtype=np.int64)
            experts = max(experts, int(slots.max()) + 1)
            windows.append(logical(loads, slots, experts))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: line {number}: not a load record: {error!r}") from error
        except InputError as error:
            raise InputError(
                [f"{path}: line {number}: {text}" for text in error.problems]
            ) from error
    if not windows:
        raise InputError(f"{path}: there is no eplb_load_stats record in it")
    if len({window.shape for window in windows}) != 1:
        raise InputError(f"{path}: records of different shapes")
    return load_trace(path.stem, np.stack(windows))


def read_matrix(path: Path) -> LoadTrace:
    """Read loads from ``.npy`` or ``.csv``: layers × experts (``.npy``: windows before them).

    Raises
    ------
    InputError
    """
    return load_trace(path.stem, matrix_file.read_matrix(path, "loads"), source=str(path))
