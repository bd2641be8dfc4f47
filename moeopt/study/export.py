"""Records of a study as one file: JSON lines, CSV or Parquet."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from moeopt.errors import InputError
from moeopt.files import write_bytes_atomic
from moeopt.study.cells import StudyResults

FORMATS = ("jsonl", "csv", "parquet")
#: Objects whose entries get columns of their own; other objects and lists are JSON text.
_FLAT = ("seconds", "size", "settings", "machine")


def export_records(results: StudyResults, path: Path, form: str, *, force: bool = False) -> int:
    """Write all records of a study (failed cells, too); return how many.

    JSON lines hold the records as they are. CSV and Parquet have a row a record and a column a
    key, ``seconds.total`` for a key of an object; empty or null where a record has none.

    Raises
    ------
    InputError
        An unknown format, or the file exists or cannot be written.
    """
    if form not in FORMATS:
        raise InputError(f"there is no format {form!r}; formats are {', '.join(FORMATS)}")
    records = [result.record for result in (*results.finished, *results.failed)]
    if form == "jsonl":
        lines = [json.dumps(record, ensure_ascii=False, allow_nan=False) for record in records]
        raw = "".join(line + "\n" for line in lines).encode()
    elif form == "csv":
        raw = _csv(records)
    else:
        raw = _parquet(records)
    write_bytes_atomic(path, raw, force=force)
    return len(records)


def _rows(records: list[dict[str, Any]]) -> tuple[list[str], list[dict[str, Any]]]:
    """Return columns in the order in which they first occur, and flat rows."""
    rows = [_flat(record) for record in records]
    return list(dict.fromkeys(name for row in rows for name in row)), rows


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, value in record.items():
        if name in _FLAT:
            for key, part in (value or {}).items():
                row[f"{name}.{key}"] = _scalar(part)
        else:
            row[name] = _scalar(value)
    return row


def _scalar(value: Any) -> Any:
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    return value


def _csv(records: list[dict[str, Any]]) -> bytes:
    columns, rows = _rows(records)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)  # floats as repr: they come back as they were
    return text.getvalue().encode()


def _parquet(records: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    columns, rows = _rows(records)
    arrays = {}
    for name in columns:
        values = [row.get(name) for row in rows]
        if any(isinstance(value, float) for value in values):
            values = [None if value is None else float(value) for value in values]
        arrays[name] = pa.array(values)
    raw = io.BytesIO()
    pq.write_table(pa.table(arrays), raw)
    return raw.getvalue()
