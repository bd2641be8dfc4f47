"""Requests for experts from the experts that tokens chose: one sequence at a time, or several.

A batch of B decodes B sequences at once: a sequence that ends is followed by the next one that
waits (continuous batching). A step asks, layer by layer, for the union of its tokens' experts.
"""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt

from moeopt.errors import InputError
from moeopt.paging.requests import IntArray, Requests


def requests_of_choices(
    ids: npt.NDArray[np.integer], offsets: IntArray, experts: int, *, batch: int = 1
) -> Requests:
    """Make the requests of decoding sequences, ``batch`` of them at a time, in their order.

    Parameters
    ----------
    ids : int array, shape (tokens, L, k)
        Experts of each token.
    offsets : int array, shape (sequences + 1,)
        Sequence r is ``ids[offsets[r]:offsets[r + 1]]``.
    experts : int
        Experts of a layer, E.
    batch : int
        Sequences decoded at once; 1: one token after the other.

    Raises
    ------
    InputError
        The batch is not positive.
    """
    if batch < 1:
        raise InputError(f"a batch has at least one sequence, not {batch}")
    layers = ids.shape[1]
    step = steps(offsets, batch)
    place = step[:, None] * layers + np.arange(layers)
    # One number a use: sorted and without duplicates, it is the union of each request.
    code = np.sort((place[:, :, None] * experts + ids).ravel())
    code = code[np.diff(code, prepend=-1) > 0]
    sizes = np.bincount(code // experts)
    ptr = np.concatenate(([0], np.cumsum(sizes)))
    return Requests(layers, experts, ptr, code % (layers * experts))


def steps(offsets: IntArray, batch: int) -> IntArray:
    """Step in which each token is decoded, shape (tokens,): sequences start when one has ended."""
    lengths = np.diff(offsets)
    free = [0] * batch
    begin = np.empty(len(lengths), dtype=np.int64)
    for r, length in enumerate(lengths.tolist()):
        begin[r] = heapq.heappop(free)
        heapq.heappush(free, int(begin[r]) + length)
    inside = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    found: IntArray = np.repeat(begin, lengths) + inside
    return found
