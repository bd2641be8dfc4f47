"""DeepSeek-V2-Lite: kept experts against gate mass, steps of 1 to 2,048 tokens on 2 GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moeopt.errors import InputError
from moeopt.make import activation
from moeopt.make import deepseek_v2_lite as lite
from moeopt.make.recipe import Bundle, Recipe, mib

GPUS = 2
GPU = "a100"
#: As ``moeopt.calibrate`` has them (a test compares).
BASE_US, EXPERT_US, TOKEN_US = 3.0, 13.88, 0.1993
STREAM_US, US_PER_MIB = 1351.052, 0.642825


def read_gates(data_dir: Path | None) -> npt.NDArray[np.float16]:
    """Read the gate scores of every token, in the order of the choices, shape (T, 26, 6).

    Reads either the repository's own ``results/expert_scores/TASK/expert_weights_LAYER.txt``, or a
    condensed copy ``esft_dsv2lite_scores.npz`` (``TASK_scores``).
    """
    found = lite.SOURCE.find(
        data_dir, "esft_dsv2lite_scores.npz", "results/expert_scores/*/expert_weights_*.txt"
    )
    if found[0].suffix != ".npz":
        folder = found[0].parents[1]
        return np.concatenate([_read_task(folder / task) for task in lite.TASKS])
    with np.load(found[0], allow_pickle=False) as archive:
        return np.concatenate([archive[f"{task}_scores"] for task in lite.TASKS])


def _read_task(folder: Path) -> npt.NDArray[np.float16]:
    layers = []
    for layer in lite.MOE_LAYERS:
        path = folder / f"expert_weights_{layer}.txt"
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            scores = [line.partition("\t\t")[2].split("\t") for line in lines]
            rows = [np.array(row, dtype=np.float16).reshape(-1, lite.TOP_K) for row in scores]
            layers.append(np.concatenate(rows))
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: not a list of gate scores ({error})") from error
    return np.stack(layers, axis=1)


def build(data_dir: Path | None) -> list[Bundle]:
    """Build an instance for each batch size."""
    ids = np.concatenate([trace.ids for trace in lite.read_traces(data_dir).values()])
    gates = read_gates(data_dir)
    if gates.shape != ids.shape:
        raise InputError(
            f"{lite.SOURCE.folder}: gate scores of {len(gates)} tokens, not {len(ids)}"
        )
    choices = activation.ranked(ids, gates)
    return [
        activation.bundle(
            _base(batch),
            choices,
            batch,
            layers=lite.MOE_LAYERS,
            consecutive=batch >= activation.CHUNK,
        )
        for batch in activation.STEPS
    ]


def _base(batch: int) -> dict[str, Any]:
    source = lite.SOURCE
    notes = activation.NOTES.format(gpu=GPU, source="bytes and achieved shares of other MoEs")
    if batch < activation.CHUNK:
        notes += f", and the KV cache of {activation.CONTEXT_TOKENS:,} tokens a request"
    return {
        "schema": "moeopt-instance/1",
        "name": f"deepseek-v2-lite_{GPUS}gpu_activation",
        "source": {
            "title": source.title,
            "url": source.url,
            "licence": source.licence,
            "notes": f"Made from {source.url} (MIT, (c) 2023 DeepSeek), commit "
            f"{source.commit[:12]}: expert ids and gate scores of ESFT-vanilla-lite "
            "(DeepSeek-V2-Lite), teacher-forced over prompt and answer: prefill tokens, not "
            f"generated ones. Adapted: steps are sampled, gate scores averaged. {notes}.",
        },
        "moe": {
            "name": "deepseek-v2-lite",
            "layers": len(lite.MOE_LAYERS),
            "layers_total": 27,
            "experts": lite.EXPERTS,
            "top_k": lite.TOP_K,
            "expert_mib": mib(lite.EXPERT_BYTES),
            "hidden_size": lite.HIDDEN,
        },
        "cluster": {"nodes": [{"gpus": GPUS}], "slots_per_gpu": lite.EXPERTS // GPUS},
        "layer_time": {
            "form": "p2",
            "base_us": BASE_US,
            "expert_us": EXPERT_US,
            "token_us": TOKEN_US,
            "attention_base_us": activation.attention_us(
                STREAM_US, US_PER_MIB, lite.KV_KIB_PER_TOKEN, batch, GPUS
            ),
        },
    }


RECIPE = Recipe(
    name="deepseek-v2-lite-activation",
    summary="DeepSeek-V2-Lite on 2 A100: kept experts against gate mass, 1 to 2,048 tokens a step",
    build=build,
    sources=(lite.SOURCE,),
)
