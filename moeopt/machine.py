"""The machine that a record was made on."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

import psutil

_CPU_INFO = Path("/proc/cpuinfo")


@functools.cache
def describe_machine() -> dict[str, str | int]:
    """Return ``cpu`` (its model), ``cores`` (logical, usable here) and ``memory_mib``."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else psutil.cpu_count() or 1,
        "memory_mib": psutil.virtual_memory().total // 2**20,
    }


def _cpu_model() -> str:
    if _CPU_INFO.is_file():
        for line in _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            name, colon, value = line.partition(":")
            if colon and name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
