"""What users install: the wheel holds the whole tree and solves a shipped instance."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # The build backend is installed here already: nothing is fetched.
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(folder)]
    done = subprocess.run(
        [*command, str(ROOT)], capture_output=True, text=True, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


def _tree():
    """Files that must be in the wheel, by their place in it."""
    found = set()
    for source, target in (("moeopt", "moeopt"), ("models", "moeopt/models")):
        for path in (ROOT / source).rglob("*.py"):
            found.add(f"{target}/{path.relative_to(ROOT / source).as_posix()}")
    for path in (ROOT / "instances").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            found.add(f"moeopt/instances/{path.relative_to(ROOT / 'instances').as_posix()}")
    templates = (ROOT / "moeopt" / "report" / "templates").iterdir()
    found |= {f"moeopt/report/templates/{path.name}" for path in templates}
    return found | {"moeopt/py.typed"}


def test_wheel_holds_the_whole_tree(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert _tree() <= names
    inside = {name for name in names if name.startswith("moeopt/")}
    assert inside <= _tree(), "something that is not in the tree"


def test_wheel_works_elsewhere(wheel, tmp_path):
    """Installed without the checkout; its dependencies are those of this environment."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    site = next((home / "lib").glob("python*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    dependencies = [p for p in sys.path if p.endswith("site-packages")]
    links = [f"import sys; sys.path.append({path!r})" for path in dependencies]
    (site / "dependencies.pth").write_text("\n".join(links) + "\n")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    where = subprocess.run(
        [python, "-c", "import moeopt, moeopt.models; print(moeopt.models.__file__)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=environment,
    ).stdout
    assert where.startswith(str(site))
    done = subprocess.run(
        [python, "-m", "moeopt", "solve", "smoke_joint_one_wave", "-p", "joint", "--json"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "optimal"
