"""Publish the JSON Schemas of the file formats: ``python -m moeopt.schemas docs/schemas``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from moeopt.files import published_schema
from moeopt.instance import json_schema
from moeopt.solution import Solution


def published_schemas() -> dict[str, str]:
    """Return the text of each schema by its file name."""
    return {
        "instance-1.schema.json": _text(json_schema()),
        "solution-1.schema.json": _text(published_schema(Solution)),
    }


def _text(schema: dict[str, Any]) -> str:
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in published_schemas().items():
        (folder / name).write_text(text, encoding="utf-8")
