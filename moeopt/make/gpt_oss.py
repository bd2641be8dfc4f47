"""gpt-oss-20b: expert choices of every generated token, all 24 layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moeopt.errors import InputError
from moeopt.make.recipe import (
    Bundle,
    Recipe,
    Source,
    mib,
    scenario_arrays,
    scenario_routing,
)
from moeopt.routing import distinct_scenarios, expert_load

LAYERS, EXPERTS, TOP_K, HIDDEN = 24, 32, 4, 2880

SOURCE = Source(
    folder="AmanPriyanshu__GPT-OSS-MoE-ExpertFingerprinting",
    title="GPT-OSS-MoE-ExpertFingerprinting",
    url="https://github.com/AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting",
    commit="72b368f60045221f21eeb65debb27d58de92e565",
    licence="Apache-2.0",
)

# An expert: gate and up (2·2880 × 2880) and down (2880 × 2880), MXFP4 (4 bits a weight and one
# byte for 32 weights), and its biases (2·2880 + 2880) in bf16.
EXPERT_BYTES = 3 * HIDDEN * HIDDEN * 17 // 32 + 3 * HIDDEN * 2
# Everything else, bf16 (it adds up to the published 20,914,757,184 parameters): embedding and
# unembedding of 201,088 tokens; a layer's query, key and value (5120 wide), output (4096 wide),
# sinks, two norms and router; the last norm.
_LAYER_PARAMETERS = (
    HIDDEN * 5120 + 5120 + 4096 * HIDDEN + HIDDEN + 64 + 2 * HIDDEN + HIDDEN * EXPERTS + EXPERTS
)
DENSE_BYTES = 2 * (2 * 201_088 * HIDDEN + LAYERS * _LAYER_PARAMETERS + HIDDEN)
KV_KIB_PER_TOKEN = LAYERS * 2 * 8 * 64 * 2 / 1024  # keys and values, 8 heads of 64, bf16

FILES = ("gptoss20b_ids.npz", "data/*/*/*_examples.json")
MEMORY_MIB, RESERVED_MIB = 24564, 1024

NOTES = (
    f"Made from {SOURCE.url} (Apache-2.0), commit {SOURCE.commit[:12]}: gpt-oss-20b, generated "
    "(decode) tokens only, generation capped at 512 tokens by the authors. Adapted: the requests "
    "flagged as repetitive are dropped (494 of 703 remain, 162,219 tokens); token order and gate "
    "probabilities are dropped; a scenario is a distinct set of 4 experts of a layer, its weight "
    "the number of tokens that chose it. The trace has one example for each (data set, category, "
    "finished, repetitive) cell: a stratified sample of benchmarks, not traffic. Expert: MXFP4 "
    "weights and bf16 biases; KV cache: bf16, all 24 layers full (half of them attend to a window "
    "of 128 tokens only, so this is an upper bound). "
)


def read_ids(data_dir: Path | None) -> npt.NDArray[np.uint8]:
    """Read the experts of every token of every request that is not repetitive.

    Reads either the repository's own ``data/*/*/*_examples.json``, or a condensed copy:
    ``gptoss20b_ids.npz`` (``ids`` [tokens, layers, k], ``offsets``) and ``gptoss20b_meta.json``
    (``repetition`` of each request).

    Returns
    -------
    uint8 array, shape (T, 24, 4)
    """
    return np.concatenate([ids for _, ids in read_requests(data_dir)])


def read_requests(data_dir: Path | None) -> list[tuple[str, npt.NDArray[np.uint8]]]:
    """Read the data set (empty: not told) and choices of each request that is not repetitive.

    Files as for :func:`read_ids`.
    """
    return [(dataset, ids) for dataset, _, ids in read_subjects(data_dir)]


def read_subjects(data_dir: Path | None) -> list[tuple[str, str, npt.NDArray[np.uint8]]]:
    """Read what :func:`read_requests` does, and the category (a subject) within the data set."""
    found = SOURCE.find(data_dir, *FILES)
    if found[0].suffix != ".npz":
        parts = [(path.parts[-3], path.parts[-2], _read_example(path)) for path in found]
        return [(dataset, subject, ids) for dataset, subject, ids in parts if ids is not None]
    meta = json.loads(SOURCE.find(data_dir, "gptoss20b_meta.json")[0].read_text(encoding="utf-8"))
    with np.load(found[0], allow_pickle=False) as archive:
        ids, offsets = archive["ids"], archive["offsets"]
    if ids.shape[1:] != (LAYERS, TOP_K) or len(offsets) != len(meta) + 1:
        raise InputError(f"{found[0]}: not the choices of {LAYERS} layers of {len(meta)} requests")
    return [
        (request.get("dataset", ""), request.get("category", ""), ids[first:end])
        for request, first, end in zip(meta, offsets[:-1], offsets[1:], strict=True)
        if not request["repetition"]
    ]


def _read_example(path: Path) -> npt.NDArray[np.uint8] | None:
    try:
        example = json.loads(path.read_text(encoding="utf-8"))
        if example["has_repetition"]:
            return None
        tokens = [layers for entry in example["router_data"] for layers in entry.values()]
        ids = [
            [token[f"layer_{layer}"]["selected_experts"] for layer in range(LAYERS)]
            for token in tokens
        ]
        return np.array(ids, dtype=np.uint8).reshape(len(ids), LAYERS, TOP_K)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: not a router trace of gpt-oss-20b ({error!r})") from error


def build(data_dir: Path | None, layer: int = 10) -> list[Bundle]:
    """Build the instances of all layers and of one layer; they share their arrays."""
    if not 0 <= layer < LAYERS:
        raise InputError(f"option layer: {layer} is not in 0..{LAYERS - 1}")
    ids = read_ids(data_dir)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for number in range(LAYERS):
        expert_load(ids[:, number], EXPERTS)  # refuses experts that do not exist
        arrays |= scenario_arrays(number, *distinct_scenarios(ids[:, number]))
    documents = [
        _document("gpt-oss-20b_4gpu", range(LAYERS), gpus=4, slots=8),
        _document("gpt-oss-20b_8gpu", range(LAYERS), gpus=8, slots=4),
        _document("gpt-oss-20b_8gpu_5slots", range(LAYERS), gpus=8, slots=5),
        _document("gpt-oss-20b_8gpu_6slots", range(LAYERS), gpus=8, slots=6),
        _document(f"gpt-oss-20b_l{layer}_4gpu", [layer], gpus=4, slots=8),
        _document(f"gpt-oss-20b_l{layer}_8gpu", [layer], gpus=8, slots=4),
        _document(f"gpt-oss-20b_l{layer}_8gpu_5slots", [layer], gpus=8, slots=5),
    ]
    return [Bundle(documents, "gpt-oss-20b.npz", arrays)]


def _document(name: str, layers: range | list[int], gpus: int, slots: int) -> dict[str, Any]:
    whole = len(layers) == LAYERS
    node: dict[str, Any] = {"gpus": gpus}
    if whole:
        node |= {"memory_mib": MEMORY_MIB, "reserved_mib": RESERVED_MIB}
        cut = "All 24 layers. GPUs: assumed 24 GiB cards (24,564 MiB, 1,024 MiB reserved)."
    else:
        cut = (
            f"Cut to layer {layers[0]} of 24: slots alone limit (no memory is given); dense "
            "weights and KV cache are 1/24 of the whole LLM's."
        )
    share = len(layers) / LAYERS
    return {
        "schema": "moeopt-instance/1",
        "name": name,
        "source": {
            "title": SOURCE.title,
            "url": SOURCE.url,
            "licence": SOURCE.licence,
            "notes": NOTES + cut,
        },
        "moe": {
            "name": "gpt-oss-20b",
            "layers": len(layers),
            "layers_total": LAYERS,
            "experts": EXPERTS,
            "top_k": TOP_K,
            "expert_mib": mib(EXPERT_BYTES),
            "dense_mib": mib(DENSE_BYTES) * share,
            "kv_kib_per_token": KV_KIB_PER_TOKEN * share,
            "hidden_size": HIDDEN,
            "expert_groups": 1,
        },
        "cluster": {"nodes": [node], "slots_per_gpu": slots, "hops": [[0]]},
        "layer_time": {"form": "unit"},
        "routing": [scenario_routing(layer) for layer in layers],
    }


RECIPE = Recipe(
    name="gpt-oss-20b",
    summary="gpt-oss-20b on 4 and 8 GPUs, all layers and one, with and without spare slots",
    build=build,
    sources=(SOURCE,),
    options={"layer": "the layer of the single-layer instances (10)"},
)
