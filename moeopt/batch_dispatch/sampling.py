"""Counts of one batch by source GPU, drawn from a routing trace."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moeopt.errors import InputError
from moeopt.make.traces_shipped import Trace
from moeopt.problem import IntArray


def trace_layers(trace: Trace, numbers: Sequence[int], layers_total: int | None) -> IntArray:
    """Layers of the trace that belong to an instance's layers, shape (L,).

    As many layers: one after the other. Else the trace has the last layers of the LLM, and an
    instance's layer is found by its number.

    Parameters
    ----------
    trace : Trace
    numbers : sequence of int
        Numbers of the instance's layers in the LLM.
    layers_total : int or None
        Hidden layers of the LLM.

    Raises
    ------
    InputError
        The trace does not have these layers.
    """
    if trace.layers == len(numbers):
        return np.arange(trace.layers)
    at = np.array(numbers, dtype=np.int64) - ((layers_total or trace.layers) - trace.layers)
    if at.min() < 0 or at.max() >= trace.layers:
        raise InputError(
            f"trace {trace.name} has {trace.layers} layers, not those of the instance "
            f"({len(numbers)}: {numbers[0]} to {numbers[-1]})"
        )
    return at


def sample_counts(
    trace: Trace, layers: IntArray, batch: int, gpus: int, random: np.random.Generator
) -> IntArray:
    """Draw a batch of tokens, each from a source GPU in turn.

    Parameters
    ----------
    trace : Trace
    layers : int array, shape (L,)
        Layers of the trace.
    batch : int
        Tokens, drawn with replacement.
    gpus : int
    random : numpy.random.Generator

    Returns
    -------
    int array, shape (L, G, E)
        Tokens of each source GPU for each expert.

    Raises
    ------
    InputError
        The batch is empty.
    """
    if batch < 1:
        raise InputError(f"a batch has at least 1 token, not {batch}")
    ids = trace.ids[random.integers(len(trace.ids), size=batch)][:, layers].astype(np.int64)
    source = (np.arange(batch) % gpus)[:, None]
    counts = [
        np.bincount((source * trace.experts + ids[:, l]).ravel(), minlength=gpus * trace.experts)
        for l in range(len(layers))
    ]
    return np.stack(counts).reshape(len(layers), gpus, trace.experts)
