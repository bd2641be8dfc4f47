"""What is refused before the work: outputs that cannot be written, limits that mean nothing."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest

from moeopt.cli import app, run
from moeopt.errors import InputError
from moeopt.files import require_folder, require_writable, write_bytes_atomic
from moeopt.limits import require_limits

#: There is no such instance, study or file: who looks for it first says so.
NONE = "none.json"
#: Commands that write a file, without the option that says where.
WRITERS = [
    ("solve", NONE, "-p", "placement", "-o"),
    ("solve", NONE, "-p", "placement", "--log"),
    ("mps", NONE, "-p", "placement", "-f", "placement_assignment", "-o"),
    ("balance", NONE, "--gpus", "2", "--slots", "4", "-o"),
    ("calibrate", NONE, "-o"),
    ("grace", NONE, "--instance", NONE, "-o"),
    ("export", NONE, NONE, "--to", "sglang", "-o"),
    ("import", NONE, NONE, "--from", "sglang", "-o"),
    ("export-records", NONE, "-o"),
    ("table", NONE, "-o"),
    ("report", NONE, "-o"),
    ("instance", "topology", NONE, "--graph", "racks:2x2", "-o"),
    ("front", NONE, "--plot"),
    ("activation", NONE, "--plot"),
    ("paging", NONE, "--plot"),
    ("plot", NONE, NONE, "-o"),
    ("trace", "import", NONE, "--from", "csv", "-o"),
    ("trace", "show", "gpt-oss-20b", "--plot"),
]
#: Commands that write into a folder.
FOLDERS = [
    ("instance", "make", "dbrx", "--data", NONE, "-o"),
    ("instance", "make", "--gpu", NONE, "--moe", NONE, "-o"),
    ("instance", "sample", NONE, "--trace", NONE, "--batch", "1", "-o"),
]


def moeopt(*arguments: object) -> int:
    return run(lambda: app([str(a) for a in arguments]))


def errors(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    assert moeopt(*arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert all(line.startswith("error: ") for line in lines), lines
    return [line.removeprefix("error: ") for line in lines]


def target(folder: Path, command: tuple[str, ...]) -> Path:
    """Name an output that the command would take by its ending."""
    ending = {"--plot": ".svg", "plot": ".svg", "-o": ".json", "--log": ".log"}
    return folder / f"out{ending[command[0] if command[0] == 'plot' else command[-1]]}"


@pytest.mark.parametrize("command", WRITERS, ids=" ".join)
def test_an_output_that_cannot_be_written_is_refused_first(
    command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = target(tmp_path, command)
    path.mkdir()
    line = f"{path}: is a folder, not a file"
    assert errors(capsys, *command, path, "--force") == [line]
    missing = target(tmp_path / "missing", command)
    line = f"{missing}: there is no folder {missing.parent}"
    assert errors(capsys, *command, missing) == [line]


@pytest.mark.parametrize("command", FOLDERS, ids=" ".join)
def test_a_folder_that_cannot_be_written_is_refused_first(
    command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        line = f"{tmp_path / 'file'}: is a file, not a folder"
        assert errors(capsys, *command, folder) == [line]


def test_a_folder_without_rights_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, **more: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    require_writable(tmp_path / "new.json")
    require_folder(tmp_path / "new" / "folder")
    assert list(tmp_path.iterdir()) == []  # nothing of the trial is left
    with pytest.raises(InputError, match="cannot be written: File name too long"):
        require_writable(tmp_path / ("x" * 300))
    monkeypatch.setattr(Path, "touch", refused)
    for require in (require_writable, require_folder):
        with pytest.raises(InputError, match="new: cannot be written: Permission denied"):
            require(tmp_path / "new")


def test_devices_and_pipes_are_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is a device or pipe"):
        require_writable(tmp_path / "pipe", force=True)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc here")
def test_a_file_system_that_takes_no_files(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = errors(capsys, "solve", NONE, "-p", "placement", "-o", "/proc/plan.json")
    assert line.startswith("/proc/plan.json: cannot be written: ")


def unwritable(path: object, raw: bytes, *, force: bool = False) -> None:
    raise InputError(f"{path}: cannot be written: No space left on device")


def test_a_result_that_cannot_be_written_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moeopt.solution.write_bytes_atomic", unwritable)
    monkeypatch.setattr("moeopt.commands.paging.write_bytes_atomic", unwritable)
    plan, figure = tmp_path / "plan.json", tmp_path / "misses.svg"
    assert moeopt("solve", "smoke_paging_top1", "-p", "paging", "-o", plan) == 2
    printed = capsys.readouterr()
    assert "upper bound" in printed.out
    assert "written to" not in printed.out
    assert printed.err.splitlines()[-1].startswith(f"error: {plan}: cannot be written")
    assert moeopt("paging", "smoke_paging_top1", "--plot", figure) == 2
    printed = capsys.readouterr()
    assert "optimum" in printed.out
    assert printed.err.splitlines()[-1].startswith(f"error: {figure}: cannot be written")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("solve", NONE, "-p", "placement", "-t", "0"), "time limit must be positive, not 0 s"),
        (("solve", NONE, "-p", "placement", "-t", "nan"), "time limit must be positive, not nan s"),
        (("solve", NONE, "-p", "joint", "--memory-limit", "0"), "memory limit must be positive"),
        (("solve", NONE, "-p", "joint", "--memory-limit=-1"), "not -1 MiB"),
        (("bound", NONE, "-p", "placement", "-t", "0"), "time limit must be positive"),
        (("bound", NONE, "-p", "placement", "-t", "-1"), "not -1 s"),
        (("bound", NONE, "-p", "placement", "--memory-limit", "nan"), "not nan MiB"),
        (("compare", NONE, "-p", "placement", "-t", "0"), "time limit must be positive"),
        (("front", NONE, "-t", "0"), "time limit must be positive"),
        (("sensitivity", NONE, "-t", "-5"), "time limit must be positive, not -5 s"),
        (("activation", NONE, "--front", "-t", "0"), "time limit must be positive"),
    ],
)
def test_limits_that_mean_nothing_are_refused_first(
    arguments: tuple[str, ...], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = errors(capsys, *arguments)
    assert line in found


def test_each_limit_has_its_line() -> None:
    require_limits(1e-3)
    require_limits(float("inf"), 1.0)
    with pytest.raises(InputError) as caught:
        require_limits(0.0, -1.0)
    assert len(caught.value.problems) == 2


def test_folders_are_called_so_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"{tmp_path}: is a folder, not a file"
    assert errors(capsys, "solve", tmp_path, "-p", "placement") == [words]
    assert errors(capsys, "check", "smoke_placement_unit", tmp_path) == [words]
    assert errors(capsys, "calibrate", tmp_path) == [words]
    folder = tmp_path / "loads.csv"
    folder.mkdir()
    words = f"{folder}: is a folder, not a file"
    assert errors(capsys, "balance", folder, "--gpus", "2", "--slots", "2") == [words]
    with pytest.raises(InputError, match="cannot be written: Is a directory"):
        write_bytes_atomic(folder, b"", force=True)


def test_archives_that_are_none_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace.npz"
    np.savez(path, load=np.ones((2, 3, 4)))
    whole = path.read_bytes()
    broken = whole[:200] + bytes(200) + whole[400:]  # in the middle of the array
    npy = io.BytesIO()
    np.save(npy, np.ones(3))
    for raw in (b"", b"PK\x03\x04 no zip", npy.getvalue(), whole[:-30], broken):
        path.write_bytes(raw)
        for command in (("trace", "show"), ("advise", "--gpus", "2", "--slots", "4")):
            (line,) = errors(capsys, *command, path)
            assert line.startswith(f"{path}: not an .npz file")
    path.unlink()
    path.mkdir()
    assert errors(capsys, "trace", "show", path) == [f"{path}: is a folder, not a file"]
