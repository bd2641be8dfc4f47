"""gpt-oss-20b in steady state: usage of its request groups, request lengths of Azure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moeopt.errors import InputError
from moeopt.make import azure, gpt_oss
from moeopt.make.recipe import Bundle, Recipe, find_all, load_routing, mib, request_entry
from moeopt.make.steady import steady_documents
from moeopt.routing import expert_load, usage_profile

#: Data sets of the trace that lend their usage to one request class each; the last one is the rest.
GROUPS = (
    "mmlu_test",
    "mmlu_validation",
    "mmlu_dev",
    "sorry_bench_base",
    "gpqa_extended",
    "gpqa_main",
    "gpqa_diamond",
    "mmlu_pro_test",
    "mmlu_pro_validation",
    "others",
)
REQUESTS = 3000

BANDWIDTH_BYTES_US = 0.48e6  # assumed 24 GiB card: 0.48 TB/s achieved
EXPERT_US, TOKEN_US = 27.5, 0.8  # assumed, same card
# The input embedding (201,088 tokens, bf16) is looked up, not streamed.
STREAMED_BYTES = gpt_oss.DENSE_BYTES - 2 * 201_088 * gpt_oss.HIDDEN

TRACE_NOTES = (
    f"{gpt_oss.SOURCE.url} (Apache-2.0), commit {gpt_oss.SOURCE.commit[:12]}: gpt-oss-20b, expert "
    "choices of generated tokens; adapted: repetitive requests dropped, summed to the usage of "
    "each "
)
CARD_NOTES = (
    "No trace has both lengths and routing: the pairing of data sets with lengths is ours. GPUs: "
    "assumed 24 GiB cards (24,564 MiB, 1,024 MiB reserved). Layer time: assumed coefficients of "
    "such a card with 0.48 TB/s achieved; attention_base_us streams the dense weights but for the "
    "input embedding, attention_us_per_mib reads the KV cache once a step. Load: usage weighted by "
    "output tokens."
)
NOTES = (
    f"{TRACE_NOTES}data set. {azure.ATTRIBUTION} (3,000 conversation requests), cut into classes "
    "by output and total length; a class has its longest output and its largest total. "
    f"{CARD_NOTES}"
)


def read_usage(data_dir: Path | None) -> list[npt.NDArray[np.float64]]:
    """Expected activations a token of each group, shape (24, 32).

    Raises
    ------
    InputError
        A group has no request.
    """
    groups: dict[str, list[npt.NDArray[np.uint8]]] = {name: [] for name in GROUPS}
    for dataset, ids in gpt_oss.read_requests(data_dir):
        groups[dataset if dataset in groups else GROUPS[-1]].append(ids)
    if missing := [name for name, parts in groups.items() if not parts]:
        raise InputError([f"{gpt_oss.SOURCE.folder}: no request of {name}" for name in missing])
    usages = []
    for parts in groups.values():
        ids = np.concatenate(parts)
        loads = [expert_load(ids[:, l], gpt_oss.EXPERTS) for l in range(gpt_oss.LAYERS)]
        usages.append(usage_profile(np.stack(loads), gpt_oss.TOP_K))
    return usages


def build(data_dir: Path | None) -> list[Bundle]:
    """Build the instances on 4 and on 8 GPUs; they share their arrays."""
    _, conv = find_all(
        data_dir,
        [
            (gpt_oss.SOURCE, ("gptoss20b_ids.npz", "data/*/*/*_examples.json")),
            (azure.SOURCE, azure.CONVERSATION),
        ],
    )
    usages = read_usage(data_dir)
    lengths = azure.sample(azure.read_lengths(conv[0]), REQUESTS)
    classes = azure.length_classes("conv", lengths, len(GROUPS))
    arrays: dict[str, npt.NDArray[Any]] = {
        f"usage_{group.name}": usage for group, usage in zip(classes, usages, strict=True)
    }
    load = sum(group.decode_tokens * usage for group, usage in zip(classes, usages, strict=True))
    arrays |= {f"load_{l}": np.asarray(load)[l] for l in range(gpt_oss.LAYERS)}
    pairs = ", ".join(
        f"{group.describe()} ({name})" for group, name in zip(classes, GROUPS, strict=True)
    )
    documents = []
    for gpus in (4, 8):
        notes = f"True mean prompt+output of each class, and its data set: {pairs}. "
        name = f"gpt-oss-20b_{gpus}gpu_steady"
        documents += steady_documents(base_document(gpus, classes), name, notes)
    return [Bundle(documents, "gpt-oss-20b_steady.npz", arrays)]


def base_document(gpus: int, classes: list[azure.LengthClass]) -> dict[str, Any]:
    """Make a document of ``joint`` without a name, whose classes are these."""
    node = {
        "gpus": gpus,
        "memory_mib": gpt_oss.MEMORY_MIB,
        "reserved_mib": gpt_oss.RESERVED_MIB,
    }
    return {
        "schema": "moeopt-instance/1",
        "name": "",
        "source": {
            "title": f"{gpt_oss.SOURCE.title}; {azure.SOURCE.title}",
            "url": gpt_oss.SOURCE.url,
            "licence": f"{gpt_oss.SOURCE.licence} AND {azure.SOURCE.licence}",
            "notes": NOTES,
        },
        "moe": {
            "name": "gpt-oss-20b",
            "layers": gpt_oss.LAYERS,
            "layers_total": gpt_oss.LAYERS,
            "experts": gpt_oss.EXPERTS,
            "top_k": gpt_oss.TOP_K,
            "expert_mib": mib(gpt_oss.EXPERT_BYTES),
            "dense_mib": mib(gpt_oss.DENSE_BYTES),
            "kv_kib_per_token": gpt_oss.KV_KIB_PER_TOKEN,
            "hidden_size": gpt_oss.HIDDEN,
            "expert_groups": 1,
        },
        "cluster": {"nodes": [node], "hops": [[0]]},
        "layer_time": {
            "form": "max",
            "expert_us": EXPERT_US,
            "token_us": TOKEN_US,
            "attention_base_us": round(STREAMED_BYTES / BANDWIDTH_BYTES_US, 3),
            "attention_us_per_mib": round(2**20 / BANDWIDTH_BYTES_US, 6),
        },
        "routing": [load_routing(layer) for layer in range(gpt_oss.LAYERS)],
        "requests": [
            request_entry(group.name, group.count, group.prompt_tokens, group.output_tokens)
            for group in classes
        ],
    }


RECIPE = Recipe(
    name="gpt-oss-20b-steady",
    summary="gpt-oss-20b on 4 and 8 GPUs of 24 GiB: joint in steady state, in three layer times",
    build=build,
    sources=(gpt_oss.SOURCE, azure.SOURCE),
)
