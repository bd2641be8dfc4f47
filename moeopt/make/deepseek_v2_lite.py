"""DeepSeek-V2-Lite: expert choices of four tasks (ESFT), 26 MoE layers of 64 experts, top-6."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moeopt.errors import InputError
from moeopt.make import azure
from moeopt.make.recipe import (
    Bundle,
    Recipe,
    Source,
    find_all,
    load_routing,
    mib,
    request_entry,
    scenario_arrays,
    scenario_routing,
)
from moeopt.make.steady import steady_documents
from moeopt.routing import distinct_scenarios, expert_load, usage_profile

EXPERTS, TOP_K, HIDDEN, GPUS = 64, 6, 2048, 8
MOE_LAYERS = range(1, 27)  # layer 0 is dense
TASKS = ("intent", "law", "summary", "translation")

SOURCE = Source(
    folder="deepseek-ai__ESFT",
    title="ESFT: expert choices of DeepSeek-V2-Lite",
    url="https://github.com/deepseek-ai/ESFT",
    commit="579a7711e4b332b4c57b47e378a0cf240d85caa6",
    licence="MIT",
)
#: A condensed copy, or the repository's own files.
FILES = ("esft_dsv2lite_ids.npz", "results/expert_scores/*/expert_weights_*.txt")

EXPERT_BYTES = 2 * 3 * HIDDEN * 1408  # bf16
# Everything else, bf16; it adds up to the published 15,706,484,224 parameters. A layer's
# attention: query (16 heads of 192), compressed keys and values (512 + 64) with their norm and
# expansion (16 heads of 128 + 128), output; and two norms. Then the dense layer, the shared
# experts (2 · 1408 wide), the routers, the last norm and two embeddings of 102,400 tokens.
_ATTENTION = HIDDEN * 16 * 192 + HIDDEN * 576 + 512 + 512 * 16 * 256 + 16 * 128 * HIDDEN
_EMBEDDING = 102_400 * HIDDEN
DENSE_BYTES = 2 * (
    27 * (_ATTENTION + 2 * HIDDEN)
    + 3 * HIDDEN * 10_944
    + 26 * (3 * HIDDEN * 2816 + EXPERTS * HIDDEN)
    + HIDDEN
    + 2 * _EMBEDDING
)
STREAMED_BYTES = DENSE_BYTES - 2 * _EMBEDDING  # the input embedding is looked up, not streamed
KV_KIB_PER_TOKEN = 27 * (512 + 64) * 2 / 1024  # compressed keys and values, bf16

MEMORY_MIB, RESERVED_MIB = 24564, 1024
BANDWIDTH_BYTES_US = 0.48e6  # assumed 24 GiB card: 0.48 TB/s achieved
EXPERT_US, TOKEN_US = 36.0, 0.28  # assumed, same card

REQUESTS = {"conv": 3000, "code": 1500}
CLASSES = {"conv": 8, "code": 4}

TRACE_NOTES = (
    f"Made from {SOURCE.url} (MIT, (c) 2023 DeepSeek), commit {SOURCE.commit[:12]}: expert ids "
    "of ESFT-vanilla-lite (DeepSeek-V2-Lite), teacher-forced over prompt and answer: prefill "
    "tokens, not generated ones; 213 requests of 4 tasks, 33,279 tokens. Adapted: gate scores and "
    "token order dropped. bf16 weights; KV cache: compressed (MLA), 27 layers. GPUs: assumed "
    "24 GiB cards (24,564 MiB, 1,024 MiB reserved). "
)


@dataclass(frozen=True)
class Trace:
    """Expert choices ``ids`` [T, 26, 6] and tokens of each request, of one task."""

    ids: npt.NDArray[np.uint8]
    lens: npt.NDArray[np.int64]

    @property
    def usage(self) -> npt.NDArray[np.float64]:
        """Expected activations a token, shape (26, 64)."""
        loads = [expert_load(self.ids[:, i], EXPERTS) for i in range(len(MOE_LAYERS))]
        return usage_profile(np.stack(loads), TOP_K)


def read_traces(data_dir: Path | None) -> dict[str, Trace]:
    """Read the choices of each task.

    Reads either the repository's own ``results/expert_scores/TASK/expert_weights_LAYER.txt`` (a
    line for each request: ids, two tabs, scores), or a condensed copy ``esft_dsv2lite_ids.npz``
    (``TASK_ids``, ``TASK_lens``).
    """
    found = SOURCE.find(data_dir, *FILES)
    if found[0].suffix != ".npz":
        folder = found[0].parents[1]
        return {task: _read_task(folder / task) for task in TASKS}
    with np.load(found[0], allow_pickle=False) as archive:
        return {task: Trace(archive[f"{task}_ids"], archive[f"{task}_lens"]) for task in TASKS}


def _read_task(folder: Path) -> Trace:
    layers: list[npt.NDArray[np.uint8]] = []
    lens: list[int] = []
    for layer in MOE_LAYERS:
        path = folder / f"expert_weights_{layer}.txt"
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            rows = [
                np.array(line.partition("\t\t")[0].split("\t"), dtype=np.uint8).reshape(-1, TOP_K)
                for line in lines
            ]
        except (OSError, ValueError, OverflowError) as error:
            raise InputError(f"{path}: not a list of expert choices ({error})") from error
        lengths = [len(row) for row in rows]
        if not rows or (layers and lengths != lens):
            raise InputError(f"{path}: requests differ from layer {MOE_LAYERS[0]}")
        lens = lengths
        layers.append(np.concatenate(rows))
    return Trace(np.stack(layers, axis=1), np.array(lens))


def build(data_dir: Path | None) -> list[Bundle]:
    """Build the placement instance and the joint instance."""
    _, code, conv = find_all(
        data_dir,
        [
            (SOURCE, FILES),
            (azure.SOURCE, azure.CODE),
            (azure.SOURCE, azure.CONVERSATION),
        ],
    )
    traces = read_traces(data_dir)
    return [_placement(traces), _joint(traces, {"conv": conv[0], "code": code[0]})]


def _placement(traces: dict[str, Trace]) -> Bundle:
    ids = np.concatenate([trace.ids for trace in traces.values()])
    arrays: dict[str, npt.NDArray[Any]] = {
        f"usage_{task}": trace.usage for task, trace in traces.items()
    }
    for i, layer in enumerate(MOE_LAYERS):
        arrays |= scenario_arrays(layer, *distinct_scenarios(ids[:, i]))
    document = _document(
        "deepseek-v2-lite_8gpu",
        TRACE_NOTES + "Scenarios: distinct sets of 6 experts of a layer over all four tasks, "
        "weighted by tokens. Request classes: one a task, with its usage; prompt_tokens is its "
        "longest prompt and answer together, since both were forced; nothing is generated "
        "(output_tokens is the least allowed).",
    )
    document["cluster"]["slots_per_gpu"] = EXPERTS // GPUS
    document["layer_time"] = {"form": "unit"}
    document["routing"] = [scenario_routing(layer) for layer in MOE_LAYERS]
    document["requests"] = [
        request_entry(task, len(trace.lens), int(trace.lens.max()), 1)
        for task, trace in traces.items()
    ]
    return Bundle([document], "deepseek-v2-lite_8gpu.npz", arrays)


def _joint(traces: dict[str, Trace], paths: dict[str, Path]) -> Bundle:
    usage = {task: trace.usage for task, trace in traces.items()}
    arrays: dict[str, npt.NDArray[Any]] = {}
    load = np.zeros((len(MOE_LAYERS), EXPERTS))
    classes: list[azure.LengthClass] = []
    pairs: list[str] = []
    for kind, path in paths.items():
        lengths = azure.sample(azure.read_lengths(path), REQUESTS[kind])
        for i, group in enumerate(azure.length_classes(kind, lengths, CLASSES[kind])):
            task = TASKS[i % len(TASKS)]
            arrays[f"usage_{group.name}"] = usage[task]
            load += group.decode_tokens * usage[task]
            classes.append(group)
            pairs.append(f"{group.describe()} ({task})")
    for i, layer in enumerate(MOE_LAYERS):
        arrays[f"load_{layer}"] = load[i]
    document = joint_document(
        "deepseek-v2-lite_8gpu_joint",
        "(3,000 conversation, 1,500 code), cut into classes by "
        "output and total length; a class has its longest output and its largest total, so its "
        "KV cache and its steps are safe upper bounds. True mean prompt+output of each class, and "
        f"the task whose usage it has: {', '.join(pairs)}. ",
        classes,
    )
    document["joint"] = {"waves": 4}
    steady = steady_documents(document, "deepseek-v2-lite_8gpu_steady", "")
    return Bundle([document, *steady], "deepseek-v2-lite_8gpu_joint.npz", arrays)


def joint_document(name: str, notes: str, classes: list[azure.LengthClass]) -> dict[str, Any]:
    """Make a document of ``joint`` whose classes are these; ``notes`` follow the attribution."""
    document = _document(
        name,
        TRACE_NOTES + f"{azure.ATTRIBUTION} {notes}No trace has both lengths and routing: "
        "the pairing of tasks with lengths is ours. Layer time: assumed coefficients of a 24 GiB "
        "card with 0.48 TB/s achieved; attention_base_us streams the dense weights but for the "
        "input embedding, attention_us_per_mib reads the KV cache once a step. Load: usage "
        "weighted by the true output tokens.",
    )
    document["source"]["licence"] = f"{SOURCE.licence} AND {azure.SOURCE.licence}"
    document["source"]["title"] += f"; {azure.SOURCE.title}"
    document["layer_time"] = {
        "form": "max",
        "expert_us": EXPERT_US,
        "token_us": TOKEN_US,
        "attention_base_us": round(STREAMED_BYTES / BANDWIDTH_BYTES_US, 3),
        "attention_us_per_mib": round(2**20 / BANDWIDTH_BYTES_US, 6),
    }
    document["routing"] = [load_routing(layer) for layer in MOE_LAYERS]
    document["requests"] = [
        request_entry(group.name, group.count, group.prompt_tokens, group.output_tokens)
        for group in classes
    ]
    return document


def _document(name: str, notes: str) -> dict[str, Any]:
    node = {"gpus": GPUS, "memory_mib": MEMORY_MIB, "reserved_mib": RESERVED_MIB}
    return {
        "schema": "moeopt-instance/1",
        "name": name,
        "source": {
            "title": SOURCE.title,
            "url": SOURCE.url,
            "licence": SOURCE.licence,
            "notes": notes,
        },
        "moe": {
            "name": "deepseek-v2-lite",
            "layers": len(MOE_LAYERS),
            "layers_total": 27,
            "experts": EXPERTS,
            "top_k": TOP_K,
            "expert_mib": mib(EXPERT_BYTES),
            "dense_mib": mib(DENSE_BYTES),
            "kv_kib_per_token": KV_KIB_PER_TOKEN,
            "hidden_size": HIDDEN,
            "expert_groups": 1,
        },
        "cluster": {"nodes": [node], "hops": [[0]]},
    }


RECIPE = Recipe(
    name="deepseek-v2-lite",
    summary="DeepSeek-V2-Lite on 8 GPUs: placement from four tasks, joint with Azure lengths",
    build=build,
    sources=(SOURCE, azure.SOURCE),
)
