"""Requests of a replay: real expert choices, paired with real lengths and arrivals.

No public trace has routing, lengths and arrivals of the same requests. ``own`` keeps the lengths of
the routing trace; a trace of arrivals lends its lengths, and each of its requests takes the tokens
of a routing request (in a seeded random order, from a random token on, starting again at its end).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from moeopt.errors import InputError
from moeopt.make.traces_shipped import Arrivals, Trace
from moeopt.problem import FloatArray, IntArray
from moeopt.units import mib_up


@dataclass(frozen=True)
class Workload:
    """Requests in the order in which they are served, all arrays of shape (R,).

    Attributes
    ----------
    trace : Trace
        Whose tokens are decoded.
    begin, length, phase : int arrays
        Token i of request r is token ``begin + (phase + i) mod length`` of the trace.
    prompt_tokens, output_tokens : int arrays
    kv_mib : float array
        KV cache at the final length, whole bytes.
    kv_mib_per_token : float
    arrival_s : float array, or None
        None: all requests wait from the start, and begin again when all are served.
    """

    trace: Trace
    begin: IntArray
    length: IntArray
    phase: IntArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    kv_mib: FloatArray
    kv_mib_per_token: float
    arrival_s: FloatArray | None

    def __len__(self) -> int:
        return len(self.begin)

    def random_tokens(
        self, rng: np.random.Generator, count: int
    ) -> tuple[IntArray, FloatArray, FloatArray]:
        """Draw tokens as a decode step meets them: each token of each request alike.

        Returns
        -------
        tokens : int array, shape (count,)
            Indices into ``trace.ids``.
        used_mib, reserved_mib : float arrays, shape (count,)
            KV cache of their requests at that token, and at the final length.
        """
        ends = np.cumsum(self.output_tokens)
        drawn = rng.integers(int(ends[-1]), size=count)
        r = np.searchsorted(ends, drawn, side="right")
        place = drawn - (ends[r] - self.output_tokens[r])
        tokens = self.begin[r] + (self.phase[r] + place) % self.length[r]
        context = (self.prompt_tokens[r] + place + 1).astype(np.float64)
        return tokens, context * self.kv_mib_per_token, self.kv_mib[r]


def make_workload(
    trace: Trace,
    kv_kib_per_token: float,
    arrivals: Arrivals | None = None,
    *,
    seed: int = 0,
    rate_per_s: float | None = None,
) -> Workload:
    """Pair a routing trace with lengths and arrivals.

    Parameters
    ----------
    trace : Trace
    kv_kib_per_token : float
    arrivals : Arrivals, optional
        None: the trace's own lengths; all requests wait from the start.
    seed : int
        Of the order of the requests and of the pairing.
    rate_per_s : float, optional
        Mean arrivals a second, to which the gaps between the arrivals are scaled. None: all
        requests wait from the start, whatever the trace of arrivals says.

    Raises
    ------
    InputError
        A rate without arrivals, or one that is not positive.
    """
    if rate_per_s is not None and (arrivals is None or rate_per_s <= 0):
        raise InputError("a rate must be positive and needs a trace of arrivals")
    rng = np.random.default_rng(seed)
    requests = len(trace.lengths) if arrivals is None else len(arrivals.prompt_tokens)
    rounds = -(-requests // len(trace.lengths))
    order = np.concatenate([rng.permutation(len(trace.lengths)) for _ in range(rounds)])[:requests]
    length = trace.lengths[order]
    arrival_s = None
    if arrivals is None:
        prompt, output = trace.prompt_tokens[order], length
        phase = np.zeros(requests, dtype=np.int64)
    else:
        prompt, output = arrivals.prompt_tokens, arrivals.output_tokens
        phase = rng.integers(length)
        if rate_per_s is not None:
            scale = (requests - 1) / rate_per_s / max(float(arrivals.arrival_s[-1]), 1e-9)
            arrival_s = arrivals.arrival_s * scale
        else:
            # Without arrivals the order is free: another seed is another sample.
            shuffle = rng.permutation(requests)
            prompt, output = prompt[shuffle], output[shuffle]
    per_token = Fraction(repr(float(kv_kib_per_token))) / 1024
    kv_mib = np.array([mib_up(per_token * n) for n in (prompt + output).tolist()])
    return Workload(
        trace,
        trace.offsets[:-1][order],
        length,
        phase,
        prompt,
        output,
        kv_mib,
        float(per_token),
        arrival_s,
    )
