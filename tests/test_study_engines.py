"""The same study on other engines: Dask workers that are killed, a SLURM array shard by shard."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import threading
import time
from pathlib import Path

import psutil
import pytest
from study_cases import QUICK, SOLVED, batch, error_lines, record_paths, write_study

from moeopt.study.batch import prepare_batch, run_batch
from moeopt.study.engine_dask import run_dask
from moeopt.study.results import read_results

# --- Dask ----------------------------------------------------------------------------------------

#: Quick cells, and some that start a solver's process: a worker is killed while one runs.
MIXED = (
    QUICK
    + """
[[cells]]
instances = ["smoke_replication_pairs"]
problem = "replication"
formulations = ["replication_matching"]
seeds = {solver_seeds}
"""
)


def test_dask_runs_every_cell_once_although_a_worker_is_killed(tmp_path):
    distributed = pytest.importorskip("distributed")
    study = write_study(tmp_path, MIXED, seeds=list(range(6)), solver_seeds=list(range(6)))
    prepared = prepare_batch(study)
    killed: list[int] = []

    def kill_one(cluster: object) -> None:
        until = time.monotonic() + 120
        while not killed and time.monotonic() < until:
            for process in psutil.process_iter():
                try:
                    line = process.cmdline()
                except psutil.Error:
                    continue
                if "moeopt.solvers.worker" in line and (worker := dask_worker(process)):
                    worker.kill()
                    killed.append(worker.pid)
                    return
            time.sleep(0.05)

    def dask_worker(process: psutil.Process) -> psutil.Process | None:
        """The Dask worker of this test above a solver's process."""
        try:
            above = process.parents()
        except psutil.Error:
            return None
        pids = [one.pid for one in above]
        # solver's process < cell < forker < Dask worker < this process
        return above[2] if os.getpid() in pids and pids.index(os.getpid()) == 3 else None

    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        dashboard_address=None,
        silence_logs="CRITICAL",
    ) as cluster:
        killer = threading.Thread(target=kill_one, args=(cluster,))
        killer.start()
        report = run_batch(prepared, workers=2, engine="dask", scheduler=cluster.scheduler_address)
        killer.join()
    assert killed, "no worker was killed"
    assert (report.total, report.left, report.interrupted) == (12, 0, False)
    assert sum(report.ran.values()) == 12
    results = read_results(study)
    assert len(results.finished) == len(record_paths(study)) == 12
    assert results.failed == []
    # The cell of the killed worker went with it.
    assert not [p for p in psutil.Process().children(recursive=True) if p.is_running() and
                "moeopt.solvers.worker" in p.cmdline()]  # fmt: skip


def test_dask_by_its_option_on_this_machine(tmp_path):
    pytest.importorskip("distributed")
    study = write_study(tmp_path, QUICK, seeds=[0, 1, 2])
    done = batch(study, "--engine", "dask", "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert "0 finished before, 3 infeasible" in done.stdout
    assert "3 finished before, none run" in batch(study, "--engine", "dask").stdout


def test_no_scheduler_at_the_address(tmp_path):
    pytest.importorskip("distributed")
    with pytest.raises(Exception, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        run_dask([], 1, None, scheduler="tcp://127.0.0.1:9")  # type: ignore[arg-type]


# --- SLURM ---------------------------------------------------------------------------------------


def run_array(script: Path, shard: int, shards: int) -> subprocess.CompletedProcess[str]:
    """Do what SLURM does with one element of a job array."""
    return subprocess.run(
        ["bash", str(script)],
        env=os.environ | {"SLURM_ARRAY_TASK_ID": str(shard), "SLURM_ARRAY_TASK_COUNT": str(shards)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_array_script_shard_by_shard(tmp_path):
    study = write_study(tmp_path, QUICK, seeds=list(range(7)))
    done = batch(study, "--engine", "slurm", "--shards", 3, "--workers", 2, "--dry-run",
                 "--sbatch=--partition=long")  # fmt: skip
    assert done.returncode == 0, done.stderr
    script = tmp_path / "study.results" / "slurm" / "array.sh"
    assert f"written: {script}" in done.stdout
    text = script.read_text()
    for line in ("--job-name=quick", "--array=1-3", "--cpus-per-task=2", "--partition=long"):
        assert f"#SBATCH {line}\n" in text
    assert record_paths(study) == []
    for shard, total in ((3, 2), (1, 5), (2, 7)):
        ran = run_array(script, shard, 3)
        assert ran.returncode == 0, ran.stderr
        assert len(record_paths(study)) == total
    stamps = [path.stat().st_mtime_ns for path in record_paths(study)]
    again = run_array(script, 2, 3)
    assert "2 cells: 2 finished before, none run" in again.stdout
    assert [path.stat().st_mtime_ns for path in record_paths(study)] == stamps
    assert len(read_results(study).finished) == 7


def test_shards_run_at_the_same_time(tmp_path):
    study = write_study(tmp_path, SOLVED, seeds=[0, 1, 2, 3])
    batch(study, "--engine", "slurm", "--shards", 2, "--dry-run")
    script = tmp_path / "study.results" / "slurm" / "array.sh"
    results: list[subprocess.CompletedProcess[str]] = []
    threads = [
        threading.Thread(target=lambda i=i: results.append(run_array(script, i, 2))) for i in (1, 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [done.returncode for done in results] == [0, 0], results
    assert len(read_results(study).finished) == len(record_paths(study)) == 4


def fake_sbatch(folder: Path, script: str) -> dict[str, str]:
    program = folder / "sbatch"
    program.write_text(f"#!/bin/bash\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def test_the_script_is_submitted_by_sbatch(tmp_path):
    study = write_study(tmp_path, QUICK, seeds=[0])
    env = fake_sbatch(tmp_path, 'cp "$1" "$(dirname "$0")/got.sh"; echo Submitted batch job 17')
    done = batch(study, "--engine", "slurm", env=env)
    assert done.stdout == "Submitted batch job 17\n"
    script = tmp_path / "study.results" / "slurm" / "array.sh"
    assert (tmp_path / "got.sh").read_bytes() == script.read_bytes()
    env = fake_sbatch(tmp_path, "echo no such partition >&2; exit 1")
    done = batch(study, "--engine", "slurm", env=env)
    assert done.returncode == 3
    assert "no such partition" in done.stderr


def test_without_sbatch_the_script_is_written_all_the_same(tmp_path):
    study = write_study(tmp_path, QUICK, seeds=[0])
    error = error_lines(batch(study, "--engine", "slurm", env={"PATH": str(tmp_path)}))
    assert "there is no sbatch on this machine; the script is written" in error[0]
    assert (tmp_path / "study.results" / "slurm" / "array.sh").is_file()


def test_a_job_that_meets_its_time_limit_loses_only_what_it_was_running(tmp_path):
    study = write_study(tmp_path, SOLVED, seeds=list(range(40)))
    batch(study, "--engine", "slurm", "--shards", 1, "--dry-run")
    script = tmp_path / "study.results" / "slurm" / "array.sh"
    job = subprocess.Popen(
        ["bash", str(script)], env=os.environ | {"SLURM_ARRAY_TASK_ID": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until = time.monotonic() + 120
    while len(record_paths(study)) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=60) == 130
    results = read_results(study)
    assert len(results.finished) >= 2
    assert len(results.finished) + len(results.missing) == 40
    assert results.failed == []
