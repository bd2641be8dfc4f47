"""Dumps of serving systems -> trace files; which importer reads what."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moeopt.errors import InputError
from moeopt.files import write_bytes_atomic
from moeopt.trace import sglang, systems, tokens
from moeopt.trace.loads import LoadTrace


@dataclass(frozen=True)
class Importer:
    """Reads one kind of dump: a :class:`LoadTrace`, or arrays of a routing or arrival trace."""

    name: str
    reads: str
    makes: str
    read: Callable[[Path], LoadTrace | dict[str, Any]]


IMPORTERS = {
    importer.name: importer
    for importer in (
        Importer(
            "sglang",
            "expert_distribution_recorder_*.pt of SGLang (stat, stat_approx, per_pass, per_token), "
            "a file or the folder of all ranks",
            "loads",
            sglang.read_loads,
        ),
        Importer(
            "sglang-tokens",
            "expert_distribution_recorder_*.pt of SGLang, recorded per_token",
            "choices",
            sglang.read_choices,
        ),
        Importer(
            "tensorrt-llm",
            "an expert_statistic folder of TensorRT-LLM",
            "loads",
            systems.read_tensorrt,
        ),
        Importer(
            "vllm",
            "eplb_load_stats records, JSON lines (vLLM pull request 41141, open)",
            "loads",
            systems.read_vllm,
        ),
        Importer(
            "matrix",
            ".csv or .npy: layers × experts, .npy also windows × layers × experts",
            "loads",
            systems.read_matrix,
        ),
        Importer(
            "choices",
            ".npy: tokens × layers × k, or .npz with ids and offsets",
            "choices",
            tokens.read_choices,
        ),
        Importer("azure", "CSV of the Azure LLM inference traces", "arrivals", tokens.read_azure),
        Importer("mooncake", "JSON lines of the Mooncake traces", "arrivals", tokens.read_mooncake),
    )
}


def import_trace(path: Path, origin: str, output: Path, *, force: bool = False) -> str:
    """Read a dump and write it as a trace file; return what it is, in words.

    Raises
    ------
    InputError
    """
    if origin not in IMPORTERS:
        raise InputError(f"there is no importer {origin!r}; importers are {', '.join(IMPORTERS)}")
    if output.suffix != ".npz":
        raise InputError(f"{output}: traces are .npz files")
    if not path.exists():
        raise InputError(f"{path}: does not exist")
    found = IMPORTERS[origin].read(path)
    if isinstance(found, LoadTrace):
        windows, layers, experts = found.load.shape
        raw = found.to_bytes()
        text = f"loads of {layers} layers × {experts} experts in {windows:,} windows"
    else:
        file = io.BytesIO()
        np.savez_compressed(file, **found)
        raw = file.getvalue()
        if "ids" in found:
            count, layers, top_k = found["ids"].shape
            text = (
                f"choices of {count:,} tokens, {layers} layers, top-{top_k} of {found['experts']}"
            )
        else:
            text = f"{len(found['arrival_ms']):,} requests"
    write_bytes_atomic(output, raw, force=force)
    return text
