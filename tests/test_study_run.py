"""Studies run, stop, and go on; limits are kept; whatever dies, finished cells stay."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import typer
from study_cases import (
    QUICK,
    ROOT,
    SMOKE,
    SOLVED,
    batch,
    error_lines,
    moeopt,
    record_paths,
    start_batch,
    write_study,
)

from moeopt.commands.studying import check_study
from moeopt.study.batch import prepare_batch
from moeopt.study.cell import CellJob
from moeopt.study.cells import StudyResults
from moeopt.study.export import export_records
from moeopt.study.lock import StudyLock
from moeopt.study.recheck import recheck
from moeopt.study.results import read_results
from moeopt.study.slot import Slot, run_recorded
from moeopt.study.store import Store

# --- the smoke suite -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyResults, str]:
    folder = tmp_path_factory.mktemp("smoke") / "results"
    done = batch("smoke", "--workers", 2, "--results", folder)
    assert done.returncode == 0, done.stderr
    return read_results("smoke", folder), done.stdout + done.stderr


def test_smoke_finishes_every_cell_of_every_problem(smoke):
    results, told = smoke
    assert 38 <= len(results.finished) <= 45
    assert results.missing == results.failed == results.outdated == []
    assert {r.cell.problem for r in results.finished} >= {"placement", "replication", "joint"}
    assert {r.record["solver"] for r in results.finished} >= {"highs", "cpsat"}
    assert f"[{len(results.finished)}/{len(results.finished)}]" in told
    assert {cell.formulation for cell, _ in results.skipped} == {
        "placement_columns",
        "placement_patterns",
    }


def test_smoke_is_solved(smoke):
    for result in smoke[0].finished:
        record = result.record
        infeasible = "infeasible" in record["instance"]
        if record["instance"] == "smoke_joint_kv_or_replicas":
            assert record["status"] in ("optimal", "feasible")
        else:
            assert record["status"] == ("infeasible" if infeasible else "optimal"), record
        assert result.solution_path.exists() == (not infeasible)
        assert result.log_path.exists()
        rows = record["trajectory"]
        if not infeasible:
            assert rows[-1][1:] == [record["upper_bound"], record["lower_bound"]]
        assert [row[0] for row in rows] == sorted(row[0] for row in rows)


def test_smoke_measures_what_is_asked_for(smoke):
    measured = [r.record for r in smoke[0].finished if r.cell.settings["measure"]]
    assert measured
    for record in measured:
        assert record["lp_bound"] == pytest.approx(1.0)
        assert record["lp_bound"] <= record["root_bound"] <= record["upper_bound"]
    others = [r.record for r in smoke[0].finished if not r.cell.settings["measure"]]
    assert {record["lp_bound"] for record in others} == {None}


def test_smoke_passes_the_checker_again(smoke, capsys):
    results, _ = smoke
    checked = list(recheck("smoke", results.folder))
    assert len(checked) == len(results.finished)
    assert [line for one in checked for line in one.problems] == []
    plans = sum(one.objective is not None for one in checked)
    assert plans == sum(r.record["upper_bound"] is not None for r in results.finished) > 30
    check_study("smoke", results.folder, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told == {"records": len(checked), "plans": plans, "wrong": 0}


def test_smoke_has_nothing_left_to_do(smoke):
    results, _ = smoke
    stamps = {p: p.stat().st_mtime_ns for p in results.folder.glob("cells/*/*")}
    done = batch("smoke", "--results", results.folder)
    assert done.returncode == 0
    assert f"{len(results.finished)} finished before, none run" in done.stdout
    assert {p: p.stat().st_mtime_ns for p in results.folder.glob("cells/*/*")} == stamps


def test_smoke_export_holds_the_same_numbers(smoke, tmp_path):
    results, _ = smoke
    paths = {form: tmp_path / f"records.{form}" for form in ("jsonl", "csv", "parquet")}
    for form, path in paths.items():
        assert export_records(results, path, form) == len(results.finished)
    records = [json.loads(line) for line in paths["jsonl"].read_text().splitlines()]
    assert records == [r.record for r in results.finished]
    with paths["csv"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    table = pq.read_table(paths["parquet"]).to_pylist()
    for record, row, line in zip(records, rows, table, strict=True):
        assert row["key"] == line["key"] == record["key"]
        for name in ("upper_bound", "lower_bound", "gap", "lp_bound"):
            value = record[name]
            assert row[name] == ("" if value is None else repr(value))
            assert line[name] == value
        assert float(row["seconds.total"]) == line["seconds.total"] == record["seconds"]["total"]
        assert json.loads(row["trajectory"]) == record["trajectory"]


def test_a_plan_or_record_that_was_changed_is_found(smoke, tmp_path):
    results, _ = smoke
    result = next(r for r in results.finished if r.record["upper_bound"] is not None)
    whole = result.solution_path.read_text()
    plan = json.loads(whole)
    try:
        hosts = plan["hosts"][0]
        hosts[0], hosts[1] = [], hosts[0]
        result.solution_path.write_text(json.dumps(plan))
        problems = [line for one in recheck("smoke", results.folder) for line in one.problems]
        assert problems
        result.solution_path.unlink()
        problems = [line for one in recheck("smoke", results.folder) for line in one.problems]
        assert any("no such file" in line for line in problems)
        with pytest.raises(typer.Exit) as ended:
            check_study("smoke", results.folder, as_json=False)
        assert ended.value.exit_code == 1
    finally:
        result.solution_path.write_text(whole)


# --- going on ------------------------------------------------------------------------------------


def test_dry_run_shows_cells_and_a_bound_of_the_time_and_runs_nothing(tmp_path):
    study = write_study(tmp_path, QUICK, seeds=[0, 1])
    done = batch(study, "--dry-run", "--workers", 2)
    assert done.returncode == 0
    assert "smoke_replication_infeasible replication default seed 1" in done.stdout
    assert "2 cells, 2 to run, 0 skipped; at most 3 min with 2 workers" in done.stdout
    assert list(tmp_path.iterdir()) == [study]


def test_a_changed_instance_is_run_again_and_new_seeds_are_added(tmp_path):
    document = json.loads((SMOKE / "smoke_replication_infeasible.json").read_text())
    instance = tmp_path / "mine.json"
    instance.write_text(json.dumps(document))
    text = QUICK.replace("smoke_replication_infeasible", "mine.json")
    study = write_study(tmp_path, text, seeds=[0, 1])
    assert "2 infeasible" in batch(study).stdout
    study = write_study(tmp_path, text, seeds=[0, 1, 2])
    assert "2 finished before, 1 infeasible" in batch(study).stdout
    document["source"] = {"notes": "changed"}
    instance.write_text(json.dumps(document))
    assert "0 finished before, 3 infeasible" in batch(study).stdout
    assert len(record_paths(study)) == 6


def test_a_failed_cell_is_only_run_again_when_asked(tmp_path):
    text = SOLVED + "settings = {{ options = {{ no_such_option = 1 }} }}\n"
    study = write_study(tmp_path, text, seeds=[0])
    done = batch(study)
    assert done.returncode == 3
    assert "1 cells failed" in done.stdout
    (path,) = record_paths(study)
    record = json.loads(path.read_text())
    assert record["status"] == "error"
    assert "no_such_option" in record["notes"][0]
    stamp = path.stat().st_mtime_ns
    assert batch(study).returncode == 0
    assert path.stat().st_mtime_ns == stamp
    assert batch(study, "--retry-failed").returncode == 3
    assert path.stat().st_mtime_ns != stamp


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(tmp_path, number):
    study = write_study(tmp_path, SOLVED, seeds=list(range(50)))
    process = start_batch(study)
    until = time.monotonic() + 120
    while not record_paths(study) and time.monotonic() < until:
        time.sleep(0.05)
    below = psutil.Process(process.pid).children(recursive=True)
    assert below
    process.send_signal(number)
    told, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "cells left; the same command goes on" in told
    assert psutil.wait_procs(below, timeout=10)[1] == []
    assert not (tmp_path / "study.results" / "study.lock").exists()
    for path in record_paths(study):
        assert json.loads(path.read_text())["status"] == "optimal"


def test_a_held_store_is_refused(tmp_path):
    study = write_study(tmp_path, QUICK, seeds=[0])
    store = Store(study.with_suffix(".results"))
    store.create()
    with StudyLock(store.folder):
        assert "another run holds" in error_lines(batch(study))[0]
        assert record_paths(study) == []
    assert batch(study).returncode == 0


def test_wrong_usage_is_one_clear_line(tmp_path):
    study = write_study(tmp_path, QUICK, seeds=[0])
    assert "no engine 'cloud'" in error_lines(batch(study, "--engine", "cloud"))[0]
    assert "write i/n" in error_lines(batch(study, "--shard", "3"))[0]
    assert "no shard 3/2" in error_lines(batch(study, "--shard", "3/2"))[0]
    missing = error_lines(batch("smok"))
    assert "did you mean smoke" in missing[0]
    output = tmp_path / "records.csv"
    error = error_lines(moeopt("export-records", study, "--format", "xml", "-o", output))
    assert "no format 'xml'" in error[0]


# --- limits and kills ----------------------------------------------------------------------------

#: A formulation that does what the test says as soon as it is asked whether it fits.
NASTY = """
import os, signal, time
from pathlib import Path
PROBLEM, KIND = "replication", "exact"
TRIES = Path(__file__).with_name("tries")
def supports(data):
    if Path(os.readlink(f"/proc/{{os.getpid()}}/fd/1")).suffix == ".log":  # in a cell
        with TRIES.open("a") as file:
            file.write("x")
        {what}
    return None
def build_cpsat(data):
    raise NotImplementedError
"""


def run_nasty(folder: Path, what: str, **changes: object) -> tuple[dict[str, object], int]:
    """Run a cell with such a formulation; return its record and how often it was tried."""
    (folder / "nasty.py").write_text(NASTY.format(what=what))
    text = SOLVED.replace("replication_matching", "nasty.py")
    study = write_study(folder, text, seeds=[0])
    store = Store(study.with_suffix(".results"))
    store.create()
    (planned,) = prepare_batch(study).cells
    job = CellJob(**CellJob.of(planned, store).as_dict() | changes)
    with Slot() as slot:
        status = run_recorded(slot, job)
        after = write_study(folder, QUICK, seeds=[0])
        quick = CellJob.of(prepare_batch(after).cells[0], store)
        assert run_recorded(slot, quick) == "infeasible", "the slot goes on"
    record = store.read_record(store.record_path(job.key))
    assert record["status"] == status == "error"
    return record, len((folder / "tries").read_text())


@pytest.mark.parametrize(
    ("what", "words", "tries"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "ended by SIGSEGV", 1),
        ("os._exit(7)", "ended with status 7", 1),
        ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL, 3 times in a row", 3),
        ("os.kill(os.getppid(), signal.SIGKILL); time.sleep(60)", "3 times in a row", 3),
        ("raise ZeroDivisionError('mine')", "ZeroDivisionError: mine", 1),
    ],
)
def test_a_cell_that_dies_has_a_record(tmp_path, what, words, tries):
    record, tried = run_nasty(tmp_path, what)
    assert words in record["notes"][0]
    assert tried == tries


def test_a_cell_that_hangs_is_killed_at_its_hard_limit(tmp_path):
    # It is asked to end, and does not listen.
    what = "signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(600)"
    begin = time.monotonic()
    record, tried = run_nasty(tmp_path, what, hard_limit_s=1.0)
    assert time.monotonic() - begin < 60
    assert "killed at its hard limit, 1 s" in record["notes"][0]
    assert record["limit"] == "time"
    assert tried == 1


def test_a_cell_that_eats_the_memory_is_killed(tmp_path):
    settings = {
        "time_limit_s": 60.0,
        "memory_limit_mib": 100.0,
        "gap": 1e-6,
        "threads": None,
        "start": "default",
        "options": {},
        "measure": [],
    }
    what = "keep = bytearray(b'x') * (1 << 30); time.sleep(600)"
    record, _ = run_nasty(tmp_path, what, settings=settings)
    assert "killed at its memory limit, 100 MiB" in record["notes"][0]
    assert record["limit"] == "memory"


def test_a_full_disk_stops_the_study_with_a_clear_line(tmp_path):
    study = write_study(tmp_path, QUICK, seeds=list(range(20)))
    assert batch(study, "--shard", "1/2").returncode == 0
    before = {path: path.read_bytes() for path in record_paths(study)}
    assert len(before) == 10
    # No file may grow beyond a kilobyte: records are larger, locks are not.
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024));"
        "from moeopt.cli import main; sys.argv[0] = 'moeopt'; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "batch", str(study)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert any("cannot be written: File too large" in line for line in error_lines(done))
    assert "Traceback" not in done.stderr
    assert {path: path.read_bytes() for path in record_paths(study)} == before
    assert "10 finished before, 10 infeasible" in batch(study).stdout


def test_kill_9_loses_nothing():
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "kill.py"), "--kills", "5", "--cells-each", "1"],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "each exactly once" in done.stdout
    assert "5 kills" in done.stdout
