"""What the runner takes beside its cells: ``python benchmarks/runner_overhead.py [--cells 300]``.

Small cells on two workers. The overhead is the time of the workers (wall time × workers) less the
cells' own times (``seconds.total`` of their records) less the start of each worker, which is told
apart; as a share of the cells' times.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from moeopt.study.batch import prepare_batch
from moeopt.study.cell import CellJob
from moeopt.study.engine_local import run_local
from moeopt.study.index import read_records
from moeopt.study.view import StudyView

STUDY = """
[study]
name = "overhead"
[[cells]]
instances = ["smoke_replication_pairs"]
problem = "replication"
formulations = ["replication_matching"]
seeds = {seeds}
"""


class Stopwatch(StudyView):
    """A view that notes when cells begin and end."""

    def __init__(self, total: int, workers: int) -> None:
        super().__init__(total, 0, workers)
        self.began: dict[str, float] = {}
        self.spans: dict[str, float] = {}

    def started(self, job: CellJob) -> None:
        self.began[job.key] = time.monotonic()
        super().started(job)

    def ended(self, job: CellJob, status: str) -> None:
        self.spans[job.key] = time.monotonic() - self.began[job.key]
        assert status == "optimal", status
        super().ended(job, status)


def measure(cells: int, workers: int) -> dict[str, float]:
    """Run so many cells; return seconds by kind."""
    with tempfile.TemporaryDirectory(prefix="moeopt-overhead-") as folder:
        study = Path(folder) / "overhead.toml"
        study.write_text(STUDY.format(seeds=list(range(cells))), encoding="utf-8")
        batch = prepare_batch(study)
        batch.store.create()
        jobs = [CellJob.of(planned, batch.store) for planned in batch.waiting]
        watch = Stopwatch(cells, workers)
        begin = time.monotonic()
        run_local(jobs, workers, watch)
        wall = time.monotonic() - begin
        records = read_records(batch.store)
    own = {key: record["seconds"]["total"] for key, record in records.items()}
    first = sorted(watch.began, key=watch.began.__getitem__)[:workers]
    start = sum(watch.spans[key] - own[key] for key in first)
    total = sum(own.values())
    return {
        "wall": wall,
        "cells": total,
        "start of the workers": start,
        "overhead": workers * wall - total - start,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=300)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    found = measure(arguments.cells, arguments.workers)
    for name, seconds in found.items():
        print(f"{name}: {seconds:.1f} s")
    print(f"overhead: {100 * found['overhead'] / found['cells']:.1f} % of the cells' time")


if __name__ == "__main__":
    main()
