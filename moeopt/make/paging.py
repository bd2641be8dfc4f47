"""Caches of experts on one GPU: instances of ``paging`` from the shipped traces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from moeopt.make import deepseek_v2_lite, gpt_oss
from moeopt.make.recipe import Bundle, Recipe, Source, mib
from moeopt.make.traces_shipped import Trace, read_trace

#: Sequences decoded at once.
BATCHES = (1, 8)
LOAD_GB_S = 25.0

#: Trace, its repository, bytes of one expert, numbers of the MoE layers in the LLM.
_TRACES = (
    ("gpt-oss-20b", gpt_oss.SOURCE, gpt_oss.EXPERT_BYTES, range(gpt_oss.LAYERS)),
    (
        "deepseek-v2-lite",
        deepseek_v2_lite.SOURCE,
        deepseek_v2_lite.EXPERT_BYTES,
        deepseek_v2_lite.MOE_LAYERS,
    ),
)


def build(data_dir: Path | None) -> list[Bundle]:
    """Build one instance for each trace and batch. Needs no raw data."""
    del data_dir
    bundles = []
    for name, source, expert_bytes, layers in _TRACES:
        trace = read_trace(name)
        attribution = {"title": source.title, "url": source.url, "licence": source.licence}
        for batch in BATCHES:
            origin = attribution | {"notes": _notes(trace, source, batch)}
            document = _document(trace, origin, batch, expert_bytes, list(layers))
            bundles.append(Bundle([document]))
    return bundles


def _notes(trace: Trace, source: Source, batch: int) -> str:
    sequences = "sequences" if batch > 1 else "sequence"
    return (
        f"Made from {source.url} ({source.licence}), commit {source.commit[:12]}. Adapted: asks "
        f"for what the shipped trace {trace.name} asks for, token by token, {batch} {sequences} at "
        f"once. The cache is assumed to hold half of the {trace.layers * trace.experts} experts; "
        f"loads at {LOAD_GB_S:g} GB/s (assumed: PCIe 4.0, 16 lanes)."
    )


def _document(
    trace: Trace, origin: dict[str, Any], batch: int, expert_bytes: int, layers: list[int]
) -> dict[str, Any]:
    pages = trace.layers * trace.experts
    counts = [
        np.bincount(trace.ids[:, l].ravel(), minlength=trace.experts) for l in range(trace.layers)
    ]
    return {
        "schema": "moeopt-instance/1",
        "name": f"{trace.name}_1gpu_paging" + (f"_batch{batch}" if batch > 1 else ""),
        "source": origin,
        "moe": {
            "name": trace.name,
            "layers": trace.layers,
            "experts": trace.experts,
            "top_k": trace.top_k,
            "expert_mib": mib(expert_bytes),
        },
        "cluster": {"nodes": [{"gpus": 1}], "slots_per_gpu": trace.experts},
        "layer_time": {"form": "unit"},
        "routing": [
            {"layer": layer, "load": load.tolist()}
            for layer, load in zip(layers, counts, strict=True)
        ],
        "paging": {
            "trace": trace.name,
            "batch": batch,
            "cache": pages // 2,
            "load_gb_s": LOAD_GB_S,
        },
    }


RECIPE = Recipe(
    name="paging",
    summary="a cache for half of the experts of gpt-oss-20b and DeepSeek-V2-Lite, one GPU",
    build=build,
)
