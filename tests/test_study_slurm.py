"""A study as a job array on a real SLURM: Debian's packages, one machine."""

from __future__ import annotations

import subprocess
import time

import pytest
import slurm_cluster
from study_cases import SOLVED, batch, moeopt, record_paths, write_study

from moeopt.study.results import read_results

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(slurm_cluster.why_not() is not None, reason=str(slurm_cluster.why_not())),
]


def test_a_study_on_slurm_although_a_job_is_killed(tmp_path):
    study = write_study(tmp_path, SOLVED, seeds=list(range(12)))
    with slurm_cluster.cluster() as env:
        done = batch(study, "--engine", "slurm", "--shards", 3, env=env)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("Submitted batch job ")
        job = done.stdout.split()[-1]
        until = time.monotonic() + 120
        while not record_paths(study):
            assert time.monotonic() < until
            time.sleep(0.05)
        # All that the second shard has running goes at once, as when its node is lost.
        subprocess.run(["scancel", "--full", "--signal=KILL", f"{job}_2"], env=env, check=True)
        slurm_cluster.wait_for_jobs(env, 300)
        left = read_results(study).missing
        assert left, "the killed shard had nothing left to do"
        stamps = {path: path.stat().st_mtime_ns for path in record_paths(study)}
        again = batch(study, "--engine", "slurm", "--shards", 3, env=env)
        assert again.returncode == 0, again.stderr
        slurm_cluster.wait_for_jobs(env, 300)
    results = read_results(study)
    assert (len(results.finished), results.missing) == (12, [])
    assert len(record_paths(study)) == 12
    for path, stamp in stamps.items():
        assert path.stat().st_mtime_ns == stamp, f"{path.name} was run again"
    checked = moeopt("check", "--study", study)
    assert checked.returncode == 0, checked.stdout
