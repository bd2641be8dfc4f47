"""What the documentation says is what the code does."""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pyomo.environ as pyo
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

from moeopt.catalog import formulation_names, is_native, load_formulation, read_instance
from moeopt.checker import CheckReport, check_solution
from moeopt.compile import compile_model
from moeopt.declarative import declarative
from moeopt.linear import LinearModel
from moeopt.prepare import prepare
from moeopt.problem import ProblemData
from moeopt.record import Record
from moeopt.solution import Solution, read_solution_file, validate_against

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
SMOKE = sorted((ROOT / "instances" / "smoke").glob("*.json"))
NAMES = formulation_names()
PYOMO_NAMES = [name for name in NAMES if not is_native(load_formulation(name))]


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def page_of(formulation: str) -> str:
    return text_of(f"formulations/{formulation}.md")


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


# --- formulations: pages, equations, components, sizes, LP values -------------------------------


@functools.cache
def smoke_data(problem: str) -> tuple[ProblemData, ...]:
    """Smoke instances of a problem; those of the other scenario problem fit as well."""
    kin = ("joint",) if problem == "joint" else ("placement", "replication")
    return tuple(
        prepare(read_instance(path), problem) for path in SMOKE if path.stem.split("_")[1] in kin
    )


@functools.cache
def built(name: str, instance: str) -> tuple[pyo.ConcreteModel, LinearModel]:
    formulation = load_formulation(name)
    data = next(d for d in smoke_data(formulation.PROBLEM) if d.name == instance)
    with declarative():
        model = formulation.build(data)
    return model, compile_model(model)


def taken(formulation: ModuleType) -> list[ProblemData]:
    return [d for d in smoke_data(formulation.PROBLEM) if formulation.supports(d) is None]


def test_every_formulation_has_a_page_and_vice_versa() -> None:
    pages = {page.stem for page in (DOCS / "formulations").glob("*.md")} - {"README"}
    assert pages == set(NAMES)
    overview = text_of("formulations/README.md")
    assert [n for n in NAMES if f"[{n}]({n}.md)" not in overview] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_equation_is_on_the_page(name: str) -> None:
    source = Path(load_formulation(name).__file__ or "").read_text(encoding="utf-8")
    stated = re.search(r"Equations \(([A-Z])(\d+)\)-\(([A-Z])(\d+)\): docs/([\w/]+\.md)", source)
    assert stated, "the docstring names the equations and their page"
    letter, first, letter_too, last, page = stated.groups()
    assert letter == letter_too
    assert page == f"formulations/{name}.md"
    text = page_of(name)
    missing = [f"({letter}{i})" for i in range(int(first), int(last) + 1)]
    assert [number for number in missing if number not in text] == []
    in_comments = {int(i) for i in re.findall(rf"\({letter}(\d+)\)", source)}
    assert in_comments, "comments carry the numbers"
    assert max(in_comments) == int(last)
    on_page = {int(i) for i in re.findall(rf"\({letter}(\d+)\)", text)}
    assert on_page == set(range(int(first), int(last) + 1))


@pytest.mark.parametrize("name", PYOMO_NAMES)
def test_every_component_is_on_the_page(name: str) -> None:
    formulation = load_formulation(name)
    rows, columns = set(), set()
    for data in taken(formulation):
        model, _ = built(name, data.name)
        columns |= {c.name for c in model.component_objects(pyo.Var)}
        for kind in (pyo.Constraint, pyo.Objective):
            rows |= {c.name for c in model.component_objects(kind)}
    text = page_of(name)
    assert [c for c in sorted(columns) if f"`{c}`" not in text] == []
    numbered = r"(?m)^\([A-Z]\d+\)\s{2,}([a-z]\w*)|\([A-Z]\d+\)\s`(\w+)`"
    equations = {in_block or in_prose for in_block, in_prose in re.findall(numbered, text)}
    # slots_row and joint_compact's (J5) exist only where an instance has slots.
    assert rows <= equations
    assert equations - rows <= {"slots_row"}


@pytest.mark.parametrize("name", NAMES)
def test_size_example(name: str) -> None:
    formulation = load_formulation(name)
    found = re.findall(
        r"Example, `(\w+)`: rows (\d+), columns (\d+), nonzeros (\d+), integers (\d+)\.",
        page_of(name),
    )
    assert found
    for instance, *numbers in found:
        data = next(d for d in smoke_data(formulation.PROBLEM) if d.name == instance)
        keys = ("rows", "columns", "nonzeros", "integers")
        assert formulation.size(data) == dict(zip(keys, map(int, numbers), strict=True))


@pytest.mark.parametrize("name", PYOMO_NAMES)
def test_size_is_the_compiled_size(name: str) -> None:
    formulation = load_formulation(name)
    data_sets = taken(formulation)
    assert len(data_sets) >= 4
    for data in data_sets:
        assert formulation.size(data) == built(name, data.name)[1].size, data.name


def lp_rows() -> list[tuple[str, str, float, float]]:
    row = r"^\| (\w+) \| (smoke_\w+) \| ([\d.]+) \| ([\d.]+) \|$"
    found = re.findall(row, text_of("formulations/README.md"), re.MULTILINE)
    return [(name, instance, float(lp), float(best)) for name, instance, lp, best in found]


def test_every_pyomo_formulation_has_an_lp_value() -> None:
    assert {name for name, *_ in lp_rows()} == set(PYOMO_NAMES)


@pytest.mark.parametrize(("name", "instance", "lp", "optimum"), lp_rows())
def test_lp_values(name: str, instance: str, lp: float, optimum: float) -> None:
    assert solved(name, instance, relax=True) == pytest.approx(lp, rel=1e-6, abs=1e-6)
    assert solved(name, instance, relax=False) == pytest.approx(optimum, rel=1e-6)


def solved(name: str, instance: str, *, relax: bool) -> float:
    # scipy's own HiGHS: no solver of ours is loaded here.
    _, linear = built(name, instance)
    result = milp(
        linear.cost,
        constraints=LinearConstraint(linear.matrix, linear.row_lower, linear.row_upper),
        bounds=Bounds(linear.lower, linear.upper),
        integrality=np.zeros(len(linear.cost)) if relax else linear.integer.astype(int),
    )
    assert result.success, result.message
    return float(result.fun) + linear.offset


def test_p2_is_a_relaxation_everywhere() -> None:
    # The overview says so for all formulations.
    for name in NAMES:
        formulation = load_formulation(name)
        kinds = {d.layer_time.form: formulation.kind(d) for d in smoke_data(formulation.PROBLEM)}
        assert kinds.pop("p2") == "relaxation"
        assert set(kinds.values()) == {"exact"}


# --- architecture: floors, contract, lazy solvers ------------------------------------------------


def floors() -> list[list[str]]:
    section = text_of("architecture.md").split("## Floors")[1].split("\n## ")[0]
    rows = re.findall(r"^\| [^|`]+ \| (`[^|]+) \|", section, re.MULTILINE)
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
    contract = text_of("architecture.md").split("## Contract of a formulation")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)(?:\([\w, ]*\))?` \| ([^|]+) \|", contract, re.MULTILINE))
    formulation = load_formulation(name)
    needed = {"yes", "for the default", "shipped ones"}
    needed.add("native CP" if is_native(formulation) else "unless native")
    assert set(rows.values()) == {*needed, "no", "unless native", "native CP"}
    assert [
        key for key, when in rows.items() if when in needed and not hasattr(formulation, key)
    ] == []
    assert (DOCS / "formulations" / f"{name}.md").is_file()
    assert set(formulation.TIGHTER_THAN) <= set(NAMES)


# --- formats -------------------------------------------------------------------------------------


def json_examples() -> list[dict[str, object]]:
    blocks = re.findall(r"```json\n(.*?)```", text_of("format.md"), re.DOTALL)
    return [json.loads(block) for block in blocks]


def test_format_examples_are_read(tmp_path: Path) -> None:
    from moeopt.instance import Instance

    instance_document, solution_document = json_examples()
    instance = Instance.from_document(instance_document)
    path = tmp_path / "solution.json"
    path.write_text(json.dumps(solution_document), encoding="utf-8")
    solution = read_solution_file(path)
    assert validate_against(instance, solution) == []
    assert check_solution(prepare(instance, "joint"), solution).violations == []
    for problem in ("placement", "replication"):
        assert prepare(instance, problem).scenarios


def keys_of(schema: dict[str, object]) -> set[str]:
    parts = [schema, *schema.get("$defs", {}).values()]  # type: ignore[attr-defined]
    return {key for part in parts for key in part.get("properties", {})}


@pytest.mark.parametrize("kind", ["instance", "solution"])
def test_every_key_of_a_file_is_described(kind: str) -> None:
    published = json.loads(text_of(f"schemas/{kind}-1.schema.json"))
    section = text_of("format.md").split(f"## {kind.capitalize()}\n")[1].split("\n## ")[0]
    described = set(re.findall(r"[`.\]\[\"](\w+)(?=[`\[\"])", section))
    assert keys_of(published) - described == set()


def test_every_key_of_the_record_is_described() -> None:
    section = text_of("format.md").split("## Run record")[1].split("\n## ")[0]
    keys = {field.alias or name for name, field in Record.model_fields.items()}
    assert [key for key in sorted(keys) if f"`{key}`" not in section] == []


def test_published_schemas_are_up_to_date() -> None:
    from moeopt.schemas import published_schemas

    for name, text in published_schemas().items():
        assert text_of(f"schemas/{name}") == text


# --- checker and bounds --------------------------------------------------------------------------


def string_literals(*files: str) -> set[str]:
    trees = [ast.parse((ROOT / "moeopt" / f).read_text(encoding="utf-8")) for f in files]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    return {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def violation_kinds() -> set[str]:
    """First arguments of Violation(...) and report(...) in the checker."""
    found = set()
    for name in ("checker.py", "checker_dispatch.py", "checker_times.py"):
        tree = ast.parse((ROOT / "moeopt" / name).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Violation", "report"):
                first = node.args[0]
                if isinstance(first, ast.Constant):
                    found.add(first.value)
    return found


def test_every_violation_kind_is_listed() -> None:
    table = text_of("checker.md").split("## Violations")[1].split("\n## ")[0]
    listed = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert listed == violation_kinds()


def test_every_way_to_evaluate_is_listed() -> None:
    table = text_of("checker.md").split("## Layer time")[1].split("\n## ")[0]
    listed = set(re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)) - {"evaluated_by"}
    literals = string_literals(
        "dispatch.py", "dispatch_exact.py", "dispatch_rule.py", "checker_times.py"
    )
    known = {s for s in literals if re.fullmatch(r"(exact|rule): [\w, -]+", s)}
    assert listed == known | {"dispatch of the solution", "enumeration cut off"}
    assert listed <= literals


def test_report_keys_are_described() -> None:
    data = next(d for d in smoke_data("joint") if d.name == "smoke_joint_one_wave")
    shape = (data.layers, data.experts, data.gpus)
    requests = np.array([[[2, 1]], [[0, 1]]])
    plan = Solution.from_arrays(data, np.ones(shape, dtype=bool), requests=requests)
    report = check_solution(data, plan)
    assert report.violations == []
    section = text_of("checker.md").split("## Report")[1]
    keys = {*CheckReport.__dataclass_fields__, *report.details, *report.details["memory"]}
    keys |= set(report.details["waves"][0])
    assert [key for key in sorted(keys) if f"`{key}`" not in section] == []


def test_every_bound_is_described() -> None:
    from moeopt import bounds
    from moeopt.solvers import cpsat, highs

    text = text_of("bounds.md")
    methods = {method for group in bounds._METHODS.values() for method, *_ in group}
    assert [m for m in sorted(methods) if f"| `{m}` |" not in text] == []
    for proof in (highs.BOUND_FROM, cpsat.BOUND_FROM, cpsat.NATIVE_BOUND_FROM):
        assert f"| `FORMULATION: {proof}` |" in text


# --- the pages themselves ------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Anchors that GitHub makes of headings."""
    body = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", body, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_resolve(page: Path) -> None:
    broken = []
    body = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", body):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_every_page_is_reached_from_the_index() -> None:
    reached, pending = set(), [DOCS / "README.md"]
    while pending:
        page = pending.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            target = (page.parent / link).resolve()
            if target.is_file() and target.is_relative_to(DOCS):
                pending.append(target)
    assert set(PAGES) - reached == set()


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_no_absolute_paths(page: Path) -> None:
    text = re.sub(r"https?://\S+", "", page.read_text(encoding="utf-8"))
    assert re.findall(r"(?<![\w.·/)\]}*<{⟩])/(?:[a-z][\w.-]*/)+[\w.-]*|~/\S+|[A-Z]:\\", text) == []
    assert str(ROOT) not in text


# --- snippets ------------------------------------------------------------------------------------

#: Snippets with these words take long and run with a short time limit instead of theirs.
SLOW_WORDS = "mixtral-8x7b_4gpu_azure --problem joint --time-limit"
SHORT_LIMIT_S = 5


def fenced(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def console_blocks() -> list[tuple[Path, str]]:
    return [
        (page, block)
        for page in PAGES
        for block in re.findall(
            r"```console\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL
        )
    ]


def run_command(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    program, *arguments = command.split()
    assert program == "moeopt"
    if SLOW_WORDS in command:
        arguments[arguments.index("--time-limit") + 1] = str(SHORT_LIMIT_S)
    return subprocess.run(
        [sys.executable, "-m", "moeopt", *arguments],
        cwd=folder,
        env=os.environ | {"COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def assert_shown(shown: list[str], printed: str) -> None:
    """Every shown line, ``…`` standing for anything, occurs in the output, in this order."""
    output = " ".join(printed.split())
    at = 0
    for line in shown:
        words = [re.escape(" ".join(part.split())) for part in line.split("…")]
        pattern = r".*?".join(words)
        found = re.compile(pattern).search(output, at)
        assert found, f"{line!r} is not in the output after position {at}:\n{printed}"
        at = found.end()


def test_console_snippets(tmp_path: Path) -> None:
    blocks = console_blocks()
    assert len(blocks) >= 6
    for page, block in blocks:
        commands = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
        assert commands, f"{relative(page)}: a console block without a command"
        for text in commands:
            command, *shown = text.strip("\n").split("\n")
            status = 0
            if shown and (ended := re.fullmatch(r"\[exit status (\d)\]", shown[-1])):
                status = int(ended[1])
                shown.pop()
            done = run_command(command, tmp_path)
            assert done.returncode == status, f"{command}\n{done.stdout}\n{done.stderr}"
            assert_shown([line for line in shown if line.strip("… ")], done.stdout)


def test_shown_lines_can_be_missing() -> None:
    assert_shown(["a … c", "d"], "a b\nc\nd")
    with pytest.raises(AssertionError):
        assert_shown(["d", "a … c"], "a b\nc\nd")


def test_python_snippets(tmp_path: Path) -> None:
    blocks = [block for page in PAGES for block in fenced(page, "python")]
    assert blocks
    for block in blocks:
        done = subprocess.run(
            [sys.executable, "-c", block],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{block}\n{done.stderr}"
