"""One slot of a runner: a forker that runs one cell after the other, started again if it dies."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from moeopt.errors import SolverError
from moeopt.study.cell import CellJob, OnState, failure
from moeopt.study.store import Store, StoreError

Cause = Literal["recorded", "store", "time", "memory", "killed", "crashed"]
#: How often a cell is tried whose process is killed from outside (out of memory, perhaps).
TRIES = 3


@dataclass(frozen=True)
class Ended:
    """How a cell's process ended."""

    cause: Cause
    message: str = ""


class Slot:
    """Runs cells, one at a time, in processes below a forker.

    The kernel ties the forker to the thread that starts it: keep a slot in one thread.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = threading.Event()

    def run(self, job: CellJob, on_state: OnState = lambda *_: None) -> Ended:
        """Run a cell; return when its process has ended.

        Raises
        ------
        SolverError
            No forker can be started.
        """
        process = self._started()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died: there is no answer, then
            process.stdin.write(json.dumps(job.as_dict()).encode() + b"\n")
            process.stdin.flush()
        message = ""
        for event in self._events(process):
            if event["event"] == "state":
                on_state(*event["bounds"])
            elif event["event"] == "store":
                message = event["message"]
            elif event["event"] == "ended":
                return Ended(cast(Cause, event["cause"]), event["message"] or message)
        self._reap()
        return Ended("killed", "the process that starts the cells was killed")

    def close(self) -> None:
        """End the forker, and with it the cell that runs; callable from any thread."""
        self._closed.set()
        process = self._process
        if process is not None:
            process.kill()

    @property
    def is_closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed.is_set()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        for _ in range(TRIES):
            self._reap()
            process = self._process = _start()
            if self._closed.is_set():
                process.kill()
            if any(event["event"] == "ready" for event in self._events(process)):
                return process
            if self._closed.is_set():
                break
        raise SolverError("the process that starts the cells does not come up")

    def _events(self, process: subprocess.Popen[bytes]) -> Any:
        """Yield events up to and with ``ready`` or ``ended``, or until the process dies."""
        assert process.stdout is not None
        for line in process.stdout:
            if not line.endswith(b"\n"):
                return  # half a line of a killed process
            event = json.loads(line)
            yield event
            if event["event"] in ("ready", "ended"):
                return

    def _reap(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(BrokenPipeError):
                    cast(Any, stream).close()

    def __enter__(self) -> Slot:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._reap()


def _start() -> subprocess.Popen[bytes]:
    # A checkout that is not installed must be found by the child as well.
    root = str(Path(__file__).resolve().parent.parent.parent)
    path = os.environ.get("PYTHONPATH")
    # Cells run side by side: none may take all cores for its linear algebra, unless told.
    one_thread = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    environment = one_thread | os.environ
    environment["PYTHONPATH"] = root if not path else root + os.pathsep + path
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "moeopt.study.forker", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a terminal's Ctrl-C reaches the runner only
            env=environment,
        )
    except OSError as error:
        raise SolverError(f"a process could not be started: {error}") from error


def run_recorded(slot: Slot, job: CellJob, on_state: OnState = lambda *_: None) -> str | None:
    """Run a cell until it has a record; return its status, None where the slot was closed.

    A cell whose process is killed from outside is tried again, :data:`TRIES` times in all.

    Raises
    ------
    StoreError
        The store cannot be written.
    """
    store = Store(Path(job.store))
    path = store.record_path(job.key)
    before = _stamp(path)
    ended = Ended("killed")
    for _ in range(TRIES):
        try:
            ended = slot.run(job, on_state)
        except SolverError:
            if slot.is_closed:
                return None
            raise
        if _stamp(path) != before:  # written, whatever happened to the process afterwards
            return str(store.read_record(path)["status"])
        if slot.is_closed:
            return None
        if ended.cause == "store":
            raise StoreError(ended.message or f"{store.folder}: cannot be written")
        if ended.cause != "killed":
            break
    message = ended.message
    if ended.cause == "killed":
        message += f", {TRIES} times in a row (out of memory, perhaps)"
    limit = ended.cause if ended.cause in ("time", "memory") else None
    store.write(failure(job, message, limit), None)
    return "error"


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_ino
