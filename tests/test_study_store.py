"""The store: whole records or none, an index that is never wrong, one run at a time."""

from __future__ import annotations

import errno
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from study_cases import QUICK, write_study

from moeopt import files
from moeopt.errors import InputError
from moeopt.study import cell as cell_module
from moeopt.study import lock as lock_module
from moeopt.study.batch import prepare_batch
from moeopt.study.cell import CellJob, failure, run_cell
from moeopt.study.index import INDEX_FILE, read_records, read_statuses, refresh_index
from moeopt.study.lock import StudyLock
from moeopt.study.results import read_results
from moeopt.study.store import HEAD_FILE, Store, StoreError


def jobs_of(study: Path, store: Store) -> list[CellJob]:
    return [CellJob.of(planned, store) for planned in prepare_batch(study).cells]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path, QUICK, seeds=[0, 1, 2])


@pytest.fixture
def store(study: Path) -> Store:
    """Three quick cells, finished."""
    made = Store(study.with_suffix(".results"))
    made.create()
    for job in jobs_of(study, made):
        made.begin(job.key)
        run_cell(job, lambda *_: None)
    return made


# --- records -------------------------------------------------------------------------------------


def test_what_a_record_holds(study, store):
    results = read_results(study)
    assert [r.cell.seed for r in results.finished] == [0, 1, 2]
    record = results.finished[1].record
    assert record["key"] == results.finished[1].cell.key
    assert record["status"] == "infeasible"
    assert record["seed"] == 1
    assert record["machine"]["cores"] >= 1
    assert record["settings"]["time_limit_s"] == 60.0
    assert (results.name, results.title, results.file) == ("quick", "Quick cells", study)
    assert results.folder == store.folder


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_disk_full_leaves_what_was_there(study, store, monkeypatch, failing):
    job = jobs_of(study, store)[0]
    path = store.record_path(job.key)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if failing == "fsync":
        monkeypatch.setattr(files.os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StoreError, match="No space left on device"):
        run_cell(job, lambda *_: None)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []


def test_errors_of_a_cell_become_a_record(study, store, monkeypatch):
    job = jobs_of(study, store)[0]

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(cell_module, "solve", broken)
    run_cell(job, lambda *_: None)
    record = store.read_record(store.record_path(job.key))
    assert record["status"] == "error"
    assert record["notes"] == ["ZeroDivisionError: a bug"]
    results = read_results(study)
    assert [r.cell.key for r in results.failed] == [job.key]
    assert len(results.finished) == 2


def test_an_instance_that_changes_while_the_study_runs_is_an_error(study, store):
    job = jobs_of(study, store)[0]
    changed = CellJob(**job.as_dict() | {"instance_sha256": "0" * 64})
    run_cell(changed, lambda *_: None)
    record = store.read_record(store.record_path(job.key))
    assert record["status"] == "error"
    assert "changed since the study was started" in record["notes"][0]


def test_a_newer_version_and_another_folder_are_refused(study, store):
    head = store.folder / HEAD_FILE
    head.write_text('{"schema": "moeopt-study-store/2"}')
    with pytest.raises(InputError, match=r"moeopt-study-store/2.*use a newer moeopt"):
        read_results(study)
    with pytest.raises(InputError, match="not a store of results"):
        read_results(study, results=store.cells)
    head.unlink()
    with pytest.raises(InputError, match="not a store of results"):
        Store(store.folder)


def test_a_store_that_another_shard_is_making_is_no_other_folder(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / f".{HEAD_FILE}.12345678").write_text("{")
    store = Store(folder)
    store.create()
    store.create()
    assert read_records(store) == {}


def test_leftovers_of_killed_writers_are_removed_when_old(store):
    folder = store.cells / "00"
    folder.mkdir(exist_ok=True)
    old, new = folder / ".a.json.1234", folder / ".b.json.1234"
    for path in (old, new):
        path.write_text("half")
    os.utime(old, (time.time() - 7200,) * 2)
    store.remove_leftovers()
    assert not old.exists()
    assert new.exists()  # perhaps a shard on another machine is writing it
    assert len(read_records(store)) == 3


def test_results_of_other_versions_are_used_and_named(study, store):
    job = jobs_of(study, store)[2]
    record = store.read_record(store.record_path(job.key))
    other = job.key[:32] + "0" * 32
    text = json.dumps(record | {"key": other, "moeopt_version": "0.0.9"})
    (store.cell_folder(other) / f"{other}.json").write_text(text)
    assert read_results(study).outdated == []
    store.record_path(job.key).unlink()
    results = read_results(study)
    assert [r.record["moeopt_version"] for r in results.outdated] == ["0.0.9"]
    assert len(results.finished) == 3
    assert results.finished[2] == results.outdated[0]
    # A run does not count it: the other version might find something else.
    assert [p.cell.key for p in prepare_batch(study).waiting] == [job.key]


# --- index ---------------------------------------------------------------------------------------


def test_index_follows_the_records(study, store):
    jobs = jobs_of(study, store)
    assert set(read_statuses(store).values()) == {"infeasible"}
    index = store.folder / INDEX_FILE
    stamp = index.stat().st_mtime_ns
    assert len(read_records(store)) == 3
    assert index.stat().st_mtime_ns == stamp  # nothing changed: not written again
    store.record_path(jobs[0].key).unlink()
    store.write(failure(jobs[1], "why"), None)
    assert read_statuses(store) == {jobs[1].key: "error", jobs[2].key: "infeasible"}
    with sqlite3.connect(index) as connection:
        query = "select seed, status from records where problem = 'replication' order by seed"
        assert connection.execute(query).fetchall() == [(1, "error"), (2, "infeasible")]


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\x00 cut"])
def test_a_broken_index_is_made_anew(store, content):
    before = read_records(store)
    (store.folder / INDEX_FILE).write_bytes(content)
    assert read_records(store) == before


def test_an_index_of_another_version_is_made_anew(store):
    before = read_records(store)
    with sqlite3.connect(store.folder / INDEX_FILE) as connection:
        connection.execute("delete from records")
        connection.execute("pragma user_version = 99")
    assert read_records(store) == before


def test_a_folder_that_cannot_be_written_is_read(store, monkeypatch):
    monkeypatch.setattr("moeopt.study.index.os.access", lambda *_: False)
    assert len(read_records(store)) == 3
    assert not (store.folder / INDEX_FILE).exists()


def test_a_record_that_cannot_be_read_is_named(study, store):
    path = store.record_path(jobs_of(study, store)[1].key)
    whole = path.read_text()
    path.write_text(whole[:100])
    with pytest.raises(InputError, match="not JSON") as caught:
        read_results(study)
    assert str(path) in str(caught.value)
    path.write_text(whole.replace("moeopt-record/1", "moeopt-record/2"))
    with pytest.raises(InputError, match="moeopt-record/2"):
        read_results(study)


def test_ten_thousand_cells_are_read_at_once(tmp_path):
    study = write_study(tmp_path, QUICK, seeds=list(range(10_000)))
    store = Store(study.with_suffix(".results"))
    store.create()
    batch = prepare_batch(study)
    record = failure(CellJob.of(batch.cells[0], store), "why").model_dump(by_alias=True)
    record |= {"status": "feasible", "trajectory": [[i / 7, 2.0, i / 50] for i in range(50)]}
    for planned in batch.cells:
        record |= {"key": planned.cell.key, "seed": planned.cell.seed}
        path = store.record_path(planned.cell.key)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(record))
    refresh_index(store).close()
    begin = time.process_time()
    results = read_results(study)
    reading_s = time.process_time() - begin
    assert len(results.finished) == 10_000
    begin = time.process_time()
    assert prepare_batch(study).waiting == []
    resuming_s = time.process_time() - begin
    assert reading_s <= 5.0
    assert resuming_s <= 5.0


# --- lock ----------------------------------------------------------------------------------------


def write_lock(path: Path, **fields: object) -> None:
    content = {"host": socket.gethostname(), "pid": os.getpid(), "time": "then", "token": "t"}
    content["process_began"] = psutil.Process().create_time()
    path.write_text(json.dumps(content | fields))


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_lock_is_held_and_given_back(tmp_path):
    with StudyLock(tmp_path) as lock:
        assert lock.is_ours()
        with pytest.raises(InputError, match=rf"process {os.getpid()} on .*delete that file"):
            StudyLock(tmp_path).__enter__()
        assert lock.is_ours()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "fields",
    [{"pid": dead_pid()}, {"process_began": 1.0}],
    ids=["the process is gone", "its number is used again"],
)
def test_a_stale_lock_of_this_host_is_taken_over(tmp_path, fields):
    write_lock(tmp_path / "study.lock", **fields)
    with StudyLock(tmp_path) as lock:
        assert lock.is_ours()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_of_another_host_is_stale_without_signs_of_life(tmp_path):
    path = tmp_path / "study.lock"
    write_lock(path, host="elsewhere", pid=1)
    with pytest.raises(InputError, match="process 1 on elsewhere"):
        StudyLock(tmp_path).__enter__()
    long_ago = time.time() - lock_module.STALE_AFTER_S - 60
    os.utime(path, (long_ago, long_ago))
    with StudyLock(tmp_path) as lock:
        assert lock.is_ours()


def test_an_owner_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_module, "HEARTBEAT_S", 0.02)
    with StudyLock(tmp_path) as lock:
        os.utime(lock.path, (1.0, 1.0))
        until = time.monotonic() + 10
        while lock.path.stat().st_mtime == 1.0 and time.monotonic() < until:
            time.sleep(0.01)
        assert lock.path.stat().st_mtime > 1.0


@pytest.mark.parametrize("content", ["", "{", '{"host": "x"}', "[]"])
def test_a_lock_that_says_nothing_is_held_until_it_is_old(tmp_path, content):
    path = tmp_path / "study.lock"
    path.write_text(content)
    with pytest.raises(InputError, match="another run holds"):
        StudyLock(tmp_path).__enter__()
    os.utime(path, (1.0, 1.0))
    with StudyLock(tmp_path) as lock:
        assert lock.is_ours()


def test_a_lock_taken_in_between_is_put_back(tmp_path):
    path = tmp_path / "study.lock"
    write_lock(path, token="live")
    StudyLock(tmp_path)._remove_stale({"token": "stale"})
    assert json.loads(path.read_text())["token"] == "live"
    assert list(tmp_path.iterdir()) == [path]


def test_shards_of_one_partition_run_side_by_side(tmp_path):
    with StudyLock(tmp_path, (1, 4)), StudyLock(tmp_path, (2, 4)):
        for other in (None, (1, 4), (1, 3), (1, 14)):
            with pytest.raises(InputError, match="another run holds"):
                StudyLock(tmp_path, other).__enter__()
    with (
        StudyLock(tmp_path),
        pytest.raises(InputError, match=r"study\.lock: another run holds"),
    ):
        StudyLock(tmp_path, (1, 4)).__enter__()
    assert list(tmp_path.iterdir()) == []
