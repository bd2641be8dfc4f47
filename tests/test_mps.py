"""An MPS file says the same as the model: read back by HiGHS in a process of its own."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from moeopt.index_map import LabelMap
from moeopt.linear import Block, LinearModel
from moeopt.mps import member_names, write_mps

READ_BACK = """
import json, sys
import highspy
h = highspy.Highs()
h.setOptionValue("output_flag", False)
h.setOptionValue("mip_rel_gap", 0.0)
assert h.readModel(sys.argv[1]) == highspy.HighsStatus.kOk
lp = h.getLp()
h.run()
print(json.dumps({
    "status": h.modelStatusToString(h.getModelStatus()),
    "optimum": h.getInfo().objective_function_value,
    "offset": lp.offset_,
    "cost": list(lp.col_cost_), "lower": list(lp.col_lower_), "upper": list(lp.col_upper_),
    "row_lower": list(lp.row_lower_), "row_upper": list(lp.row_upper_),
    "columns": list(lp.col_names_), "rows": list(lp.row_names_),
    "integer": [int(v) for v in lp.integrality_],
    "start": list(lp.a_matrix_.start_), "index": list(lp.a_matrix_.index_),
    "value": list(lp.a_matrix_.value_),
}))
"""


def read_back(path: Path) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", READ_BACK, str(path)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def small_model(sense: int = 1) -> LinearModel:
    inf = np.inf
    lower = np.array([0, 0, -inf, -inf, -3, 2, 0, -4, 0, 0.1])
    upper = np.array([1, inf, inf, 5, -1, 2, 6, inf, 0.5, 0.3])
    matrix = np.zeros((6, 10))
    matrix[0, [0, 1, 2]] = 1, 2, 1
    matrix[1, [1, 3, 4]] = -1.5, 1, 1 / 3
    matrix[2, [0, 6, 7]] = 1, 1, 1
    matrix[3, [2, 3, 4, 6]] = 1, 1, 1, 1
    matrix[4, [0, 1, 2, 3]] = 1, 1, 1, 1
    matrix[5, [7]] = 1
    return LinearModel(
        matrix=sparse.csr_array(matrix),
        cost=sense * np.array([1, 2, 0.1, -1, 3, 1, -2, 1, 0, 0.0]),
        lower=lower,
        upper=upper,
        row_lower=np.array([-7, -inf, 1, -2.5, -inf, -inf]),
        row_upper=np.array([inf, 4.25, 1, 0.1, 11, inf]),
        integer=np.array([1, 1, 0, 0, 1, 0, 1, 1, 0, 0], dtype=bool),
        offset=sense * 2.75,
        sense=sense,
        columns={
            "x": Block(0, (2, 2)),
            "t": Block(4, ()),
            "z": Block(5, (2,), LabelMap((("hot side", 1), ("cold", 2)))),
            "w": Block(7, (3,)),
        },
        rows={"limit": Block(0, (5,)), "free_row": Block(5, ())},
    )


def brute_force(model: LinearModel) -> float:
    """Optimum by trying the integers; the continuous rest by an LP."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    found = milp(
        model.sense * model.cost,
        constraints=LinearConstraint(model.matrix, model.row_lower, model.row_upper),
        bounds=Bounds(model.lower, model.upper),
        integrality=model.integer.astype(int),
        options={"mip_rel_gap": 0.0},
    )
    assert found.status == 0
    return model.sense * found.fun + model.offset


@pytest.mark.parametrize("sense", [1, -1])
def test_same_model_and_optimum(tmp_path: Path, sense: int) -> None:
    model = small_model(sense)
    write_mps(model, tmp_path / "model.mps")
    back = read_back(tmp_path / "model.mps")
    assert back["status"] == "Optimal"
    assert back["optimum"] == pytest.approx(sense * brute_force(model), abs=1e-7)
    assert back["offset"] == sense * model.offset
    assert back["columns"] == [
        "x[0,0]", "x[0,1]", "x[1,0]", "x[1,1]", "t", "z[hot_side,1]", "z[cold,2]",
        "w[0]", "w[1]", "w[2]",
    ]  # fmt: skip
    assert back["cost"] == (sense * model.cost).tolist()
    assert back["lower"] == model.lower.tolist()
    assert back["upper"] == model.upper.tolist()
    assert back["integer"] == model.integer.astype(int).tolist()
    # A row without sides may be dropped by a reader.
    kept = len(back["rows"])
    assert (
        back["rows"]
        == ["limit[0]", "limit[1]", "limit[2]", "limit[3]", "limit[4]", "free_row"][:kept]
    )
    assert kept >= 5
    assert back["row_lower"][:5] == model.row_lower[:5].tolist()
    assert back["row_upper"][:5] == model.row_upper[:5].tolist()
    matrix = sparse.csc_array((back["value"], back["index"], back["start"]), shape=(kept, 10))
    assert (matrix.toarray() == model.matrix.toarray()[:kept]).all()
    comment = (tmp_path / "model.mps").read_text().startswith("* maximise")
    assert comment == (sense == -1)


def test_pure_lp_without_rows_of_one_kind(tmp_path: Path) -> None:
    model = LinearModel(
        matrix=sparse.csr_array(np.array([[1.0, 1.0]])),
        cost=np.array([1.0, 2.0]),
        lower=np.zeros(2),
        upper=np.full(2, np.inf),
        row_lower=np.array([3.0]),
        row_upper=np.array([np.inf]),
        integer=np.zeros(2, dtype=bool),
    )
    write_mps(model, tmp_path / "lp.mps")
    assert read_back(tmp_path / "lp.mps")["optimum"] == 3.0


def test_ranges_are_never_narrowed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lower = rng.normal(0, 10.0 ** rng.integers(-3, 6, 200))
    upper = lower + np.abs(rng.normal(0, 10.0 ** rng.integers(-6, 3, 200)))
    model = LinearModel(
        matrix=sparse.csr_array(np.ones((200, 1))),
        cost=np.zeros(1),
        lower=np.zeros(1),
        upper=np.ones(1),
        row_lower=lower,
        row_upper=upper,
        integer=np.zeros(1, dtype=bool),
    )
    write_mps(model, tmp_path / "ranges.mps")
    back = read_back(tmp_path / "ranges.mps")
    assert (np.array(back["row_lower"]) <= lower).all()
    assert (np.array(back["row_upper"]) >= upper).all()
    exact = (np.array(back["row_lower"]) == lower) & (np.array(back["row_upper"]) == upper)
    assert exact.mean() > 0.5


def test_names_stay_unique() -> None:
    twice = {"a": Block(0, (2,), LabelMap((("b c",), ("b_c",))))}
    names = member_names(twice, 2)
    assert len(set(names)) == 2
    assert all(" " not in name for name in names)
    clash = member_names({"COST": Block(0, ())}, 1)
    assert clash != ["COST"]
    shape = {"x": Block(0, (2, 3))}
    assert member_names(shape, 6) == [
        f"x[{i},{j}]" for i, j in itertools.product(range(2), range(3))
    ]
