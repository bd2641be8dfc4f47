"""Prescribed waves, one a task: Mixtral-8x7B (topics of MMLU) and DeepSeek-V2-Lite (ESFT tasks)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moeopt.make import azure, deepseek_v2_lite, mixtral
from moeopt.make.recipe import Bundle, Recipe, find_all
from moeopt.routing import usage_profile

#: Topics of MMLU that are a wave each, with the subjects that lend their usage.
TOPICS = {
    "mathematics": mixtral.CODE_SUBJECTS["mathematics"],
    "law": mixtral.CONVERSATION_SUBJECTS["law"],
    "history": mixtral.CONVERSATION_SUBJECTS["history"],
    "health": mixtral.CONVERSATION_SUBJECTS["health"],
}
#: Classes by length that a task's requests are cut into.
CLASSES = 3
#: Requests of the tasks, in order: their caches fill 53 to 99 % of the memory beside the experts.
MIXTRAL_REQUESTS = {4: (660, 640, 480, 620), 8: (1450, 1350, 950, 1500)}
DEEPSEEK_REQUESTS = (1650, 1500, 1600, 1600)

_NOTES = (
    "Prescribed waves: the requests of a task decode together and share the placement with the "
    "other tasks. A task has every fourth of the conversation requests, cut into 3 classes by "
    "output and total length; a class has its longest output and its largest total. "
)


def build(data_dir: Path | None) -> list[Bundle]:
    """Build the instances on 4 and on 8 GPUs."""
    vectors, _, conv = find_all(
        data_dir,
        [
            (mixtral.SOURCE, ("frac_vecs/*.npy",)),
            (deepseek_v2_lite.SOURCE, deepseek_v2_lite.FILES),
            (azure.SOURCE, azure.CONVERSATION),
        ],
    )
    lengths = azure.read_lengths(conv[0])
    questions = mixtral.read_questions(vectors)
    topics = {
        topic: usage_profile(
            np.concatenate([questions[subject] for subject in subjects]).mean(axis=0),
            mixtral.TOP_K,
        )
        for topic, subjects in TOPICS.items()
    }
    traces = deepseek_v2_lite.read_traces(data_dir)
    esft = {task: trace.usage for task, trace in traces.items()}
    return [_mixtral(topics, lengths, 4), _mixtral(topics, lengths, 8), _deepseek(esft, lengths)]


def _mixtral(
    topics: dict[str, npt.NDArray[np.float64]], lengths: azure.Lengths, gpus: int
) -> Bundle:
    groups, usages, waves = _waves(topics, lengths, MIXTRAL_REQUESTS[gpus])
    name = f"mixtral-8x7b_{gpus}gpu_tasks"
    notes = f"{mixtral.NOTES}{_NOTES}The code lengths are not used."
    documents: list[dict[str, Any]] = []
    for form in ("max", "sum", "p2"):
        full = name if form == "max" else f"{name}_{form}"
        made = mixtral.document(full, gpus, form, groups, notes)
        documents.append(made | {"joint": {"wave_requests": waves}})
    return Bundle(documents, f"{name}.npz", mixtral.class_arrays(groups, usages))


def _deepseek(tasks: dict[str, npt.NDArray[np.float64]], lengths: azure.Lengths) -> Bundle:
    groups, usages, waves = _waves(tasks, lengths, DEEPSEEK_REQUESTS)
    name = "deepseek-v2-lite_8gpu_tasks"
    made = deepseek_v2_lite.joint_document(name, f"(conversation). {_NOTES}", groups)
    made["joint"] = {"wave_requests": waves}
    arrays: dict[str, npt.NDArray[Any]] = {
        f"usage_{group.name}": usage for group, usage in zip(groups, usages, strict=True)
    }
    load = sum(group.decode_tokens * usage for group, usage in zip(groups, usages, strict=True))
    arrays |= {
        f"load_{layer}": np.asarray(load)[i] for i, layer in enumerate(deepseek_v2_lite.MOE_LAYERS)
    }
    return Bundle([made], f"{name}.npz", arrays)


def _waves(
    tasks: dict[str, npt.NDArray[np.float64]], lengths: azure.Lengths, requests: tuple[int, ...]
) -> tuple[list[azure.LengthClass], list[npt.NDArray[np.float64]], list[dict[str, int]]]:
    """Classes of all tasks, their usages, and the waves: one a task."""
    groups: list[azure.LengthClass] = []
    usages: list[npt.NDArray[np.float64]] = []
    waves: list[dict[str, int]] = []
    for i, (task, usage) in enumerate(tasks.items()):
        own = azure.sample(lengths[i :: len(tasks)], requests[i])
        classes = azure.length_classes(task, own, CLASSES)
        groups += classes
        usages += [usage] * len(classes)
        waves.append({group.name: group.count for group in classes})
    return groups, usages, waves


RECIPE = Recipe(
    name="tasks",
    summary="prescribed waves, one a task: Mixtral-8x7B on 4 and 8 GPUs, DeepSeek-V2-Lite on 8",
    build=build,
    sources=(mixtral.SOURCE, deepseek_v2_lite.SOURCE, azure.SOURCE),
)
