"""Solution files and their arrays."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from moeopt import problem, solution
from moeopt.errors import InputError
from moeopt.files import published_schema
from moeopt.instance import Instance, read_instance_file
from moeopt.prepare import prepare
from moeopt.problem import ProblemData
from moeopt.solution import Solution, read_solution_file, validate_against, write_solution_file

SMOKE = Path(__file__).parent.parent / "instances" / "smoke"


@pytest.fixture
def instance() -> Instance:
    return read_instance_file(SMOKE / "smoke_joint_two_waves.json")


@pytest.fixture
def data(instance: Instance) -> ProblemData:
    return prepare(instance, "joint")


def plan(data: ProblemData) -> Solution:
    hosts = np.zeros((1, 3, 2), dtype=bool)
    hosts[0, 0], hosts[0, 1, 0], hosts[0, 2, 1] = True, True, True
    requests = np.zeros((2, 3, 2), dtype=np.int64)
    requests[0, 0], requests[1, 2] = [1, 1], [3, 0]
    dispatch = np.zeros((3, 1, 3, 2))
    dispatch[0, 0, 0, 1], dispatch[2, 0, 2, 1] = 1.5, 0.25
    return Solution.from_arrays(data, hosts, requests=requests, dispatch=dispatch, objective=7)


def test_from_arrays_speaks_the_domain(data: ProblemData) -> None:
    made = plan(data)
    assert made.hosts == [[[0, 1], [0], [1]]]
    assert made.waves is not None
    # The empty wave is dropped, with its dispatch.
    assert [wave.requests for wave in made.waves] == [{"long": [1, 1]}, {"short": [3, 0]}]
    assert made.dispatch == [[[(0, 1, 1.5)], [(2, 1, 0.25)]]]
    assert (made.instance, made.instance_sha256) == (data.name, data.sha256)
    assert (made.problem, made.objective) == ("joint", 7.0)


def test_dispatch_may_be_lists(data: ProblemData) -> None:
    hosts, requests = np.ones((1, 3, 2)), np.zeros((2, 2, 2), dtype=np.int64)
    requests[0, 1] = [1, 1]
    lists: list[Any] = [[[], [(np.int64(0), np.int64(1), np.float64(1.5)), [2, 0, 3]]]]
    made = Solution.from_arrays(data, hosts, requests=requests, dispatch=lists)
    assert made.dispatch == [[[(0, 1, 1.5), (2, 0, 3.0)]]]
    # Without requests (replication) the lists are by scenario.
    assert Solution.from_arrays(data, hosts, dispatch=lists).dispatch == [
        [[], [(0, 1, 1.5), (2, 0, 3.0)]]
    ]
    with pytest.raises(ValueError, match="dispatch and requests differ in waves"):
        Solution.from_arrays(data, hosts, requests=requests, dispatch=np.zeros((3, 1, 3, 2)))


def test_prescribed_waves_keep_their_places(data: ProblemData) -> None:
    prescribed = replace(data, wave_steps=(8, 2, 2))
    requests = np.zeros((2, 3, 2), dtype=np.int64)
    requests[0, 2] = [1, 1]
    made = Solution.from_arrays(prescribed, np.ones((1, 3, 2)), requests=requests)
    assert made.waves is not None
    assert [wave.requests for wave in made.waves] == [{}, {}, {"long": [1, 1]}]


def test_arrays_come_back(data: ProblemData) -> None:
    made = plan(data)
    assert made.hosts_array(2).tolist() == [[[True, True], [True, False], [False, True]]]
    assert made.requests_array(("long", "short"), 2).tolist() == [
        [[1, 1], [0, 0]],
        [[0, 0], [3, 0]],
    ]


@pytest.mark.parametrize("name", ["plan.json", "plan.json.gz"])
def test_files_come_back(tmp_path: Path, data: ProblemData, name: str) -> None:
    made = plan(data)
    write_solution_file(made, tmp_path / name)
    assert read_solution_file(tmp_path / name) == made
    with pytest.raises(InputError, match="exists already, not overwritten"):
        write_solution_file(made, tmp_path / name)
    write_solution_file(made, tmp_path / name, force=True)
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_json_text_comes_back_by_either_key(data: ProblemData) -> None:
    made = plan(data)
    assert Solution.model_validate_json(made.model_dump_json()) == made
    assert Solution.model_validate_json(made.model_dump_json(by_alias=True)) == made


def test_written_files_fit_the_published_schema(tmp_path: Path, data: ProblemData) -> None:
    write_solution_file(plan(data), tmp_path / "plan.json")
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["schema"] == "moeopt-solution/1"
    jsonschema.validate(written, published_schema(Solution))


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({"schema": "moeopt-solution/2"}, ['schema: "moeopt-solution/2" is not read']),
        ({"schema": None}, ["schema: null is not read"]),
        ({"hosts": [[[True]]]}, ["hosts[0][0][0]: must be a whole number, not true"]),
        (
            {"hosts": [[["0"], 3]]},
            ['hosts[0][0][0]: must be a whole number, not "0"', "hosts[0][1"],
        ),
        ({"objective": "1.5"}, ['objective: must be a number, not "1.5"']),
        ({"waves": [{"request": {}}]}, ["waves[0].requests: missing", "waves[0].request: unknown"]),
        ({"host": []}, ["host: unknown key (did you mean hosts?)"]),
        ({"waves": [{"requests": {"a": [1.5]}}]}, ["waves[0].requests.a[0]: must be a whole"]),
        ({"dispatch": [[[[0, 1]]]]}, ["dispatch[0][0][0][2]: missing"]),
    ],
)
def test_broken_files(tmp_path: Path, changes: dict[str, Any], lines: list[str]) -> None:
    path = tmp_path / "x.json"
    good = {"schema": "moeopt-solution/1", "instance": "a", "problem": "joint", "hosts": [[[0]]]}
    path.write_text(json.dumps(good))
    read_solution_file(path)
    path.write_text(json.dumps(good | changes))
    with pytest.raises(InputError) as caught:
        read_solution_file(path)
    found = caught.value.problems
    assert len(found) == len(lines)
    assert all(a.startswith(b) for a, b in zip(found, lines, strict=True)), found


def test_a_fitting_solution_has_no_problems(instance: Instance, data: ProblemData) -> None:
    assert validate_against(instance, plan(data)) == []


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        (
            {"instance": "other"},
            [
                "instance: this solution is for another instance, 'other', "
                "not 'smoke_joint_two_waves'"
            ],
        ),
        (
            {"instance_sha256": "0" * 64},
            [
                "instance_sha256: this solution is for another instance of the name "
                "'smoke_joint_two_waves' (its content hash differs)"
            ],
        ),
        ({"instance_sha256": None}, []),
        (
            {"problem": "packing"},
            [
                f"problem: 'packing' is unknown (known: {', '.join(problem.PROBLEMS)})",
                "waves: the problem packing has none",
            ],
        ),
        ({"problem": "placement"}, ["waves: the problem placement has none"]),
        ({"waves": None}, ["waves: missing, the problem is joint"]),
        ({"hosts": []}, ["hosts: has 0 layers, the instance 1"]),
        ({"hosts": [[[0], [1]]]}, ["hosts[0]: has 2 experts, the instance 3"]),
        (
            {"hosts": [[[0], [2], [-1]]]},
            [
                "hosts[0][1][0]: GPU 2 does not exist (GPUs are 0..1)",
                "hosts[0][2][0]: GPU -1 does not exist (GPUs are 0..1)",
            ],
        ),
        (
            {"waves": [{"requests": {"lang": [1, 1]}}], "dispatch": None},
            ["waves[0].requests.lang: the instance has no such request class"],
        ),
        (
            {"waves": [{"requests": {"long": [1]}}], "dispatch": None},
            ["waves[0].requests.long: 1 entries, one for each of 2 GPUs expected"],
        ),
        (
            {"waves": [{"requests": {"long": [3, -1]}}], "dispatch": None},
            ["waves[0].requests.long[1]: must not be negative, is -1"],
        ),
        ({"dispatch": []}, ["dispatch: has 0 layers, the instance 1"]),
        ({"dispatch": [[[]]]}, ["dispatch[0]: has 1 waves, `waves` has 2"]),
        (
            {"dispatch": [[[(3, 0, 1.0)], [(0, 2, 1.0)]]]},
            [
                f"dispatch[0][{s}][0]: expert {e} or GPU {g} does not exist "
                "(experts are 0..2, GPUs are 0..1)"
                for s, e, g in ((0, 3, 0), (1, 0, 2))
            ],
        ),
    ],
)
def test_misfits(
    instance: Instance, data: ProblemData, changes: dict[str, Any], lines: list[str]
) -> None:
    document = plan(data).model_dump(by_alias=True) | changes
    assert validate_against(instance, Solution.model_validate(document)) == lines


def test_many_misfits_are_cut_short(instance: Instance, data: ProblemData) -> None:
    document = plan(data).model_dump(by_alias=True) | {"hosts": [[[9] * 100, [0], [0]]]}
    lines = validate_against(instance, Solution.model_validate(document))
    assert len(lines) == 21
    assert lines[-1] == "... and 80 more of this kind"


def test_arrays_of_a_misfit_are_refused(data: ProblemData) -> None:
    made = plan(data)
    with pytest.raises(InputError, match=r"hosts\[0\]\[0\]\[1\]: GPU 1 does not exist"):
        made.hosts_array(1)
    with pytest.raises(InputError, match="no such request class"):
        made.requests_array(("long",), 2)
    with pytest.raises(InputError, match="one for each of 3 GPUs"):
        made.requests_array(("long", "short"), 3)
    uneven = made.model_copy(update={"hosts": [[[0]], []]})
    with pytest.raises(InputError, match="different numbers of experts"):
        uneven.hosts_array(2)


def test_arrays_of_wrong_shapes_are_refused(data: ProblemData) -> None:
    good = np.ones((1, 3, 2), dtype=bool)
    with pytest.raises(ValueError, match="hosts has shape"):
        Solution.from_arrays(data, good[:, :2])
    with pytest.raises(ValueError, match="requests has shape"):
        Solution.from_arrays(data, good, requests=np.zeros((1, 2, 2)))
    with pytest.raises(ValueError, match="whole numbers"):
        Solution.from_arrays(data, good, requests=np.full((2, 2, 2), 0.5))
    with pytest.raises(ValueError, match="dispatch has shape"):
        Solution.from_arrays(data, good, dispatch=np.zeros((2, 1, 3, 3)))


def test_large_plans_are_quick(data: ProblemData) -> None:
    large = replace(data, layers=58, experts=256, gpus=32)
    hosts = np.random.default_rng(0).random((58, 256, 32)) < 0.05
    start = time.process_time()
    made = Solution.from_arrays(large, hosts)
    again = Solution.model_validate_json(made.model_dump_json())
    assert np.array_equal(again.hosts_array(32), hosts)
    assert time.process_time() - start < 1  # measured: 0.05 s


def test_one_list_of_problems() -> None:
    assert solution.PROBLEMS == problem.PROBLEMS
