"""Tables of the committed studies: ``python benchmarks/studies/tables.py`` writes ``tables/``.

Bounds as Markdown, LaTeX and CSV, comparison and gaps as Markdown, from the records alone.
"""

from __future__ import annotations

from pathlib import Path

from moeopt.report.bounds_table import bounds_tables
from moeopt.report.comparison_table import comparison_tables
from moeopt.report.formats import write_tables
from moeopt.report.gaps_table import gaps_tables
from moeopt.study.results import read_results

HERE = Path(__file__).parent
#: Significant digits of bounds, so that a table of many formulations can still be read.
DIGITS = 6


def main() -> None:
    """Write every table of every study that lies here."""
    folder = HERE / "tables"
    folder.mkdir(exist_ok=True)
    for file in sorted(HERE.glob("*.toml")):
        found = read_results(file)
        bounds = bounds_tables(found, DIGITS)
        texts = {
            "bounds.md": write_tables(bounds, "markdown"),
            "bounds.tex": write_tables(bounds, "latex"),
            "bounds.csv": write_tables(bounds, "csv"),
            "comparison.md": write_tables(comparison_tables(found), "markdown"),
            "gaps.md": write_tables(gaps_tables(found), "markdown"),
        }
        for ending, text in texts.items():
            (folder / f"{file.stem}_{ending}").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
