"""``table``, ``plot`` and ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moeopt.commands.arguments import ForceOpt
from moeopt.errors import InputError
from moeopt.files import require_writable
from moeopt.rounding_text import DIGITS

if TYPE_CHECKING:
    from moeopt.report.contests import Arena

#: Kinds of tables and plots, as they are called on the command line.
TABLES = ("bounds", "comparison", "gaps")
PLOTS = ("profile", "gap", "front", "heat")

StudyArg = Annotated[
    str, typer.Argument(metavar="STUDY", help="A study file, or the name of a shipped study.")
]
ResultsOpt = Annotated[
    Path | None, typer.Option("--results", help="Its results, if not in STUDY.results beside it.")
]
DigitsOpt = Annotated[
    int, typer.Option("--digits", min=2, max=17, help="Significant digits of bounds.")
]


def table(
    study: StudyArg,
    kind: Annotated[str, typer.Option("--kind", help=f"{', '.join(TABLES)}.")] = "bounds",
    file_format: Annotated[
        str, typer.Option("--format", help="latex, markdown, csv or html.")
    ] = "markdown",
    digits: DigitsOpt = DIGITS,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write to this file.")
    ] = None,
    force: ForceOpt = False,
    results: ResultsOpt = None,
) -> None:
    """Print the tables of a study: what is proved, and who proved it how fast.

    Lower bounds are rounded down, upper bounds and gaps up. Records that contradict each other
    stop it: they are listed, and the exit status is 3.
    """
    from moeopt.report.bounds_table import bounds_tables
    from moeopt.report.comparison_table import comparison_tables
    from moeopt.report.formats import FORMATS, write_tables
    from moeopt.report.gaps_table import gaps_tables
    from moeopt.study.results import read_results

    _require_one_of("kind of table", kind, TABLES)
    _require_one_of("format", file_format, tuple(FORMATS))
    if output is not None:
        require_writable(output, force)
    found = read_results(study, results)
    if kind == "bounds":
        tables = bounds_tables(found, digits)
    else:
        tables = comparison_tables(found) if kind == "comparison" else gaps_tables(found)
    text = write_tables(tables, file_format)
    if output is None:
        print(text, end="")
    else:
        _write(output, text.encode(), force)


def plot(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A study; a front's JSON; or an INSTANCE.")
    ],
    solution: Annotated[
        Path | None, typer.Argument(metavar="[SOLUTION]", help="A plan of the INSTANCE.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="FILE.svg, FILE.pdf or FILE.png.")
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option("--kind", help="profile, gap (of a study), front, heat (of a plan)."),
    ] = None,
    problem: Annotated[
        str | None, typer.Option("--problem", "-p", help="Of a study: only this problem.")
    ] = None,
    instance: Annotated[
        list[str] | None,
        typer.Option("--instance", help="Of a study, gap: only this instance; repeatable."),
    ] = None,
    layer: Annotated[
        int | None, typer.Option("--layer", help="Of a plan: the layer's number in the LLM.")
    ] = None,
    force: ForceOpt = False,
    results: ResultsOpt = None,
) -> None:
    """Draw a study's performance profiles or gaps over time, a front, or a plan as a heat map.

    A study of several problems makes a file for each: FILE-PROBLEM.svg.
    """
    from moeopt.report.plot_style import ending_of

    if kind is None:
        kind = "profile" if solution is None else "heat"
    _require_one_of("kind of plot", kind, PLOTS)
    if (kind == "heat") != (solution is not None):
        raise InputError("a heat map needs an instance and a plan: moeopt plot INSTANCE SOLUTION")
    if output is None:
        raise InputError("-o FILE says where the plot goes: .svg, .pdf or .png")
    ending = ending_of(output)
    figures: dict[Path, Any] = {}
    if solution is not None:
        require_writable(output, force)
        figures[output] = _heat(source, solution, layer)
    elif kind == "front":
        from moeopt.report.plot_front import plot_front, read_front

        require_writable(output, force)
        figures[output] = plot_front(read_front(Path(source)))
    else:
        from moeopt.report.plot_gap import plot_gap
        from moeopt.report.plot_profile import plot_profile

        chosen = _arenas(source, results, problem)
        known = tuple(dict.fromkeys(name for arena in chosen for name, _ in arena.contests))
        for name in instance or ():
            _require_one_of("instance in this study", name, known)
        for arena in chosen:
            name = output.name if len(chosen) == 1 else f"{output.stem}-{arena.problem}.{ending}"
            path = output.with_name(name)
            require_writable(path, force)
            figures[path] = plot_profile(arena) if kind == "profile" else plot_gap(arena, instance)
    from moeopt.report.plot_style import figure_bytes

    for path, figure in figures.items():
        _write(path, figure_bytes(figure, ending), force)
        print(path)


def report(
    study: StudyArg,
    output: Annotated[Path, typer.Option("-o", "--output", help="The page.")] = Path("report.html"),
    digits: DigitsOpt = DIGITS,
    force: ForceOpt = False,
    results: ResultsOpt = None,
) -> None:
    """Write one HTML page of a study, which needs no other file: tables, plots, notes, failures."""
    from moeopt.report.page import report_page
    from moeopt.study.results import read_results

    require_writable(output, force)
    _write(output, report_page(read_results(study, results), digits).encode(), force)
    print(output)


def _arenas(source: str, results: Path | None, problem: str | None) -> list[Arena]:
    """Return the problems of a study, after a look for contradictions."""
    from moeopt.report.contests import arenas
    from moeopt.report.evidence import gather
    from moeopt.study.results import read_results

    found = read_results(source, results)
    gather(found)
    known = arenas(found)
    if problem is None:
        return known
    names = tuple(arena.problem for arena in known)
    _require_one_of("problem in this study", problem, names)
    return [arena for arena in known if arena.problem == problem]


def _heat(instance: str, path: Path, layer: int | None) -> Any:
    from moeopt.catalog import read_instance
    from moeopt.prepare import prepare
    from moeopt.report.plot_heat import plot_heat
    from moeopt.solution import read_solution_file, validate_against

    read, plan = read_instance(instance), read_solution_file(path)
    if lines := validate_against(read, plan):
        raise InputError(lines)
    return plot_heat(prepare(read, plan.problem), plan, layer)


def _require_one_of(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise InputError(f"there is no {what} {name!r}; there are {', '.join(known)}")


def _write(path: Path, content: bytes, force: bool) -> None:
    from moeopt.files import write_bytes_atomic

    write_bytes_atomic(path, content, force=force)
