"""Prescribed waves, one a task: Mixtral-8x7B, gpt-oss-20b (both: subjects), DeepSeek-V2-Lite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moeopt.errors import InputError
from moeopt.make import azure, deepseek_v2_lite, gpt_oss, gpt_oss_steady, mixtral
from moeopt.make.recipe import Bundle, Recipe, find_all
from moeopt.routing import expert_load, usage_profile

#: Topics of MMLU that are a wave each, with the subjects that lend their usage.
TOPICS = {
    "mathematics": mixtral.CODE_SUBJECTS["mathematics"],
    "law": mixtral.CONVERSATION_SUBJECTS["law"],
    "history": mixtral.CONVERSATION_SUBJECTS["history"],
    "health": mixtral.CONVERSATION_SUBJECTS["health"],
}
#: Data sets, and subjects of MMLU and MMLU-Pro, that are a wave each of gpt-oss-20b.
GPT_OSS_TASKS = {
    "science": (
        *("gpqa_main", "gpqa_extended", "gpqa_diamond", "physics", "chemistry", "biology"),
        *mixtral.CODE_SUBJECTS["physics"],
        *mixtral.CODE_SUBJECTS["chemistry and biology"],
    ),
    "mathematics": (
        *("math", "computer science"),
        *mixtral.CODE_SUBJECTS["mathematics"],
        *mixtral.CODE_SUBJECTS["computing"],
    ),
    "humanities": (
        *("law", "history", "philosophy"),
        *mixtral.CONVERSATION_SUBJECTS["law"],
        *mixtral.CONVERSATION_SUBJECTS["history"],
        *mixtral.CONVERSATION_SUBJECTS["philosophy"],
    ),
    "safety": ("sorry_bench_base",),
}
#: Classes by length that a task's requests are cut into.
CLASSES = 3
#: Requests of the tasks, in order: their caches fill 53 to 99 % of the memory beside the experts.
MIXTRAL_REQUESTS = {4: (660, 640, 480, 620), 8: (1450, 1350, 950, 1500)}
GPT_OSS_REQUESTS = {4: (700, 620, 520, 600), 8: (1400, 1245, 1040, 1320)}
DEEPSEEK_REQUESTS = (1650, 1500, 1600, 1600)

_NOTES = (
    "Prescribed waves: the requests of a task decode together and share the placement with the "
    "other tasks. A task has every fourth of the conversation requests, cut into 3 classes by "
    "output and total length; a class has its longest output and its largest total. "
)

_GPT_OSS_NOTES = (
    f"{gpt_oss_steady.TRACE_NOTES}task: science (GPQA; physics, chemistry, biology of MMLU and "
    "MMLU-Pro), mathematics (and computing), humanities (law, history, philosophy), safety "
    f"(SORRY-Bench). {azure.ATTRIBUTION}. {_NOTES}{gpt_oss_steady.CARD_NOTES}"
)


def build(data_dir: Path | None) -> list[Bundle]:
    """Build the instances on 4 and on 8 GPUs."""
    vectors, _, _, conv = find_all(
        data_dir,
        [
            (mixtral.SOURCE, ("frac_vecs/*.npy",)),
            (gpt_oss.SOURCE, gpt_oss.FILES),
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
    made = [_mixtral(topics, lengths, gpus) for gpus in MIXTRAL_REQUESTS]
    subjects = gpt_oss_usage(data_dir)
    made += [_gpt_oss(subjects, lengths, gpus) for gpus in GPT_OSS_REQUESTS]
    return [*made, _deepseek(esft, lengths)]


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


def gpt_oss_usage(data_dir: Path | None) -> dict[str, npt.NDArray[np.float64]]:
    """Count each task's expected activations a token, shape (24, 32).

    Raises
    ------
    InputError
        A task has no request.
    """
    parts: dict[str, list[npt.NDArray[np.uint8]]] = {task: [] for task in GPT_OSS_TASKS}
    for dataset, subject, ids in gpt_oss.read_subjects(data_dir):
        for task, names in GPT_OSS_TASKS.items():
            if dataset in names or subject in names:
                parts[task].append(ids)
    if missing := [task for task, members in parts.items() if not members]:
        raise InputError([f"{gpt_oss.SOURCE.folder}: no request of {task}" for task in missing])
    usages = {}
    for task, members in parts.items():
        ids = np.concatenate(members)
        loads = [expert_load(ids[:, l], gpt_oss.EXPERTS) for l in range(gpt_oss.LAYERS)]
        usages[task] = usage_profile(np.stack(loads), gpt_oss.TOP_K)
    return usages


def _gpt_oss(
    tasks: dict[str, npt.NDArray[np.float64]], lengths: azure.Lengths, gpus: int
) -> Bundle:
    groups, usages, waves = _waves(tasks, lengths, GPT_OSS_REQUESTS[gpus])
    name = f"gpt-oss-20b_{gpus}gpu_tasks"
    load = np.asarray(sum(g.decode_tokens * u for g, u in zip(groups, usages, strict=True)))
    arrays: dict[str, npt.NDArray[Any]] = {f"usage_{task}": usage for task, usage in tasks.items()}
    arrays |= {f"load_{l}": load[l] for l in range(gpt_oss.LAYERS)}
    documents = []
    for form in ("max", "sum", "p2"):
        made = gpt_oss_steady.base_document(gpus, groups)
        made["name"] = name if form == "max" else f"{name}_{form}"
        made["source"]["notes"] = _GPT_OSS_NOTES
        made["layer_time"]["form"] = form
        made["joint"] = {"wave_requests": waves}
        for entry in made["requests"]:  # classes of a task share its usage
            entry["usage"] = {"npz": f"usage_{entry['name'].rstrip('0123456789')}"}
        documents.append(made)
    return Bundle(documents, f"{name}.npz", arrays)


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
    summary="prescribed waves, one a task: Mixtral-8x7B, gpt-oss-20b (4, 8 GPUs), DeepSeek-V2-Lite",
    build=build,
    sources=(mixtral.SOURCE, gpt_oss.SOURCE, deepseek_v2_lite.SOURCE, azure.SOURCE),
)
