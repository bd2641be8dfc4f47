"""What replicas cost: an expert with two copies is an edge between the columns of its two hosts.

If the hosts of a replicated expert r have the single-copy experts a and b, then a scenario of r, a
and b takes two units: three experts on two GPUs. docs/bounds/columns.md has the derivation. All
numbers are whole, in units of 2**-BITS.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from moeopt.problem import FloatArray, IntArray
from moeopt.proofs.columns_lattice import Lattice
from moeopt.proofs.columns_patterns import PRICE_BITS, Group
from moeopt.proofs.columns_price import weighed

BoolArray = npt.NDArray[np.bool_]

#: The table of triples has E**4 entries.
MOST_EXPERTS = 48
#: Cheapest columns that may be ends of edges; beyond them the bound on an edge is theirs.
MOST_ENDS = 12_000
#: Pairs of columns that are looked at for one expert, before the bound is what the rest allow.
MOST_PAIRS = 400_000
#: Edges of one expert that a search reports.
MOST_EDGES = 60


@dataclass(frozen=True)
class Charges:
    """Charges of replicas: what an edge of r costs more than its ends, by their experts.

    Attributes
    ----------
    pair : int array, shape (E, E, E)
        ``pair[r, a, b]`` for a at one end and b at the other.
    triple : int array, shape (E, E, E, E)
        ``triple[r, a, b, c]`` is added for b and c at one end and a at the other.
    """

    pair: IntArray
    triple: IntArray


@dataclass(frozen=True)
class Ends:
    """Columns that may be ends of edges, cheapest share first.

    Attributes
    ----------
    number : int array, shape (n,)
        In the lattice.
    members : int16 array, shape (n, c)
        Padded with −1.
    bits : uint64 array, shape (n,)
    share : int array, shape (n,)
        Reduced cost by free slot, at least 0.
    rest : int
        Share of all other columns is at least this.
    """

    number: IntArray
    members: npt.NDArray[np.int16]
    bits: npt.NDArray[np.uint64]
    share: IntArray
    rest: int


@dataclass(frozen=True)
class Edges:
    """Cheap edges that were met: expert, two ends (numbers in the lattice), charge and total."""

    expert: IntArray
    ends: IntArray
    charge: IntArray
    total: IntArray


def takes(group: Group) -> bool:
    """Whether scenarios of this size charge replicas."""
    return group.k in (3, 4) and group.least == 1


def even_shares(groups: list[Group]) -> list[FloatArray]:
    """Shares of one half each: for every group an array of shape (n, k, k)."""
    return [np.full((len(group.members), group.k, group.k), 0.5) for group in groups]


def charges(experts: int, groups: list[Group], shares: list[FloatArray]) -> Charges:
    """Charges of all experts.

    Parameters
    ----------
    shares : list of float arrays, shape (n, k, k)
        If two members at places i < j both lie between the same two others, the scenario is charged
        to i by the share ``[s, i, j]``, and to j by the rest.
    """
    pair = np.zeros((experts,) * 3, dtype=np.int64)
    triple = np.zeros((experts,) * 4, dtype=np.int64)
    for group, share in zip(groups, shares, strict=True):
        if not takes(group):
            continue
        if group.k == 3:
            _add_three(pair, group.members, weighed(group.weight, np.ones(len(group.weight))))
            continue
        allowed = np.round(np.clip(np.nan_to_num(share), 0.0, 1.0) * 2.0**PRICE_BITS)
        upper = np.triu(allowed * 2.0**-PRICE_BITS, 1)
        lower = np.tril(1.0 - upper.swapaxes(1, 2), -1)
        paid = weighed(group.weight[:, None, None], upper + lower)
        # Two of r's company at one end: what their price leaves of one unit.
        together = [[0 if i == j else 1 << i | 1 << j for j in range(4)] for i in range(4)]
        left = np.maximum(1.0 - group.price[:, together], 0.0)
        _add_four(pair, triple, group.members, paid, weighed(group.weight[:, None, None], left))
    return Charges(pair, triple)


def ends(lattice: Lattice, slots: int, reduced: IntArray) -> Ends:
    """Choose the columns with free slots whose reduced cost by free slot is least.

    Reduced costs count from the smallest one, if that is negative.
    """
    last = min(slots - 1, lattice.largest)
    share = np.array(reduced[: lattice.offset[last + 1]] - min(0, int(reduced.min())))
    for d in range(last + 1):
        share[lattice.offset[d] : lattice.offset[d + 1]] //= slots - d
    rest = 2**62
    number = np.arange(len(share))
    if len(share) > MOST_ENDS:
        order = np.argpartition(share, MOST_ENDS)
        number, rest = order[:MOST_ENDS], int(share[order[MOST_ENDS]])
    number = number[np.argsort(share[number], kind="stable")]
    members = np.full((len(number), max(last, 1)), -1, dtype=np.int16)
    for d in range(1, last + 1):
        rows = np.flatnonzero((number >= lattice.offset[d]) & (number < lattice.offset[d + 1]))
        members[rows, :d] = lattice.members[d][number[rows] - lattice.offset[d]]
    bits = np.zeros(len(number), dtype=np.uint64)
    for column in members.T:
        one = np.uint64(1) << np.maximum(column, 0).astype(np.uint64)
        bits |= np.where(column >= 0, one, np.uint64(0))
    return Ends(number, members, bits, share[number], rest)


def cheapest(charge: Charges, chosen: Ends, most: IntArray) -> tuple[IntArray, Edges]:
    """Bound from below what an edge of every expert costs, but not beyond ``most``: shape (E,).

    Also returned are edges that cost less than ``most``.
    """
    found = np.zeros(len(most), dtype=np.int64)
    parts = []
    for r in range(len(most)):
        keep = chosen.bits >> np.uint64(r) & np.uint64(1) == 0
        number = chosen.number[keep]
        limit = min(int(most[r]), chosen.rest)
        found[r], count, first, second, paid, total = _search(
            chosen.members[keep],
            chosen.bits[keep],
            chosen.share[keep],
            charge.pair[r],
            charge.triple[r],
            limit,
            MOST_PAIRS,
            MOST_EDGES,
        )
        parts.append(
            (
                np.full(count, r),
                np.stack([number[first[:count]], number[second[:count]]], axis=1),
                paid[:count],
                total[:count],
            )
        )
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return found, Edges(*columns)


def charged(charge: Charges, expert: IntArray, inside: BoolArray) -> IntArray:
    """Charges of edges; ``inside``: shape (n, 2, E), which experts each end has."""
    return np.asarray(_charged(charge.pair, charge.triple, expert, inside))


def masses(
    group: Group, expert: IntArray, inside: BoolArray, y: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """How much of every scenario the edges of weights ``y`` charge: where the charges can move.

    Returns
    -------
    apart : float array, shape (n, k, k)
        [s, i, j]: the edges of the member at place i with two others at their ends, but not j.
    beside : float array, shape (n, 2**k)
        The edges with a set of two at one end and one member at the other.
    """
    return _masses(group.members, expert, inside, y)


def most_gained(dual: IntArray, edge: IntArray, surplus: int) -> int:
    """Most that ``surplus`` copies save, in units.

    Dropping expert r saves ``dual[r] − edge[r]`` for one copy, or ``dual[r]`` for two (no edge).
    """
    best = [0] * (surplus + 1)
    for full, cost in zip(dual.tolist(), edge.tolist(), strict=True):
        for copies in range(surplus, 0, -1):
            now = max(best[copies], best[copies - 1] + full - cost)
            best[copies] = max(now, best[copies - 2] + full) if copies > 1 else now
    return best[surplus]


def edge_units(
    dual: IntArray, reduced: IntArray, edge: IntArray, excess: int, gpus: int, surplus: int
) -> int:
    """The bound on the excess time, in units of 2**-BITS.

    ``Σ π + G · min(0, smallest reduced cost) − most_gained + excess``, for duals π ≥ 0.
    """
    smallest = min(0, int(reduced.min()))
    return sum(dual.tolist()) + gpus * smallest - most_gained(dual, edge, surplus) + excess


@njit(cache=True)
def _add_three(pair, members, paid):
    for s in range(len(members)):
        for i in range(3):
            r, a, b = members[s, i], members[s, (i + 1) % 3], members[s, (i + 2) % 3]
            pair[r, a, b] += paid[s]
            pair[r, b, a] += paid[s]


@njit(cache=True)
def _add_four(pair, triple, members, paid, left):
    for s in range(len(members)):
        for i in range(4):
            r = members[s, i]
            for j in range(4):
                if j == i:
                    continue
                # j is apart; p and q are the other two.
                p = 0
                while p in (i, j):
                    p += 1
                q = p + 1
                while q in (i, j):
                    q += 1
                a, b, c = members[s, j], members[s, p], members[s, q]
                pair[r, b, c] += paid[s, i, j]
                pair[r, c, b] += paid[s, i, j]
                # a alone, b and c together: not the two pairs (a, b), (a, c), but what is left.
                more = left[s, p, q] - paid[s, i, q] - paid[s, i, p]
                triple[r, a, b, c] += more
                triple[r, a, c, b] += more


@njit(cache=True)
def _search(members, bits, share, pair, triple, limit, most_pairs, most_edges):
    n, width = members.shape
    experts = len(pair)
    least = limit
    first = np.zeros(most_edges, np.int64)
    second = np.zeros(most_edges, np.int64)
    paid = np.zeros(most_edges, np.int64)
    total = np.zeros(most_edges, np.int64)
    count, worst, looked = 0, 0, 0
    here = np.zeros(experts, np.int64)
    for i in range(n):
        wide = least + least // 4  # edges a little dearer than the cheapest are reported, too
        if 2 * share[i] >= wide:
            break
        if looked > most_pairs:
            # Every pair that was not looked at has both ends here or later.
            least = min(least, 2 * share[i])
            break
        # What each expert at the other end pays with the experts at this one.
        for b in range(experts):
            sum_b = 0
            for x in range(width):
                a = members[i, x]
                if a < 0:
                    break
                sum_b += pair[a, b]
                for y in range(x):
                    sum_b += triple[b, members[i, y], a]
            here[b] = sum_b
        for j in range(i, n):
            base = share[i] + share[j]
            if base >= least + least // 4:
                break
            if bits[i] & bits[j]:
                continue
            looked += 1
            charge = 0
            for y in range(width):
                b = members[j, y]
                if b < 0:
                    break
                charge += here[b]
                for z in range(y):
                    for x in range(width):
                        a = members[i, x]
                        if a < 0:
                            break
                        charge += triple[a, members[j, z], b]
            cost = base + charge
            least = min(least, cost)
            if cost >= least + least // 4:
                continue
            at = count
            if count < most_edges:
                count += 1
            elif cost < total[worst]:
                at = worst
            else:
                continue
            first[at], second[at], paid[at], total[at] = i, j, charge, cost
            if count == most_edges:
                worst = int(np.argmax(total))
    return least, count, first, second, paid, total


@njit(cache=True)
def _charged(pair, triple, expert, inside):
    charge = np.zeros(len(expert), np.int64)
    for n in range(len(expert)):
        r = expert[n]
        for end in range(2):
            here, there = np.flatnonzero(inside[n, end]), np.flatnonzero(inside[n, 1 - end])
            for a in here:
                for y in range(len(there)):
                    if end == 0:
                        charge[n] += pair[r, a, there[y]]
                    for z in range(y):
                        charge[n] += triple[r, a, there[z], there[y]]
    return charge


@njit(cache=True)
def _masses(members, expert, inside, y):
    n, k = members.shape
    apart, beside = np.zeros((n, k, k)), np.zeros((n, 1 << k))
    for s in range(n):
        for e in range(len(expert)):
            at, one, two, outside = -1, 0, 0, -1
            for i in range(k):
                m = members[s, i]
                if m == expert[e]:
                    at = i
                elif inside[e, 0, m]:
                    one |= 1 << i
                elif inside[e, 1, m]:
                    two |= 1 << i
                else:
                    outside = i
            if at < 0 or one == 0 or two == 0:
                continue
            if outside >= 0 and one & (one - 1) == 0 and two & (two - 1) == 0:
                apart[s, at, outside] += y[e]
            else:
                larger = one if one & (one - 1) else two
                beside[s, larger] += y[e]
    return apart, beside
