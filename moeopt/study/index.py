"""An SQLite index over the records of a store, for reading thousands of them at once.

The records are the truth: the index is brought up to date by comparing times and sizes of their
files, and made anew where it cannot be read. It is replaced as a whole, so that readers on a
shared file system never meet a database in the middle of a change.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
from pathlib import Path
from typing import Any

from moeopt.errors import InputError
from moeopt.study.store import Store

INDEX_FILE = "index.sqlite"
#: Raised with every change of the table: an index of another version is made anew.
VERSION = 1
_MAGIC = b"SQLite format 3\x00"
_COLUMNS = (
    "key", "mtime_ns", "size", "instance", "problem", "formulation", "solver", "seed", "status",
    "upper_bound", "lower_bound", "gap", "seconds_total", "record",
)  # fmt: skip
_CREATE = f"""
create table records (
    key text primary key, mtime_ns integer, size integer, instance text, problem text,
    formulation text, solver text, seed integer, status text, upper_bound real, lower_bound real,
    gap real, seconds_total real, record text
) without rowid;
pragma user_version = {VERSION};
"""


def read_records(store: Store) -> dict[str, dict[str, Any]]:
    """Return all records by key, the newest last.

    Raises
    ------
    InputError
        One line for each record that cannot be read.
    """
    with _closing(refresh_index(store)) as index:
        rows = index.execute("select key, record from records order by mtime_ns, key")
        return {key: json.loads(text) for key, text in rows}


def read_statuses(store: Store) -> dict[str, str]:
    """Return the status of each record by key."""
    with _closing(refresh_index(store)) as index:
        return dict(index.execute("select key, status from records").fetchall())


def refresh_index(store: Store) -> sqlite3.Connection:
    """Bring the index up to date with the records; return it open for reading.

    Where the folder cannot be written, the index is only kept in memory.
    """
    path = store.folder / INDEX_FILE
    files = _files(store)
    index = _load(path)
    known = {
        key: (mtime_ns, size)
        for key, mtime_ns, size in index.execute("select key, mtime_ns, size from records")
    }
    changed = [key for key, stamp in files.items() if known.get(key) != stamp]
    gone = [key for key in known if key not in files]
    if changed or gone:
        index.executemany("delete from records where key = ?", [(key,) for key in gone])
        marks = ", ".join("?" * len(_COLUMNS))
        rows = [_row(store, key, *files[key]) for key in changed]
        problems = [row for row in rows if isinstance(row, str)]
        if problems:
            raise InputError(problems)
        index.executemany(f"insert or replace into records values ({marks})", rows)
        index.commit()
        if os.access(store.folder, os.W_OK):
            _save(index, path)
    return index


class _closing:
    """A connection that is closed at the end (its own context manager only commits)."""

    def __init__(self, index: sqlite3.Connection) -> None:
        self.index = index

    def __enter__(self) -> sqlite3.Connection:
        return self.index

    def __exit__(self, *_: object) -> None:
        self.index.close()


def _files(store: Store) -> dict[str, tuple[int, int]]:
    """Return time and size of every record's file by key."""
    found: dict[str, tuple[int, int]] = {}
    if not store.cells.is_dir():
        return found
    for folder in os.scandir(store.cells):
        for entry in os.scandir(folder.path) if folder.is_dir() else ():
            name = entry.name
            if name.endswith(".json") and not name.startswith(".") and name.count(".") == 1:
                status = entry.stat()
                found[name.removesuffix(".json")] = (status.st_mtime_ns, status.st_size)
    return found


def _load(path: Path) -> sqlite3.Connection:
    """Return a copy of the index in memory; an empty one where there is none of this version."""
    index = sqlite3.connect(":memory:")
    raw = path.read_bytes() if path.is_file() else b""
    if raw.startswith(_MAGIC):  # SQLite takes other bytes for a lack of memory
        try:
            index.deserialize(raw)
            if (
                index.execute("pragma user_version").fetchone()[0] == VERSION
                and index.execute("pragma quick_check").fetchone()[0] == "ok"
            ):
                return index
        except sqlite3.DatabaseError:
            pass  # cut short or no database: the records have it all
        index.close()
        index = sqlite3.connect(":memory:")
    index.executescript(_CREATE)
    return index


def _save(index: sqlite3.Connection, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(index.serialize())
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _row(store: Store, key: str, mtime_ns: int, size: int) -> tuple[Any, ...] | str:
    try:
        record = store.read_record(store.record_path(key))
    except InputError as error:
        return "; ".join(error.problems)
    fields = [record.get(name) for name in _COLUMNS[3:-2]]
    total = record["seconds"].get("total")
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
    return (key, mtime_ns, size, *fields, total, text)
