"""The SLURM engine: a job array over the shards of a study, submitted by the cluster's sbatch."""

from __future__ import annotations

import math
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from moeopt.errors import InputError, SolverError
from moeopt.files import write_bytes_atomic
from moeopt.study.plan import Plan, PlannedCell
from moeopt.study.study_file import StudyFile

SCRIPT_FOLDER = "slurm"
SCRIPT_FILE = "array.sh"
#: On top of the cells' own limits, for starting and for file systems that are slow.
_SPARE_S = 600.0


def write_array_script(
    study: StudyFile,
    path: Path,
    folder: Path,
    plan: Plan,
    waiting: list[PlannedCell],
    *,
    shards: int,
    workers: int,
    retry_failed: bool,
    options: list[str],
) -> Path:
    """Write the job array's script into the results and return its path.

    Parameters
    ----------
    path, folder : Path
        The study's file and its results: on a file system that all nodes share.
    waiting : list of PlannedCell
        What has no record yet: decides the time limit of a job.
    options : list of str
        Options of ``sbatch`` for its head, such as ``--partition=long``.

    Raises
    ------
    InputError
        The script cannot be written.
    """
    longest_s = max(
        plan.time_bound_s([cell for cell in shard_of(plan.cells, (i, shards)) if cell in waiting],
                          workers)
        for i in range(1, shards + 1)
    )  # fmt: skip
    threads = max((cell.cell.settings["threads"] or 1 for cell in plan.cells), default=1)
    home = folder / SCRIPT_FOLDER
    home.mkdir(parents=True, exist_ok=True)
    head = [
        f"--job-name={study.study.name}",
        f"--array=1-{shards}",
        "--ntasks=1",
        f"--cpus-per-task={workers * threads}",
        f"--time={math.ceil((longest_s + _SPARE_S) / 60)}",
        f"--output={home}/%A_%a.out",
        *options,
    ]
    command = [
        *(sys.executable, "-m", "moeopt", "batch", str(path.resolve())),
        *("--results", str(folder), "--workers", str(workers)),
        *(["--retry-failed"] if retry_failed else []),
    ]
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in head),
        "# Shards may run in any order, at the same time, and again: finished cells are kept.",
        "# A job that is killed or meets its time limit loses only the cells that it was running.",
        f'exec {shlex.join(command)} --shard "${{SLURM_ARRAY_TASK_ID}}/{shards}"',
    ]
    script = home / SCRIPT_FILE
    write_bytes_atomic(script, ("\n".join(lines) + "\n").encode(), force=True)
    return script


def shard_of(cells: list[PlannedCell], shard: tuple[int, int] | None) -> list[PlannedCell]:
    """Return the cells of a shard (i, n), i from 1: every n-th one."""
    return cells if shard is None else cells[shard[0] - 1 :: shard[1]]


def submit(script: Path) -> str:
    """Submit a script; return what sbatch says.

    Raises
    ------
    InputError
        There is no sbatch here.
    SolverError
        It refuses the script.
    """
    program = shutil.which("sbatch")
    if program is None:
        raise InputError(
            f"there is no sbatch on this machine; the script is written: {script}: submit it "
            "where SLURM is"
        )
    done = subprocess.run([program, str(script)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SolverError(f"sbatch refuses {script}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()
