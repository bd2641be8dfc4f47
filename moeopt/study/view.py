"""The live view of a study on standard error: done, running with bounds, failed, time left."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from moeopt.progress import number, percent
from moeopt.record import relative_gap
from moeopt.study.cell import CellJob


@dataclass
class _Running:
    job: CellJob
    began: float
    upper: float | None = None
    lower: float | None = None


class StudyView:
    """What the engines tell, shown as a live table (a terminal) or a line for each finished cell.

    Parameters
    ----------
    total : int
        Cells of the study (or shard) that are supported.
    done : int
        Cells that were finished before.
    workers : int
        How many run at a time, for the estimate of the time left.
    """

    def __init__(self, total: int, done: int, workers: int) -> None:
        self.total, self.done, self.workers = total, done, workers
        self.statuses: dict[str, str] = {}
        self._running: dict[str, _Running] = {}
        self._seconds: list[float] = []
        self._console = Console(stderr=True)
        self._live: Live | None = None

    def __enter__(self) -> StudyView:
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self._renderable, console=self._console, refresh_per_second=4
            )
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    # --- what engines tell

    def started(self, job: CellJob) -> None:
        """A cell has begun."""
        self._running[job.key] = _Running(job, time.monotonic())

    def improved(self, job: CellJob, upper: float | None, lower: float | None) -> None:
        """A running cell has better bounds."""
        if job.key in self._running:
            self._running[job.key].upper, self._running[job.key].lower = upper, lower

    def ended(self, job: CellJob, status: str) -> None:
        """A cell has its record."""
        running = self._running.pop(job.key, None)
        seconds = None if running is None else time.monotonic() - running.began
        if seconds is not None:
            self._seconds.append(seconds)
        self.done += 1
        self.statuses[job.key] = status
        if self._live is None:
            took = "" if seconds is None else f", {seconds:.1f} s"
            print(
                f"[{self.done}/{self.total}] {job.cell.label}: {status}{took}",
                file=sys.stderr,
                flush=True,
            )

    @property
    def failed(self) -> int:
        """Cells of this run whose record has status ``error``."""
        return sum(status == "error" for status in self.statuses.values())

    # --- what people see

    def left_s(self) -> float | None:
        """Seconds left, if the cells to come are like those that were."""
        if not self._seconds:
            return None
        now = time.monotonic()
        mean = sum(self._seconds) / len(self._seconds)
        begun = sum(min(mean, now - cell.began) for cell in list(self._running.values()))
        return max(0.0, mean * (self.total - self.done) - begun) / self.workers

    def _renderable(self) -> Group:
        running = list(self._running.values())  # other threads add to it
        left = self.left_s()
        waiting = self.total - self.done - len(running)
        parts = [
            f"{self.done} of {self.total} done",
            f"{self.failed} failed",
            f"{len(running)} running",
            f"{waiting} waiting",
            "" if left is None else f"about {duration(left)} left",
        ]
        table = Table(box=None, pad_edge=False)
        for heading in ("running", "incumbent", "bound", "gap", "s"):
            table.add_column(heading, justify="left" if heading == "running" else "right")
        for cell in running:
            table.add_row(
                cell.job.cell.label,
                number(cell.upper),
                number(cell.lower),
                percent(relative_gap(cell.upper, cell.lower)),
                f"{time.monotonic() - cell.began:.0f}",
            )
        return Group(Text(", ".join(part for part in parts if part)), table)


def duration(seconds: float) -> str:
    """Return a time for people: ``40 s``, ``12 min``, ``3.5 h``, rounded up."""
    if seconds < 100:
        return f"{-(-seconds // 1):.0f} s"
    if seconds < 6000:
        return f"{-(-seconds // 60):.0f} min"
    return f"{-(-seconds // 360) / 10:.1f} h"
