"""Plans to placement files and back."""

from __future__ import annotations

from pathlib import Path

from moeopt.checker import CheckReport, check_solution
from moeopt.errors import InputError
from moeopt.files import read_text, write_bytes_atomic
from moeopt.instance import Instance
from moeopt.prepare import prepare
from moeopt.serving.formats import FORMATS, Format
from moeopt.serving.layout import Layout, fill, layout_from_rows, layout_of
from moeopt.solution import Solution


def format_named(name: str) -> Format:
    """Find a format.

    Raises
    ------
    InputError
    """
    if name not in FORMATS:
        raise InputError(f"there is no format {name!r}; formats are {', '.join(FORMATS)}")
    return FORMATS[name]


def export_plan(
    instance: Instance,
    solution: Solution,
    to: str,
    path: Path,
    *,
    filled: bool = False,
    slots: int | None = None,
    force: bool = False,
) -> Layout:
    """Write a plan as the file that a serving system loads; return what was written.

    Parameters
    ----------
    to : str
        One of :data:`moeopt.serving.formats.FORMATS`.
    filled : bool
        Add replicas of the most loaded experts where GPUs have slots left over.
    slots : int, optional
        Slots of every GPU and layer to fill; default: as many as the fullest GPU has.

    Raises
    ------
    InputError
        The checker found a violation, or the system would refuse the file.
    """
    form = format_named(to)
    data = prepare(instance, solution.problem)
    _require_feasible(check_solution(data, solution), "the plan breaks a rule")
    hosts = solution.hosts_array(data.gpus)
    if filled or slots is not None:
        hosts = fill(hosts, data.load, slots)
        # A plan without replicas is none any more.
        problem = "replication" if solution.problem == "placement" else solution.problem
        changed = {
            "hosts": Solution.from_arrays(data, hosts).hosts,
            "problem": problem,
            "dispatch": None,
        }
        report = check_solution(prepare(instance, problem), solution.model_copy(update=changed))
        _require_feasible(report, "no room for the replicas added")
    layout = layout_of(instance, hosts)
    if reasons := form.why_not(layout):
        raise InputError([f"{to}: {reason}" for reason in reasons])
    write_bytes_atomic(path, form.write(layout).encode(), force=force)
    return layout


def import_plan(
    instance: Instance, path: Path, origin: str, *, problem: str | None = None
) -> Solution:
    """Read a placement file as a plan of an instance; the checker has the last word.

    Parameters
    ----------
    problem : str, optional
        Default: ``replication`` where an expert has several slots, else ``placement``.

    Raises
    ------
    InputError
    """
    form = format_named(origin)
    text = read_text(path)
    layers = [layer.layer for layer in instance.routing]
    try:
        rows = form.read(text, layers)
    except InputError as error:
        raise InputError([f"{path}: {line}" for line in error.problems]) from error
    layout = layout_from_rows(instance, rows, str(path))
    if problem is None:
        problem = "replication" if layout.slots > layout.experts else "placement"
    return Solution.from_arrays(prepare(instance, problem), layout.hosts)


def _require_feasible(report: CheckReport, why: str) -> None:
    if report.violations:
        raise InputError([f"{why}: {violation.message}" for violation in report.violations])
