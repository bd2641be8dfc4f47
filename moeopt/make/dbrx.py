"""Synthetic routing at the size of DBRX: 16 experts, top-4, all 1,820 subsets."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moeopt.errors import InputError
from moeopt.make.recipe import Bundle, Recipe, mib, scenario_arrays, scenario_routing

EXPERTS, TOP_K, GPUS = 16, 4, 4
EXPERT_BYTES = 2 * 3 * 6144 * 10_752  # bf16: 378 MiB
SUBSETS = np.array(list(itertools.combinations(range(EXPERTS), TOP_K)))
SEEDS = (0, 1, 2)
#: Without replicas, to every expert everywhere.
SLOTS = range(EXPERTS // GPUS, EXPERTS + 1)

# Weights are rounded to whole numbers of about this size, so that the last bit of a logarithm
# cannot change a file.
_SCALE = 10_000

_KINDS = (
    "independent exponential weights",
    "experts of exponential popularity: a subset weighs the product of its experts' popularities "
    "times an independent exponential",
    "nearly uniform: 1 + 0.1 u with u uniform",
)


def _uniform(seed: int, count: int) -> npt.NDArray[np.float64]:
    """Draw numbers in (0, 1) from PCG64's raw stream, which numpy keeps stable."""
    raw = np.random.PCG64(seed).random_raw(count)
    return ((np.asarray(raw, dtype=np.uint64) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def subset_weights(seed: int) -> npt.NDArray[np.int64]:
    """Draw the weight of each subset, shape (1820,), in the way that ``seed`` modulo 3 names."""
    draws = _uniform(seed, EXPERTS + len(SUBSETS))
    popularity, noise = -np.log(draws[:EXPERTS]), -np.log(draws[EXPERTS:])
    if seed % 3 == 0:
        weights = noise
    elif seed % 3 == 1:
        weights = popularity[SUBSETS].prod(axis=1) * noise
        weights /= weights.mean()
    else:
        weights = 1 + 0.1 * draws[EXPERTS:]
    return np.maximum(1, np.rint(_SCALE * weights)).astype(np.int64)


def build(data_dir: Path | None, seed: int | None = None) -> list[Bundle]:
    """Build the instances of one seed, or of all shipped ones. Needs no raw data."""
    del data_dir
    if seed is not None and seed < 0:
        raise InputError(f"option seed: {seed} is negative")
    return [_bundle(number) for number in (SEEDS if seed is None else (seed,))]


def _bundle(seed: int) -> Bundle:
    """The instances of one seed, for every number of slots; they share their arrays."""
    return Bundle(
        [_document(seed, slots) for slots in SLOTS],
        f"dbrx_16x4_seed{seed}.npz",
        scenario_arrays(0, SUBSETS, subset_weights(seed)),
    )


def _document(seed: int, slots: int) -> dict[str, Any]:
    extra = "" if slots * GPUS == EXPERTS else f"_{slots}slots"
    return {
        "schema": "moeopt-instance/1",
        "name": f"dbrx_16x4_seed{seed}{extra}",
        "source": {
            "title": "Synthetic routing at the size of DBRX",
            "url": None,
            "licence": "MIT",
            "notes": f"Synthetic, one layer: all 1,820 subsets of 4 of 16 experts; "
            f"{_KINDS[seed % 3]}, rounded to whole numbers (PCG64, seed {seed}). Slots alone "
            "limit: no memory is given.",
        },
        "moe": {
            "name": "dbrx",
            "layers": 1,
            "layers_total": 40,
            "experts": EXPERTS,
            "top_k": TOP_K,
            "expert_mib": mib(EXPERT_BYTES),
            "hidden_size": 6144,
            "expert_groups": 1,
        },
        "cluster": {"nodes": [{"gpus": GPUS}], "slots_per_gpu": slots, "hops": [[0]]},
        "layer_time": {"form": "unit"},
        "routing": [scenario_routing(0)],
    }


RECIPE = Recipe(
    name="dbrx",
    summary="synthetic routing at the size of DBRX, 4 GPUs with 4 to 16 slots",
    build=build,
    options={"seed": "one seed instead of 0, 1 and 2; seed modulo 3 chooses the kind of weights"},
)
