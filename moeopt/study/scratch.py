"""Scratch folders of processes that may be killed at any moment: the next one cleans up."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import psutil


def scratch_folder() -> Path:
    """Make and return the scratch folder of this process; those of dead processes are removed."""
    root = Path(tempfile.gettempdir()) / f"moeopt-cells-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    for folder in root.iterdir():
        if not _is_alive(folder.name):
            shutil.rmtree(folder, ignore_errors=True)  # two processes may clean up at once
    mine = root / _name(psutil.Process())
    mine.mkdir()
    return mine


def _name(process: psutil.Process) -> str:
    return f"{process.pid}-{process.create_time():.2f}"


def _is_alive(name: str) -> bool:
    try:
        return _name(psutil.Process(int(name.partition("-")[0]))) == name
    except (psutil.NoSuchProcess, ValueError):
        return False
