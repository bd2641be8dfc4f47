"""Writes ``instances/catalog.json``: what is shipped, its hashes, its best known bounds.

``python -m moeopt.make.catalog`` refreshes the catalogue of a checkout; ``--check`` only says
whether it is current. Best known bounds are kept as long as the content of their instance is the
same: bounds of another content would be false.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moeopt.errors import InputError
from moeopt.files import read_json_object
from moeopt.instance import Instance, read_instance_file
from moeopt.make.files import json_bytes
from moeopt.problem import PROBLEMS

SCHEMA = "moeopt-catalog/1"

#: Keys of an entry of ``best_known``.
BOUND_KEYS = (
    "problem",
    "lower_bound",
    "lower_bound_from",
    "upper_bound",
    "upper_bound_from",
    "date",
)

_FOLDERS = ("smoke", "real")


def problems_of(instance: Instance) -> list[str]:
    """Say which problems an instance is for.

    A problem in its name decides. Otherwise scenarios make it one for ``placement``, and for
    ``replication`` where slots are left over; requests and a ``joint`` block one for ``joint``.
    """
    named = [problem for problem in PROBLEMS if problem in instance.name]
    if named:
        return named
    problems: list[str] = []
    if all(layer.scenarios is not None for layer in instance.routing):
        problems.append("placement")
        slots = instance.cluster.slots_per_gpu
        if slots is None or slots * instance.cluster.gpus > instance.moe.experts:
            problems.append("replication")
    if instance.requests and instance.joint is not None:
        problems.append("joint")
    return problems


def refresh(folder: Path, *, drop_stale: bool = False) -> dict[str, Any]:
    """Return the catalogue of the instances in ``folder``; nothing is written.

    Parameters
    ----------
    folder : Path
        Holds ``smoke`` and ``real``, and the present ``catalog.json`` if there is one.
    drop_stale : bool
        Forget best known bounds whose instance has changed or is gone.

    Raises
    ------
    InputError
        An invalid instance, two of one name, or bounds that no longer belong to their instance.
    """
    known = _known_bounds(folder / "catalog.json")
    entries: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    for path in sorted(p for f in _FOLDERS for p in (folder / f).glob("*.json*")):
        entry = _entry(path, folder)
        sha256, bounds = known.pop(entry["name"], (None, []))
        if entry["name"] in entries:
            problems.append(f"{path}: another instance is named {entry['name']} too")
        if bounds and sha256 == entry["instance_sha256"]:
            entry["best_known"] = bounds
        elif bounds:
            problems.append(f"{path}: has changed since its best known bounds were proved")
        entries[entry["name"]] = entry
    problems += [f"{name}: has best known bounds, but is gone" for name in known if known[name][1]]
    if problems and not drop_stale:
        raise InputError(problems)
    return {"schema": SCHEMA, "instances": [entries[name] for name in sorted(entries)]}


def _entry(path: Path, folder: Path) -> dict[str, Any]:
    try:
        instance = read_instance_file(path)
    except InputError as error:
        raise InputError([f"{path}: {line}" for line in error.problems]) from error
    source = instance.source
    arrays = [] if instance.arrays is None else [path.with_name(instance.arrays)]
    return {
        "name": instance.name,
        "file": path.relative_to(folder).as_posix(),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "instance_sha256": instance.sha256,
        "arrays": [array.relative_to(folder).as_posix() for array in arrays],
        "problems": problems_of(instance),
        "source": source.title if source else None,
        "url": source.url if source else None,
        "licence": source.licence if source else None,
        "best_known": [],
    }


def _known_bounds(path: Path) -> dict[str, tuple[str, list[dict[str, Any]]]]:
    """Read the content hash and the bounds of each entry of the present catalogue."""
    if not path.exists():
        return {}
    known: dict[str, tuple[str, list[dict[str, Any]]]] = {}
    problems: list[str] = []
    try:
        for entry in read_json_object(path)["instances"]:
            for bound in entry["best_known"]:
                problems += _bound_problems(entry["name"], bound)
            known[entry["name"]] = (entry["instance_sha256"], entry["best_known"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: an entry lacks {error}") from error
    if problems:
        raise InputError(problems)
    return known


def _bound_problems(name: str, bound: dict[str, Any]) -> list[str]:
    odd = sorted(set(bound) ^ set(BOUND_KEYS))
    if odd:
        return [f"{name}: best_known needs exactly {', '.join(BOUND_KEYS)}; not {', '.join(odd)}"]
    lower, upper = bound["lower_bound"], bound["upper_bound"]
    # All three problems minimise. A rounding error is no contradiction.
    if lower is not None and upper is not None and lower > upper + 1e-9 * abs(upper):
        return [f"{name}: {bound['problem']}: lower bound {lower} above upper bound {upper}"]
    return []


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m moeopt.make.catalog", description=__doc__)
    default = Path(__file__).resolve().parents[2] / "instances"
    parser.add_argument("--instances", type=Path, default=default, help="the folder of instances")
    parser.add_argument("--check", action="store_true", help="only say whether it is current")
    parser.add_argument("--drop-stale", action="store_true", help="forget bounds of what changed")
    options = parser.parse_args(arguments)
    path = options.instances / "catalog.json"
    try:
        data = json_bytes(refresh(options.instances, drop_stale=options.drop_stale))
    except InputError as error:
        print(*error.problems, sep="\n", file=sys.stderr)
        return error.exit_status
    current = path.exists() and path.read_bytes() == data
    if options.check:
        print(f"{path}: {'current' if current else 'not current'}")
        return 0 if current else 1
    if not current:
        path.write_bytes(data)
    print(f"{path}: {'unchanged' if current else 'written'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
