"""The page of a study: complete, self-contained, and safe to open; the commands around it."""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import typer
from make_report_data import make_cell, make_result, make_study, nasty_study
from typer.testing import CliRunner

from moeopt.catalog import read_instance
from moeopt.commands import reporting
from moeopt.errors import InputError, SolverError
from moeopt.prepare import prepare
from moeopt.report.page import report_page
from moeopt.solution import Solution, write_solution_file
from moeopt.study import results as study_results
from moeopt.study.cells import StudyResults


class Page(HTMLParser):
    """Tags, ids, links and visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        if tag not in ("meta", "input", "br", "link", "img"):
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href"):
                self.links.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in ("meta", "input", "br", "link", "img"):
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(report_page(nasty_study()))


def test_page_is_well_formed_and_needs_no_other_file(page: Page) -> None:
    assert page.open == []
    assert [link for link in page.links if not link.startswith("#")] == []
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert page.tags["link"] == page.tags["img"] == 0


def test_ids_are_unique(page: Page) -> None:
    assert [name for name, times in Counter(page.ids).items() if times > 1] == []


def test_page_loads_nothing() -> None:
    text = report_page(nasty_study())
    addresses = set(re.findall(r"https?://[^\s\"'<>)]+", text))
    # Names of XML languages, which no browser fetches.
    assert all(address.startswith("http://www.w3.org/") for address in addresses)
    assert "@import" not in text
    assert re.findall(r"url\((?!#)", text) == []


def test_page_says_everything(page: Page) -> None:
    words = " ".join(page.text.split())
    for wanted in (
        "A made-up study",
        "finished 3 failed 1 skipped 1 not run yet 1 of other versions 0",
        "<b>bold</b> \"quoted\" 'it'",
        "the worker was killed (signal 9)",
        "more than 5 % of <nothing> & {all}",
        "600 MiB needed, 500 MiB free",
        "Testarossa 5000",
        "moeopt 0.1.0",
        "Performance profile",
    ):
        assert wanted in words, wanted
    assert page.tags["svg"] >= 2
    assert page.tags["script"] == 1


def test_contradictions_stop_the_page() -> None:
    lie = make_result(make_cell(formulation="g"), upper=None, lower=9.0)
    with pytest.raises(SolverError):
        report_page(make_study(make_result(make_cell()), lie))


def test_page_of_nothing() -> None:
    assert Page(report_page(make_study())).open == []
    assert Page(report_page(make_study(missing=[make_cell()]))).open == []


# --- commands -------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run a command on the made-up study."""
    app = typer.Typer()
    for command in (reporting.table, reporting.plot, reporting.report):
        app.command()(command)

    def read(study: str, results: Path | None = None) -> StudyResults:
        assert study == "made_up.toml"
        return nasty_study()

    monkeypatch.setattr(study_results, "read_results", read)
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: str) -> str:
        return CliRunner().invoke(app, list(arguments), catch_exceptions=False).stdout

    return invoke


@pytest.mark.parametrize("kind", reporting.TABLES)
@pytest.mark.parametrize(
    ("file_format", "sign"),
    [("markdown", "| ---"), ("latex", r"\toprule"), ("csv", "problem,"), ("html", "<table")],
)
def test_table(run: Any, kind: str, file_format: str, sign: str) -> None:
    printed = run("table", "made_up.toml", "--kind", kind, "--format", file_format)
    assert sign in printed
    assert run("table", "made_up.toml", "--kind", kind, "--format", file_format, "-o", "t") == ""
    assert Path("t").read_text() == printed


def test_files_are_not_overwritten(run: Any) -> None:
    for command in (
        ("table", "made_up.toml", "-o", "out.svg"),
        ("plot", "made_up.toml", "-p", "placement", "-o", "out.svg"),
        ("report", "made_up.toml", "-o", "out.svg"),
    ):
        Path("out.svg").write_text("mine")
        with pytest.raises(InputError, match="--force overwrites it"):
            run(*command)
        assert Path("out.svg").read_text() == "mine"
        run(*command, "--force")
        assert Path("out.svg").read_text() != "mine"


def test_plots_of_a_study(run: Any) -> None:
    for kind in ("profile", "gap"):
        printed = run("plot", "made_up.toml", "--kind", kind, "-o", f"{kind}.png")
        files = [f"{kind}-placement.png", f"{kind}-joint.png"]
        assert printed.split() == files
        assert all(Path(name).read_bytes().startswith(b"\x89PNG") for name in files)


def test_plots_of_a_front_and_of_a_plan(run: Any) -> None:
    points = [{"tpot_us": 1e3, "throughput": 5.0, "bound": 6.0}]
    Path("front.json").write_text(json.dumps({"instance": "tiny", "points": points}))
    run("plot", "front.json", "--kind", "front", "-o", "front.pdf")
    assert Path("front.pdf").read_bytes().startswith(b"%PDF")
    data = prepare(read_instance("smoke_placement_unit"), "placement")
    hosts = [[[True, False], [True, False], [False, True], [False, True]]]
    write_solution_file(Solution.from_arrays(data, hosts), Path("plan.json"))
    run("plot", "smoke_placement_unit", "plan.json", "-o", "heat.svg")
    assert "smoke_placement_unit, placement" in Path("heat.svg").read_text()
    with pytest.raises(InputError):
        run("plot", "smoke_placement_memory", "plan.json", "-o", "other.svg")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("table", "made_up.toml", "--kind", "pie"), "no kind of table 'pie'"),
        (("table", "made_up.toml", "--format", "word"), "no format 'word'"),
        (("plot", "made_up.toml", "--kind", "pie", "-o", "a.svg"), "no kind of plot 'pie'"),
        (("plot", "made_up.toml"), "-o FILE"),
        (("plot", "made_up.toml", "-o", "a.jpg"), "ends in .svg"),
        (("plot", "made_up.toml", "--kind", "heat", "-o", "a.svg"), "needs an instance and a plan"),
        (("plot", "made_up.toml", "-p", "balance", "-o", "a.svg"), "no problem in this study"),
        (("plot", "made_up.toml", "--instance", "x", "-o", "a.svg"), "no instance in this study"),
    ],
)
def test_wrong_names(run: Any, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        run(*arguments)
    assert list(Path().iterdir()) == []


def test_page_command(run: Any) -> None:
    assert run("report", "made_up.toml") == "report.html\n"
    assert Path("report.html").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.slow
def test_commands_find_the_results_of_a_study_by_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moeopt.study.batch import prepare_batch, run_batch

    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(
        '[study]\nname = "tiny"\ntitle = "Tiny"\n[defaults]\ntime_limit_s = 20\nthreads = 1\n'
        '[[cells]]\ninstances = ["smoke_placement_unit", "smoke_placement_memory"]\n'
        'problem = "placement"\nformulations = ["placement_assignment", "placement_columns"]\n'
        'settings = { measure = ["lp", "root"] }\n'
    )
    run_batch(prepare_batch("tiny.toml"), workers=2)
    app = typer.Typer()
    for command in (reporting.table, reporting.plot, reporting.report):
        app.command()(command)
    runner = CliRunner()
    printed = runner.invoke(app, ["table", "tiny.toml"], catch_exceptions=False).stdout
    assert "LP bound: placement_columns" in printed
    assert re.search(r"\| smoke_placement_unit \|.* 1\.1 \| 0(\.0001)? \|", printed)
    assert "Skipped: placement_columns (highs) on smoke_placement_memory" in printed
    for kind in ("profile", "gap"):
        done = runner.invoke(app, ["plot", "tiny.toml", "--kind", kind, "-o", f"{kind}.svg"])
        assert done.exit_code == 0
    assert runner.invoke(app, ["report", "tiny.toml"]).exit_code == 0
    assert Page(Path("report.html").read_text()).tags["svg"] == 2
