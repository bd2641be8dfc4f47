"""Instances of ``activation`` from ranked choices: sampled steps of a batch, gate mass by rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from moeopt.make.recipe import Bundle

#: Tokens of a step, and how many steps are sampled: few tokens vary more from step to step.
STEPS = {1: 512, 16: 48, 64: 32, 256: 20, 2048: 12}
#: From so many tokens on a step is a chunk of prompts, without KV cache to be read.
CHUNK = 2048
#: Tokens of a request whose KV cache a step reads: half of 1,024 + 1,024, and the prompt.
CONTEXT_TOKENS = 1536
#: Gate mass that may be dropped, as a share of all.
BUDGET_SHARE = Fraction(1, 10)

NOTES = (
    "A token's experts are ranked by gate weight; a step is a batch of tokens of the trace, the "
    "same in all layers and under every number of kept experts; that dropped experts would change "
    "later choices is not in a trace. gate_mass is the mean share of each rank over all "
    "tokens; the budget is a tenth of it. Layer time: form p2 of moeopt.calibrate for {gpu}: "
    "{source}. attention_base_us: dense weights but for the input embedding, streamed"
)


@dataclass(frozen=True)
class Ranked:
    """Choices of every token, heaviest first.

    Attributes
    ----------
    ids : uint8 array, shape (T, L, k)
    share : float array, shape (L, k)
        Mean share of each rank in a token's gate weight; sums to 1 but for rounding.
    """

    ids: npt.NDArray[np.uint8]
    share: npt.NDArray[np.float64]


def ranked(ids: npt.NDArray[np.uint8], gate: npt.NDArray[np.floating]) -> Ranked:
    """Sort choices by gate weight and average the shares.

    Parameters
    ----------
    ids : uint8 array, shape (T, L, k)
    gate : float array, shape (T, L, k)
        Gate weights in the same order, any scale; equal ones stay in their order.
    """
    order = np.argsort(-gate, axis=2, kind="stable")
    weight = np.take_along_axis(gate, order, 2).astype(np.float64)
    share = (weight / weight.sum(axis=2, keepdims=True)).mean(axis=0)
    return Ranked(np.take_along_axis(ids, order, 2), share.round(6))


def bundle(
    base: Mapping[str, Any], choices: Ranked, batch: int, *, layers: range, consecutive: bool
) -> Bundle:
    """Return the instance of one batch size; ``base`` has everything but routing and activation.

    Parameters
    ----------
    consecutive : bool
        Whether the tokens of a step follow each other in the trace, as in a prompt.
    """
    experts, top_k = base["moe"]["experts"], choices.ids.shape[2]
    steps = sample(len(choices.ids), batch, consecutive=consecutive)
    arrays: dict[str, npt.NDArray[Any]] = {"weight": np.ones(len(steps), dtype=np.int8)}
    for l, number in enumerate(layers):
        for j in range(1, top_k + 1):
            chosen = choices.ids[:, l, :j][steps].reshape(len(steps), -1)
            members, tokens = counted(chosen, experts)
            arrays[f"experts_{number}_{j}"] = members
            if batch > 1:
                arrays[f"tokens_{number}_{j}"] = tokens
    name = f"{base['name']}_b{batch}"
    what = "consecutive" if consecutive else "independent"
    notes = f"{base['source']['notes']} {len(steps)} steps of {batch:,} {what} tokens."
    gate_mass = {"gate_mass": choices.share.tolist()}
    document = {
        **base,
        "name": name,
        "source": {**base["source"], "notes": notes},
        "routing": [
            {"layer": number, "scenarios": _scenarios(number, top_k, batch)} for number in layers
        ],
        "activation": {
            **gate_mass,
            "budget": float(BUDGET_SHARE * len(layers)),
            "batch": batch,
            "scenarios": [
                [_scenarios(number, j, batch) for j in range(1, top_k + 1)] for number in layers
            ],
        },
    }
    return Bundle([document], f"{name}.npz", arrays)


def sample(tokens: int, batch: int, *, consecutive: bool) -> npt.NDArray[np.int64]:
    """Tokens of each step, shape (STEPS[batch], batch), drawn with the seed ``batch``."""
    rng = np.random.default_rng(batch)
    if consecutive:
        first = rng.integers(0, tokens - batch + 1, (STEPS[batch], 1))
        return first + np.arange(batch)
    return rng.integers(0, tokens, (STEPS[batch], batch))


def counted(
    chosen: npt.NDArray[np.uint8], experts: int
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.signedinteger]]:
    """Experts of each row and how often they occur, as rectangles filled with −1."""
    rows = [np.bincount(row, minlength=experts) for row in chosen]
    width = max(int((row > 0).sum()) for row in rows)
    members = np.full((len(rows), width), -1, dtype=np.int8)
    small = max(int(row.max()) for row in rows) <= np.iinfo(np.int8).max
    tokens = np.full((len(rows), width), -1, dtype=np.int8 if small else np.int16)
    for s, row in enumerate(rows):
        present = np.flatnonzero(row)
        members[s, : len(present)] = present
        tokens[s, : len(present)] = row[present]
    return members, tokens


def attention_us(
    base_us: float, us_per_mib: float, kv_kib_per_token: float, batch: int, gpus: int
) -> float:
    """Attention of a step: dense weights, and the KV cache of the requests of the fullest GPU."""
    requests = 0 if batch >= CHUNK else -(-batch // gpus)
    kv_mib = requests * CONTEXT_TOKENS * kv_kib_per_token / 1024
    return round(base_us + us_per_mib * kv_mib, 3)


def _scenarios(number: int, j: int, batch: int) -> dict[str, Any]:
    tokens = {"npz": f"tokens_{number}_{j}"} if batch > 1 else None
    return {
        "experts": {"npz": f"experts_{number}_{j}"},
        "weight": {"npz": "weight"},
        "tokens": tokens,
    }
