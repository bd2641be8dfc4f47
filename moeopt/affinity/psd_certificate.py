"""Multipliers of the semidefinite relaxation as a proof, in whole numbers.

For each level (GPUs, nodes) and clique any matrix ``F`` and vectors ``a_b`` (one for each block b
of E experts) make ``Q = -F F' + Σ_b (a_b 1_b' + 1_b a_b')``. For every plan ``Y - J/K`` is positive
semidefinite and ``Y 1_b = (E/K) 1``, so that

    <Q, Y>  <=  -|F' 1|² / K + 2 (E/K) Σ_b Σ a_b,

and what is left of the worth, ``<C - Q, Y>``, is at most the sum of its positive entries, because
entries of Y are 0 or 1 (those of the diagonal 1; of GPUs not above those of nodes). Their sum is at
least the worth of every plan, whatever F and a are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from moeopt.affinity.data import FloatArray, IntArray

if TYPE_CHECKING:
    from moeopt.affinity.psd import Level

#: Sums of whole numbers stay below this.
_LARGEST = 2.0**61


@dataclass(frozen=True)
class Certificate:
    """``value`` is proved by ``factor`` and ``gauge``, whole multiples of 2**-half and 2**-bits.

    Attributes
    ----------
    factor : list of int arrays, one a level, shape (C, n, n)
    gauge : list of int arrays, one a level, shape (C, blocks, n)
    half : int
        Bits of ``factor``; ``gauge`` and worths have ``bits = 2 * half``.
    """

    value: Fraction
    factor: list[IntArray]
    gauge: list[IntArray]
    half: int


def certify(levels: list[Level], multipliers: FloatArray, experts: int) -> Certificate:
    """Make a proof of real multipliers, shape (levels, C, n, n): they lose a little."""
    n = multipliers.shape[-1]
    blocks = n // experts
    size = max(
        float(np.abs(multipliers).max(initial=1.0)),
        *(float(np.abs(part).max(initial=1.0)) for v in levels for part in (v.cross, v.inside)),
    )
    # Entries of F F' are at most n times the largest multiplier, a few of them are added.
    half = max(0, math.floor(math.log2(_LARGEST / (64.0 * n * n * size)) / 2))
    ones = np.kron(np.eye(blocks), np.ones((experts, 1)))
    factor, gauge = [], []
    for k in range(len(levels)):
        q = (multipliers[k] + multipliers[k].swapaxes(-1, -2)) / 2
        along = q @ ones / experts  # what Q does to the ones of each block
        twice = ones.T @ along / experts
        a = along - ones @ twice / 2
        rest = q - a @ ones.T - ones @ a.swapaxes(-1, -2)
        spectrum, vector = np.linalg.eigh(-rest)
        factor.append(_whole(vector * np.sqrt(np.maximum(spectrum, 0.0))[..., None, :], half))
        gauge.append(_whole(a.swapaxes(-1, -2), 2 * half))
    value = evaluate(levels, factor, gauge, half, experts)
    return Certificate(value, factor, gauge, half)


def _whole(values: FloatArray, bits: int) -> IntArray:
    return np.rint(np.ldexp(values, bits)).astype(np.int64)


def evaluate(
    levels: list[Level], factor: list[IntArray], gauge: list[IntArray], half: int, experts: int
) -> Fraction:
    """Return the bound that any whole numbers prove (module docstring)."""
    e = experts
    cliques = factor[0].shape[0]
    chain = factor[0].shape[1] == 2 * e
    cross, inside, value = [], [], Fraction(0)
    for level, f, a in zip(levels, factor, gauge, strict=True):
        k = level.parts
        total = sum(int(x) ** 2 for x in f.sum(axis=1).ravel())
        value -= Fraction(total, k)
        value += Fraction(2 * e * int(a.sum(dtype=object)), k)
        q = -(f @ f.swapaxes(-1, -2))
        for b in range(a.shape[1]):
            own = slice(b * e, (b + 1) * e)
            q[:, :, own] += a[:, b, :, None]
            q[:, own, :] += a[:, b, None, :]
        if chain:
            cross.append(_ceiling(level.cross, 2 * half) - 2 * q[:, :e, e:])
            layers = np.zeros((cliques + 1, e, e), dtype=np.int64)
            layers[:-1] += q[:, :e, :e]
            layers[1:] += q[:, e:, e:]
        else:
            layers = q
        inside.append(_ceiling(level.inside, 2 * half) - layers)
    every = np.arange(e)
    for part in inside:  # the diagonal is 1, whatever it is worth
        value += int(part[:, every, every].sum(dtype=object))
        part[:, every, every] = 0
    for parts in (cross, inside):
        value += _most(parts) if parts else 0
    return value / 4**half


def _ceiling(worth: FloatArray, bits: int) -> IntArray:
    return np.ceil(np.ldexp(worth, bits)).astype(np.int64)


def _most(parts: list[IntArray]) -> int:
    """Largest sum of entries: of one level those above 0; of two, none, the node, or both."""
    best = np.maximum(parts[0], 0)
    if len(parts) == 2:
        best = np.maximum(best, parts[0] + parts[1])
    return int(best.sum(dtype=object))
