"""gpt-oss-20b: kept experts against gate mass, batches of 1 to 2,048 tokens on 4 GPUs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moeopt.errors import InputError
from moeopt.make import activation, gpt_oss
from moeopt.make.recipe import Bundle, Recipe, mib

GPUS = 4
GPU = "h100"
#: As ``moeopt.calibrate`` has them (a test compares).
BASE_US, EXPERT_US, TOKEN_US = 3.0, 4.758, 0.1041
STREAM_US, US_PER_MIB = 909.471, 0.39126


def read_gates(
    data_dir: Path | None,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float16]]:
    """Read experts and gate probabilities of every token that is not of a repetitive request.

    Reads either the repository's own files, or a condensed copy with ``gptoss20b_probs.npz``
    (``probs`` [tokens, layers, k]) beside what :func:`moeopt.make.gpt_oss.read_ids` needs.

    Returns
    -------
    ids, probabilities : arrays, shape (T, 24, 4)
    """
    found = gpt_oss.SOURCE.find(data_dir, "gptoss20b_probs.npz", "data/*/*/*_examples.json")
    ids = gpt_oss.read_ids(data_dir)
    if found[0].suffix != ".npz":
        parts = [_read_example(path) for path in found]
        gates = np.concatenate([part for part in parts if part is not None])
    else:
        folder = found[0].parent
        meta = json.loads((folder / "gptoss20b_meta.json").read_text(encoding="utf-8"))
        with np.load(folder / "gptoss20b_ids.npz", allow_pickle=False) as archive:
            offsets = archive["offsets"]
        with np.load(found[0], allow_pickle=False) as archive:
            every = archive["probs"]
        clean = [r for r, request in enumerate(meta) if not request["repetition"]]
        gates = np.concatenate([every[offsets[r] : offsets[r + 1]] for r in clean])
    if gates.shape != ids.shape:
        raise InputError(f"{found[0]}: gate probabilities of {len(gates)} tokens, not {len(ids)}")
    return ids, gates


def _read_example(path: Path) -> npt.NDArray[np.float16] | None:
    try:
        example = json.loads(path.read_text(encoding="utf-8"))
        if example["has_repetition"]:
            return None
        tokens = [layers for entry in example["router_data"] for layers in entry.values()]
        gates = [
            [token[f"layer_{layer}"]["selected_probs"] for layer in range(gpt_oss.LAYERS)]
            for token in tokens
        ]
        shape = (len(gates), gpt_oss.LAYERS, gpt_oss.TOP_K)
        return np.array(gates, dtype=np.float16).reshape(shape)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: no gate probabilities of gpt-oss-20b ({error!r})") from error


def build(data_dir: Path | None) -> list[Bundle]:
    """Build an instance for each batch size."""
    choices = activation.ranked(*read_gates(data_dir))
    layers = range(gpt_oss.LAYERS)
    return [
        activation.bundle(_base(batch), choices, batch, layers=layers, consecutive=False)
        for batch in activation.STEPS
    ]


def _base(batch: int) -> dict[str, Any]:
    source = gpt_oss.SOURCE
    notes = activation.NOTES.format(gpu=GPU, source="bytes and achieved shares of other MoEs")
    if batch < activation.CHUNK:
        notes += f", and the KV cache of {activation.CONTEXT_TOKENS:,} tokens a request"
    return {
        "schema": "moeopt-instance/1",
        "name": f"gpt-oss-20b_{GPUS}gpu_activation",
        "source": {
            "title": source.title,
            "url": source.url,
            "licence": source.licence,
            "notes": f"Made from {source.url} ({source.licence}), commit {source.commit[:12]}: "
            "gpt-oss-20b, generated tokens of the 494 requests that are not repetitive. Adapted: "
            f"steps are sampled, gate probabilities averaged. {notes}.",
        },
        "moe": {
            "name": "gpt-oss-20b",
            "layers": gpt_oss.LAYERS,
            "layers_total": gpt_oss.LAYERS,
            "experts": gpt_oss.EXPERTS,
            "top_k": gpt_oss.TOP_K,
            "expert_mib": mib(gpt_oss.EXPERT_BYTES),
            "hidden_size": gpt_oss.HIDDEN,
        },
        "cluster": {"nodes": [{"gpus": GPUS}], "slots_per_gpu": gpt_oss.EXPERTS // GPUS},
        "layer_time": {
            "form": "p2",
            "base_us": BASE_US,
            "expert_us": EXPERT_US,
            "token_us": TOKEN_US,
            "attention_base_us": activation.attention_us(
                STREAM_US, US_PER_MIB, gpt_oss.KV_KIB_PER_TOKEN, batch, GPUS
            ),
        },
    }


RECIPE = Recipe(
    name="gpt-oss-20b-activation",
    summary="gpt-oss-20b on 4 H100: kept experts against gate mass, 1 to 2,048 tokens a step",
    build=build,
    sources=(gpt_oss.SOURCE,),
)
