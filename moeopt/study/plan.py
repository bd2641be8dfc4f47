"""A study file → its cells: names resolved, contents hashed, unsupported cells told apart."""

from __future__ import annotations

import fnmatch
import itertools
import re
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from moeopt.catalog import (
    instance_entries,
    instance_path,
    is_native,
    load_formulation,
    read_instance,
    solver_names,
)
from moeopt.errors import InputError
from moeopt.instance import Instance
from moeopt.instance_layer import SIGN
from moeopt.prepare import prepare
from moeopt.problem import ProblemData
from moeopt.study.cells import Cell
from moeopt.study.keys import cell_key
from moeopt.study.study_file import Block, StudyFile

#: The formulation's name that leaves the choice to ``solve``.
DEFAULT = "default"
#: Beyond its time limit a cell gets a share and so many seconds: it builds, checks, writes.
GRACE_SHARE = 0.2
GRACE_S = 30.0


@dataclass(frozen=True)
class PlannedCell:
    """A cell to run, with the files that it is made of."""

    cell: Cell
    instance_path: Path
    instance_sha256: str

    @property
    def hard_limit_s(self) -> float:
        """When the cell's process is ended from outside, whatever it is doing."""
        settings = self.cell.settings
        limits = 1 + len(settings["measure"])  # each measure has the time limit, too
        return float(settings["time_limit_s"]) * limits * (1 + GRACE_SHARE) + GRACE_S


@dataclass
class Plan:
    """Cells in the order of the file, each once, and those that cannot be run, with the reason."""

    cells: list[PlannedCell] = field(default_factory=list)
    skipped: list[tuple[Cell, str]] = field(default_factory=list)

    def time_bound_s(self, cells: list[PlannedCell], workers: int) -> float:
        """Upper bound of the wall time of some cells: no schedule without idling is longer."""
        limits = [planned.hard_limit_s for planned in cells]
        longest = max(limits, default=0.0)
        return (sum(limits) - longest) / workers + longest


def plan_study(study: StudyFile, path: Path) -> Plan:
    """Expand a study.

    Parameters
    ----------
    path : Path
        The study's file: relative names of instances and formulations start in its folder.

    Raises
    ------
    InputError
        One line for each name that does not exist and each instance that cannot be read, with its
        place in the file.
    """
    planner = _Planner(study, path)
    for i, block in enumerate(study.cells):
        planner.add(i, block)
    if planner.problems:
        raise InputError([f"{path}: {line}" for line in planner.problems])
    return planner.plan


class _Planner:
    def __init__(self, study: StudyFile, path: Path) -> None:
        self.study, self.folder = study, path.parent
        self.plan = Plan()
        self.problems: list[str] = []
        self._seen: set[str] = set()
        self._instances: dict[Path, Instance | None] = {}
        self._paths: dict[str, Path] = {}
        self._data: dict[tuple[Path, str], ProblemData | str] = {}
        self._reasons: dict[tuple[Path, str], str | None] = {}
        self._shipped = [str(entry["name"]) for entry in instance_entries()]

    def add(self, i: int, block: Block) -> None:
        """Add the cells of a block; its problems go to ``self.problems``."""
        place = f"cells[{i}]"
        paths = [
            path
            for j, name in enumerate(block.instances)
            for path in self._find(name, f"{place}.instances[{j}]")
        ]
        modules = {
            name: self._formulation(name, block.problem, f"{place}.formulations[{j}]")
            for j, name in enumerate(self._formulations(block))
            if name != DEFAULT
        }
        for j, solver in enumerate(block.solvers or []):
            if solver not in solver_names():
                known = ", ".join(solver_names())
                self.problems.append(
                    f"{place}.solvers[{j}]: there is no solver {solver!r}; solvers are {known}"
                )
        if self.problems:
            return
        for path in dict.fromkeys(paths):
            for name in self._formulations(block):
                self._add_cells(block, path, name, modules.get(name))

    def _formulations(self, block: Block) -> list[str]:
        """Formulations of a block; files of one's own lie beside the study."""
        return [
            str((self.folder / name).resolve()) if name.endswith(".py") else name
            for name in block.formulations
        ]

    def _find(self, name: str, place: str) -> list[Path]:
        """Return the files of an instance's name, path or pattern that can be read."""
        whole, sign, layers = name.rpartition(SIGN)
        if sign and re.fullmatch(r"[\d*?\[\]!-]+", layers):
            return self._find_layers(self._find(whole, place), layers, name, place)
        if any(sign in name for sign in "*?["):
            found = [instance_path(n) for n in fnmatch.filter(self._shipped, name)]
            found += self._own_files(name)
            if not found:
                self.problems.append(f"{place}: no instance matches {name!r}")
        else:
            beside = self.folder / name
            try:
                found = [beside if beside.is_file() else instance_path(name)]
            except InputError as error:
                self.problems += [f"{place}: {line}" for line in error.problems]
                found = []
        return [path for path in found if self._read(path, place) is not None]

    def _find_layers(self, paths: list[Path], layers: str, name: str, place: str) -> list[Path]:
        """Return the layers of instances whose numbers match a pattern, as ``PATH@LAYER``."""
        found = [
            path.with_name(f"{path.name}{SIGN}{layer.layer}")
            for path in paths
            if (instance := self._instances[path]) is not None
            for layer in instance.routing
            if fnmatch.fnmatch(str(layer.layer), layers)
        ]
        if paths and not found:
            self.problems.append(f"{place}: no layer matches {name!r}")
        return [path for path in found if self._read(path, place) is not None]

    def _own_files(self, pattern: str) -> list[Path]:
        """Return files that match a pattern, relative to the study's folder or absolute."""
        absolute = Path(pattern)
        root, rest = self.folder, pattern
        if absolute.is_absolute():
            root, rest = Path(absolute.anchor), str(absolute.relative_to(absolute.anchor))
        files = (path.resolve() for path in sorted(root.glob(rest)))
        return [path for path in files if path.name.endswith((".json", ".json.gz"))]

    def _read(self, path: Path, place: str) -> Instance | None:
        if path not in self._instances:
            self._instances[path] = None
            try:
                instance = read_instance(path)
            except InputError as error:
                self.problems += [f"{place}: {path.name}: {line}" for line in error.problems]
                return None
            other = self._paths.setdefault(instance.name, path)
            if other != path:
                self.problems.append(
                    f"{place}: {path} and {other} are both called {instance.name!r}"
                )
            self._instances[path] = instance
        return self._instances[path]

    def _formulation(self, name: str, problem: str, place: str) -> ModuleType | None:
        try:
            module = load_formulation(name)
        except InputError as error:
            self.problems += [f"{place}: {line}" for line in error.problems]
            return None
        if problem != module.PROBLEM:
            self.problems.append(
                f"{place}: formulation {name} is for {module.PROBLEM}, not for {problem}"
            )
        return module

    def _add_cells(self, block: Block, path: Path, name: str, module: ModuleType | None) -> None:
        instance = self._instances[path]
        assert instance is not None
        settings = self.study.settings(block)
        solvers: list[str | None] = [None]
        if module is None:
            settings["measure"] = []  # the choice of `solve` has no LP of its own
        else:
            solvers = [*(block.solvers or solver_names(module)[:1])]
        formulation = None if module is None else name
        for solver, seed in itertools.product(solvers, self.study.seeds(block)):
            key = cell_key(instance.sha256, block.problem, formulation, solver, settings, seed)
            if key in self._seen:
                continue
            self._seen.add(key)
            cell = Cell(instance.name, block.problem, formulation, solver, settings, seed, key)
            reason = self._why_not(path, instance, block.problem, formulation, module, solver)
            if reason is None:
                self.plan.cells.append(PlannedCell(cell, path, instance.sha256))
            else:
                self.plan.skipped.append((cell, reason))

    def _why_not(
        self,
        path: Path,
        instance: Instance,
        problem: str,
        formulation: str | None,
        module: ModuleType | None,
        solver: str | None,
    ) -> str | None:
        data = self._prepared(path, instance, problem)
        if isinstance(data, str):
            return data
        if module is None or formulation is None:
            return None
        if solver not in solver_names(module):
            assert is_native(module)
            return "a native CP model: only cpsat takes it"
        if (path, formulation) not in self._reasons:
            self._reasons[path, formulation] = module.supports(data)
        return self._reasons[path, formulation]

    def _prepared(self, path: Path, instance: Instance, problem: str) -> ProblemData | str:
        """Return the instance as data of a problem, or why it has none."""
        if (path, problem) not in self._data:
            try:
                self._data[path, problem] = prepare(instance, problem)
            except InputError as error:
                self._data[path, problem] = "; ".join(error.problems)
        return self._data[path, problem]
