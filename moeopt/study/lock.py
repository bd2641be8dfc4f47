"""The lock of a store: one run at a time, also on a file system that several machines share.

A lock is a file that is created only where there is none (``O_EXCL``), with the owner's host,
process and time. It is stale when its process is gone (same host), or when nobody has touched it
for ten minutes (another host). File locks of the system would not do: many shared file systems
ignore them.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from moeopt.errors import InputError
from moeopt.study.store import StoreError

#: Seconds between two signs of life of the owner, and after how many it is taken for gone.
HEARTBEAT_S = 30.0
STALE_AFTER_S = 600.0


def lock_name(shard: tuple[int, int] | None) -> str:
    """Return the name of a lock: shards of one partition may run at the same time."""
    return "study.lock" if shard is None else f"study.{shard[0]}of{shard[1]}.lock"


class StudyLock:
    """Hold the lock of a store (or of a shard of it) while in the ``with`` block.

    Raises
    ------
    InputError
        Another run holds it, or one that overlaps: with who, where and since when.
    """

    def __init__(self, folder: Path, shard: tuple[int, int] | None = None) -> None:
        self.folder, self.shard = folder, shard
        self.path = folder / lock_name(shard)
        self.token = secrets.token_hex(8)
        self._done = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> StudyLock:
        while not self._create():
            owner = _read(self.path)
            if owner is None:
                continue  # it went away, or is being written: look again
            if not _is_stale(self.path, owner):
                raise _held(self.path, owner)
            self._remove_stale(owner)
        for other in self._overlapping():
            owner = _read(other)
            if owner is not None and not _is_stale(other, owner):
                self.path.unlink(missing_ok=True)
                raise _held(other, owner)
        self._heart.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._heart.join()
        if self.is_ours():
            self.path.unlink(missing_ok=True)

    def is_ours(self) -> bool:
        """Whether the file still is the one that was created here."""
        owner = _read(self.path)
        return owner is not None and owner.get("token") == self.token

    def _create(self) -> bool:
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be made: {error.strerror}") from None
        content = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process_began": psutil.Process().create_time(),
            "time": time.strftime("%Y-%m-%d %H:%M:%S"),
            "token": self.token,
        }
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(json.dumps(content) + "\n")
        return True

    def _remove_stale(self, owner: dict[str, Any]) -> None:
        aside = self.path.with_name(f".{self.path.name}.{self.token}")
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            return  # somebody else has removed it
        taken = _read(aside)
        if taken is not None and taken != owner:
            # Not the stale one: between reading and renaming, another run took its place.
            with contextlib.suppress(FileExistsError):  # a third one is here already
                os.link(aside, self.path)
        aside.unlink()

    def _overlapping(self) -> list[Path]:
        """Locks of the same store that this one cannot share it with."""
        shards = [p for p in self.folder.glob("study*.lock") if p != self.path]
        if self.shard is None:
            return shards
        return [p for p in shards if not p.name.endswith(f"of{self.shard[1]}.lock")]

    def _beat(self) -> None:
        while not self._done.wait(HEARTBEAT_S):
            if self.is_ours():
                os.utime(self.path)


def _read(path: Path) -> dict[str, Any] | None:
    """Return what a lock says; None where there is none. A lock half written says nothing yet."""
    try:
        text = path.read_text(encoding="utf-8")
        return dict(json.loads(text)) if text else {}
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, ValueError, TypeError):
        return {}


def _is_stale(path: Path, owner: dict[str, Any]) -> bool:
    if owner.get("host") == socket.gethostname() and "pid" in owner:
        try:
            # A number used again is another process: it began at another time.
            began = psutil.Process(int(owner["pid"])).create_time()
        except psutil.NoSuchProcess:
            return True
        return abs(began - float(owner.get("process_began", began))) > 1.0
    return _age_s(path) > STALE_AFTER_S


def _age_s(path: Path) -> float:
    """Seconds since a file was touched, by the clock of its file system."""
    probe = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0  # the lock went away: look again
    finally:
        probe.unlink(missing_ok=True)


def _held(path: Path, owner: dict[str, Any]) -> InputError:
    who = f"process {owner.get('pid', '?')} on {owner.get('host', '?')}, {owner.get('time', '?')}"
    return InputError(
        f"{path}: another run holds these results ({who}); wait for it, or, if it is surely gone, "
        "delete that file"
    )
