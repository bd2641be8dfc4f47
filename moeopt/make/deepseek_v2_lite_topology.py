"""``topology`` of DeepSeek-V2-Lite: loads of four tasks (ESFT) on 16 servers, three graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moeopt.make.deepseek_topology import GRAPHS_16, topology_documents
from moeopt.make.deepseek_v2_lite import (
    EXPERT_BYTES,
    EXPERTS,
    HIDDEN,
    MOE_LAYERS,
    SOURCE,
    TOP_K,
    read_traces,
)
from moeopt.make.recipe import Bundle, Recipe, load_routing, mib
from moeopt.routing import expert_load

NOTES = (
    f"Made from {SOURCE.url} (MIT, (c) 2023 DeepSeek), commit {SOURCE.commit[:12]}: expert ids of "
    "ESFT-vanilla-lite (DeepSeek-V2-Lite), teacher-forced over prompt and answer: prefill tokens, "
    "not generated ones; 213 requests of 4 tasks, 33,279 tokens. Adapted: choices counted as loads."
)


def build(data_dir: Path | None) -> list[Bundle]:
    """Build the instances; they share their arrays."""
    ids = np.concatenate([trace.ids for trace in read_traces(data_dir).values()])
    base = {
        "source": {
            "title": SOURCE.title,
            "url": SOURCE.url,
            "licence": SOURCE.licence,
            "notes": NOTES,
        },
        "moe": {
            "name": "deepseek-v2-lite",
            "layers": len(MOE_LAYERS),
            "layers_total": 27,
            "experts": EXPERTS,
            "top_k": TOP_K,
            "expert_mib": mib(EXPERT_BYTES),
            "hidden_size": HIDDEN,
        },
        "routing": [load_routing(layer) for layer in MOE_LAYERS],
    }
    arrays = {
        f"load_{layer}": expert_load(ids[:, i], EXPERTS).astype("<i4")
        for i, layer in enumerate(MOE_LAYERS)
    }
    documents = topology_documents(base, "deepseek-v2-lite", GRAPHS_16, servers=16, gpus=4)
    return [Bundle(documents, "deepseek-v2-lite_topology.npz", arrays)]


RECIPE = Recipe(
    name="deepseek-v2-lite-topology",
    summary="DeepSeek-V2-Lite on 16 servers, three graphs: topology",
    build=build,
    sources=(SOURCE,),
)
