"""Study files: TOML, read strictly."""

from __future__ import annotations

import difflib
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError

from moeopt.errors import InputError
from moeopt.files import problem_lines, read_bytes
from moeopt.instance_parts import Count, Integer, Name, Positive, Text
from moeopt.problem import PROBLEMS

#: The studies of a checkout, found by name.
SUITES = Path(__file__).resolve().parent.parent.parent / "benchmarks" / "suites"

Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
OptionValue = Annotated[
    Annotated[bool, Strict()] | Integer | Number | Text, Field(union_mode="left_to_right")
]


class Part(BaseModel):
    """Base of the parts of a study file: unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Settings(Part):
    """Settings of a cell, under the names of :func:`moeopt.solving.solve`.

    ``measure``: what is computed beside the solve: ``lp`` (bound of the LP relaxation), ``root``
    (the solver's bound after its root node).
    """

    time_limit_s: Positive = 60.0
    memory_limit_mib: Positive | None = None
    gap: Annotated[Number, Field(ge=0, lt=1)] = 1e-6
    threads: Count | None = None
    start: Literal["default", "heuristic", "none"] = "default"
    options: dict[str, OptionValue] = Field(default_factory=dict)
    measure: list[Literal["lp", "root"]] = Field(default_factory=list)


class Defaults(Settings):
    """Settings and seeds of every block that does not say its own."""

    seeds: Annotated[list[Integer], Field(min_length=1)] = [0]


class Block(Part):
    """A cross product: instances × formulations × solvers × seeds."""

    instances: Annotated[list[Name], Field(min_length=1)]
    problem: Name
    formulations: Annotated[list[Name], Field(min_length=1)] = ["default"]
    solvers: Annotated[list[Name], Field(min_length=1)] | None = None
    seeds: Annotated[list[Integer], Field(min_length=1)] | None = None
    settings: Settings = Settings()


class Head(Part):
    """Name and title of the study."""

    name: Annotated[Name, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")]
    title: Text = ""


class StudyFile(Part):
    """A study as its file says it."""

    study: Head
    defaults: Defaults = Defaults()
    cells: Annotated[list[Block], Field(min_length=1)]

    def settings(self, block: Block) -> dict[str, Any]:
        """Return the settings of a block's cells: its own before the study's."""
        chosen = self.defaults.model_dump(exclude_unset=True, exclude={"seeds"})
        chosen |= block.settings.model_dump(exclude_unset=True)
        full = Settings.model_validate(chosen).model_dump()
        full["measure"] = sorted(set(full["measure"]))
        return full

    def seeds(self, block: Block) -> list[int]:
        """Return the seeds of a block's cells."""
        return self.defaults.seeds if block.seeds is None else block.seeds


def study_path(study: str | os.PathLike[str]) -> Path:
    """Return the file of a study: a path, or the name of a file in ``benchmarks/suites``.

    Raises
    ------
    InputError
        Neither; the closest names are suggested.
    """
    text = os.fspath(study)
    path = Path(text)
    if path.is_file():
        return path.resolve()
    names = sorted(p.stem for p in SUITES.glob("*.toml"))
    if text in names:
        return SUITES / f"{text}.toml"
    if path.suffix == ".toml" or os.sep in text:
        raise InputError(f"{text}: no such file")
    close = difflib.get_close_matches(text, names, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise InputError(f"{text}: neither a study file nor a study of benchmarks/suites{hint}")


def results_folder(path: Path, results: str | os.PathLike[str] | None = None) -> Path:
    """Return where the results of a study file are: beside it, unless told."""
    return path.with_suffix(".results") if results is None else Path(results).resolve()


def read_study(path: Path) -> StudyFile:
    """Read a study file.

    Raises
    ------
    InputError
        One line for each problem, with its place in the file.
    """
    try:
        document = tomllib.loads(read_bytes(path).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not TOML: {error}") from None
    try:
        study = StudyFile.model_validate(document)
    except ValidationError as error:
        raise InputError([f"{path}: {line}" for line in problem_lines(error, StudyFile)]) from None
    lines = []
    for i, block in enumerate(study.cells):
        if block.problem not in PROBLEMS:
            known = ", ".join(PROBLEMS)
            lines.append(
                f"{path}: cells[{i}].problem: there is no problem {block.problem!r}; "
                f"problems are {known}"
            )
    if lines:
        raise InputError(lines)
    return study
