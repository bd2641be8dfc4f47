"""What a recipe is: public sources in, instance documents and their arrays out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moeopt.errors import InputError


@dataclass(frozen=True)
class Source:
    """A public repository that a recipe reads.

    It is looked for in ``DIR/<folder>``, for instance after
    ``git clone <url> DIR/<folder>`` and ``git -C DIR/<folder> checkout <commit>``.
    """

    folder: str
    title: str
    url: str
    commit: str
    licence: str

    def find(self, data_dir: Path | None, *patterns: str) -> list[Path]:
        """Return the files that match the first pattern with a match, sorted by path.

        Raises
        ------
        InputError
            No data folder given, or nothing there matches any pattern.
        """
        wanted = " or ".join(f"{self.folder}/{pattern}" for pattern in patterns)
        if data_dir is None:
            raise InputError(f"needs raw data (--data DIR): DIR/{wanted}, from {self.where}")
        for pattern in patterns:
            found = sorted((data_dir / self.folder).glob(pattern))
            if found:
                return found
        raise InputError(f"{data_dir}: missing {wanted}; get it from {self.where}")

    @property
    def where(self) -> str:
        """Where the files come from, in one phrase."""
        return f"{self.url} (commit {self.commit})"


@dataclass(frozen=True)
class Bundle:
    """Instances that share one file of arrays.

    Attributes
    ----------
    documents : list of dict
        In the format ``moeopt-instance/1``, without ``arrays`` and ``arrays_sha256``.
    arrays_file : str or None
        Name of the ``.npz`` beside the instances.
    arrays : mapping
        What goes into it.
    """

    documents: list[dict[str, Any]]
    arrays_file: str | None = None
    arrays: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A named way to make instances.

    Attributes
    ----------
    build : callable
        ``build(data_dir, **options) -> list of Bundle``.
    options : mapping
        Name of each option and what it does. Every option is a whole number.
    """

    name: str
    summary: str
    build: Callable[..., list[Bundle]]
    sources: tuple[Source, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)

    def describe(self) -> str:
        """Say what the recipe makes and where its raw data come from."""
        lines = [f"{self.name}: {self.summary}"]
        lines += [f"  reads DIR/{s.folder}: {s.where}, {s.licence}" for s in self.sources]
        lines += [f"  option {name}: {text}" for name, text in self.options.items()]
        return "\n".join(lines)


def find_all(
    data_dir: Path | None, wanted: Sequence[tuple[Source, tuple[str, ...]]]
) -> list[list[Path]]:
    """Find the files of several sources; report everything that is missing at once."""
    found: list[list[Path]] = []
    problems: list[str] = []
    for source, patterns in wanted:
        try:
            found.append(source.find(data_dir, *patterns))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    return found


def mib(size_bytes: int) -> float:
    """Bytes in MiB (exact in double precision, and so in the file)."""
    return size_bytes / 2**20


def scenario_arrays(
    layer: int, experts: npt.NDArray[np.int64], weight: npt.NDArray[np.int64]
) -> dict[str, npt.NDArray[Any]]:
    """Arrays of one layer's scenarios, as small as they go."""
    return {f"experts_{layer}": experts.astype(np.uint8), f"weight_{layer}": weight.astype("<i4")}


def scenario_routing(layer: int) -> dict[str, Any]:
    """Entry of ``routing`` that refers to :func:`scenario_arrays`."""
    scenarios = {"experts": {"npz": f"experts_{layer}"}, "weight": {"npz": f"weight_{layer}"}}
    return {"layer": layer, "scenarios": {**scenarios, "tokens": None}}


def load_routing(layer: int) -> dict[str, Any]:
    """Entry of ``routing`` with a load alone, in the array ``load_<layer>``."""
    return {"layer": layer, "load": {"npz": f"load_{layer}"}}


def request_entry(name: str, count: int, prompt_tokens: int, output_tokens: int) -> dict[str, Any]:
    """Entry of ``requests`` whose usage is the array ``usage_<name>``."""
    return {
        "name": name,
        "count": count,
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "usage": {"npz": f"usage_{name}"},
    }
