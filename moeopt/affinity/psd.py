"""Positive semidefinite relaxation of ``affinity``: which experts share a GPU, and a node.

``Z_l[e, f]`` = 1 where experts e, f of layer l share a GPU, ``X_l[e, f]`` the same of e in layer l
and f in layer l + 1. With ``K`` GPUs and ``E/K`` experts of each layer on each, the matrix

    Y_l = [[Z_l, X_l], [X_l', Z_(l+1)]],   Y_l - J/K is positive semidefinite,

its diagonal is 1, its rows sum to E/K in each block, and its entries are in 0..1; neighbouring
matrices share a block. The same holds for nodes, whose entries are never below those of GPUs. The
largest tokens kept under these conditions is found by the alternating direction method: one copy
of every Y_l in the cone, one with bounded and shared entries. Its multipliers, whatever they are,
are made a proof by :mod:`moeopt.affinity.psd_certificate`. docs/affinity.md has the derivation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from moeopt.affinity.data import FloatArray
from moeopt.affinity.psd_certificate import Certificate, certify

#: Weight of the distance of the two copies, for gains scaled to 1: close to the fastest everywhere.
_PENALTY = 0.15
#: Steps between two evaluations of the bound.
_EVERY = 50
#: Evaluations that must gain this share of the bound together, else the method ends.
_GAIN, _PATIENCE = 1e-5, 2
#: Step of the prices of a limit, and their bits behind the point.
_CHARGE, _PRICE_BITS = 0.1, 20


@dataclass(frozen=True)
class Level:
    """GPUs, or nodes: what may be shared, and what sharing is worth.

    Attributes
    ----------
    parts : int
        How many there are.
    cross : float array, shape (C, E, E)
        Worth of a shared part for expert e of the first and f of the second layer of each clique;
        C = 0 where layers are bounded alone.
    inside : float array, shape (L, E, E)
        The same for two experts of a layer: symmetric, counted for both orders, zero diagonal.
    """

    parts: int
    cross: FloatArray
    inside: FloatArray


@dataclass(frozen=True)
class Limit:
    """Most tokens of a GPU: ``(Z w)_e <= most`` for every expert e, w the loads of its layer.

    Attributes
    ----------
    load : float array, shape (L, E)
    most : float array, shape (L,)
    """

    load: FloatArray
    most: FloatArray

    def priced(self, levels: list[Level], price: FloatArray) -> tuple[list[Level], Fraction]:
        """Return levels whose GPUs pay prices (L, E) not below 0, and what the limit is worth.

        ``Σ_e price_e (Z w)_e <= most · Σ price``: the worth of a plan within the limit is at most
        its worth less the first, plus the second.
        """
        paid = price[:, :, None] * self.load[:, None, :]
        *nodes, gpus = levels
        inside = gpus.inside - (paid + paid.swapaxes(1, 2)) / 2
        worth = sum(
            (
                Fraction(most) * sum((Fraction(p) for p in row), Fraction(0))
                for most, row in zip(self.most.tolist(), price.tolist(), strict=True)
            ),
            Fraction(0),
        )
        # Products of prices on a grid and whole loads are exact; others are rounded a little.
        slack = Fraction(float(np.abs(paid).sum())) / 2**48
        exact = bool((self.load == np.rint(self.load)).all())
        level = Level(gpus.parts, gpus.cross, inside)
        return [*nodes, level], worth if exact else worth + slack


@dataclass(frozen=True)
class PsdBound:
    """The most that sharing can be worth, and the multipliers that prove it.

    ``value`` is exact for them; ``kept`` the relaxed co-location matrices, shape
    (levels, cliques, n, n), with n = 2E in a chain and E for a layer alone.
    """

    value: Fraction
    certificate: Certificate
    kept: FloatArray
    steps: int


def psd_bound(
    levels: list[Level],
    *,
    steps: int = 600,
    limit: Limit | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> PsdBound:
    """Bound the worth of all shared parts from above, for plans within a limit if there is one.

    Parameters
    ----------
    levels : list of Level
        GPUs, or nodes and then GPUs: a GPU that is shared means a node that is.
    steps : int
        At most so many; fewer where the bound stands still.
    """
    chain = len(levels[0].cross) > 0
    experts = levels[0].inside.shape[1]
    state = _Admm(levels, chain, limit)
    best: tuple[Fraction, Certificate] | None = None
    standing, taken = 0, 0
    while taken < steps and standing < _PATIENCE:
        count = min(_EVERY, steps - taken)
        for _ in range(count):
            state.step()
        taken += count
        priced, worth = levels, Fraction(0)
        if limit is not None:
            priced, worth = limit.priced(levels, state.prices())
        certificate = certify(priced, state.multipliers(), experts)
        value = certificate.value + worth
        if best is None or value < best[0]:
            gain = 1.0 if best is None else float(1 - value / best[0])
            standing = 0 if gain > _GAIN else standing + 1
            best = value, certificate
        else:
            standing += 1
        if stop():
            break
    assert best is not None
    return PsdBound(best[0], best[1], state.shared, taken)


class _Admm:
    """The two copies and their scaled multipliers, shape (levels, cliques, n, n)."""

    def __init__(self, levels: list[Level], chain: bool, limit: Limit | None) -> None:
        experts = levels[0].inside.shape[1]
        blocks = 2 if chain else 1
        cliques = len(levels[0].cross) if chain else len(levels[0].inside)
        self.levels, self.chain, self.experts = levels, chain, experts
        self.scale = max(
            (float(np.abs(a).max(initial=0)) for v in levels for a in (v.cross, v.inside)),
            default=1.0,
        )
        self.scale = self.scale or 1.0
        # Orthonormal basis of what is orthogonal to the ones of each block.
        ones = np.column_stack([np.ones(experts), np.eye(experts)[:, 1:]])
        self.basis = np.kron(np.eye(blocks), np.linalg.qr(ones)[0][:, 1:])
        self.shared = np.zeros((len(levels), cliques, blocks * experts, blocks * experts))
        for k, level in enumerate(levels):
            same = (experts / level.parts - 1) / max(1, experts - 1)
            self.shared[k] = 1.0 / level.parts
            for b in range(blocks):
                own = slice(b * experts, (b + 1) * experts)
                self.shared[k, :, own, own] = same
            self.shared[k][:, np.arange(blocks * experts), np.arange(blocks * experts)] = 1.0
        self.dual = np.zeros_like(self.shared)
        self.limit = limit
        if limit is not None:
            # In GPUs' mean loads, prices in the largest gain a mean load.
            self.mean = np.maximum(limit.load.sum(axis=1) / levels[-1].parts, 1e-300)
            self.share = limit.load / self.mean[:, None]
            self.price = np.zeros_like(limit.load)

    def prices(self) -> FloatArray:
        """Prices of the limit, shape (L, E), on a grid."""
        found = self.price * self.scale / self.mean[:, None]
        return np.asarray(np.rint(np.ldexp(found, _PRICE_BITS)) / 2.0**_PRICE_BITS)

    def _charge(self) -> None:
        """Raise the prices where the shared copy breaks the limit, lower them where it does not."""
        assert self.limit is not None
        e = self.experts
        blocks = self.shared[-1]
        if self.chain:
            blocks = np.concatenate([blocks[:, :e, :e], blocks[-1:, e:, e:]])
        held = (blocks @ self.share[:, :, None])[:, :, 0]
        over = held - (self.limit.most / self.mean)[:, None]
        self.price = np.maximum(self.price + _CHARGE * over, 0.0)

    def multipliers(self) -> FloatArray:
        """Multipliers of "the two copies are equal", in the unit of the gains."""
        return np.asarray(self.dual * (_PENALTY * self.scale))

    def step(self) -> None:
        """Project on the cone, then on bounded and shared entries, then move the multipliers."""
        inner = self.basis.T @ (self.shared + self.dual) @ self.basis
        value, vector = np.linalg.eigh(inner)
        root = (self.basis @ vector) * np.sqrt(np.maximum(value, 0.0))[..., None, :]
        cone = root @ root.swapaxes(-1, -2)
        for k, level in enumerate(self.levels):
            cone[k] += 1.0 / level.parts
        self.shared = self._entries(cone - self.dual)
        self.dual = self.dual + self.shared - cone
        if self.limit is not None:
            self._charge()

    def _entries(self, target: FloatArray) -> FloatArray:
        e = self.experts
        found = np.empty_like(target)
        per = 1.0 / (_PENALTY * self.scale)
        own = np.stack([level.inside for level in self.levels])
        if self.limit is not None:
            paid = self.price[:, :, None] * self.share[:, None, :] * self.scale
            own[-1] -= (paid + paid.swapaxes(1, 2)) / 2
        if not self.chain:
            inside = np.stack([t + worth * per for t, worth in zip(target, own, strict=True)])
            found[:] = _with_ones(_ordered(inside))
            return found
        # An entry of X stands twice in Y: half of its worth for each.
        cross = np.stack(
            [t[:, :e, e:] + v.cross * (per / 2) for t, v in zip(target, self.levels, strict=True)]
        )
        found[:, :, :e, e:] = _ordered(cross)
        found[:, :, e:, :e] = found[:, :, :e, e:].swapaxes(-1, -2)
        # A block of two cliques is their mean; those of the ends stand alone.
        total = np.zeros((target.shape[0], target.shape[1] + 1, e, e))
        total[:, :-1] += target[:, :, :e, :e]
        total[:, 1:] += target[:, :, e:, e:]
        total += own * per
        total[:, 1:-1] /= 2
        total = _with_ones(_ordered(total))
        found[:, :, :e, :e], found[:, :, e:, e:] = total[:, :-1], total[:, 1:]
        return found


def _ordered(entries: FloatArray) -> FloatArray:
    """Project on 0 <= GPU <= node <= 1: equal where they are out of order, then cut."""
    if len(entries) == 2:
        mean = entries.mean(axis=0)
        node, gpu = np.maximum(entries[0], mean), np.minimum(entries[1], mean)
        entries = np.stack([node, gpu])
    return np.asarray(np.clip(entries, 0.0, 1.0))


def _with_ones(blocks: FloatArray) -> FloatArray:
    every = np.arange(blocks.shape[-1])
    blocks[..., every, every] = 1.0
    return blocks
