"""DeepSeek-V3 size: 58 MoE layers of 256 experts, top-8, on 4 nodes of 8 GPUs; loads generated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moeopt.make.recipe import Bundle, Recipe, load_routing, mib, request_entry
from moeopt.make.steady import steady_documents
from moeopt.routing import usage_profile

LAYERS, EXPERTS, TOP_K, HIDDEN = 58, 256, 8, 7168
NODES, GPUS_PER_NODE = 4, 8

EXPERT_BYTES = 3 * HIDDEN * 2048  # FP8: 42 MiB
# Everything else of the published 671.03 · 10^9 parameters, FP8, on every GPU.
DENSE_BYTES = 671_026_419_200 - LAYERS * EXPERTS * EXPERT_BYTES
KV_KIB_PER_TOKEN = 61 * (512 + 64) * 2 / 1024  # compressed keys and values, bf16
MEMORY_MIB, RESERVED_MIB = 81_559, 3_712
BANDWIDTH_BYTES_US = 0.8 * 3.35e6  # 80 % of 3.35 TB/s
EXPERT_US, TOKEN_US = 14.78, 0.0945  # published fit of TEMPO to DeepSeek-V3's experts

#: Prompt and output tokens of each class; equally many requests of each arrive.
LENGTHS = (
    (1024, 128),
    (1536, 256),
    (3072, 256),
    (3072, 512),
    (6144, 256),
    (6144, 512),
    (2048, 1024),
    (1024, 768),
)
POPULARITY, DIFFERENCE = 1.0, 0.3  # sigmas of the two lognormal factors

NOTES = (
    "Synthetic: no routing trace of this LLM is public. The popularity of an expert is lognormal "
    "(sigma 1), a class's preference for it another lognormal factor (sigma 0.3), drawn for each "
    "layer (PCG64, seed {seed}). Lengths are invented. Sizes are those of DeepSeek-V3, FP8 weights "
    "and bf16 KV cache, dense weights on every GPU; GPUs have 80 GB, 3.5 GB of safety and 392 MB "
    "for NCCL reserved. Layer time: coefficients published for it by TEMPO; attention_base_us "
    "streams the dense weights at 80 % of 3.35 TB/s, attention_us_per_mib reads the KV cache once "
    "a step. Communication is outside."
)


def usages(seed: int) -> npt.NDArray[np.float64]:
    """Expected activations of each class a token, shape (8, 58, 256)."""
    rng = np.random.Generator(np.random.PCG64(seed))
    popularity = rng.lognormal(0.0, POPULARITY, (LAYERS, EXPERTS))
    preference = rng.lognormal(0.0, DIFFERENCE, (len(LENGTHS), LAYERS, EXPERTS))
    return usage_profile(popularity * preference, TOP_K)


def build(data_dir: Path | None, seed: int = 0) -> list[Bundle]:
    """Build the instance in three layer times; they share their arrays."""
    usage = usages(seed)
    names = [f"class{i}" for i in range(1, len(LENGTHS) + 1)]
    arrays: dict[str, npt.NDArray[Any]] = {
        f"usage_{name}": table for name, table in zip(names, usage, strict=True)
    }
    outputs = np.array([output for _, output in LENGTHS], dtype=np.float64)
    load = np.einsum("c,cle->le", outputs, usage)
    arrays |= {f"load_{l}": load[l] for l in range(LAYERS)}
    name = "deepseek-v3_32gpu_steady" + (f"_seed{seed}" if seed else "")
    documents = steady_documents(_base(seed, names), name, "")
    return [Bundle(documents, f"{name}.npz", arrays)]


def _base(seed: int, names: list[str]) -> dict[str, Any]:
    node = {"gpus": GPUS_PER_NODE, "memory_mib": MEMORY_MIB, "reserved_mib": RESERVED_MIB}
    return {
        "schema": "moeopt-instance/1",
        "name": "",
        "source": {
            "title": "Synthetic routing at the size of DeepSeek-V3",
            "url": None,
            "licence": "MIT",
            "notes": NOTES.format(seed=seed),
        },
        "moe": {
            "name": "deepseek-v3",
            "layers": LAYERS,
            "layers_total": 61,
            "experts": EXPERTS,
            "top_k": TOP_K,
            "expert_mib": mib(EXPERT_BYTES),
            "dense_mib": mib(DENSE_BYTES),
            "kv_kib_per_token": KV_KIB_PER_TOKEN,
            "hidden_size": HIDDEN,
            "expert_groups": 8,
        },
        "cluster": {"nodes": [node] * NODES},
        "layer_time": {
            "form": "max",
            "expert_us": EXPERT_US,
            "token_us": TOKEN_US,
            "attention_base_us": round(DENSE_BYTES / BANDWIDTH_BYTES_US, 3),
            "attention_us_per_mib": round(2**20 / BANDWIDTH_BYTES_US, 6),
        },
        "routing": [load_routing(layer) for layer in range(LAYERS)],
        "requests": [
            request_entry(name, 1, prompt, output)
            for name, (prompt, output) in zip(names, LENGTHS, strict=True)
        ],
    }


RECIPE = Recipe(
    name="deepseek-v3",
    summary="synthetic routing at the size of DeepSeek-V3 on 32 GPUs: joint in steady state",
    build=build,
    options={"seed": "of the generator (0)"},
)
