"""The store of a study: one JSON record a cell, its solution and its log beside it.

The files are the truth. A record is written last and in one step, so a cell is finished exactly
when its record is there; no other process needs to know.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moeopt.errors import InputError
from moeopt.files import read_json_object, write_bytes_atomic
from moeopt.record import Record
from moeopt.solution import Solution, write_solution_file

SCHEMA = "moeopt-study-store/1"
HEAD_FILE = "store.json"
#: Temporary files that a killed process left behind are removed when they are so old.
_LEFTOVER_S = 3600.0


class StoreError(InputError):
    """The store cannot be written: the disk is full, or the folder is not ours."""


def _is_empty(folder: Path) -> bool:
    """Whether there is nothing but the temporary file of a head that is being written."""
    return all(path.name.startswith(f".{HEAD_FILE}.") for path in folder.iterdir())


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise StoreError(error.problems) from None


class Store:
    """The results of one study, in a folder.

    Parameters
    ----------
    folder : Path
        Need not exist: then the store is empty, and :meth:`create` makes it.

    Raises
    ------
    InputError
        The folder is the store of another version, or no store.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cells = folder / "cells"
        head = folder / HEAD_FILE
        if head.is_file():
            schema = read_json_object(head).get("schema")
            if schema != SCHEMA:
                raise InputError(
                    f"{folder}: a store of version {schema!r}; this version of moeopt reads and "
                    f"writes {SCHEMA}: use a newer moeopt, or another folder (--results)"
                )
        elif folder.exists() and not (folder.is_dir() and _is_empty(folder)):
            raise InputError(f"{folder}: not a store of results: it has no {HEAD_FILE}")

    def create(self) -> None:
        """Make the folder and its head."""
        # The head first: another shard that starts at this moment must not take it for no store.
        self._make(self.folder)
        if not (self.folder / HEAD_FILE).is_file():
            self._write(self.folder / HEAD_FILE, (json.dumps({"schema": SCHEMA}) + "\n").encode())
        self._make(self.cells)

    def _make(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{folder}: cannot be made: {error.strerror}") from None

    # --- files

    def cell_folder(self, key: str) -> Path:
        """Return the folder of a cell's files."""
        return self.cells / key[:2]

    def record_path(self, key: str) -> Path:
        """Return the file of a cell's record."""
        return self.cell_folder(key) / f"{key}.json"

    def solution_path(self, key: str) -> Path:
        """Return the file of a cell's plan."""
        return self.cell_folder(key) / f"{key}.solution.json"

    def log_path(self, key: str) -> Path:
        """Return the file of a cell's log."""
        return self.cell_folder(key) / f"{key}.log"

    # --- writing

    def begin(self, key: str) -> None:
        """Make room for a cell that is about to run; what an earlier try left is removed."""
        try:
            self.cell_folder(key).mkdir(parents=True, exist_ok=True)
            self.log_path(key).write_bytes(b"")
        except OSError as error:
            where = error.filename or self.folder
            raise StoreError(f"{where}: cannot be written: {error.strerror}") from None

    def write(self, record: Record, solution: Solution | None) -> None:
        """Write a finished cell: the plan, then the record.

        Raises
        ------
        StoreError
            Nothing is finished then, and nothing that was there is lost.
        """
        assert record.key is not None
        if solution is not None:
            with _writing():
                write_solution_file(solution, self.solution_path(record.key), force=True)
        self._write(self.record_path(record.key), (record.json_line() + "\n").encode())

    def _write(self, path: Path, raw: bytes) -> None:
        with _writing():
            write_bytes_atomic(path, raw, force=True)

    def remove_leftovers(self) -> None:
        """Remove temporary files of processes that were killed while writing."""
        for path in self.cells.glob("*/.*"):
            try:
                if time.time() - path.stat().st_mtime > _LEFTOVER_S:
                    path.unlink()
            except FileNotFoundError:
                continue  # its writer has renamed it

    # --- reading

    def read_record(self, path: Path) -> dict[str, Any]:
        """Read one record.

        Raises
        ------
        InputError
            Not a record of this version, or not that of its name.
        """
        record = read_json_object(path)
        if record.get("schema") != "moeopt-record/1":
            raise InputError(f"{path}: schema {record.get('schema')!r}, not moeopt-record/1")
        if record.get("key") != path.stem:
            raise InputError(f"{path}: the record of another cell ({record.get('key')!r})")
        return record
