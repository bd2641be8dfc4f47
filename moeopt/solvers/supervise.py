"""The parent's side of a solve: starts a worker process, holds its clock and memory, ends it.

No solver is imported here. A worker that crashes, hangs, eats the memory or is killed costs the
caller nothing but that one answer: the last incumbent and the last bound are returned all the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import psutil

from moeopt.errors import SolverError
from moeopt.problem import ProblemData
from moeopt.solvers.base import Limit, Progress, SolveResult, SolveSettings, Stop
from moeopt.solvers.job import INCUMBENT_FILE, JOB_FILE, RESULT_FILE, Job, Report

if TYPE_CHECKING:
    from moeopt.solution import Solution

Cause = Literal["finished", "time", "memory", "killed", "crashed", "interrupted"]
OnProgress = Callable[[Progress], None]

POLL_INTERVAL_S = 0.1
#: What a worker may take beyond its time limit before it is told to end: seconds, share.
GRACE_S = 5.0
GRACE_SHARE = 0.1
#: Between asking a worker to end and killing it.
KILL_AFTER_S = 3.0
_MIB = 2**20


@dataclass
class WorkerOutcome:
    """What came of a solve.

    Attributes
    ----------
    cause : str
        Why the worker ended. ``finished``: by itself (a limit that the solver kept is in
        ``result.limit``); ``time``, ``memory``: ended here; ``killed``: by a signal from outside;
        ``interrupted``: by the caller's stop or Ctrl-C.
    result : SolveResult or None
        Without its large arrays. Where the worker was cut off: the last bounds that it sent. None
        where it never came to solve.
    solution : Solution or None
        The solver's final solution or, where it was cut off, its last incumbent. Not checked.
    size : dict or None
        Rows, columns, nonzeros, integers.
    seconds : dict
        By phase: start (the process, its imports), build, compile, solve.
    peak_memory_mib : float or None
        Largest resident memory of the worker and its children.
    message : str
        One line on what went wrong, empty if nothing did.
    input_error : list of str
        What does not fit in the caller's input; nothing was solved then.
    """

    cause: Cause
    result: SolveResult | None = None
    solution: Solution | None = None
    size: dict[str, int] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_mib: float | None = None
    solver_version: str | None = None
    message: str = ""
    input_error: list[str] = field(default_factory=list)


def run_job(
    data: ProblemData,
    formulation: str | os.PathLike[str],
    solver: str,
    settings: SolveSettings,
    *,
    relax: bool = False,
    start: Solution | None = None,
    on_progress: OnProgress | None = None,
    stop: Stop | None = None,
    log_path: str | os.PathLike[str] | None = None,
    grace_s: float | None = None,
) -> WorkerOutcome:
    """Build, compile and solve in a process of its own.

    Parameters
    ----------
    data : ProblemData
    formulation : str or path
        Name of a shipped formulation, or a ``.py`` file.
    solver : {"highs", "cpsat"}
    settings : SolveSettings
        ``time_limit_s`` counts from now and includes building and compiling; the solver gets what
        is left. ``memory_limit_mib`` is on the resident memory of the worker and its children.
    relax : bool
        Solve the LP relaxation; there is no solution then.
    start : Solution, optional
        Warm start, used by formulations that can.
    on_progress : callable, optional
        Called with every better incumbent or bound, in this thread.
    stop : Stop, optional
        When set, the worker is asked to end and to hand over what it has.
    log_path : path, optional
        Everything that the worker and the solver print is appended here.
    grace_s : float, optional
        What the worker may take beyond ``time_limit_s`` before it is ended from here; by default
        5 s or 10 %, whichever is more.

    Raises
    ------
    SolverError
        The worker could not be started.
    """
    with tempfile.TemporaryDirectory(prefix="moeopt-") as folder:
        directory = Path(folder)
        name = os.fspath(formulation)
        job = Job(
            data=data,
            formulation=str(Path(name).resolve()) if name.endswith(".py") else name,
            solver=solver,
            settings=settings,
            relax=relax,
            start=start,
            log_path=None if log_path is None else str(Path(log_path).resolve()),
            began=time.monotonic(),
            parent_pid=os.getpid(),
        )
        (directory / JOB_FILE).write_bytes(pickle.dumps(job))
        log = Path(job.log_path) if job.log_path is not None else directory / "worker.log"
        with open(log, "ab") as log_file:
            process = _start(directory, log_file)
        watch = _Watch(process, job, stop, on_progress, grace_s)
        try:
            watch.run()
        finally:
            watch.end()
        return _outcome(watch, directory, log)


def _start(directory: Path, log_file: IO[bytes]) -> subprocess.Popen[bytes]:
    # A checkout that is not installed must be found by the child as well.
    root = str(Path(__file__).resolve().parent.parent.parent)
    path = os.environ.get("PYTHONPATH")
    environment = os.environ | {"PYTHONPATH": root if not path else root + os.pathsep + path}
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "moeopt.solvers.worker", str(directory)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log_file,
            start_new_session=True,  # a terminal's Ctrl-C reaches the parent only
            env=environment,
        )
    except OSError as error:
        raise SolverError(f"the worker process could not be started: {error}") from error


class _Watch:
    """Watches one worker until it has ended, and ends it where it must."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        job: Job,
        stop: Stop | None,
        on_progress: OnProgress | None,
        grace_s: float | None,
    ) -> None:
        self.process, self.job, self.stop, self.on_progress = process, job, stop, on_progress
        self.cause: Cause | None = None  # why it was told to end
        self.peak_mib = 0.0
        self.primal: float | None = None
        self.dual: float | None = None
        self.phase: dict[str, Any] = {}
        self.phase_began = job.began
        self._family: dict[int, psutil.Process] = {}
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._kill_at: float | None = None
        limit = job.settings.time_limit_s
        self._deadline = None
        if limit is not None:
            grace = max(GRACE_S, GRACE_SHARE * limit) if grace_s is None else grace_s
            self._deadline = job.began + limit + grace

    def run(self) -> None:
        """Return when the worker has ended (it is not reaped yet)."""
        self._reader.start()
        while True:
            try:
                if self._ended():
                    return
                self._check()
                self._handle_events(POLL_INTERVAL_S)
            except KeyboardInterrupt:
                if self.cause == "interrupted":
                    self._kill()  # a second Ctrl-C does not wait
                else:
                    self._ask_to_end("interrupted")

    def end(self) -> None:
        """Kill what is left of the worker's process group and of its children; reap it."""
        self._remember_family()
        # The group's number is safe to use: the worker is not reaped, so nobody else has it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for process in self._family.values():
            # psutil compares start times: a number used again is not touched.
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        # The kernel takes its time to free the memory of a large process: not before is it gone.
        until = time.monotonic() + KILL_AFTER_S
        while time.monotonic() < until and not all(map(_is_over, self._family.values())):
            time.sleep(POLL_INTERVAL_S)
        # A descendant that escaped unseen may hold the pipe open: then its reader is left behind.
        self._reader.join(KILL_AFTER_S)
        if self.process.stdout is not None and not self._reader.is_alive():
            self.process.stdout.close()
        self._handle_events(0.0)

    def _ended(self) -> bool:
        status = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return status is not None

    def _check(self) -> None:
        now = time.monotonic()
        if self._kill_at is not None:
            if now >= self._kill_at:
                self._kill()
            return
        self._remember_family()
        limit = self.job.settings.memory_limit_mib
        used_mib = self._memory_mib()
        if limit is not None and used_mib > limit:
            self.cause = "memory"
            self._kill()  # asking takes time, in which it may eat the whole machine
        elif self._deadline is not None and now >= self._deadline:
            self._ask_to_end("time")
        elif self.stop is not None and self.stop.is_set():
            self._ask_to_end("interrupted")

    def _ask_to_end(self, cause: Cause) -> None:
        self.cause = cause
        self._kill_at = time.monotonic() + KILL_AFTER_S
        self.process.send_signal(signal.SIGTERM)

    def _kill(self) -> None:
        self._kill_at = time.monotonic() + KILL_AFTER_S
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def _remember_family(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker = self._family.setdefault(self.process.pid, psutil.Process(self.process.pid))
            for child in worker.children(recursive=True):
                self._family.setdefault(child.pid, child)

    def _memory_mib(self) -> float:
        total = 0
        for process in list(self._family.values()):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                total += process.memory_info().rss
        self.peak_mib = max(self.peak_mib, total / _MIB)
        return total / _MIB

    # --- events

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith(b"\n"):  # a killed worker may leave half a line
                self._events.put(json.loads(line))

    def _handle_events(self, wait_s: float) -> None:
        until = time.monotonic() + wait_s
        while True:
            try:
                event = self._events.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                return
            self._handle(event)

    def _handle(self, event: dict[str, Any]) -> None:
        if event["event"] == "phase":
            self.phase, self.phase_began = event, time.monotonic()
        elif event["event"] == "progress":
            self.primal, self.dual = event["primal_bound"], event["dual_bound"]
            if self.on_progress is not None:
                self.on_progress(Progress(event["seconds"], self.primal, self.dual, event["nodes"]))


def _is_over(process: psutil.Process) -> bool:
    try:
        return process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return True


def _outcome(watch: _Watch, directory: Path, log: Path) -> WorkerOutcome:
    report = _report(directory)
    status = watch.process.returncode
    outcome = WorkerOutcome(
        cause=watch.cause or _cause(status, report),
        solution=None if watch.job.relax else _incumbent(directory),
        peak_memory_mib=round(watch.peak_mib, 1) or None,
    )
    if report is None:
        _add_from_events(outcome, watch)
    else:
        outcome.result, outcome.size = report.result, report.size
        if outcome.cause == "time" and outcome.result is not None:
            outcome.result.limit = outcome.result.limit and "time"
        outcome.seconds, outcome.solver_version = report.seconds, report.solver_version
        outcome.input_error = report.input_error
        peaks = [p for p in (watch.peak_mib, report.peak_memory_mib) if p]
        outcome.peak_memory_mib = round(max(peaks), 1) if peaks else None
    outcome.message = _message(outcome, report, status, log)
    return outcome


def _report(directory: Path) -> Report | None:
    path = directory / RESULT_FILE
    return pickle.loads(path.read_bytes()) if path.is_file() else None


def _incumbent(directory: Path) -> Solution | None:
    path = directory / INCUMBENT_FILE
    if not path.is_file():
        return None
    from moeopt.solution import Solution

    return Solution.model_validate_json(path.read_bytes())


def _cause(status: int, report: Report | None) -> Cause:
    if report is not None:
        return "crashed" if report.error is not None else "finished"
    outside = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    return "killed" if -status in outside else "crashed"


_LIMITS: dict[str, Limit] = {"time": "time", "memory": "memory", "interrupted": "interrupted"}


def _add_from_events(outcome: WorkerOutcome, watch: _Watch) -> None:
    """Fill in what the stream of a worker told that left no report."""
    phase = watch.phase
    outcome.size, outcome.solver_version = phase.get("size"), phase.get("solver_version")
    outcome.seconds = dict(phase.get("seconds", {}))
    if "phase" in phase:
        outcome.seconds[phase["phase"]] = time.monotonic() - watch.phase_began
    if phase.get("phase") != "solve":
        return
    reason = "feasible" if outcome.solution is not None else "no_solution_found"
    outcome.result = SolveResult(
        reason="other_error" if outcome.cause == "crashed" else reason,  # type: ignore[arg-type]
        limit=_LIMITS.get(outcome.cause),
        primal_bound=watch.primal,
        dual_bound=watch.dual,
        dual_bound_from=phase.get("bound_from") if watch.dual is not None else None,
        seconds=outcome.seconds["solve"],
        message="the worker was cut off; these are its last bounds",
    )


def _message(outcome: WorkerOutcome, report: Report | None, status: int, log: Path) -> str:
    if report is not None and report.error is not None:
        return report.error
    if outcome.cause == "time" and report is None:
        return "the worker did not keep its time limit and was killed"
    if outcome.cause == "memory":
        return "the worker was killed at the memory limit"
    if outcome.cause == "killed":
        name = signal.Signals(-status).name
        hint = " (out of memory, perhaps)" if name == "SIGKILL" else ""
        return f"the worker was killed from outside by {name}{hint}"
    if outcome.cause == "crashed":
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"the worker crashed ({how})" + (f": {lines[-1]}" if lines else "")
    return "; ".join(report.warnings) if report is not None else ""
