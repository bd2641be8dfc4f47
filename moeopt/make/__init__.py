"""Recipes that make instances from public traces.

``make("gpt-oss-20b", data_dir, out_dir)`` is what ``moeopt instance make gpt-oss-20b --data DIR
-o OUT`` calls. Every recipe names the public repositories that it reads (:class:`Source`).
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from moeopt.errors import InputError
from moeopt.instance import read_instance_file
from moeopt.make import (
    affinity,
    dbrx,
    deepseek_topology,
    deepseek_v2_lite,
    deepseek_v2_lite_activation,
    deepseek_v2_lite_topology,
    deepseek_v3,
    gpt_oss,
    gpt_oss_activation,
    gpt_oss_steady,
    mixtral,
    paging,
    tasks,
)
from moeopt.make.files import json_bytes, npz_bytes
from moeopt.make.recipe import Bundle, Recipe, Source

__all__ = ["RECIPES", "Bundle", "Recipe", "Source", "make"]

RECIPES: dict[str, Recipe] = {
    module.RECIPE.name: module.RECIPE
    for module in (
        gpt_oss,
        gpt_oss_steady,
        gpt_oss_activation,
        deepseek_v2_lite,
        deepseek_v2_lite_activation,
        mixtral,
        tasks,
        dbrx,
        deepseek_v3,
        paging,
        affinity,
        deepseek_topology,
        deepseek_v2_lite_topology,
    )
}


def make(
    recipe: str,
    data_dir: Path | None,
    out_dir: Path,
    *,
    force: bool = False,
    **options: int,
) -> list[Path]:
    """Make the instances of a recipe.

    Parameters
    ----------
    recipe : str
        A name in :data:`RECIPES`.
    data_dir : Path or None
        Folder with the sources' folders (``Recipe.sources``); None for synthetic recipes.
    out_dir : Path
        Made if needed. The same recipe and data always give the same bytes.
    force : bool
        Replace files that exist with other contents.
    **options
        See ``Recipe.options``.

    Returns
    -------
    list of Path
        The instances, in the order in which they are made.

    Raises
    ------
    InputError
        Unknown recipe or option, missing or damaged raw data, a file in the way, or a result that
        is not a valid instance.
    """
    if recipe not in RECIPES:
        raise InputError(f"there is no recipe {recipe!r}; there are: {', '.join(RECIPES)}")
    unknown = [name for name in options if name not in RECIPES[recipe].options]
    if unknown:
        known = ", ".join(RECIPES[recipe].options) or "none"
        raise InputError([f"recipe {recipe}: no option {n!r}; it has: {known}" for n in unknown])
    contents = _contents(RECIPES[recipe].build(data_dir, **options))
    if not force:
        _refuse_to_replace(contents, out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    # All files are written and read back beside their destination first: all appear, or none.
    with tempfile.TemporaryDirectory(dir=out_dir, prefix=".make-") as scratch:
        for name, data in contents.items():
            (Path(scratch) / name).write_bytes(data)
        instances = [name for name in contents if name.endswith(".json")]
        for name in instances:
            read_instance_file(Path(scratch) / name)
        for name in contents:
            os.replace(Path(scratch) / name, out_dir / name)
    return [out_dir / name for name in instances]


def _contents(bundles: list[Bundle]) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    for bundle in bundles:
        arrays_sha256 = None
        if bundle.arrays_file is not None:
            contents[bundle.arrays_file] = npz_bytes(bundle.arrays)
            arrays_sha256 = hashlib.sha256(contents[bundle.arrays_file]).hexdigest()
        for document in bundle.documents:
            whole = {**document, "arrays": bundle.arrays_file, "arrays_sha256": arrays_sha256}
            contents[f"{document['name']}.json"] = json_bytes(whole)
    return contents


def _refuse_to_replace(contents: dict[str, bytes], out_dir: Path) -> None:
    other = [
        out_dir / name
        for name, data in contents.items()
        if (out_dir / name).exists() and (out_dir / name).read_bytes() != data
    ]
    if other:
        raise InputError(
            [f"{path}: exists with other contents (force replaces it)" for path in other]
        )
