"""``batch``, ``export-records`` and ``check --study``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moeopt.commands.arguments import INTERRUPTED, NO_SOLUTION, SOLVER_FAILED, ForceOpt
from moeopt.errors import InputError
from moeopt.files import require_writable
from moeopt.words import counted

if TYPE_CHECKING:
    from moeopt.study.batch import Batch

StudyArg = Annotated[
    str, typer.Argument(metavar="STUDY", help="A study file, or a name in benchmarks/suites.")
]
ResultsOpt = Annotated[
    Path | None, typer.Option("--results", help="Folder of the results; default: beside STUDY.")
]


def batch(
    study: StudyArg,
    workers: Annotated[int, typer.Option("--workers", "-w", min=1, help="Cells at a time.")] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the cells and a bound of the time; run nothing.")
    ] = False,
    engine: Annotated[str, typer.Option("--engine", help="local, dask or slurm.")] = "local",
    shard: Annotated[
        str | None, typer.Option("--shard", help="i/n: every n-th cell, from the i-th.")
    ] = None,
    results: ResultsOpt = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run cells again that ended with an error.")
    ] = False,
    scheduler: Annotated[
        str | None, typer.Option("--scheduler", help="Address of a Dask scheduler.")
    ] = None,
    shards: Annotated[
        int | None, typer.Option("--shards", min=1, help="Jobs of the SLURM array.")
    ] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(
            "--sbatch", help="An option for sbatch, --sbatch=--partition=long; repeatable."
        ),
    ] = None,
) -> None:
    """Run a study; run it again to go on. Nothing that is finished is lost or run twice.

    Ctrl-C ends the running cells and keeps the finished ones.
    """
    from moeopt.study.batch import prepare_batch, run_batch

    part = None if shard is None else _shard(shard)
    prepared = prepare_batch(study, results=results, shard=part, retry_failed=retry_failed)
    if dry_run:
        _print_cells(prepared, workers)
        if engine != "slurm":
            return
    report = run_batch(
        prepared,
        workers=workers,
        engine=engine,
        scheduler=scheduler,
        shards=shards,
        sbatch_options=sbatch,
        submit_jobs=not dry_run,
    )
    if report.submitted is not None:
        print(report.submitted if not dry_run else f"written: {report.submitted}")
        return
    ran = ", ".join(f"{count} {status}" for status, count in sorted(report.ran.items()))
    print(f"{report.total} cells: {report.before} finished before, {ran or 'none run'}")
    if report.skipped:
        print(f"{report.skipped} cells are not supported (--dry-run says why)")
    print(f"results: {report.folder}")
    if report.interrupted:
        again = "the same command goes on"
        print(f"stopped with {report.left} cells left; {again}")
        raise typer.Exit(INTERRUPTED)
    if report.ran["error"]:
        print(f"{report.ran['error']} cells failed: their notes and logs say why; --retry-failed")
        raise typer.Exit(SOLVER_FAILED)


def export_records(
    study: StudyArg,
    output: Annotated[Path, typer.Option("-o", "--output")],
    form: Annotated[str, typer.Option("--format", help="jsonl, csv or parquet.")] = "jsonl",
    results: ResultsOpt = None,
    force: ForceOpt = False,
) -> None:
    """Write all records of a study into one file."""
    from moeopt.study.export import export_records as export
    from moeopt.study.results import read_results

    require_writable(output, force)
    count = export(read_results(study, results), output, form, force=force)
    print(f"{output}: {count} records")


def check_study(study: str, results: Path | None, as_json: bool) -> None:
    """Check every stored plan of a study again (``check --study``)."""
    from moeopt.study.recheck import recheck

    count = plans = bad = 0
    for checked in recheck(study, results):
        count += 1
        plans += checked.objective is not None
        bad += bool(checked.problems)
        for problem in [] if as_json else checked.problems:
            print(f"{checked.label} ({checked.key[:12]}): {problem}")
    if as_json:
        print(json.dumps({"records": count, "plans": plans, "wrong": bad}))
    else:
        print(f"{count} records, {plans} plans checked, {bad} wrong")
    if bad:
        raise typer.Exit(NO_SOLUTION)


def _shard(text: str) -> tuple[int, int]:
    first, slash, second = text.partition("/")
    if not (slash and first.isdigit() and second.isdigit()):
        raise InputError(f"--shard {text}: write i/n, such as 2/8")
    return int(first), int(second)


def _print_cells(prepared: Batch, workers: int) -> None:
    from moeopt.study.view import duration
    from moeopt.summary import print_rows

    rows = [
        {
            "cell": planned.cell.label,
            "limit": f"{planned.cell.settings['time_limit_s']:g} s",
            "state": prepared.state(planned.cell),
        }
        for planned in prepared.cells
    ]
    rows += [
        {"cell": cell.label, "limit": "–", "state": f"skipped: {reason}"}
        for cell, reason in prepared.plan.skipped
    ]
    print_rows(rows)
    waiting = len(prepared.waiting)
    bound = duration(prepared.time_bound_s(workers))
    each = counted(workers, "worker", "workers")
    print(
        f"{len(prepared.cells)} cells, {waiting} to run, {len(prepared.plan.skipped)} skipped; "
        f"at most {bound} with {each}"
    )
