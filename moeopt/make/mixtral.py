"""Mixtral-8x7B on H100s: expert usage of MMLU questions, request lengths of Azure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moeopt.errors import InputError
from moeopt.make import azure
from moeopt.make.recipe import Bundle, Recipe, Source, find_all, load_routing, mib, request_entry
from moeopt.make.steady import steady_documents
from moeopt.routing import usage_profile

LAYERS, EXPERTS, TOP_K, HIDDEN = 32, 8, 2, 4096

SOURCE = Source(
    folder="ajtejankar__mixtral-vis-moe",
    title="mixtral-vis-moe: expert usage of Mixtral-8x7B on MMLU",
    url="https://github.com/ajtejankar/mixtral-vis-moe",
    commit="5c2f185d579721ee17d7a8111a221ee9d41c9ac8",
    licence="Apache-2.0",
)

EXPERT_BYTES = 2 * 3 * HIDDEN * 14_336  # bf16: 336 MiB
# Everything else, bf16; it adds up to the published 46,702,792,704 parameters: a layer's query
# and output (4096), keys and values (1024 each), router and two norms; the last norm; two
# embeddings of 32,000 tokens.
_EMBEDDING = 32_000 * HIDDEN
_LAYER_PARAMETERS = HIDDEN * (2 * 4096 + 2 * 1024 + EXPERTS + 2)
DENSE_BYTES = 2 * (LAYERS * _LAYER_PARAMETERS + HIDDEN + 2 * _EMBEDDING)
STREAMED_BYTES = DENSE_BYTES - 2 * _EMBEDDING  # the input embedding is looked up, not streamed
KV_KIB_PER_TOKEN = LAYERS * 2 * 1024 * 2 / 1024  # keys and values, 8 heads of 128, bf16

MEMORY_MIB = 81_559  # H100 80 GB
RESERVED_MIB = 3_712  # 3.5 GB of safety and 392 MB of NCCL, decimal, rounded up
BANDWIDTH_BYTES_US = 0.8 * 3.35e6  # 80 % of 3.35 TB/s
EXPERT_US, TOKEN_US = 123.0, 0.687  # H100, bf16, vLLM kernels: fitted to measured tables

#: Subjects of MMLU that lend their usage to one request class each (all 57 are used).
CODE_SUBJECTS: dict[str, tuple[str, ...]] = {
    "computing": (
        "college_computer_science",
        "computer_security",
        "electrical_engineering",
        "high_school_computer_science",
        "machine_learning",
    ),
    "mathematics": (
        "abstract_algebra",
        "college_mathematics",
        "elementary_mathematics",
        "high_school_mathematics",
        "high_school_statistics",
    ),
    "physics": ("astronomy", "college_physics", "conceptual_physics", "high_school_physics"),
    "chemistry and biology": (
        "college_biology",
        "college_chemistry",
        "high_school_biology",
        "high_school_chemistry",
    ),
}
CONVERSATION_SUBJECTS: dict[str, tuple[str, ...]] = {
    "law": ("international_law", "jurisprudence", "professional_law"),
    "philosophy": (
        "formal_logic",
        "logical_fallacies",
        "moral_disputes",
        "moral_scenarios",
        "philosophy",
        "world_religions",
    ),
    "history": (
        "high_school_european_history",
        "high_school_us_history",
        "high_school_world_history",
        "prehistory",
    ),
    "politics": (
        "high_school_geography",
        "high_school_government_and_politics",
        "public_relations",
        "security_studies",
        "us_foreign_policy",
    ),
    "economics": ("econometrics", "high_school_macroeconomics", "high_school_microeconomics"),
    "society": (
        "high_school_psychology",
        "human_sexuality",
        "professional_psychology",
        "sociology",
    ),
    "health": (
        "anatomy",
        "clinical_knowledge",
        "college_medicine",
        "human_aging",
        "medical_genetics",
        "nutrition",
        "professional_medicine",
        "virology",
    ),
    "business and other": (
        "business_ethics",
        "global_facts",
        "management",
        "marketing",
        "miscellaneous",
        "professional_accounting",
    ),
}
SUBJECTS = {"conv": CONVERSATION_SUBJECTS, "code": CODE_SUBJECTS}

NOTES = (
    f"Expert usage: {SOURCE.url} (Apache-2.0), commit {SOURCE.commit[:12]}: Mixtral-8x7B over "
    "MMLU prompts (prefill, 14,042 questions), the share of each expert in each layer; adapted: "
    f"averaged and scaled to 2 activations a token. {azure.ATTRIBUTION}. No trace has both "
    "lengths and routing: the pairing of MMLU questions with Azure lengths is ours (code: STEM "
    "subjects, conversation: all others). bf16; dense weights on every GPU. GPUs: H100 80 GB, "
    "3.5 GB of safety and 392 MB for NCCL reserved. Layer time: 123 us an expert and 0.687 us a "
    "token-expert pair, our fit to the H100 bf16 vLLM tables of ai-dynamo/aiconfigurator "
    "(Apache-2.0, commit 095f58a5); attention_base_us streams the dense weights but for the input "
    "embedding at 80 % of 3.35 TB/s, attention_us_per_mib reads the KV cache once a step. Load: "
    "usage weighted by the true output tokens. "
)


def read_questions(paths: list[Path]) -> dict[str, npt.NDArray[np.float64]]:
    """Read each subject's shares, shape (questions, 32, 8), by subject."""
    questions: dict[str, npt.NDArray[np.float64]] = {}
    for path in paths:
        try:
            shares = np.load(path, allow_pickle=False).astype(np.float64)
        except ValueError as error:
            raise InputError(f"{path}: not a numpy array ({error})") from error
        if shares.shape[1:] != (LAYERS, EXPERTS) or not np.allclose(shares.sum(-1), 1, atol=1e-5):
            raise InputError(f"{path}: not shares of {EXPERTS} experts in {LAYERS} layers")
        questions[path.stem] = shares
    missing = [s for groups in SUBJECTS.values() for g in groups.values() for s in g]
    missing = [subject for subject in missing if subject not in questions]
    if missing:
        raise InputError([f"{SOURCE.folder}: missing frac_vecs/{s}.npy" for s in missing])
    return questions


def build(data_dir: Path | None) -> list[Bundle]:
    """Build the instances with length classes, and the one with a class for each request."""
    vectors, conv, code = find_all(
        data_dir,
        [
            (SOURCE, ("frac_vecs/*.npy",)),
            (azure.SOURCE, azure.CONVERSATION),
            (azure.SOURCE, azure.CODE),
        ],
    )
    questions = read_questions(vectors)
    lengths = {"conv": azure.read_lengths(conv[0]), "code": azure.read_lengths(code[0])}
    return [
        _classes(questions, lengths, gpus=4, requests={"conv": 400, "code": 200}),
        _classes(questions, lengths, gpus=8, requests={"conv": 1200, "code": 600}),
        _each(questions, lengths, gpus=4, requests={"conv": 133, "code": 67}),
        _steady(questions, lengths, requests={"conv": 1200, "code": 600}),
    ]


def _classes(
    questions: dict[str, npt.NDArray[np.float64]],
    lengths: dict[str, azure.Lengths],
    gpus: int,
    requests: dict[str, int],
) -> Bundle:
    """Build one instance for each form of the layer time, with 8 + 4 classes."""
    groups, usages, pairs = _cut(questions, lengths, requests, classes_a_topic=1)
    notes = (
        f"{NOTES}{requests['conv']} conversation and {requests['code']} code requests, cut into "
        "classes by output and total length; a class has its longest output and its largest "
        "total, so its KV cache and its steps are safe upper bounds. True mean prompt+output of "
        "each class, and the topic whose questions' mean usage it has: " + ", ".join(pairs) + "."
    )
    name = f"mixtral-8x7b_{gpus}gpu_azure"
    names = {"max": name, "sum": f"{name}_sum", "p2": f"{name}_p2"}
    documents = [document(names[form], gpus, form, groups, notes) for form in names]
    return Bundle(documents, f"{name}.npz", class_arrays(groups, usages))


def _cut(
    questions: dict[str, npt.NDArray[np.float64]],
    lengths: dict[str, azure.Lengths],
    requests: dict[str, int],
    classes_a_topic: int,
) -> tuple[list[azure.LengthClass], list[npt.NDArray[np.float64]], list[str]]:
    """Cut requests into classes, topics in turn: classes, their usages, and both in words."""
    groups: list[azure.LengthClass] = []
    usages: list[npt.NDArray[np.float64]] = []
    pairs: list[str] = []
    for kind, subjects in SUBJECTS.items():
        taken = azure.sample(lengths[kind], requests[kind])
        topics = [*subjects.items()] * classes_a_topic
        cut = azure.length_classes(kind, taken, len(topics))
        for group, (topic, members) in zip(cut, topics, strict=True):
            share = np.concatenate([questions[subject] for subject in members]).mean(axis=0)
            groups.append(group)
            usages.append(usage_profile(share, TOP_K))
            pairs.append(f"{group.describe()} ({topic})")
    return groups, usages, pairs


def _steady(
    questions: dict[str, npt.NDArray[np.float64]],
    lengths: dict[str, azure.Lengths],
    requests: dict[str, int],
) -> Bundle:
    """Build the instances in steady state on 4 and on 8 GPUs, with 32 + 16 classes."""
    groups, usages, _ = _cut(questions, lengths, requests, classes_a_topic=4)
    notes = (
        f"{NOTES}{requests['conv']} conversation and {requests['code']} code requests, cut into "
        "classes by output and total length; a class has its longest output and its largest "
        "total; topics lend their questions' mean usage to the classes in turn. "
    )
    documents: list[dict[str, Any]] = []
    for gpus in (4, 8):
        base = document("", gpus, "max", groups, notes.rstrip())
        documents += steady_documents(base, f"mixtral-8x7b_{gpus}gpu_steady", "")
    return Bundle(documents, "mixtral-8x7b_steady.npz", class_arrays(groups, usages))


def _each(
    questions: dict[str, npt.NDArray[np.float64]],
    lengths: dict[str, azure.Lengths],
    gpus: int,
    requests: dict[str, int],
) -> Bundle:
    """Build an instance whose every request is a class, with the usage of one question."""
    groups: list[azure.LengthClass] = []
    usages: list[npt.NDArray[np.float64]] = []
    for kind, subjects in SUBJECTS.items():
        pool = np.concatenate([questions[s] for members in subjects.values() for s in members])
        count = requests[kind]
        chosen = pool[np.arange(count) * len(pool) // count]
        for i, row in enumerate(azure.sample(lengths[kind], count)):
            groups.append(azure.LengthClass(f"{kind}{i:03d}", row[None, :]))
            usages.append(usage_profile(chosen[i], TOP_K))
    notes = (
        f"{NOTES}{requests['conv']} conversation and {requests['code']} code requests, each a "
        "class of its own with its true lengths and the usage of one question (evenly spread over "
        "the questions of its subjects)."
    )
    name = f"mixtral-8x7b_{gpus}gpu_azure_each"
    made = document(name, gpus, "max", groups, notes)
    return Bundle([made], f"{name}.npz", class_arrays(groups, usages))


def class_arrays(
    groups: list[azure.LengthClass], usages: list[npt.NDArray[np.float64]]
) -> dict[str, npt.NDArray[Any]]:
    """Usage of each class and the load they make, as arrays of an instance."""
    load = sum(group.decode_tokens * usage for group, usage in zip(groups, usages, strict=True))
    arrays = {f"usage_{group.name}": usage for group, usage in zip(groups, usages, strict=True)}
    return arrays | {f"load_{layer}": np.asarray(load)[layer] for layer in range(LAYERS)}


def document(
    name: str, gpus: int, form: str, groups: list[azure.LengthClass], notes: str
) -> dict[str, Any]:
    """Make a document of ``joint`` whose classes are these groups."""
    node = {"gpus": gpus, "memory_mib": MEMORY_MIB, "reserved_mib": RESERVED_MIB}
    return {
        "schema": "moeopt-instance/1",
        "name": name,
        "source": {
            "title": f"{SOURCE.title}; {azure.SOURCE.title}",
            "url": SOURCE.url,
            "licence": f"{SOURCE.licence} AND {azure.SOURCE.licence}",
            "notes": notes,
        },
        "moe": {
            "name": "mixtral-8x7b",
            "layers": LAYERS,
            "layers_total": LAYERS,
            "experts": EXPERTS,
            "top_k": TOP_K,
            "expert_mib": mib(EXPERT_BYTES),
            "dense_mib": mib(DENSE_BYTES),
            "kv_kib_per_token": KV_KIB_PER_TOKEN,
            "hidden_size": HIDDEN,
            "expert_groups": 1,
        },
        "cluster": {
            "nodes": [node],
            "hops": [[0]],
            "intra_node_gb_s": 450.0,
            "inter_node_gb_s": 50.0,
        },
        "layer_time": {
            "form": form,
            "expert_us": EXPERT_US,
            "token_us": TOKEN_US,
            "attention_base_us": round(STREAMED_BYTES / BANDWIDTH_BYTES_US, 3),
            "attention_us_per_mib": round(2**20 / BANDWIDTH_BYTES_US, 6),
        },
        "routing": [load_routing(layer) for layer in range(LAYERS)],
        "requests": [
            request_entry(group.name, group.count, group.prompt_tokens, group.output_tokens)
            for group in groups
        ],
        "joint": {"waves": 4},
    }


RECIPE = Recipe(
    name="mixtral-8x7b",
    summary="Mixtral-8x7B on 4 and 8 H100s with Azure lengths: joint, waves and steady state",
    build=build,
    sources=(SOURCE, azure.SOURCE),
)
