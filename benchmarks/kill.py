"""kill -9 at random moments in a study: ``python benchmarks/kill.py [--kills 50] [--seed 0]``.

A victim is the runner, a forker, a cell or a solver's worker. After each kill: whoever was below
it is gone, and every record there is can be read and is as it was. At the end: every cell has
exactly one record, and every plan passes the checker.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

from moeopt.study.batch import prepare_batch
from moeopt.study.index import read_records
from moeopt.study.recheck import recheck
from moeopt.study.store import Store

MARK = "MOEOPT_KILL_BENCHMARK"
#: Until everything below a killed process must be gone.
ORPHANS_GONE_S = 10.0
#: Who is always killed while it starts never runs a cell: most of these are spared.
SPARED_WHILE_STARTING = 0.95
STUDY = """
[study]
name = "kill"
[defaults]
time_limit_s = 60
[[cells]]
instances = ["smoke_replication_infeasible"]
problem = "replication"
seeds = {seeds}
[[cells]]
instances = ["smoke_replication_pairs", "smoke_replication_max"]
problem = "replication"
formulations = ["replication_matching", "replication_cp"]
seeds = {solver_seeds}
"""
ROLES = {
    "runner": "moeopt batch",
    "forker": "moeopt.study.forker",
    "worker": "moeopt.solvers.worker",
}


def run(kills: int, seed: int, cells_each: int) -> Counter[str]:
    """Kill so often; return how often each kind of process was hit. AssertionError if lost."""
    rng = random.Random(seed)
    hits: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="moeopt-kill-") as folder:
        study = Path(folder) / "kill.toml"
        study.write_text(
            STUDY.format(
                seeds=list(range(10 * cells_each)),
                solver_seeds=list(range(cells_each)),
            ),
            encoding="utf-8",
        )
        mark = f"{os.getpid()}-{seed}"
        known: dict[str, int] = {}
        runner = start(study, mark)
        while hits.total() < kills:
            time.sleep(rng.uniform(0.05, 2.0))
            if runner.poll() is not None:
                assert runner.returncode in (0, 3, -signal.SIGKILL), runner.returncode
                if runner.returncode != -signal.SIGKILL:
                    remove_some(study, rng, known)  # all done too early: work for the next kills
                runner = start(study, mark)
                continue
            victim = pick(runner.pid, rng)
            if victim is None:
                continue
            role, process, starting = victim
            if starting and rng.random() < SPARED_WHILE_STARTING:
                continue
            below = [] if role == "worker" else children(process)
            process.kill()
            hits[role] += 1
            _, alive = psutil.wait_procs(below, timeout=ORPHANS_GONE_S)
            assert not alive, f"orphans after killing {role}: {alive}"
            if role == "runner":
                runner.wait()
                assert not marked(mark, runner.pid), f"orphans: {marked(mark, runner.pid)}"
            look(study, known)
        if runner.poll() is None:
            runner.wait()
        finish(study, mark, known)
    return hits


def start(study: Path, mark: str, *options: str) -> subprocess.Popen[bytes]:
    """Start a runner with two workers."""
    return subprocess.Popen(
        [sys.executable, "-m", "moeopt", "batch", str(study), "--workers", "2", *options],
        env=os.environ | {MARK: mark},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def children(process: psutil.Process) -> list[psutil.Process]:
    """Return everything below a process."""
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def pick(runner: int, rng: random.Random) -> tuple[str, psutil.Process, bool] | None:
    """Return a victim (a kind first, so that rare ones are hit as often), and if no cell runs."""
    kinds: dict[str, list[psutil.Process]] = {"runner": [psutil.Process(runner)]}
    for process in children(psutil.Process(runner)):
        try:
            line, parent = " ".join(process.cmdline()), process.parent()
            role = next((r for r, words in ROLES.items() if words in line), None)
            if role == "forker" and parent is not None and parent.pid != runner:
                role = "cell"  # a fork has the command line of its forker
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if role is not None:
            kinds.setdefault(role, []).append(process)
    role = rng.choice(sorted(kinds))
    process = rng.choice(kinds[role])
    return (role, process, "cell" not in kinds) if process.is_running() else None


def marked(mark: str, runner: int) -> list[psutil.Process]:
    """Return processes of this benchmark that are left although their runner is gone."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != runner and process.environ().get(MARK) == mark:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return psutil.wait_procs(found, timeout=ORPHANS_GONE_S)[1]


def stamps(study: Path) -> dict[str, int]:
    """Return the time of each record that is no error; all records must be readable."""
    store = Store(study.with_suffix(".results"))
    records = read_records(store)  # InputError for a torn one
    good = [key for key, record in records.items() if record["status"] != "error"]
    return {key: store.record_path(key).stat().st_mtime_ns for key in good}


def look(study: Path, known: dict[str, int]) -> None:
    """Find every finished cell as it was."""
    now = stamps(study)
    lost = [key for key, stamp in known.items() if now.get(key) != stamp]
    assert not lost, f"finished cells were lost or run again: {lost}"
    known.update(now)


def remove_some(study: Path, rng: random.Random, known: dict[str, int]) -> None:
    """Take half of the records away, as if they had not been run."""
    store = Store(study.with_suffix(".results"))
    for key in rng.sample(sorted(known), len(known) // 2):
        store.record_path(key).unlink()
        del known[key]


def finish(study: Path, mark: str, known: dict[str, int]) -> None:
    """Run to the end; every cell must be there once, every plan must pass."""
    look(study, known)
    last = start(study, mark, "--retry-failed")
    assert last.wait() == 0, last.returncode
    look(study, known)
    batch = prepare_batch(study)
    records = sorted(batch.store.cells.glob("*/*.json"))
    keys = [path.stem for path in records if not path.name.endswith(".solution.json")]
    assert sorted(keys) == sorted(planned.cell.key for planned in batch.cells)
    checked = list(recheck(study))
    assert len(checked) == len(keys)
    assert not [line for one in checked for line in one.problems]
    assert not (batch.store.folder / "study.lock").exists()
    print(f"{len(keys)} cells, each exactly once; {sum(c.objective is not None for c in checked)} "
          "plans checked")  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cells-each", type=int, default=10)
    arguments = parser.parse_args()
    begin = time.monotonic()
    hits = run(arguments.kills, arguments.seed, arguments.cells_each)
    told = ", ".join(f"{count} {role}" for role, count in sorted(hits.items()))
    print(f"{hits.total()} kills ({told}) in {time.monotonic() - begin:.0f} s: nothing lost")


if __name__ == "__main__":
    main()
