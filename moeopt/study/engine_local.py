"""The local engine: so many slots in this machine, a thread each."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from moeopt.study.cell import CellJob
from moeopt.study.slot import Slot, run_recorded
from moeopt.study.view import StudyView

_POLL_S = 0.2


def run_local(jobs: list[CellJob], workers: int, view: StudyView) -> None:
    """Run cells; return when all have a record.

    Ctrl-C (KeyboardInterrupt) ends the running cells, which have no record then, and is raised.

    Raises
    ------
    StoreError
        The store cannot be written.
    """
    waiting: queue.SimpleQueue[CellJob] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    slots = [Slot() for _ in range(min(workers, len(jobs)))]
    threads = [
        threading.Thread(target=_serve, args=(slot, waiting, view, ended.put), daemon=True)
        for slot in slots
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in threads:
            error = _next(ended)
            if error is not None:
                raise error
    finally:
        for slot in slots:
            slot.close()
        for thread in threads:
            thread.join()


def _next(ended: queue.SimpleQueue[BaseException | None]) -> BaseException | None:
    while True:  # in pieces: a wait without end could not be interrupted everywhere
        try:
            return ended.get(timeout=_POLL_S)
        except queue.Empty:
            continue


def _serve(
    slot: Slot,
    waiting: queue.SimpleQueue[CellJob],
    view: StudyView,
    end: Callable[[BaseException | None], None],
) -> None:
    """Run cells until there are none (a thread of the engine)."""
    try:
        with slot:
            while not slot.is_closed:
                try:
                    job = waiting.get_nowait()
                except queue.Empty:
                    break
                view.started(job)
                status = run_recorded(slot, job, _telling(view, job))
                if status is None:
                    break
                view.ended(job, status)
    except BaseException as error:
        end(error)  # raised again in the main thread
    else:
        end(None)


def _telling(view: StudyView, job: CellJob) -> Callable[[float, float | None, float | None], None]:
    return lambda seconds, upper, lower: view.improved(job, upper, lower)
