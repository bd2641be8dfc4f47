"""``topology`` at the sizes of DeepSeek-R1 and DeepSeekMoE-16B; loads generated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from moeopt.make import deepseek_v3
from moeopt.make.on_graph import Wanted, blocks
from moeopt.make.recipe import Bundle, Recipe, load_routing, mib

#: Graphs of 16 and of 32 servers, by the name that instances carry.
GRAPHS_16 = {
    "fat-tree": "fat-tree:4",
    "dragonfly": "dragonfly:4x4",
    "dragonfly-sparse": "dragonfly-sparse:4x4",
}
GRAPHS_32 = {
    "fat-tree": "fat-tree:6",
    "dragonfly": "dragonfly:8x4",
    "dragonfly-sparse": "dragonfly-sparse:8x4",
}

#: Room beyond one copy of each expert, and copies that may fill it.
SPARE, REPLICAS = 0.25, 0.2

POPULARITY = 1.0  # sigma of the lognormal factor, as in deepseek_v3

_COMMON = (
    "{servers} servers of {gpus} GPUs on the graph {graph}; links of a shortest path are hops. A "
    "GPU may hold 2 experts of a layer, a server {capacity} of all layers (25 % more than one copy "
    "of each). "
)
_ONE = (
    "Attention of the layers in equal runs on the servers, in order; tokens are collected where "
    "the next layer is."
)
_COPIES = (
    "Every server attends to its own tokens, all servers alike; one expert in five may have a "
    "second copy, or one expert many."
)


def topology_documents(
    base: dict[str, Any], name: str, graphs: dict[str, str], servers: int, gpus: int
) -> list[dict[str, Any]]:
    """Make documents of ``topology`` on each graph: one copy of each expert, and with copies.

    Parameters
    ----------
    base : dict
        ``source``, ``moe`` and ``routing``.
    """
    layers, experts = base["moe"]["layers"], base["moe"]["experts"]
    copies = layers * experts
    capacity = -(-copies * (1 + SPARE) // servers)
    documents = []
    for short, graph in graphs.items():
        one = Wanted(graph, capacity=int(capacity))
        many = replace(one, attention="everywhere", replicas=int(REPLICAS * copies))
        for wanted, ending, words in ((one, "", _ONE), (many, "_replicas", _COPIES)):
            made = blocks(wanted, layers, servers)
            notes = _COMMON.format(servers=servers, gpus=gpus, graph=graph, capacity=int(capacity))
            source = base["source"] | {"notes": f"{base['source']['notes']} {notes}{words}"}
            documents.append(
                {
                    "schema": "moeopt-instance/1",
                    "name": f"{name}_topology_{short}{ending}",
                    "source": source,
                    "moe": base["moe"],
                    "cluster": {
                        "nodes": [{"gpus": gpus}] * servers,
                        "slots_per_gpu": 2,
                        "hops": made["hops"],
                    },
                    "layer_time": {"form": "unit"},
                    "routing": base["routing"],
                    "topology": made["topology"],
                }
            )
    return documents


def build(data_dir: Path | None) -> list[Bundle]:
    """Build the instances; those of DeepSeek-R1 have the arrays of ``deepseek-v3_32gpu_steady``."""
    (v3,) = deepseek_v3.build(None)
    moe = v3.documents[0]["moe"]
    kept = ("layers", "experts", "top_k", "expert_mib", "hidden_size", "layers_total")
    r1 = {
        "source": {
            "title": "Synthetic routing at the size of DeepSeek-R1",
            "url": None,
            "licence": "MIT",
            "notes": "Loads of deepseek-v3_32gpu_steady, which has the same sizes: synthetic.",
        },
        "moe": {"name": "deepseek-r1", **{key: moe[key] for key in kept}},
        "routing": v3.documents[0]["routing"],
    }
    small, arrays = _moe_16b()
    return [
        Bundle(
            topology_documents(r1, "deepseek-r1", GRAPHS_32, servers=32, gpus=8),
            v3.arrays_file,
            v3.arrays,
        ),
        Bundle(
            topology_documents(small, "deepseek-moe-16b", GRAPHS_16, servers=16, gpus=4),
            "deepseek-moe-16b_topology.npz",
            arrays,
        ),
    ]


def _moe_16b() -> tuple[dict[str, Any], dict[str, Any]]:
    """27 MoE layers of 64 experts, top-6; whole loads of a million tokens a layer."""
    layers, experts = 27, 64
    rng = np.random.Generator(np.random.PCG64(0))
    popularity = rng.lognormal(0.0, POPULARITY, (layers, experts))
    load = np.rint(6e6 * popularity / popularity.sum(axis=1, keepdims=True))
    base = {
        "source": {
            "title": "Synthetic routing at the size of DeepSeekMoE-16B",
            "url": None,
            "licence": "MIT",
            "notes": "Synthetic: no routing trace of this LLM is public. Loads of a layer are "
            "lognormal (sigma 1, PCG64, seed 0), scaled to a million tokens.",
        },
        "moe": {
            "name": "deepseek-moe-16b",
            "layers": layers,
            "experts": experts,
            "top_k": 6,
            "expert_mib": mib(2 * 3 * 2048 * 1408),
            "hidden_size": 2048,
            "layers_total": 28,
        },
        "routing": [load_routing(layer) for layer in range(layers)],
    }
    return base, {f"load_{l}": load[l] for l in range(layers)}


RECIPE = Recipe(
    name="deepseek-topology",
    summary="sizes of DeepSeek-R1 (32 servers) and DeepSeekMoE-16B (16) on three graphs: topology",
    build=build,
)
