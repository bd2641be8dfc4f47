"""What the documentation says is what the code does."""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pyomo.environ as pyo
import pytest
from make_data import random_data
from scipy.optimize import Bounds, LinearConstraint, milp

from moeopt.catalog import formulation_names, is_native, load_formulation, read_instance
from moeopt.checker import CheckReport, check_solution
from moeopt.choosing import Choice
from moeopt.compile import compile_model
from moeopt.declarative import declarative
from moeopt.linear import LinearModel
from moeopt.methods import methods_for
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
def sample_data(problem: str) -> tuple[ProblemData, ...]:
    """Smoke instances, and a scenario of five experts, for which some formulations have rows."""
    if problem != "placement":
        return smoke_data(problem)
    rng = np.random.default_rng(0)
    five = random_data("placement", rng, experts=6, gpus=3, top_k=5, scenarios=3, spare=0)
    return (*smoke_data(problem), replace(five, name="five_of_six"))


@functools.cache
def built(name: str, instance: str) -> tuple[pyo.ConcreteModel, LinearModel]:
    formulation = load_formulation(name)
    data = next(d for d in sample_data(formulation.PROBLEM) if d.name == instance)
    with declarative():
        model = formulation.build(data)
    return model, compile_model(model)


def taken(formulation: ModuleType) -> list[ProblemData]:
    return [d for d in sample_data(formulation.PROBLEM) if formulation.supports(d) is None]


def test_every_formulation_has_a_page_and_vice_versa() -> None:
    pages = {page.stem for page in (DOCS / "formulations").glob("*.md")} - {"README"}
    assert pages == set(NAMES)
    overview = text_of("formulations/README.md")
    assert [n for n in NAMES if f"[{n}]({n}.md)" not in overview] == []


def numbers(text: str) -> set[str]:
    """Numbers of equations in a text, like N3; (N1)-(N3) is three of them."""
    found = set()
    for letter, first, last in re.findall(r"\(([A-Z])(\d+)\)(?:[-–]\(\1(\d+)\))?", text):
        found |= {f"{letter}{i}" for i in range(int(first), int(last or first) + 1)}
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_equation_is_on_the_page(name: str) -> None:
    source = Path(load_formulation(name).__file__ or "").read_text(encoding="utf-8")
    number = r"\([A-Z]\d+\)"
    stated = re.search(rf"Equations ({number}[^:]*): docs/([\w/]+\.md)", source)
    assert stated, "the docstring names the equations and their page"
    equations, page = numbers(stated[1]), stated[2]
    assert page == f"formulations/{name}.md"
    letters = {equation[0] for equation in equations}
    assert {e for e in numbers(page_of(name)) if e[0] in letters} == equations
    comments = numbers("\n".join(re.findall(r"#.*", source)))
    assert comments, "comments carry the numbers"
    assert comments <= equations


def numbered(page: str) -> set[str]:
    """Names of rows that a page gives a number: in blocks of equations, or (A1) `name` in prose."""
    in_prose = set(re.findall(r"\([A-Z]\d+\)\s`(\w+)`", page))
    # A number, or as much room, then the names.
    label = r"(?m)^(?:\([A-Z]\d+\)\s{2,}| {6})([a-z]\w*(?:, [a-z]\w*)*)"
    blocks = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    in_blocks = {
        name for b in blocks for names in re.findall(label, b) for name in names.split(", ")
    }
    return in_prose | in_blocks


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
    equations = numbered(text)
    # slots_row and joint_compact's (J5) exist only where an instance has slots.
    assert rows - equations == set()
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
    # The overview says so for all formulations, and which of them are exact for the other forms.
    but = re.search(
        r"^All but (`.*`) are exact for", text_of("formulations/README.md"), re.MULTILINE
    )
    assert but
    relaxations = set(re.findall(r"`(\w+)`", but[1]))
    takes_p2 = set()
    for name in NAMES:
        formulation = load_formulation(name)
        assert (formulation.KIND == "relaxation") == (name in relaxations)
        for data in taken(formulation):
            kind = Choice(name, formulation, "").kind(data)
            if data.layer_time.form == "p2":
                takes_p2.add(name)
                assert kind == "relaxation"
            else:
                # Where groups have at most two members, pairs are transitive.
                small = name in relaxations and data.slots == 2
                assert kind == ("exact" if small else formulation.KIND), (name, data.name)
    only_unit = re.search(
        r"^(`.*`) take `unit` only", text_of("formulations/README.md"), re.MULTILINE
    )
    assert only_unit
    assert takes_p2 == set(NAMES) - set(re.findall(r"`(\w+)`", only_unit[1]))


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
    from moeopt import methods as layer_methods
    from moeopt.proving import Method
    from moeopt.solvers import cpsat, highs

    text = text_of("bounds.md")
    methods = {method for group in bounds._METHODS.values() for method, *_ in group}
    assert [m for m in sorted(methods) if f"| `{m}` |" not in text] == []
    by_layer = [value.name for value in vars(layer_methods).values() if isinstance(value, Method)]
    assert len(by_layer) >= 5
    assert [m for m in by_layer if f"| `{m}` |" not in text] == []
    for proof in (highs.BOUND_FROM, cpsat.BOUND_FROM, cpsat.NATIVE_BOUND_FROM):
        assert f"| `FORMULATION: {proof}` |" in text


@pytest.mark.parametrize(
    ("problem", "shape", "experts", "gpus", "slots"),
    [
        ("placement", "at most 16 experts", 16, 8, 2),
        ("placement", "more experts, at least 6 GPUs, `columns` takes the layer", 17, 6, 3),
        ("placement", "more experts, else", 17, 5, 4),
        ("placement", "more experts, else", 64, 8, 8),
        ("replication", "at least 6 GPUs", 8, 6, 2),
        ("replication", "fewer GPUs", 8, 5, 2),
    ],
)
def test_methods_are_tried_as_described(
    problem: str, shape: str, experts: int, gpus: int, slots: int
) -> None:
    data = random_data(problem, np.random.default_rng(0), experts=experts, gpus=gpus)
    found = [method.name for method in methods_for(replace(data, slots=slots))]
    assert f"| {problem} | {shape} | {', '.join(found)} |" in text_of("bounds.md")


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
