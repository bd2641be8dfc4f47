"""Forks a process for each cell: ``python -m moeopt.study.forker PARENT_PID``.

Loading the library takes a second; a fork of a process that has it loaded takes milliseconds. This
process has one thread, holds the clock and the memory of one cell at a time, and knows nothing of
the study. Jobs come as JSON lines on standard input, events go as JSON lines to standard output:
``ready``, ``state`` (seconds, bounds), ``ended`` (cause, message).

Whoever dies takes what is below along: the kernel kills this process when the thread that started
it dies, the cell when this process dies, and the solver's worker when the cell dies.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import psutil

from moeopt.catalog import formulation_names, load_formulation
from moeopt.solvers.worker import die_with_parent
from moeopt.study.cell import CellJob, run_cell
from moeopt.study.scratch import scratch_folder
from moeopt.study.store import Store, StoreError

#: Between asking a cell to end at its hard limit and killing it.
KILL_AFTER_S = 10.0
MEMORY_INTERVAL_S = 0.25
#: Memory of a cell beside its solver's worker, for which the limit is meant: the loaded library.
LIBRARY_MIB = 512.0
#: A forker without work ends after so long (on a machine that serves several studies).
IDLE_S = 300.0
#: Exit status of a cell that could not write its record.
STORE_FAILED = 4
_MIB = 2**20
_STATE_INTERVAL_S = 0.25


def main(parent_pid: int) -> int:
    """Serve until standard input ends, or nothing has come for long."""
    die_with_parent()
    if os.getppid() != parent_pid:
        return 1  # the parent died before this process could ask to die with it
    events = os.dup(1)
    os.dup2(2, 1)  # what anybody prints is no event
    for name in formulation_names():
        load_formulation(name)
    scratch = scratch_folder()
    _send(events, {"event": "ready"})
    for line in _lines():
        _send(events, _run(CellJob(**json.loads(line)), events, scratch))
    shutil.rmtree(scratch, ignore_errors=True)
    return 0


def _lines() -> Any:
    """Yield lines of standard input, unbuffered: nothing is read while a cell runs."""
    pending = b""
    while True:
        if not select.select([0], [], [], IDLE_S)[0]:
            return
        chunk = os.read(0, 1 << 16)
        if not chunk:
            return
        *lines, pending = (pending + chunk).split(b"\n")
        yield from lines


def _send(descriptor: int, event: dict[str, Any]) -> None:
    # Shorter than PIPE_BUF, so that lines of two processes do not mix.
    os.write(descriptor, json.dumps(event, allow_nan=False).encode()[:4000] + b"\n")


def _run(job: CellJob, events: int, scratch_root: Path) -> dict[str, Any]:
    """Fork the cell, keep its limits, and return how it ended."""
    try:
        Store(Path(job.store)).begin(job.key)
    except StoreError as error:
        return {"event": "ended", "cause": "store", "message": "; ".join(error.problems)}
    scratch = tempfile.mkdtemp(dir=scratch_root)
    alive, held_by_cell = os.pipe()
    try:
        pid = os.fork()
        if pid == 0:
            os.close(alive)
            _in_cell(job, events, scratch)
        os.close(held_by_cell)
        cause = _watch(job, pid, alive)
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(alive)
        shutil.rmtree(scratch, ignore_errors=True)  # a dying worker may still write there
    return {"event": "ended", **_ending(job, cause, os.waitstatus_to_exitcode(status))}


def _in_cell(job: CellJob, events: int, scratch: str) -> None:
    """Run the cell in the forked process, which ends here."""
    code = 1
    try:
        forker = os.getppid()
        os.setsid()
        die_with_parent()
        if os.getppid() != forker:
            return
        signal.signal(signal.SIGINT, signal.default_int_handler)
        tempfile.tempdir = os.environ["TMPDIR"] = scratch
        with open(Store(Path(job.store)).log_path(job.key), "ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        told = 0.0

        def on_state(seconds: float, upper: float | None, lower: float | None) -> None:
            nonlocal told
            if seconds - told >= _STATE_INTERVAL_S:
                told = seconds
                _send(events, {"event": "state", "bounds": [seconds, upper, lower]})

        try:
            run_cell(job, on_state)
            code = 0
        except StoreError as error:
            _send(events, {"event": "store", "message": "; ".join(error.problems)})
            code = STORE_FAILED
    except BaseException:
        traceback.print_exc()  # into the log, if it got so far
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _watch(job: CellJob, pid: int, alive: int) -> str | None:
    """Return when the cell has ended: why it was ended, None where it did so by itself."""
    begin = time.monotonic()
    cause: str | None = None
    kill_at = begin + job.hard_limit_s + KILL_AFTER_S
    limit = job.settings["memory_limit_mib"]
    while True:
        now = time.monotonic()
        wait_s = kill_at - now if cause is not None else begin + job.hard_limit_s - now
        if limit is not None:
            wait_s = min(wait_s, MEMORY_INTERVAL_S)
        # The cell holds the other end of `alive`; nothing comes on standard input but its end.
        ready, _, _ = select.select([alive, 0], [], [], max(0.0, wait_s))
        if alive in ready:
            return cause
        if ready:
            _kill_tree(pid)
            os._exit(0)
        now = time.monotonic()
        if limit is not None and _memory_mib(pid) > limit + LIBRARY_MIB:
            cause = "memory"
            _kill_tree(pid)
        elif cause is not None and now >= kill_at:
            _kill_tree(pid)
        elif cause is None and now >= begin + job.hard_limit_s:
            cause = "time"
            os.kill(pid, signal.SIGINT)  # a solve hands over its best plan


def _family(pid: int) -> list[psutil.Process]:
    try:
        cell = psutil.Process(pid)
        return [cell, *cell.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _memory_mib(pid: int) -> float:
    total = 0
    for process in _family(pid):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / _MIB


def _kill_tree(pid: int) -> None:
    for process in _family(pid):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def _ending(job: CellJob, cause: str | None, code: int) -> dict[str, str]:
    """Return cause and message of a cell that ended with an exit code (negative: a signal)."""
    if code == 0:
        return {"cause": "recorded", "message": ""}
    if code == STORE_FAILED:
        return {"cause": "store", "message": ""}
    if cause == "time":
        return {"cause": "time", "message": f"killed at its hard limit, {job.hard_limit_s:.0f} s"}
    if cause == "memory":
        limit = job.settings["memory_limit_mib"]
        return {"cause": "memory", "message": f"killed at its memory limit, {limit:g} MiB"}
    if code < 0:
        name = signal.Signals(-code).name
        outside = -code in (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)
        message = f"the cell's process was ended by {name}"
        return {"cause": "killed" if outside else "crashed", "message": message}
    return {"cause": "crashed", "message": f"the cell's process ended with status {code}"}


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
