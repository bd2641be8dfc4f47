"""Tokens from expert to expert of the next layer: gpt-oss-20b, DeepSeek-V2-Lite on 8 GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moeopt.make import deepseek_v2_lite, gpt_oss
from moeopt.make.recipe import Bundle, Recipe, Source, find_all, mib
from moeopt.routing import expert_load

#: Nodes and GPUs of each, and what a token to another node weighs: GB/s inside over between.
INTRA_NODE_GB_S, INTER_NODE_GB_S = 450.0, 50.0
FAR = INTRA_NODE_GB_S / INTER_NODE_GB_S

NOTES = (
    "`next`: tokens that use an expert in a layer and one in the next; a token of k experts counts "
    "for each of its k² pairs. `load`: tokens of each expert. "
)
TWO_NODES = (
    "Two nodes of 4 GPUs; a token to another node weighs 9, as 450 GB/s inside a node are to 50 "
    "between (assumed)."
)


def next_tokens(ids: npt.NDArray[np.uint8], experts: int) -> list[npt.NDArray[np.unsignedinteger]]:
    """Rows (expert, expert of the next layer, tokens) of each layer but the last.

    Parameters
    ----------
    ids : uint8 array, shape (T, L, k)
    """
    rows = []
    used = np.zeros((2, len(ids), experts), dtype=np.float32)
    for l in range(ids.shape[1]):
        used[1] = 0.0
        np.put_along_axis(used[1], ids[:, l].astype(np.int64), 1.0, axis=1)
        if l:
            # Counts below 2**24: single precision is exact.
            tokens = np.rint(used[0].T @ used[1]).astype(np.int64)
            first, second = np.nonzero(tokens)
            table = np.column_stack([first, second, tokens[first, second]])
            rows.append(table.astype(np.min_scalar_type(int(table.max()))))
        used[0] = used[1]
    return rows


def _bundle(name: str, ids: npt.NDArray[np.uint8], documents: list[dict[str, Any]]) -> Bundle:
    experts = documents[0]["moe"]["experts"]
    arrays: dict[str, npt.NDArray[Any]] = {}
    routing: list[dict[str, Any]] = []
    flows = next_tokens(ids, experts)
    first = documents[0].pop("first_layer")
    for l in range(ids.shape[1]):
        load = expert_load(ids[:, l], experts)
        arrays[f"load_{l}"] = load.astype(np.min_scalar_type(int(load.max())))
        entry: dict[str, Any] = {"layer": first + l, "load": {"npz": f"load_{l}"}}
        if l < len(flows):
            arrays[f"next_{l}"] = flows[l]
            entry["next"] = {"npz": f"next_{l}"}
        routing.append(entry)
    for document in documents:
        document.pop("first_layer", None)
        document["routing"] = routing
    return Bundle(documents, f"{name}.npz", arrays)


def _document(
    name: str, source: Source, notes: str, moe: dict[str, Any], nodes: int, first: int
) -> dict[str, Any]:
    return {
        "schema": "moeopt-instance/1",
        "name": name,
        "source": {
            "title": source.title,
            "url": source.url,
            "licence": source.licence,
            "notes": notes + NOTES + (TWO_NODES if nodes > 1 else "One node of 8 GPUs."),
        },
        "moe": moe,
        "cluster": {
            "nodes": [{"gpus": 8 // nodes}] * nodes,
            "slots_per_gpu": moe["experts"] // 8,
            "intra_node_gb_s": INTRA_NODE_GB_S,
            "inter_node_gb_s": INTER_NODE_GB_S,
        },
        "layer_time": {"form": "unit"},
        "affinity": {"kind": "inter", "near": 1.0, "far": FAR if nodes > 1 else 1.0},
        "first_layer": first,
    }


def build(data_dir: Path | None) -> list[Bundle]:
    """Build the instances of both LLMs."""
    find_all(  # so that what is missing of either is told at once
        data_dir,
        [(gpt_oss.SOURCE, gpt_oss.FILES), (deepseek_v2_lite.SOURCE, deepseek_v2_lite.FILES)],
    )
    gpt = {
        "name": "gpt-oss-20b",
        "layers": gpt_oss.LAYERS,
        "experts": gpt_oss.EXPERTS,
        "top_k": gpt_oss.TOP_K,
        "expert_mib": mib(gpt_oss.EXPERT_BYTES),
    }
    gpt_notes = (
        f"Made from {gpt_oss.SOURCE.url} (Apache-2.0), commit {gpt_oss.SOURCE.commit[:12]}: "
        "generated tokens of the 494 requests that are not flagged as repetitive (162,219 tokens). "
        "Adapted: counted by pairs of experts. "
    )
    lite = {
        "name": "deepseek-v2-lite",
        "layers": len(deepseek_v2_lite.MOE_LAYERS),
        "layers_total": 27,
        "experts": deepseek_v2_lite.EXPERTS,
        "top_k": deepseek_v2_lite.TOP_K,
        "expert_mib": mib(deepseek_v2_lite.EXPERT_BYTES),
    }
    lite_notes = (
        f"Made from {deepseek_v2_lite.SOURCE.url} (MIT, (c) 2023 DeepSeek), commit "
        f"{deepseek_v2_lite.SOURCE.commit[:12]}: prompt and answer tokens of 213 requests of 4 "
        "tasks, teacher-forced (33,279 tokens). Adapted: counted by pairs of experts. "
    )
    traces = deepseek_v2_lite.read_traces(data_dir)
    lite_ids = np.concatenate([trace.ids for trace in traces.values()])
    return [
        _bundle(
            "gpt-oss-20b_affinity",
            gpt_oss.read_ids(data_dir),
            [
                _document(f"gpt-oss-20b_{label}_affinity", gpt_oss.SOURCE, gpt_notes, gpt, n, 0)
                for label, n in (("8gpu", 1), ("2x4gpu", 2))
            ],
        ),
        _bundle(
            "deepseek-v2-lite_affinity",
            lite_ids,
            [
                _document(
                    "deepseek-v2-lite_2x4gpu_affinity",
                    deepseek_v2_lite.SOURCE,
                    lite_notes,
                    lite,
                    2,
                    deepseek_v2_lite.MOE_LAYERS[0],
                )
            ],
        ),
    ]


RECIPE = Recipe(
    name="affinity",
    summary="tokens from layer to layer: gpt-oss-20b, DeepSeek-V2-Lite on 8 GPUs, one or two nodes",
    build=build,
    sources=(gpt_oss.SOURCE, deepseek_v2_lite.SOURCE),
)
