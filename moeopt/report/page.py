"""One HTML page of a study that needs no other file and no network."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from markupsafe import Markup
from matplotlib.figure import Figure

from moeopt import __version__
from moeopt.report.bounds_table import bounds_tables
from moeopt.report.caption import circumstances
from moeopt.report.cells_table import cells_table
from moeopt.report.comparison_table import comparison_tables
from moeopt.report.contests import arenas
from moeopt.report.gaps_table import gaps_tables
from moeopt.report.pages import read_asset, render
from moeopt.report.plot_gap import plot_gap
from moeopt.report.plot_profile import plot_profile
from moeopt.report.plot_style import figure_bytes
from moeopt.report.table import Table
from moeopt.rounding_text import DIGITS
from moeopt.study.cells import StudyResults

#: Plots are drawn for a column of a paper; a screen has more room.
PAGE_SCALE = 1.3


@dataclass(frozen=True)
class Plot:
    """A plot as inline SVG, and what it shows in words."""

    svg: Markup
    caption: str


@dataclass(frozen=True)
class Problem:
    """The part of the page about one problem."""

    name: str
    tables: list[Table]
    plots: list[Plot]


def report_page(study: StudyResults, digits: int = DIGITS) -> str:
    """Return the page: tables that sort, plots, notes, failures, versions and machine.

    Raises
    ------
    SolverError
        Records contradict each other (:func:`moeopt.report.evidence.gather`).
    """
    # Cells left out are listed once a problem, below its bounds.
    others = [*comparison_tables(study), *gaps_tables(study)]
    tables = [*bounds_tables(study, digits), *(replace(table, notes=()) for table in others)]
    problems = []
    for arena in arenas(study):
        plots = []
        if arena.decided_contests:
            caption = (
                "Performance profile (Dolan and Moré): share of pairs of instance and seed that "
                "were solved within a multiple of the best time; a skipped cell is not solved."
            )
            plots.append(Plot(inline_svg(plot_profile(arena), f"{arena.problem}-profile"), caption))
        if any(result.record.get("trajectory") for result in arena.results.values()):
            caption = (
                "Gap between the best plan and the best bound so far; gaps below 0.0001 % are "
                "drawn there; a dot is the end of a run."
            )
            plots.append(Plot(inline_svg(plot_gap(arena), f"{arena.problem}-gap"), caption))
        mine = [table for table in tables if table.problem == arena.problem]
        problems.append(Problem(arena.problem, mine, plots))
    return render(
        "report.html.j2",
        name=study.name,
        title=study.title or study.name,
        version=__version__,
        counts=[
            ("finished", len(study.finished)),
            ("failed", len(study.failed)),
            ("skipped", len(study.skipped)),
            ("not run yet", len(study.missing)),
            ("of other versions", len(study.outdated)),
        ],
        circumstances=circumstances([*study.finished, *study.failed]),
        problems=problems,
        cells=cells_table(study, digits),
        style=Markup(read_asset("report.css")),
        script=Markup(read_asset("report.js")),
    )


def inline_svg(figure: Figure, prefix: str) -> Markup:
    """Return a figure as an SVG element whose names do not clash with another one's."""
    text = figure_bytes(figure, "svg").decode()
    text = text[text.index("<svg") :]
    # Larger than in a paper; the height follows from the viewBox.
    width = f'width="{PAGE_SCALE * figure.get_figwidth():.2f}in"'
    text = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', width, text, count=1)
    text = re.sub(r"\b(id=\"|xlink:href=\"#|url\(#)", rf"\g<1>{prefix}-", text)
    return Markup(re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL))
