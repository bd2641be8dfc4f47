"""The code is laid out as docs/architecture.md says: floors, contracts, lazy solvers."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from moeopt.catalog import KINDS, formulation_names, is_native, load_formulation

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
NAMES = formulation_names()


def section(title: str) -> str:
    """Return a section of the architecture page."""
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    return text.split(f"## {title}")[1].split("\n## ")[0]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


# --- floors --------------------------------------------------------------------------------------


def floors() -> list[list[str]]:
    rows = re.findall(r"^\| [^|`]+ \| (`[^|]+) \|", section("Floors"), re.MULTILINE)
    return [re.findall(r"`([\w.]+)`", row) for row in rows]


def modules() -> dict[str, Path]:
    """Modules of the library by dotted name, but the public face and packages without code."""
    found = {
        ".".join(path.relative_to(ROOT / "moeopt").with_suffix("").parts): path
        for path in (ROOT / "moeopt").rglob("*.py")
    }
    return {
        name.removesuffix(".__init__"): path
        for name, path in found.items()
        if name not in ("__init__", "__main__")
        and not (name.endswith("__init__") and next(imports(path, lazy=True), None) is None)
    }


def imports(path: Path, *, lazy: bool) -> Iterator[tuple[int, str]]:
    """Yield (line, imported name) of a file, but those for type checkers only."""
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}: relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif lazy or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            pending += list(ast.iter_child_nodes(node))


def imported_module(name: str, known: set[str]) -> str | None:
    """Return the module of the library that an imported name is or lies in, None for others."""
    parts = name.split(".")
    if parts[0] != "moeopt" or len(parts) == 1:
        return None
    if parts[1] == "models":
        return "models"
    for size in range(len(parts), 1, -1):
        if ".".join(parts[1:size]) in known:
            return ".".join(parts[1:size])
    return None  # moeopt itself: __version__, or the public face


def graph(*, lazy: bool = True) -> dict[str, set[str]]:
    paths = modules()
    known = {*paths, "models"}
    edges = {
        name: {imported_module(i, known) for _, i in imports(path, lazy=lazy)} - {None, name}
        for name, path in paths.items()
    }
    edges["models"] = {
        imported_module(i, known)
        for path in (ROOT / "models").glob("*.py")
        for _, i in imports(path, lazy=lazy)
    } - {None, "models"}
    return edges  # type: ignore[return-value]


def test_every_module_has_its_floor() -> None:
    listed = [module for floor in floors() for module in floor]
    assert len(listed) == len(set(listed))
    assert set(listed) == {*modules(), "models"}


def test_imports_go_down() -> None:
    floor_of = {module: i for i, floor in enumerate(floors()) for module in floor}
    upward = [
        f"{module} -> {target}"
        for module, targets in graph().items()
        for target in targets
        if floor_of[target] < floor_of[module]
    ]
    assert upward == []


def test_no_import_cycle() -> None:
    edges, done, path = graph(lazy=False), set(), []

    def visit(module: str) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module in done:
            return
        path.append(module)
        for target in sorted(edges[module]):
            visit(target)
        path.pop()
        done.add(module)

    for module in sorted(edges):
        visit(module)


SOURCES = sorted([*(ROOT / "moeopt").rglob("*.py"), *(ROOT / "models").glob("*.py")])


def test_no_solver_at_module_level() -> None:
    eager = [
        f"{relative(path)}:{line}: {name}"
        for path in SOURCES
        for line, name in imports(path, lazy=False)
        if name.split(".")[0] in ("highspy", "ortools")
    ]
    assert eager == []
    lazy = {name.split(".")[0] for path in SOURCES for _, name in imports(path, lazy=True)}
    assert {"highspy", "ortools"} <= lazy, "this test would not see an import"


def test_pyomo_only_where_models_are_built() -> None:
    eager = {
        relative(path)
        for path in SOURCES
        for _, name in imports(path, lazy=False)
        if name.split(".")[0] == "pyomo"
    }
    compile_floor = next(floor for floor in floors() if "compile" in floor)
    allowed = {f"moeopt/{name}.py" for name in compile_floor}
    assert {name for name in eager if not name.startswith("models/")} <= allowed


def test_no_star_imports() -> None:
    stars = [
        f"{relative(path)}:{line}"
        for path in SOURCES
        for line, name in imports(path, lazy=True)
        if name.endswith(".*")
    ]
    assert stars == []


@pytest.mark.parametrize("name", NAMES)
def test_contract(name: str) -> None:
    contract = section("Contract of a formulation")
    rows = dict(re.findall(r"^\| `(\w+)(?:\([\w, ]*\))?` \| ([^|]+) \|", contract, re.MULTILINE))
    formulation = load_formulation(name)
    needed = {"yes", "for the default", "shipped ones"}
    needed.add("native CP" if is_native(formulation) else "unless native")
    assert set(rows.values()) == {*needed, "no", "unless native", "native CP"}
    assert [
        key for key, when in rows.items() if when in needed and not hasattr(formulation, key)
    ] == []
    kinds = re.search(r"^\| `KIND` \| yes \| ([^:]+):", contract, re.MULTILINE)
    assert kinds
    assert re.findall(r"`(\w+)`", kinds[1]) == list(KINDS)
    assert formulation.KIND in KINDS
    assert (DOCS / "formulations" / f"{name}.md").is_file()
    assert set(formulation.TIGHTER_THAN) <= set(NAMES)
