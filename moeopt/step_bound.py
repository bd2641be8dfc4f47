"""Lower bounds of ``joint`` that hold for every plan: steps, waves and work.

Notation of the problem book: a wave w decodes ``n_w`` requests (``n_cw`` of class c) for ``D_w``
steps of ``τ_w`` each; G GPUs.

**Step time.** ``T[w,l] >= f(A_g, N_g)`` for every GPU g, and f is the largest of affine pieces
(``LayerTime.pieces``; for ``p2`` they lie below f). The mean over the GPUs of one piece is a lower
bound of T, and in the mean only totals count: every token-expert pair is computed (``ΣN = k·n_w``)
and every expert with tokens is activated somewhere. An expert that every class uses has tokens in
every wave that decodes anything; there are ``A_l`` of them. So for each piece (p, q, r)::

    T[w,l] >= p + q·A_l/G + r·k·n_w/G

A piece without tokens may use whole activations, ``p + q·ceil(A_l/G)``. The same holds for convex
combinations of pieces. With the attention's mean over GPUs, ``τ_w >= τ0 + Σ_c τ1_c n_cw`` for every
wave that decodes anything: an :class:`AffineStep`.

**Wave lengths.** A request of a class with ``O_c >= t`` needs a wave with ``D_w >= t``, and such
waves hold at most the memory that one copy of every expert leaves. So at least
``ceil(KV(t)/memory)`` waves have ``D_w >= t``, where KV(t) is the cache of all those requests, and
``Σ_w D_w`` is at least the sum of these numbers over t = 1, 2, …

**Work.** A request of class c that decodes in a wave of D steps costs ``τ1_c·D``, and every wave
that decodes anything ``τ0·D``. Whatever the waves' lengths are, a request pays at least the
shortest length in use that is at least ``O_c``. So, for each affine step, the makespan is at least
the cheapest choice of wave lengths::

    min  Σ_w τ0·D_w + Σ_c m_c·τ1_c·min{D_w : D_w >= O_c}     over multisets of at most W lengths
    with at least ``waves_needed(t)`` lengths >= t, for every t

Lengths may be taken from the output lengths (a length in between only costs more), so a dynamic
programme over (shortest length so far, number of waves) finds the minimum: :func:`work_bound`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from moeopt.problem import FloatArray, IntArray, ProblemData

#: Convex combinations of the two pieces of ``max`` that are tried.
MAX_COMBINATIONS = 33

# Every sum below has at most a few thousand terms, each rounded once or twice: its relative error
# is far below 2**-30. Bounds are lowered by that much, so that rounding cannot make them too large.
_SAFE = 1.0 - 2.0**-30


@dataclass(frozen=True)
class AffineStep:
    """``τ_w >= base_us + Σ_c per_request_us[c]·n_cw`` for every wave that decodes anything."""

    base_us: float
    per_request_us: FloatArray


def affine_steps(data: ProblemData) -> list[AffineStep]:
    """Affine lower bounds of the step time, one for each (combination of) piece(s)."""
    requests = data.requests
    assert requests is not None
    gpus = data.gpus
    always = (requests.usage > 0).all(axis=0).sum(axis=1)  # A_l
    attention = data.attention_us_per_mib * requests.kv_mib / gpus
    per_token = data.layers * data.top_k / gpus  # token-expert pairs of a request, a GPU
    steps = []
    for constant, act, tok in _combined_pieces(data):
        whole = np.ceil(always / gpus) if tok == 0.0 else always / gpus
        base = data.attention_base_us + data.layers * constant + act * float(whole.sum())
        steps.append(AffineStep(base * _SAFE, (tok * per_token + attention) * _SAFE))
    return steps


def _combined_pieces(data: ProblemData) -> list[tuple[float, float, float]]:
    pieces = list(data.layer_time.pieces())
    if data.layer_time.form == "max":
        first, second = pieces
        for share in np.linspace(0.0, 1.0, MAX_COMBINATIONS)[1:-1].tolist():
            a, b, c = (share * p + (1.0 - share) * q for p, q in zip(first, second, strict=True))
            pieces.append((a, b, c))
    return pieces


def kv_memory_mib(data: ProblemData) -> float:
    """Memory that one copy of every expert leaves on all GPUs together, in MiB (may be < 0)."""
    assert data.free_mib is not None
    return float(data.free_mib.sum()) - data.expert_mib * data.layers * data.experts


def waves_needed(data: ProblemData) -> list[tuple[int, int]]:
    """Return (t, waves with ``D_w >= t`` at least) for each distinct output length t, ascending."""
    requests = data.requests
    assert requests is not None
    memory = Fraction(kv_memory_mib(data))
    needed = []
    for t in sorted(set(requests.output_tokens.tolist())):
        at_least = requests.output_tokens >= t
        total = sum(
            Fraction(kv) * int(count)
            for kv, count in zip(
                requests.kv_mib[at_least].tolist(), requests.count[at_least].tolist(), strict=True
            )
        )
        # Without a cache, or where memory is no limit worth computing, one wave may do.
        needed.append((t, max(1, math.ceil(total / memory)) if total and memory > 0 else 1))
    return needed


def work_bound(data: ProblemData) -> float:
    """Lower bound of the makespan of ``joint`` in microseconds (module docstring).

    Infinite if the waves that memory needs are more than there may be.
    """
    requests = data.requests
    assert requests is not None
    needed = dict(waves_needed(data))
    lengths = list(needed)
    counts = [
        requests.count * (requests.output_tokens == length).astype(np.int64) for length in lengths
    ]
    return max(
        _cheapest_lengths(data, step, lengths, counts, needed) for step in affine_steps(data)
    )


def _cheapest_lengths(
    data: ProblemData,
    step: AffineStep,
    lengths: list[int],
    counts: list[IntArray],
    needed: dict[int, int],
) -> float:
    """Cost of the best wave lengths for one affine step: dynamic programme from the longest down.

    ``best[n]`` at position i: least cost when ``lengths[i]`` is the shortest length so far and n
    waves are at least that long; the requests longer than ``lengths[i]`` have been paid.
    """
    waves = data.waves
    per_step = [float(step.per_request_us @ count) for count in counts]
    last = len(lengths) - 1
    best = {(last, n): step.base_us * lengths[last] * n for n in range(1, waves + 1)}
    result = np.inf
    for i in range(last, -1, -1):
        for n in range(1, waves + 1):
            cost = best.get((i, n), np.inf)
            if cost == np.inf:
                continue
            # The lengths below i down to (not including) j decode in waves of lengths[i].
            for j in range(i - 1, -2, -1):
                cost += per_step[j + 1] * lengths[i]
                if n < needed[lengths[j + 1]]:
                    break  # needed only grows for shorter lengths
                if j < 0:
                    result = min(result, cost)
                    continue
                for more in range(1, waves - n + 1):
                    value = cost + step.base_us * lengths[j] * more
                    if value < best.get((j, n + more), np.inf):
                        best[j, n + more] = value
    return float(result) * _SAFE
