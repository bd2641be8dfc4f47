"""``instance make``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moeopt.commands.arguments import ForceOpt
from moeopt.files import require_folder


def instance_make(
    recipe: Annotated[str, typer.Argument(help="A recipe; `list` shows them all.")],
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder that holds the sources' folders.")
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write to.")] = Path("."),
    force: ForceOpt = False,
) -> None:
    """Make instance files from public traces, as the shipped ones were made."""
    from moeopt.make import RECIPES, make
    from moeopt.summary import print_rows

    if recipe == "list":
        print_rows([{"recipe": name, "makes": r.summary} for name, r in RECIPES.items()])
        return
    require_folder(output)
    for path in make(recipe, data, output, force=force):
        print(path)
