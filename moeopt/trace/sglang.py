"""Dumps of SGLang's expert distribution recorder.

``stat`` and ``stat_approx`` write one file with logical counts; ``per_pass`` and ``per_token`` one
for each rank, with counts or choices of *physical* experts, which the map in the file translates.
Source of the format: ``python/sglang/srt/eplb/expert_distribution.py`` of SGLang.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moeopt.errors import InputError
from moeopt.trace.loads import LoadTrace, load_trace, logical
from moeopt.trace.torch_file import read_torch_file

_NAME = "expert_distribution_recorder_*.pt"


def read_loads(path: Path) -> LoadTrace:
    """Read loads, one window for each forward pass; files of several ranks are summed.

    Rows of the recorder's ring buffer that were never filled are dropped; after a wrap-around rows
    are not in time order. Counts without windows (layers × experts) are one window.

    Raises
    ------
    InputError
    """
    documents = _documents(path)
    if "logical_count" in documents[0]:
        counts = [_array(d, "logical_count") for d in documents]
        windows = [count[None] if count.ndim == 2 else count for count in counts]
        if len({count.shape[1:] for count in windows}) > 1:
            raise InputError(f"{path}: dumps with different numbers of layers or experts")
        return load_trace(path.stem, np.concatenate(windows))
    passes: dict[int, npt.NDArray[np.float64]] = {}
    seen: set[tuple[int, int]] = set()
    for document in documents:
        experts_of_slots = _array(document, "last_physical_to_logical_map")
        experts = int(experts_of_slots.max()) + 1
        for record in _records(document):
            if "global_physical_count" in record:
                loads = logical(record["global_physical_count"], experts_of_slots, experts)
            else:
                loads = _choices_as_loads(record, experts_of_slots, experts)
            number, rank = _number(record, "forward_pass_id"), _number(record, "rank")
            if (number, rank) in seen:
                raise InputError(
                    f"{path}: forward pass {number} of rank {rank} twice: dumps of two servers, or "
                    "of one that was restarted: import them one by one"
                )
            seen.add((number, rank))
            passes[number] = passes.get(number, 0.0) + loads
    if not passes:
        raise InputError(f"{path}: there are no records in it")
    return load_trace(path.stem, np.stack([passes[number] for number in sorted(passes)]))


def read_choices(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read expert choices of tokens (``per_token``) as the arrays of a routing trace.

    Every forward pass of a rank is one "request" of the trace, but where the recorder noted the
    lengths of the prompts in it. Tokens without any choice only padded the batch; they are dropped.

    Raises
    ------
    InputError
    """
    parts: list[npt.NDArray[np.int64]] = []
    lengths: list[int] = []
    experts = 0
    for document in _documents(path):
        experts_of_slots = _array(document, "last_physical_to_logical_map").astype(np.int64)
        experts = max(experts, int(experts_of_slots.max()) + 1)
        for record in _records(document):
            if "topk_ids_of_layer" not in record:
                raise InputError(f"{path}: was not recorded per_token: there are no expert choices")
            ids = np.asarray(record["topk_ids_of_layer"], dtype=np.int64)  # layers, tokens, k
            rows = np.arange(len(ids))[:, None, None]
            names = np.where(ids >= 0, experts_of_slots[rows, np.maximum(ids, 0)], -1)
            names = names.transpose(1, 0, 2)
            names = names[(names >= 0).any(axis=(1, 2))]
            if len(names) == 0:
                continue
            parts.append(names)
            prompts = [int(n) for n in record.get("extend_seq_lens") or [] if n]
            lengths += prompts if sum(prompts) == len(names) else [len(names)]
    if not parts:
        raise InputError(f"{path}: there are no tokens in it")
    ids = np.concatenate(parts)
    # Dense layers have no choices, and the recorder's eight columns are padded.
    layers = np.flatnonzero((ids >= 0).any(axis=(0, 2)))
    columns = np.flatnonzero((ids >= 0).any(axis=(0, 1)))
    ids = ids[:, layers][:, :, columns]
    if (ids < 0).any():
        raise InputError(f"{path}: some tokens have fewer choices than others")
    return {
        "ids": ids.astype(np.uint16),
        "offsets": np.cumsum([0, *lengths]),
        "experts": np.array(experts),
        "layers": layers,
    }


def _choices_as_loads(
    record: dict[str, Any], experts_of_slots: npt.NDArray[Any], experts: int
) -> npt.NDArray[np.float64]:
    ids = np.asarray(record["topk_ids_of_layer"], dtype=np.int64)
    slots = experts_of_slots.shape[1]
    physical = np.stack([np.bincount(row[row >= 0], minlength=slots) for row in ids])
    return logical(physical, experts_of_slots, experts)


def _documents(path: Path) -> list[dict[str, Any]]:
    files = sorted(path.glob(_NAME)) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path}: no file {_NAME} in this folder")
    documents = [read_torch_file(file) for file in files]
    for file, document in zip(files, documents, strict=True):
        known = isinstance(document, dict) and (
            "logical_count" in document or "records" in document
        )
        if not known:
            raise InputError(f"{file}: no dump of SGLang's recorder: neither counts nor records")
    kinds = {"logical_count" in document for document in documents}
    if len(kinds) > 1:
        raise InputError(f"{path}: dumps of different recorder modes: import them one by one")
    return documents


def _records(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [record for record in document["records"] if isinstance(record, dict)]


def _number(record: dict[str, Any], key: str) -> int:
    if not isinstance(record.get(key), int):
        raise InputError(f"a record of the dump has no number {key!r}")
    return int(record[key])


def _array(document: dict[str, Any], key: str) -> npt.NDArray[Any]:
    array = document.get(key)
    if not isinstance(array, np.ndarray):
        raise InputError(f"the dump has no tensor {key!r}")
    return array
