"""A SLURM cluster of one machine and one node, from Debian's packages, for as long as a test."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

#: Debian: slurmctld, slurmd, slurm-client, munge.
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel")
_CONF = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
SlurmctldPort={ctld_port}
SlurmdPort={d_port}
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd.log
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Return why no cluster can be started here; None if it can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        return f"SLURM is not installed: no {', '.join(missing)}"
    return None if os.geteuid() == 0 else "starting a SLURM cluster needs root"


@contextlib.contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """Start a cluster; give the environment in which ``sbatch`` finds it."""
    # A socket's path may have some hundred characters: pytest's own folders are too deep.
    home = Path(tempfile.mkdtemp(prefix="slurm-"))
    home.chmod(0o755)
    env = os.environ | {"SLURM_CONF": str(home / "slurm.conf"), "PATH": _path()}
    ports = [_free_port() for _ in range(2)]
    conf = _CONF.format(
        host=socket.gethostname().split(".")[0], home=home, ctld_port=ports[0], d_port=ports[1]
    )
    (home / "slurm.conf").write_text(conf)
    (home / "cgroup.conf").write_text("CgroupAutomount=no\n")
    (home / "munge.key").write_bytes(secrets.token_bytes(128))
    (home / "munge.key").chmod(0o600)
    for folder in ("state", "spool"):
        (home / folder).mkdir()
    munge = [f"--{name}={home}/munge.{name}" for name in ("socket", "log-file", "seed-file")]
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for command in (
            ["munged", "-F", "--force", f"--key-file={home}/munge.key",
             f"--pid-file={home}/munge.pid", *munge],
            ["slurmctld", "-D", "-c"],
            ["slurmd", "-D"],
        ):  # fmt: skip
            with (home / f"{command[0]}.out").open("wb") as out:
                daemons.append(subprocess.Popen(command, env=env, stdout=out, stderr=out))
            time.sleep(0.5)
        _wait_for_node(env, home)
        yield env
    finally:
        subprocess.run(["scancel", "--full", "--user=root"], env=env, check=False)
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in daemons:
            daemon.wait(timeout=30)
        shutil.rmtree(home)


def wait_for_jobs(env: dict[str, str], timeout_s: float) -> None:
    """Wait until the queue is empty."""
    until = time.monotonic() + timeout_s
    while jobs := _said(["squeue", "--noheader"], env):
        assert time.monotonic() < until, jobs
        time.sleep(0.3)


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _said(command: list[str], env: dict[str, str]) -> str:
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip()


def _wait_for_node(env: dict[str, str], home: Path) -> None:
    until = time.monotonic() + 30
    while "idle" not in (state := _said(["sinfo", "--noheader"], env)):
        logs = "\n".join(path.read_text(errors="replace") for path in home.glob("*.out"))
        assert time.monotonic() < until, f"{state}\n{logs}"
        time.sleep(0.3)
