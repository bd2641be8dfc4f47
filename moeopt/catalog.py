"""Finds formulations, solvers and shipped instances by name."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from moeopt.errors import InputError
from moeopt.files import IS_A_FOLDER

if TYPE_CHECKING:
    from moeopt.instance import Instance

SOLVERS = ("highs", "cpsat")
#: Solvers of LP relaxations; pdlp takes nothing else.
LP_SOLVERS = ("highs", "pdlp")
KINDS = ("exact", "relaxation", "restriction", "approximation")
_PACKAGE = Path(__file__).resolve().parent


def _folder(name: str) -> Path:
    """Return the folder of ``moeopt.models`` or ``moeopt.instances``.

    In a wheel both lie inside the package, in a checkout beside it.
    """
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def _import_models() -> ModuleType:
    try:
        return importlib.import_module("moeopt.models")
    except ModuleNotFoundError:  # a bare checkout, not installed
        path = _folder("models") / "__init__.py"
        return _load_file("moeopt.models", path, submodules=[str(path.parent)])


def _load_file(name: str, path: Path, submodules: list[str] | None = None) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=submodules)
    if spec is None or spec.loader is None:
        raise InputError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise InputError(f"{path}: cannot be loaded: {type(error).__name__}: {error}") from error
    return module


def formulation_names(problem: str | None = None) -> list[str]:
    """Return the names of the shipped formulations (of one problem), sorted."""
    names = sorted(p.stem for p in _folder("models").glob("*.py") if not p.stem.startswith("_"))
    if problem is None:
        return names
    return [name for name in names if problem == load_formulation(name).PROBLEM]


def load_formulation(name_or_path: str | os.PathLike[str]) -> ModuleType:
    """Load a shipped formulation by name, or a user's own from a ``.py`` file.

    Returns
    -------
    module
        With the contract of ``docs/architecture.md``: PROBLEM, KIND, supports, and either
        build and solution, or build_cpsat.

    Raises
    ------
    InputError
        No such formulation, or the file does not keep the contract.
    """
    text = os.fspath(name_or_path)
    if text.endswith(".py"):
        path = Path(text).resolve()
        if not path.is_file():
            raise InputError(f"formulation {text}: no such file")
        module = _load_file(f"moeopt_user_{path.stem}", path)
    else:
        names = formulation_names()
        if text not in names:
            raise InputError(f"there is no formulation {text!r}{_closest(text, names)}")
        _import_models()
        module = importlib.import_module(f"moeopt.models.{text}")
    _require_contract(text, module)
    return module


def _require_contract(name: str, module: ModuleType) -> None:
    missing = [key for key in ("PROBLEM", "KIND", "supports") if not hasattr(module, key)]
    if not hasattr(module, "build_cpsat"):
        missing += [key for key in ("build", "solution") if not hasattr(module, key)]
    if missing:
        raise InputError(f"formulation {name}: lacks {', '.join(missing)}")
    if module.KIND not in KINDS:
        raise InputError(f"formulation {name}: KIND {module.KIND!r} is none of {', '.join(KINDS)}")


def is_native(formulation: ModuleType) -> bool:
    """Whether a formulation is a native CP model (solver ``cpsat`` only)."""
    return hasattr(formulation, "build_cpsat")


def solver_names(formulation: ModuleType | None = None) -> tuple[str, ...]:
    """Return the solvers (that can take the formulation)."""
    return ("cpsat",) if formulation is not None and is_native(formulation) else SOLVERS


def instance_entries() -> list[dict[str, Any]]:
    """Return the entries of the shipped ``catalog.json``, sorted by name."""
    path = _folder("instances") / "catalog.json"
    entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["instances"]
    return sorted(entries, key=lambda entry: str(entry["name"]))


def instance_path(name_or_path: str | os.PathLike[str]) -> Path:
    """Return the file of an instance: a path, or the name of a shipped one.

    Raises
    ------
    InputError
        Neither; the closest names are suggested.
    """
    text = os.fspath(name_or_path)
    path = Path(text)
    if path.is_file():
        return path
    entries = {entry["name"]: entry["file"] for entry in instance_entries()}
    if text in entries:
        return _folder("instances") / entries[text]
    if path.is_dir():
        raise InputError(f"{text}: {IS_A_FOLDER}")
    if path.suffix in (".json", ".gz") or os.sep in text:
        raise InputError(f"{text}: no such file")
    raise InputError(
        f"{text}: neither a file nor a shipped instance{_closest(text, list(entries))}"
    )


def read_instance(name_or_path: str | os.PathLike[str]) -> Instance:
    """Read an instance from a path or by the name of a shipped one; ``…@10`` is its layer 10.

    Raises
    ------
    InputError
        One line for each problem of the file, each with its JSON path.
    """
    from moeopt.instance import read_instance_file
    from moeopt.instance_layer import layer_of, split_reference

    text = os.fspath(name_or_path)
    name, layer = (text, None) if os.path.isfile(text) else split_reference(text)
    instance = read_instance_file(instance_path(name))
    return instance if layer is None else layer_of(instance, layer)


def _closest(text: str, names: list[str]) -> str:
    close = difflib.get_close_matches(text, names, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""
