"""What the documentation says is what the code does."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from docs_pages import DOCS, PAGES, ROOT, relative, smoke_data, text_of
from make_data import random_data

from moeopt.checker import CheckReport, check_solution
from moeopt.methods import methods_for
from moeopt.prepare import prepare
from moeopt.record import Record
from moeopt.solution import Solution, read_solution_file, validate_against

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
    for name in (
        "checker.py",
        "checker_activation.py",
        "checker_affinity.py",
        "checker_balance.py",
        "checker_dispatch.py",
        "checker_paging.py",
        "checker_topology.py",
        "checker_times.py",
    ):
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
