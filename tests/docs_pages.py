"""The pages of docs/, and instances that they speak of."""

from __future__ import annotations

import functools
from pathlib import Path

from moeopt.catalog import read_instance
from moeopt.prepare import prepare
from moeopt.problem import ProblemData

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
SMOKE = sorted((ROOT / "instances" / "smoke").glob("*.json"))


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@functools.cache
def smoke_data(problem: str) -> tuple[ProblemData, ...]:
    """Smoke instances of a problem; those of the other scenario problem fit as well."""
    scenarios = ("placement", "replication")
    kin = scenarios if problem in scenarios else (problem,)
    return tuple(
        prepare(read_instance(path), problem) for path in SMOKE if path.stem.split("_")[1] in kin
    )
