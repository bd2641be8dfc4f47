"""The Dask engine: a scheduler hands out the cells; its tasks only supervise the cell's process.

No Dask worker ever loads a solver or dies with one. A task that is given out again because its
worker was lost finds the record of the first try, or runs the cell again.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from moeopt.errors import InputError
from moeopt.study.cell import CellJob
from moeopt.study.slot import Slot, run_recorded
from moeopt.study.store import Store
from moeopt.study.view import StudyView

_thread = threading.local()


def run_dask(
    jobs: list[CellJob], workers: int, view: StudyView, *, scheduler: str | None = None
) -> None:
    """Run cells on a Dask cluster; return when all have a record.

    Parameters
    ----------
    workers : int
        Of a cluster on this machine, where there is no ``scheduler``.
    scheduler : str, optional
        Address of a running scheduler (``tcp://host:8786``), whose workers see the same folders
        under the same names and have moeopt installed.

    Raises
    ------
    InputError
        Dask is not installed, or nobody answers at the address.
    StoreError
        The store cannot be written.
    """
    try:
        import distributed
    except ModuleNotFoundError:
        raise InputError(
            "--engine dask needs Dask distributed: pip install 'moeopt[cluster]'"
        ) from None
    if scheduler is None:
        cluster = distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            silence_logs="CRITICAL",
        )
        with cluster, distributed.Client(cluster) as client:
            _run(distributed, client, jobs, view)
        return
    try:
        client = distributed.Client(scheduler, timeout=10)
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(f"no Dask scheduler answers at {scheduler}: {error}") from None
    with client:
        _run(distributed, client, jobs, view)


def _run(distributed: Any, client: Any, jobs: list[CellJob], view: StudyView) -> None:
    errors = [
        job.key
        for job in jobs
        if Store(Path(job.store)).record_path(job.key).is_file()  # failed before, to be retried
    ]
    futures = {
        client.submit(
            supervise_cell, job.as_dict(), job.key in errors, key=f"cell-{job.key}", pure=False
        ): job
        for job in jobs
    }
    try:
        for future, status in distributed.as_completed(futures, with_results=True):
            view.ended(futures[future], status)
    except BaseException:
        client.cancel(list(futures))
        raise


def supervise_cell(job: dict[str, Any], again: bool) -> str:
    """Run a cell from a thread of a Dask worker; return its status.

    Parameters
    ----------
    again : bool
        Whether a record that is there is of an earlier run, and to be replaced.
    """
    cell_job = CellJob(**job)
    store = Store(Path(cell_job.store))
    path = store.record_path(cell_job.key)
    if path.is_file():
        status = str(store.read_record(path)["status"])
        if not (again and status == "error"):
            return status
    if not hasattr(_thread, "slot"):
        _thread.slot = Slot()  # lives as long as the thread; the kernel ends it with the worker
    found = run_recorded(_thread.slot, cell_job)
    assert found is not None, "nobody closes this slot"
    return found
