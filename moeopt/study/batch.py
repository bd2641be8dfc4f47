"""A whole study: what is left of it is run by one of the engines."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from moeopt.errors import InputError
from moeopt.study.cell import CellJob
from moeopt.study.cells import Cell
from moeopt.study.engine_dask import run_dask
from moeopt.study.engine_local import run_local
from moeopt.study.engine_slurm import shard_of, submit, write_array_script
from moeopt.study.index import read_statuses
from moeopt.study.lock import StudyLock
from moeopt.study.plan import Plan, PlannedCell, plan_study
from moeopt.study.store import Store
from moeopt.study.study_file import StudyFile, read_study, results_folder, study_path
from moeopt.study.view import StudyView

ENGINES = ("local", "dask", "slurm")


@dataclass
class Batch:
    """A study that is ready to run.

    Attributes
    ----------
    cells : list of PlannedCell
        Of the study, or of one shard of it.
    statuses : dict of str to str
        Status of each record that is there, by key.
    """

    path: Path
    file: StudyFile
    plan: Plan
    store: Store
    cells: list[PlannedCell]
    shard: tuple[int, int] | None = None
    retry_failed: bool = False
    statuses: dict[str, str] = field(default_factory=dict)

    @property
    def waiting(self) -> list[PlannedCell]:
        """Cells to run: those without a record, and failed ones where they are to be retried."""
        return [planned for planned in self.cells if self.state(planned.cell) == "waiting"]

    def state(self, cell: Cell) -> str:
        """``waiting``, or the status of the cell's record."""
        status = self.statuses.get(cell.key, "waiting")
        return "waiting" if status == "error" and self.retry_failed else status

    def time_bound_s(self, workers: int) -> float:
        """Upper bound of the time that the waiting cells take."""
        return self.plan.time_bound_s(self.waiting, workers)


@dataclass(frozen=True)
class BatchReport:
    """What a run has done: cells of the study (or shard), before and now, and what is left."""

    folder: Path
    total: int
    before: int
    ran: Counter[str]
    skipped: int
    interrupted: bool
    submitted: str | None = None

    @property
    def left(self) -> int:
        """Cells that still have no record."""
        return self.total - self.before - sum(self.ran.values())


def prepare_batch(
    study: str | os.PathLike[str],
    *,
    results: str | os.PathLike[str] | None = None,
    shard: tuple[int, int] | None = None,
    retry_failed: bool = False,
) -> Batch:
    """Read a study and find out what is left to run.

    Parameters
    ----------
    study : str or path
        The study's file, or the name of a file in ``benchmarks/suites``.
    results : path, optional
        The folder of the results; by default ``STUDY.results`` beside the file.
    shard : (int, int), optional
        (i, n): every n-th cell, from the i-th, 1 ≤ i ≤ n.
    retry_failed : bool
        Run cells again whose record has status ``error``.

    Raises
    ------
    InputError
    """
    if shard is not None and not 1 <= shard[0] <= shard[1]:
        raise InputError(f"there is no shard {shard[0]}/{shard[1]}: write i/n with 1 ≤ i ≤ n")
    path = study_path(study)
    file = read_study(path)
    plan = plan_study(file, path)
    store = Store(results_folder(path, results))
    batch = Batch(path, file, plan, store, shard_of(plan.cells, shard), shard, retry_failed)
    batch.statuses = read_statuses(store)
    return batch


def run_batch(
    batch: Batch,
    *,
    workers: int = 1,
    engine: str = "local",
    scheduler: str | None = None,
    shards: int | None = None,
    sbatch_options: list[str] | None = None,
    submit_jobs: bool = True,
) -> BatchReport:
    """Run what is left of a study.

    Parameters
    ----------
    workers : int
        Cells at a time (in each job, with ``slurm``).
    engine : {"local", "dask", "slurm"}
    scheduler : str, optional
        Address of a Dask scheduler.
    shards : int, optional
        Jobs of a SLURM array; by default one for each waiting cell, at most 16.
    sbatch_options : list of str, optional
    submit_jobs : bool
        Whether the SLURM script is submitted, too.

    Raises
    ------
    InputError
        Another run holds the store, or it cannot be written.

    Notes
    -----
    Ctrl-C (or SIGTERM) ends the running cells, which leave nothing behind; finished ones stay.
    """
    if engine not in ENGINES:
        raise InputError(f"there is no engine {engine!r}; engines are {', '.join(ENGINES)}")
    batch.store.create()
    waiting, skipped = batch.waiting, len(batch.plan.skipped)
    before = len(batch.cells) - len(waiting)
    if engine == "slurm":
        submitted = _submit(batch, workers, shards, sbatch_options or [], submit_jobs)
        return BatchReport(
            batch.store.folder, len(batch.cells), before, Counter(), skipped, False, submitted
        )
    interrupted = False
    view = StudyView(len(batch.cells), before, workers)
    if waiting:
        with StudyLock(batch.store.folder, batch.shard):
            # Another run may have ended between looking and locking.
            batch.statuses = read_statuses(batch.store)
            waiting = batch.waiting
            view.done = before = len(batch.cells) - len(waiting)
            batch.store.remove_leftovers()
            jobs = [CellJob.of(planned, batch.store) for planned in waiting]
            try:
                with _sigterm_as_interrupt(), view:
                    if engine == "dask":
                        run_dask(jobs, workers, view, scheduler=scheduler)
                    elif jobs:
                        run_local(jobs, workers, view)
            except KeyboardInterrupt:
                interrupted = True
    ran = Counter(view.statuses.values())
    return BatchReport(batch.store.folder, len(batch.cells), before, ran, skipped, interrupted)


def _submit(
    batch: Batch, workers: int, shards: int | None, options: list[str], submit_jobs: bool
) -> str:
    script = write_array_script(
        batch.file,
        batch.path,
        batch.store.folder.resolve(),
        batch.plan,
        batch.waiting,
        shards=shards or max(1, min(16, len(batch.waiting))),
        workers=workers,
        retry_failed=batch.retry_failed,
        options=options,
    )
    return submit(script) if submit_jobs else str(script)


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM (a scheduler's way to end a job) do what Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
