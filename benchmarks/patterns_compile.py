"""How long `placement_patterns` takes from Python to arrays, beside its LP's own solve time.

    python benchmarks/patterns_compile.py
    python benchmarks/patterns_compile.py --instance dbrx_16x4_seed0 --solve-s 0

CPU seconds, median of the repetitions in one process (imports are not counted). The arrays filled
by hand with numpy and the compiled Pyomo model must be equal, entry by entry. The LP is solved by
PDLP until its safe bound is within 1e-4 of the primal value.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import threading
import time
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from moeopt.catalog import load_formulation, read_instance
from moeopt.linear import LinearModel
from moeopt.prepare import prepare
from moeopt.problem import ProblemData

IntArray = npt.NDArray[np.int64]


class Subsets:
    """Subsets of n experts in lexicographic order, and the places of given ones."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.all = {
            size: np.array(list(itertools.combinations(range(n), size)), dtype=np.int64)
            for size in (2, 3, 4)
        }
        self.choose = np.array([[math.comb(r, s) for s in range(5)] for r in range(n + 1)])

    def place(self, *members: IntArray) -> IntArray:
        """Place of ascending members among the subsets of their size."""
        size = len(members)
        after = sum(self.choose[self.n - 1 - member, size - p] for p, member in enumerate(members))
        return math.comb(self.n, size) - 1 - np.asarray(after)


def by_hand(data: ProblemData) -> LinearModel:
    """Fill the arrays of one layer of scenarios of four experts, groups of c = slots."""
    assert data.slots is not None
    n, c = data.gpus * data.slots, data.slots
    assert n == data.experts
    at, layer = Subsets(n), data.scenarios[0]
    pairs, triples, quads = at.all[2], at.all[3], at.all[4]
    first = np.cumsum([0, len(pairs), len(triples), len(quads), 3 * len(quads)])
    z, t, q, w = (first[i] for i in range(4))
    parts: list[tuple[Any, Any, Any, int, float, float]] = []
    # (row, column, value, rows, lower, upper): each component's rows counted from 0.

    def add(entries: list[tuple[Any, Any, float]], rows: int, low: float, high: float) -> None:
        row, column, value = zip(
            *((r.ravel(), k.ravel(), np.full(r.size, v)) for r, k, v in entries if v), strict=True
        )
        parts.append(
            (np.concatenate(row), np.concatenate(column), np.concatenate(value), rows, low, high)
        )

    p = np.arange(len(pairs))
    add([(pairs[:, 0], z + p, 1.0), (pairs[:, 1], z + p, 1.0)], n, c - 1, c - 1)
    i = np.arange(len(triples))
    sides = [at.place(triples[:, a], triples[:, b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    add([*((s, t + i, 1.0) for s in sides), (p, z + p, 2.0 - c)], len(pairs), 0, 0)
    o = np.arange(len(quads))
    faces = [at.place(*quads[:, list(f)].T) for f in itertools.combinations(range(4), 3)]
    add([*((f, q + o, 1.0) for f in faces), (i, t + i, 3.0 - c)], len(triples), 0, 0)
    # Rows of the pair and a third expert: pairs times the others in order.
    apart = np.full((n, n, n), -1, dtype=np.int64)
    others = np.array([[k for k in range(n) if k not in pair] for pair in pairs.tolist()])
    apart[pairs[:, :1], pairs[:, 1:], others] = np.arange(others.size).reshape(others.shape)
    entries: list[tuple[Any, Any, float]] = []
    split_pairs = (((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2)))
    for h, (one, two) in enumerate(split_pairs):
        for (a, b), rest in ((one, two), (two, one)):
            entries += [
                (apart[quads[:, a], quads[:, b], quads[:, k]], w + 3 * o + h, 1.0) for k in rest
            ]
    entries.append((apart[pairs[:, :1], pairs[:, 1:], others], z + p.repeat(n - 2), 1.0 - c))
    three = np.sort(
        np.stack([pairs[:, :1] + 0 * others, pairs[:, 1:] + 0 * others, others]), axis=0
    )
    entries.append((np.arange(others.size), t + at.place(*three.reshape(3, -1)), c - 1.0))
    add(entries, others.size, 0, 0)
    for f in faces:
        add([(o, t + f, 1.0), (o, q + o, -1.0)], len(quads), 0, np.inf)
    for h, pair_and_pair in enumerate(split_pairs):
        for a, b in pair_and_pair:
            with_pair = [
                f
                for f, triple in zip(faces, itertools.combinations(range(4), 3), strict=True)
                if a in triple and b in triple
            ]
            add(
                [
                    (o, z + at.place(quads[:, a], quads[:, b]), 1.0),
                    *((o, t + f, -1.0) for f in with_pair),
                    (o, q + o, 1.0),
                    (o, w + 3 * o + h, -1.0),
                ],
                len(quads),
                0,
                np.inf if data.gpus >= 3 else 0,
            )
    six = [at.place(quads[:, a], quads[:, b]) for a, b in itertools.combinations(range(4), 2)]
    add(
        [
            *((o, z + s, -1.0) for s in six),
            *((o, t + f, 2.0) for f in faces),
            (o, q + o, -3.0),
            *((o, w + 3 * o + h, 1.0) for h in range(3)),
        ],
        len(quads),
        -1,
        np.inf if data.gpus >= 4 else -1,
    )
    cost = np.zeros(first[-1])
    sets = layer.expert.reshape(-1, 4)
    for a, b in itertools.combinations(range(4), 2):
        np.add.at(cost, z + at.place(sets[:, a], sets[:, b]), layer.weight)
    for face in itertools.combinations(range(4), 3):
        np.subtract.at(cost, t + at.place(*sets[:, list(face)].T), layer.weight)
    place = at.place(*sets.T)
    cost[q + place] = layer.weight
    for h in range(3):
        cost[w + 3 * place + h] = -layer.weight
    return _stacked(parts, cost, float(layer.weight.sum()))


def _stacked(parts: list[Any], cost: npt.NDArray[np.float64], offset: float) -> LinearModel:
    starts = np.cumsum([0, *(part[3] for part in parts)])
    row = np.concatenate([part[0] + s for part, s in zip(parts, starts[:-1], strict=True)])
    matrix = sparse.coo_array(
        (np.concatenate([p[2] for p in parts]), (row, np.concatenate([p[1] for p in parts]))),
        shape=(int(starts[-1]), len(cost)),
    ).tocsr()
    matrix.sort_indices()
    counts = [part[3] for part in parts]
    return LinearModel(
        matrix=matrix,
        cost=cost,
        lower=np.zeros(len(cost)),
        upper=np.ones(len(cost)),
        row_lower=np.repeat([float(part[4]) for part in parts], counts),
        row_upper=np.repeat([float(part[5]) for part in parts], counts),
        integer=np.ones(len(cost), dtype=np.bool_),
        offset=offset,
    )


def assert_equal(a: LinearModel, b: LinearModel) -> None:
    """Raise unless both are the same program, entry by entry (costs: up to the order of sums)."""
    for name in ("indptr", "indices", "data"):
        assert np.array_equal(getattr(a.matrix, name), getattr(b.matrix, name)), name
    for name in ("lower", "upper", "row_lower", "row_upper", "integer"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name
    assert np.allclose(a.cost, b.cost, rtol=1e-12, atol=1e-15)
    assert abs(a.offset - b.offset) < 1e-12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--instance", default="gpt-oss-20b_l10_8gpu")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--solve-s", type=float, default=300.0, help="0: do not solve")
    chosen = parser.parse_args()
    from moeopt.compile import compile_model, declarative

    formulation = load_formulation("placement_patterns")
    data = prepare(read_instance(chosen.instance), "placement")
    seconds: dict[str, list[float]] = {"hand": [], "build": [], "compile": []}
    for _ in range(chosen.repeat):
        clock = [time.process_time()]
        hand = by_hand(data)
        clock.append(time.process_time())
        with declarative():
            built = formulation.build(data)
        clock.append(time.process_time())
        model = compile_model(built)
        clock.append(time.process_time())
        for name, value in zip(seconds, np.diff(clock).tolist(), strict=True):
            seconds[name].append(value)
    assert_equal(hand, model)
    print(f"{chosen.instance}: {', '.join(f'{v:,} {k}' for k, v in model.size.items())}")
    for name, values in seconds.items():
        print(f"{name:10}{statistics.median(values):8.2f} CPU s")
    if chosen.solve_s > 0:
        from moeopt.solvers import pdlp
        from moeopt.solvers.base import SolveSettings

        settings = SolveSettings(gap=1e-4, time_limit_s=chosen.solve_s)
        began = time.process_time()
        result = pdlp.solve(model.relax(), settings, None, lambda _: None, threading.Event(), None)
        print(
            f"{'PDLP':10}{time.process_time() - began:8.2f} CPU s, {result.seconds:.1f} s", end=""
        )
        print(f": {result.reason}, safe bound {result.dual_bound}")


if __name__ == "__main__":
    main()
