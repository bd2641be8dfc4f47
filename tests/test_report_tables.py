"""Tables of a study: the right numbers, the same ones in every format, and nothing left unsaid."""

from __future__ import annotations

import csv
import io
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path

import pytest
from make_report_data import make_cell, make_result, make_study, nasty_study, random_study

from moeopt.errors import InputError, SolverError
from moeopt.report.bounds_table import bounds_tables
from moeopt.report.cells_table import cells_table
from moeopt.report.comparison_table import comparison_tables
from moeopt.report.contests import arenas
from moeopt.report.evidence import gather
from moeopt.report.formats import FORMATS, write_tables
from moeopt.report.gaps_table import gaps_tables
from moeopt.report.latex import ROWS_PER_FLOAT, escape
from moeopt.report.table import Column, Table
from moeopt.study.cells import StudyResults
from moeopt.study.results import read_results

KINDS: list[Callable[[StudyResults], list[Table]]] = [
    bounds_tables,
    comparison_tables,
    gaps_tables,
    lambda study: [cells_table(study)],
]


def column(table: Table, heading: str) -> list[str]:
    i = [one.heading for one in table.columns].index(heading)
    return [row[i] for row in table.rows]


# --- every format ---------------------------------------------------------------------------------


class Rows(HTMLParser):
    """Texts of the cells of table bodies, and of everything else."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.other = ""
        self.in_cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.in_cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "td":
            self.in_cell = False

    def handle_data(self, data: str) -> None:
        if self.in_cell:
            self.rows[-1][-1] += data
        else:
            self.other += data


def html_rows(text: str) -> tuple[list[list[str]], str]:
    parser = Rows()
    parser.feed(text)
    return [row for row in parser.rows if row], parser.other


def csv_rows(text: str, table: Table) -> list[list[str]]:
    lines = [line for line in text.splitlines() if not line.startswith("# ")]
    found = list(csv.DictReader(io.StringIO("\n".join(lines))))
    return [[row[one.heading] or "–" for one in table.columns] for row in found]


def markdown_rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")][2:]
    cells = [re.split(r"(?<!\\) \| ", line[2:-2]) for line in lines]
    return [[re.sub(r"\\(.)", r"\1", cell) for cell in row] for row in cells]


def latex_rows(text: str) -> list[list[str]]:
    body = text.split("\\midrule\n")[1].split("\n\\bottomrule")[0]
    return [line.removesuffix(r" \\").split(" & ") for line in body.splitlines()]


@pytest.mark.parametrize("make", KINDS)
def test_every_format_has_the_same_texts(make: Callable[[StudyResults], list[Table]]) -> None:
    for table in make(nasty_study()):
        rows = [list(row) for row in table.rows]
        shown = [[cell or "–" for cell in row] for row in rows]
        assert csv_rows(write_tables([table], "csv"), table) == shown
        assert markdown_rows(write_tables([table], "markdown")) == rows
        assert html_rows(write_tables([table], "html"))[0] == rows
        if rows:
            assert latex_rows(write_tables([table], "latex")) == [
                [escape(cell) for cell in row] for row in rows
            ]


@pytest.mark.parametrize("file_format", list(FORMATS))
@pytest.mark.parametrize("make", KINDS[:3])
def test_captions_and_reasons_are_in_every_format(
    make: Callable[[StudyResults], list[Table]], file_format: str
) -> None:
    text = write_tables(make(nasty_study()), file_format)
    if file_format == "html":
        text = html_rows(text)[1]
    expected = [
        "(upper − lower) / max(|upper|, 1e-9)",
        "Testarossa 5000, 2 cores, 8 GiB memory",
        "highs 1.15.1, moeopt 0.1.0",
        "time limit 60 s; memory limit none; relative gap asked for 1e-06; threads 1; seeds 0",
        "Skipped: placement_columns (highs) on plain: more than 5 % of <nothing> & {all}",
        "Failed: placement_pairs, highs on plain, seed 0: the worker was killed (signal 9)",
        "Not run yet: 1 cells",
    ]
    escaped = {"latex": escape, "markdown": lambda line: line.replace("|", r"\|")}
    for line in expected:
        in_caption = file_format == "markdown" and "max(" in line
        wanted = line if in_caption else escaped.get(file_format, str)(line)
        assert wanted in text, line


def test_csv_is_read_by_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    text = write_tables(bounds_tables(nasty_study()), "csv")
    frame = pandas.read_csv(io.StringIO(text), comment="#", quotechar='"')
    plain = frame[frame["instance"] == "plain"].iloc[0]
    assert plain["best bounds: lower"] == 1.98765432
    assert plain["LP bound: placement_assignment"] == 1.23456789


def test_html_escapes() -> None:
    text = write_tables([cells_table(nasty_study())], "html")
    assert "<b>bold" not in text
    assert "&lt;b&gt;bold" in text


def test_there_is_no_other_format() -> None:
    with pytest.raises(InputError, match="there is no format 'word'"):
        write_tables([], "word")


def test_long_tables_continue_in_the_next_float() -> None:
    rows = tuple((f"row_{i}", str(i)) for i in range(2 * ROWS_PER_FLOAT + 1))
    table = Table("p", "Long", (Column("a", is_number=False), Column("b")), rows, (), ("why",))
    text = write_tables([table], "latex")
    assert text.count(r"\begin{table}") == 3
    assert text.count(r"\label{tab:long}") == 1
    assert text.count("Long (continued)") == 2
    assert text.count("why") == 1
    assert [i for i in range(len(rows)) if f"row\\_{i} & {i} " not in text] == []


def compile_article(folder: Path) -> str:
    """Compile ``tables.tex`` in an article; return LaTeX's log."""
    (folder / "article.tex").write_text(
        "\\documentclass{article}\n\\usepackage{booktabs,graphicx}\n"
        "\\begin{document}\n\\input{tables}\n\\end{document}\n"
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "article.tex"],
        cwd=folder,
        capture_output=True,
        check=False,
        timeout=300,
    )
    log = (folder / "article.log").read_text(errors="replace")
    assert done.returncode == 0, log[-3000:]
    return log


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs TeX Live")
def test_latex_compiles_unchanged_in_an_article(tmp_path: Path) -> None:
    study = nasty_study()
    tables = [table for make in KINDS for table in make(study)]
    alphabet = "".join(
        map(chr, [*range(0x20, 0x250), *range(0x370, 0x400), 0x2212, 0x2264, 0x1F600])
    )
    every = Table("p", "Every character", (Column("a", is_number=False),), ((alphabet,),))
    (tmp_path / "tables.tex").write_text(write_tables([*tables, every], "latex"), encoding="utf-8")
    log = compile_article(tmp_path)
    assert "Missing character" not in log
    assert "multiply defined" not in log
    assert (tmp_path / "article.pdf").stat().st_size > 10_000


# --- contradictions -------------------------------------------------------------------------------


def contradicting() -> dict[str, tuple[StudyResults, list[str]]]:
    """Studies with a lie, and what the error must name."""
    plan = make_result(make_cell(), upper=2.0, lower=1.5)
    bound = make_result(make_cell(formulation="placement_cp"), upper=None, lower=2.0000001)
    lp = make_result(make_cell(formulation="placement_a"), upper=3.0, lower=1.0, lp_bound=2.1)
    root = make_result(make_cell(formulation="placement_a"), upper=3.0, lower=1.0, root_bound=2.1)
    named = make_result(
        make_cell(formulation="placement_b"), upper=None, lower=1.0, lower_bounds={"scenario": 2.5}
    )
    none = make_result(
        make_cell(formulation="placement_c"), upper=None, lower=None, status="infeasible"
    )
    return {
        "bound": (make_study(plan, bound), ["tiny placement placement_cp", "2.0000001"]),
        "lp": (make_study(plan, lp), ["placement_a: LP relaxation", "2.1"]),
        "root": (make_study(root, plan), ["root node"]),
        "method": (make_study(plan, named), ["scenario", "2.5"]),
        "failed": (make_study(plan, failed=[bound]), ["2.0000001"]),
        "infeasible": (make_study(plan, none), ["placement_c", "infeasible", "2.0"]),
    }


@pytest.mark.parametrize("name", contradicting())
@pytest.mark.parametrize("make", KINDS[:3])
def test_contradictions_stop_the_table(
    make: Callable[[StudyResults], list[Table]], name: str
) -> None:
    study, words = contradicting()[name]
    with pytest.raises(SolverError) as raised:
        make(study)
    text = "\n".join(raised.value.problems)
    assert raised.value.exit_status == 3
    assert "placement_pairs" in text or name == "infeasible"
    assert [word for word in words if word not in text] == []


def test_what_is_not_comparable_is_no_contradiction() -> None:
    plan = make_result(make_cell(), upper=2.0, lower=1.5)
    above = {"upper": 9.0, "lower": 8.0}
    others = [
        # The LP of a restriction bounds the restriction only.
        make_result(make_cell(formulation="placement_r"), kind="restriction", lp_bound=7.0),
        make_result(make_cell(formulation="placement_s"), instance_sha256="1" * 64, **above),
        make_result(make_cell("other"), **above),
        make_result(make_cell(problem="replication"), **above),
    ]
    assert len(gather(make_study(plan, *others))) == 4


def test_maximised_records_are_refused() -> None:
    with pytest.raises(InputError, match="maximised"):
        gather(make_study(make_result(make_cell(), sense="maximise")))


# --- the numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_best_bounds_are_the_best_of_all_records(seed: int) -> None:
    study = random_study(random.Random(seed), 80)
    (table,) = bounds_tables(study)
    names = column(table, "instance")
    assert len(names) == len(set(names)) >= 8
    for i, name in enumerate(names):
        records = [one.record for one in study.finished if one.cell.instance == name]
        lower = max(
            (r["lower_bound"] for r in records if r["lower_bound"] is not None), default=None
        )
        upper = min(
            (r["upper_bound"] for r in records if r["upper_bound"] is not None), default=None
        )
        shown = [column(table, f"best bounds: {which}")[i] for which in ("lower", "upper", "gap %")]
        if lower is not None:
            assert (
                Fraction(shown[0])
                <= Fraction(lower)
                < Fraction(shown[0]) * (1 + Fraction(1, 10**7))
            )
        if upper is not None:
            assert (
                Fraction(shown[1])
                >= Fraction(upper)
                > Fraction(shown[1]) * (1 - Fraction(1, 10**7))
            )
        if lower is not None and upper is not None:
            gap = (Fraction(upper) - Fraction(lower)) / Fraction(upper)
            assert gap <= Fraction(shown[2]) / 100 <= gap + Fraction(1, 10**4)


def test_bounds_table_shows_bounds_by_formulation_and_method() -> None:
    (placement, joint) = bounds_tables(nasty_study())
    assert placement.title == "Bounds of placement, in expert-time units"
    plain = column(placement, "instance").index("plain")
    assert column(placement, "LP bound: placement_assignment")[plain] == "1.23456789"
    assert column(placement, "root bound: placement_assignment, highs")[plain] == "1.5"
    assert column(placement, "bound by method: scenario")[plain] == "1.3"
    assert column(placement, "proof")[plain] == "placement_assignment: branch and bound"
    assert column(joint, "best bounds: gap %") == ["infeasible"]
    assert joint.title == "Bounds of joint, in µs"
    assert any(note.startswith("Infeasible: full: 600 MiB needed") for note in joint.notes)


def test_a_run_that_failed_early_makes_no_row_of_its_own() -> None:
    joint = make_cell(problem="joint")
    crashed = make_result(
        make_cell(formulation="g", problem="joint"), upper=None, lower=None, status="error"
    )
    alone = make_result(make_cell("alone", "g"), upper=None, lower=None, status="error")
    study = make_study(make_result(joint, charged="activated"), failed=[crashed, alone])
    tables = {table.problem: table for table in bounds_tables(study)}
    assert column(tables["joint"], "instance") == ["tiny (activated)"]
    assert column(tables["placement"], "instance") == ["alone"]
    assert column(tables["placement"], "best bounds: gap %") == ["–"]


def test_sizes_of_shipped_instances() -> None:
    from moeopt.catalog import read_instance

    sha256 = read_instance("smoke_placement_unit").sha256
    shipped = make_result(make_cell("smoke_placement_unit"), instance_sha256=sha256)
    changed = make_result(make_cell("smoke_placement_memory"))
    (table,) = bounds_tables(make_study(shipped, changed))
    sizes = {
        name: column(table, f"size: {name}") for name in ("L", "E", "k", "G", "slots", "scen.")
    }
    assert [texts[0] for texts in sizes.values()] == ["1", "4", "2", "2", "2", "5"]
    assert {texts[1] for texts in sizes.values()} == {"–"}
    assert table.notes == (
        "Sizes not shown, no shipped instance of this content: smoke_placement_memory",
    )


def test_comparison_by_hand() -> None:
    quick = {"upper": 1.0, "lower": 1.0}
    study = make_study(
        make_result(make_cell("a", "f"), **quick, total_s=3.0, nodes=0),
        make_result(make_cell("b", "f"), upper=4.0, lower=3.0, total_s=58.0, nodes=300),
        make_result(make_cell("a", "g"), **quick, total_s=0.0, nodes=10),
        make_result(make_cell("b", "g"), upper=None, lower=3.0, status="no_solution_found"),
        make_result(make_cell("c", "f"), **quick),
        make_result(make_cell("d", "f"), **quick),
        skipped=[(make_cell("c", "g"), "no")],
        missing=[make_cell("d", "g")],
    )
    (table,) = comparison_tables(study)
    # f: a in 3 s, b in the limit of 60 s, c in 1 s; g: a at once, b and c (skipped) in the limit.
    time_f = (4 * 61 * 2) ** (1 / 3) - 1
    time_g = (1 * 61 * 61) ** (1 / 3) - 1
    nodes_f = (100 * 400) ** 0.5 - 100
    nodes_g = (110 * 107) ** 0.5 - 100
    assert table.rows == (
        ("f", "highs", "4", "3", "4", "0", "8.34", f"{time_f:.3g}", f"{nodes_f:.3g}"),
        ("g", "highs", "2", "1", "1", "0", "66.67", f"{time_g:.3g}", f"{nodes_g:.3g}"),
    )
    assert "3 of 4 pairs" in table.caption[1]


def test_a_run_settled_before_its_solver_has_no_nodes() -> None:
    early = make_result(make_cell(), upper=1.0, lower=1.0, nodes=None, size=None)
    unknown = make_result(make_cell(formulation="g"), upper=1.0, lower=0.5, nodes=None)
    (table,) = comparison_tables(make_study(early, unknown))
    assert column(table, "mean: nodes") == ["–", "0"]


def test_settings_are_named_only_where_they_compete() -> None:
    limits = [make_result(make_cell("small", time_limit_s=10.0))]
    limits += [make_result(make_cell("large", time_limit_s=600.0))]
    (arena,) = arenas(make_study(*limits))
    assert [one.label for one in arena.competitors] == ["placement_pairs, highs"]
    twice = [make_result(make_cell(threads=threads)) for threads in (1, 8)]
    (arena,) = arenas(make_study(*twice))
    assert [one.settings for one in arena.competitors] == ["threads 1", "threads 8"]
    assert len(arena.results) == 2


def test_gaps_table() -> None:
    study = make_study(
        make_result(make_cell("a", "f"), upper=2.0, lower=1.0),
        make_result(make_cell("a", "f", seed=1), upper=2.0, lower=1.5),
        make_result(make_cell("a", "g"), upper=None, lower=1.0),
        make_result(make_cell("b", "f"), upper=2.0, lower=None),
        failed=[make_result(make_cell("b", "g"), upper=None, lower=None, status="error")],
    )
    (table,) = gaps_tables(study)
    assert table.rows == (("a", "50.00", "no plan"), ("b", "no bound", "failed"))


def test_all_cells_are_listed() -> None:
    study = nasty_study()
    table = cells_table(study)
    assert len(table.rows) == 6
    assert column(table, "status")[0] == "error"
    assert set(column(table, "status")) >= {"skipped", "not run yet", "infeasible"}


def test_ten_thousand_cells() -> None:
    study = random_study(random.Random(0), 10_000)
    for make in KINDS[:3]:
        begin = time.process_time()
        text = write_tables(make(study), "latex")
        assert time.process_time() - begin < 5.0
        assert text.count(r"\\") > 1000 or "Formulations" in text


# --- the studies of the repository ----------------------------------------------------------------

STUDIES = sorted((Path(__file__).parent.parent / "benchmarks" / "studies").glob("*.toml"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs TeX Live")
@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.stem)
def test_bounds_of_a_committed_study_compile_and_agree_with_csv(study: Path, tmp_path: Path):
    tables = bounds_tables(read_results(study))
    assert tables
    assert all(table.rows for table in tables)
    text = write_tables(tables, "latex")
    (tmp_path / "tables.tex").write_text(text, encoding="utf-8")
    compile_article(tmp_path)
    rows = [line.removesuffix(r" \\").split(" & ") for line in text.splitlines() if " & " in line]
    for row in csv.reader(io.StringIO(write_tables(tables, "csv"))):
        if row and row[0].startswith("#"):
            continue  # a note
        numbers = [cell for cell in row if re.fullmatch(r"-?\d+(\.\d+)?", cell)]
        if numbers:
            assert any(set(map(escape, numbers)) <= set(line) for line in rows), row
