"""How long a model takes from Python to HiGHS: arrays by hand, declarative Pyomo, stock Pyomo.

    python benchmarks/compile_speed.py                # both models, without the slowest paths
    python benchmarks/compile_speed.py --slow         # Pyomo's own HiGHS interface as well
    python benchmarks/compile_speed.py --repeat 5

CPU seconds, median of several runs, each in a fresh process; imports are not counted. Paths that
end in the same arrays must end in the same bytes: the fingerprints are compared.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import sparse

from moeopt.linear import LinearModel

LAYERS, EXPERTS, GPUS, SLOTS = 58, 256, 32, 8  # `balance`: DeepSeek-V3 on 32 GPUs
MEMORY = 480
S_LAYERS, SCENARIOS, S_EXPERTS, TOP_K, S_GPUS, S_SLOTS = 24, 6000, 32, 4, 8, 4  # `scenarios`

PATHS = {
    "hand": "arrays filled by hand",
    "declarative": "Pyomo, declarative, numpy expander",
    "stock": "Pyomo, stock standard form",
    "interface": "Pyomo's own HiGHS interface",
}
#: The stock paths of the scenario model take minutes and many GiB.
RUNS = {"balance": ("hand", "declarative", "stock"), "scenarios": ("hand", "declarative")}


def balance_data() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 1000, (LAYERS, EXPERTS)).astype(float)


def balance_hand(load: np.ndarray) -> LinearModel:
    hosting, last = LAYERS * EXPERTS * GPUS, LAYERS * EXPERTS * GPUS
    x = np.arange(hosting, dtype=np.int32).reshape(LAYERS, EXPERTS, GPUS)
    by_gpu = x.transpose(0, 2, 1).reshape(LAYERS * GPUS, EXPERTS)
    t = np.repeat(np.arange(last, last + LAYERS, dtype=np.int32), GPUS)[:, None]
    counts = np.repeat(
        [GPUS, EXPERTS, EXPERTS + 1, LAYERS * EXPERTS],
        [LAYERS * EXPERTS, LAYERS * GPUS, LAYERS * GPUS, GPUS],
    )
    indices = [x.ravel(), by_gpu.ravel(), np.hstack([by_gpu, t]).ravel()]
    indices.append(x.transpose(2, 0, 1).ravel())
    loads = np.hstack([np.repeat(load, GPUS, axis=0), np.full((LAYERS * GPUS, 1), -1.0)])
    data = [np.ones(2 * hosting), loads.ravel(), np.ones(hosting)]
    rows = [LAYERS * EXPERTS, LAYERS * GPUS, LAYERS * GPUS, GPUS]
    return LinearModel(
        matrix=_csr(data, indices, counts, hosting + LAYERS),
        cost=np.repeat([0.0, 1.0], [hosting, LAYERS]),
        lower=np.zeros(hosting + LAYERS),
        upper=np.repeat([1.0, np.inf], [hosting, LAYERS]),
        row_lower=np.repeat([1.0, -np.inf, -np.inf, -np.inf], rows),
        row_upper=np.repeat([1.0, SLOTS, 0.0, MEMORY], rows),
        integer=np.repeat([True, False], [hosting, LAYERS]),
    )


def balance_pyomo(load: np.ndarray, *, dense: bool = False) -> Any:
    import pyomo.environ as pyo

    m = pyo.ConcreteModel()
    m.L = pyo.RangeSet(0, LAYERS - 1)
    m.E = pyo.RangeSet(0, EXPERTS - 1)
    m.G = pyo.RangeSet(0, GPUS - 1)
    m.w = pyo.Param(m.L, m.E, initialize=dict(np.ndenumerate(load)))
    m.x = pyo.Var(m.L, m.E, m.G, domain=pyo.Binary, dense=dense)
    m.T = pyo.Var(m.L, domain=pyo.NonNegativeReals, dense=dense)
    m.total = pyo.Objective(rule=lambda m: sum(m.T[l] for l in m.L))

    def assigned_rule(m: Any, l: int, e: int) -> Any:
        return sum(m.x[l, e, g] for g in m.G) == 1

    def slots_rule(m: Any, l: int, g: int) -> Any:
        return sum(m.x[l, e, g] for e in m.E) <= SLOTS

    def time_rule(m: Any, l: int, g: int) -> Any:
        return sum(m.w[l, e] * m.x[l, e, g] for e in m.E) <= m.T[l]

    def memory_rule(m: Any, g: int) -> Any:
        return sum(m.x[l, e, g] for l in m.L for e in m.E) <= MEMORY

    m.assigned = pyo.Constraint(m.L, m.E, rule=assigned_rule)
    m.slots = pyo.Constraint(m.L, m.G, rule=slots_rule)
    m.time = pyo.Constraint(m.L, m.G, rule=time_rule)
    m.memory = pyo.Constraint(m.G, rule=memory_rule)
    return m


def scenarios_data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    order = np.argsort(rng.random((S_LAYERS, SCENARIOS, S_EXPERTS)), axis=2)
    return np.sort(order[..., :TOP_K], axis=2), rng.dirichlet(np.ones(SCENARIOS), S_LAYERS)


def scenarios_hand(data: tuple[np.ndarray, np.ndarray]) -> LinearModel:
    members, weight = data
    hosting, times = S_LAYERS * S_EXPERTS * S_GPUS, S_LAYERS * SCENARIOS
    x = np.arange(hosting, dtype=np.int32).reshape(S_LAYERS, S_EXPERTS, S_GPUS)
    layer = np.arange(S_LAYERS)[:, None, None]
    used = x[layer, members.astype(np.int32)].transpose(0, 1, 3, 2)  # l, s, g, member
    rows = np.empty((S_LAYERS, SCENARIOS, S_GPUS, TOP_K + 1), dtype=np.int32)
    rows[..., :TOP_K] = used
    rows[..., TOP_K] = np.arange(hosting, hosting + times).reshape(S_LAYERS, SCENARIOS, 1)
    ones = np.ones(rows.shape)
    ones[..., TOP_K] = -1.0
    sizes = [S_LAYERS * S_EXPERTS, S_LAYERS * S_GPUS, times * S_GPUS]
    return LinearModel(
        matrix=_csr(
            [np.ones(2 * hosting), ones.ravel()],
            [x.ravel(), x.transpose(0, 2, 1).ravel(), rows.ravel()],
            np.repeat([S_GPUS, S_EXPERTS, TOP_K + 1], sizes),
            hosting + times,
        ),
        cost=np.concatenate([np.zeros(hosting), weight.ravel()]),
        lower=np.zeros(hosting + times),
        upper=np.repeat([1.0, TOP_K], [hosting, times]),
        row_lower=np.repeat([1.0, -np.inf, -np.inf], sizes),
        row_upper=np.repeat([1.0, S_SLOTS, 0.0], sizes),
        integer=np.ones(hosting + times, dtype=np.bool_),
    )


def scenarios_pyomo(data: tuple[np.ndarray, np.ndarray], *, dense: bool = False) -> Any:
    import pyomo.environ as pyo

    members, weight = data[0].tolist(), data[1].tolist()
    m = pyo.ConcreteModel()
    m.L = pyo.RangeSet(0, S_LAYERS - 1)
    m.E = pyo.RangeSet(0, S_EXPERTS - 1)
    m.G = pyo.RangeSet(0, S_GPUS - 1)
    m.OMEGA = pyo.Set(
        dimen=2, initialize=[(l, s) for l in range(S_LAYERS) for s in range(SCENARIOS)]
    )
    m.A = pyo.Set(m.OMEGA, dimen=1, initialize=lambda m, l, s: members[l][s])
    m.p = pyo.Param(m.OMEGA, initialize=lambda m, l, s: weight[l][s])
    m.x = pyo.Var(m.L, m.E, m.G, domain=pyo.Binary, dense=dense)
    m.T = pyo.Var(m.OMEGA, domain=pyo.NonNegativeIntegers, bounds=(0, TOP_K), dense=dense)
    m.expected = pyo.Objective(rule=lambda m: sum(m.p[l, s] * m.T[l, s] for l, s in m.OMEGA))

    def assigned_rule(m: Any, l: int, e: int) -> Any:
        return sum(m.x[l, e, g] for g in m.G) == 1

    def slots_rule(m: Any, l: int, g: int) -> Any:
        return sum(m.x[l, e, g] for e in m.E) <= S_SLOTS

    def time_rule(m: Any, l: int, s: int, g: int) -> Any:
        return sum(m.x[l, e, g] for e in m.A[l, s]) <= m.T[l, s]

    m.assigned = pyo.Constraint(m.L, m.E, rule=assigned_rule)
    m.slots = pyo.Constraint(m.L, m.G, rule=slots_rule)
    m.time = pyo.Constraint(m.OMEGA, m.G, rule=time_rule)
    return m


def _csr(
    data: list[np.ndarray], indices: list[np.ndarray], counts: np.ndarray, columns: int
) -> sparse.csr_array:
    starts = np.zeros(len(counts) + 1, dtype=np.int32)
    np.cumsum(counts, out=starts[1:])
    return sparse.csr_array(
        (np.concatenate(data), np.concatenate(indices), starts), shape=(len(counts), columns)
    )


MODELS: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]] = {
    "balance": (balance_data, balance_hand, balance_pyomo),
    "scenarios": (scenarios_data, scenarios_hand, scenarios_pyomo),
}


def stock_arrays(model: Any) -> LinearModel:
    """What a user of Pyomo's standard form has to do."""
    from pyomo.repn.plugins.standard_form import LinearStandardFormCompiler

    form = LinearStandardFormCompiler().write(model, mixed_form=True)
    side = np.asarray(form.rhs, dtype=float)
    kind = np.array([entry.bound_type for entry in form.rows])
    bounds = [v.bounds for v in form.columns]
    return LinearModel(
        matrix=sparse.csr_array(form.A),
        cost=np.asarray(form.c.todense()).ravel(),
        lower=np.array([-np.inf if b[0] is None else b[0] for b in bounds]),
        upper=np.array([np.inf if b[1] is None else b[1] for b in bounds]),
        row_lower=np.where(kind <= 0, side, -np.inf),
        row_upper=np.where(kind >= 0, side, np.inf),
        integer=np.array([v.is_integer() for v in form.columns]),
    )


def pass_to_highs(model: LinearModel) -> None:
    import highspy

    highs = highspy.Highs()
    highs.setOptionValue("output_flag", False)
    rows, columns = model.matrix.shape
    status = highs.passModel(
        columns,
        rows,
        int(model.matrix.nnz),
        int(highspy.MatrixFormat.kRowwise),
        int(highspy.ObjSense.kMinimize),
        0.0,
        model.cost,
        model.lower,
        model.upper,
        model.row_lower,
        model.row_upper,
        model.matrix.indptr.astype(np.int32, copy=False),
        model.matrix.indices.astype(np.int32, copy=False),
        model.matrix.data,
        model.integer.astype(np.int32),
    )
    assert status == highspy.HighsStatus.kOk


def fingerprint(model: LinearModel) -> str:
    """Hash of all arrays, in their own order."""
    digest = hashlib.sha256()
    matrix = model.matrix
    kinds: tuple[tuple[Any, Any], ...] = (
        (matrix.indptr, np.int64),
        (matrix.indices, np.int64),
        (matrix.data, np.float64),
        (model.cost, np.float64),
        (model.lower, np.float64),
        (model.upper, np.float64),
        (model.row_lower, np.float64),
        (model.row_upper, np.float64),
        (model.integer, np.int8),
    )
    for array, kind in kinds:
        # 0.0 and -0.0 are one number.
        plain: Any = array.astype(kind)
        digest.update((plain + 0).tobytes())
    return digest.hexdigest()


def measure(name: str, path: str) -> dict[str, Any]:
    """Run one path once, in this process."""
    import highspy  # noqa: F401  (imports are not counted)
    import pyomo.environ as pyo

    from moeopt.compile import compile_model, declarative

    make_data, by_hand, by_pyomo = MODELS[name]
    data = make_data()
    clock = [time.process_time()]
    if path == "hand":
        model = by_hand(data)
        clock += [time.process_time()] * 2
    elif path == "declarative":
        with declarative():
            built = by_pyomo(data)
        clock.append(time.process_time())
        model = compile_model(built)
        clock.append(time.process_time())
    else:
        built = by_pyomo(data, dense=True)
        clock.append(time.process_time())
        if path == "interface":
            solver = pyo.SolverFactory("appsi_highs")
            solver.set_instance(built)
            clock += [time.process_time()] * 2
            return {"cpu_s": np.diff(clock).tolist(), "size": None, "fingerprint": None}
        model = stock_arrays(built)
        clock.append(time.process_time())
    pass_to_highs(model)
    clock.append(time.process_time())
    same_order = path in ("hand", "declarative")
    return {
        "cpu_s": np.diff(clock).tolist(),
        "size": model.size,
        "fingerprint": fingerprint(model) if same_order else None,
    }


def table(name: str, paths: tuple[str, ...], repeat: int) -> None:
    """Measure all paths of one model and print them."""
    results: dict[str, list[dict[str, Any]]] = {path: [] for path in paths}
    for _ in range(repeat):
        for path, runs in results.items():
            command = [sys.executable, __file__, "--measure", name, path]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
    prints = {r["fingerprint"] for runs in results.values() for r in runs if r["fingerprint"]}
    sizes = [r["size"] for runs in results.values() for r in runs if r["size"]]
    if len(prints) != 1 or any(size != sizes[0] for size in sizes):
        raise SystemExit(f"{name}: the paths do not build the same model")
    print(f"\n{name}: {', '.join(f'{n:,} {what}' for what, n in sizes[0].items())}")
    print(f"{'path':36}{'build':>8}{'compile':>9}{'pass':>8}{'CPU s':>8}{'ratio':>8}")
    floor = None
    for path, runs in results.items():
        parts = [statistics.median(r["cpu_s"][i] for r in runs) for i in range(3)]
        total = statistics.median(sum(r["cpu_s"]) for r in runs)
        floor = floor or total
        row = "".join(f"{p:{w}.3f}" for p, w in zip([*parts, total], (8, 9, 8, 8), strict=True))
        print(f"{PATHS[path]:36}{row}{total / floor:8.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--slow", action="store_true", help="Pyomo's own HiGHS interface as well")
    parser.add_argument("--measure", nargs=2, metavar=("MODEL", "PATH"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        print(json.dumps(measure(*chosen.measure)))
        return
    for name, paths in RUNS.items():
        slow = ("interface",) if chosen.slow and name == "balance" else ()
        table(name, (*paths, *slow), chosen.repeat)


if __name__ == "__main__":
    main()
