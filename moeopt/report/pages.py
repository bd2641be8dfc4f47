"""HTML from the templates of this package."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from moeopt.report.table import Table


def html_tables(tables: Sequence[Table]) -> str:
    """Return tables as sections of an HTML page, without a page around them."""
    return render("tables.html.j2", tables=tables)


def render(template: str, **values: Any) -> str:
    """Return a template of ``moeopt/report/templates`` with its values; texts are escaped."""
    environment = Environment(
        loader=PackageLoader("moeopt.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def read_asset(name: str) -> str:
    """Return a style sheet or script of ``moeopt/report/templates``."""
    return (files("moeopt.report") / "templates" / name).read_text(encoding="utf-8")
