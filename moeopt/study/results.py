"""The results of a study as they are now: finished, failed, skipped and missing cells."""

from __future__ import annotations

import os
from pathlib import Path

from moeopt.study.cells import Cell, CellResult, StudyResults, identity_of
from moeopt.study.index import read_records
from moeopt.study.plan import Plan, plan_study
from moeopt.study.store import Store
from moeopt.study.study_file import StudyFile, read_study, results_folder, study_path

__all__ = ["Cell", "CellResult", "StudyResults", "read_results"]


def read_results(
    study: str | os.PathLike[str], results: str | os.PathLike[str] | None = None
) -> StudyResults:
    """Read what a study has so far.

    Parameters
    ----------
    study : str or path
        The study's file, or the name of a file in ``benchmarks/suites``.
    results : path, optional
        The folder of the results; by default ``STUDY.results`` beside the file.

    Raises
    ------
    InputError
        The study or a record cannot be read, or the store is of a newer version.
    """
    path = study_path(study)
    file = read_study(path)
    plan = plan_study(file, path)
    return collect(path, file, plan, Store(results_folder(path, results)))


def collect(path: Path, file: StudyFile, plan: Plan, store: Store) -> StudyResults:
    """Sort the cells of a plan by what the store has of them."""
    head = file.study
    found = StudyResults(head.name, head.title, path, store.folder, skipped=plan.skipped)
    records = read_records(store)
    newest = {identity_of(key): record for key, record in records.items()}  # the newest is last
    for planned in plan.cells:
        cell = planned.cell
        record = records.get(cell.key) or newest.get(cell.identity)
        if record is None:
            found.missing.append(cell)
            continue
        result = CellResult(cell, record, store.cell_folder(record["key"]))
        if record["status"] == "error":
            found.failed.append(result)
            continue
        found.finished.append(result)
        if record["key"] != cell.key:
            found.outdated.append(result)
    return found
