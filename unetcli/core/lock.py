"""An exclusively created lock file that says who holds it; broken only when that process is provably gone."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from unetcli.core.errors import UnetcliError
from unetcli.core.files import publish

WAIT_SECONDS = 0.1
"""Between two looks at a lock that is waited for."""


class InUse(UnetcliError):
    """Another process holds the lock and is not provably gone."""


@contextmanager
def hold(path: Path, *, take_over: bool = False, wait: float = 0) -> Iterator[None]:
    """Hold the lock at ``path``; its folder exists.

    Parameters
    ----------
    wait : seconds
        How long another holder that may be alive is waited for.

    Raises
    ------
    InUse
        Another process holds it and is not provably gone.
    """
    mine, deadline = Holder.myself(), time.monotonic() + wait
    while not publish(path, json.dumps(asdict(mine))):
        try:
            _break(path, take_over)
        except InUse:
            if time.monotonic() > deadline:
                raise
            time.sleep(WAIT_SECONDS)
    try:
        yield
    finally:
        # Where the disk became read-only the lock stays; its holder is gone by then, which the next one sees.
        with suppress(OSError), _guard(path):
            if _holder(path) == mine:
                path.unlink()


def require_free(path: Path, *, take_over: bool = False) -> None:
    """Raise as :func:`hold` would where another process holds the lock at ``path``; a dead one's is removed."""
    if path.exists():
        _break(path, take_over)


def holding_job(path: Path) -> str | None:
    """The SLURM job of the process that holds the lock at ``path``, ``-`` outside of any; None where it is free."""
    holder = _holder(path)
    return holder.job if holder else None


def _break(path: Path, take_over: bool) -> None:
    """Remove the lock of a process that is gone; raise where it may be alive."""
    with _guard(path):  # between looking and removing, nobody else may break and take the lock
        if not path.exists():
            return  # given back meanwhile; from here on it may be another's, so nothing is removed
        holder = _holder(path)
        if holder and not take_over and not holder.is_gone():
            raise InUse(
                f"{path.parent}: in use by another unetcli (host {holder.host}, pid {holder.pid}, job {holder.job}); "
                f"wait for it; if it is surely dead, --take-over"
            )
        path.unlink(missing_ok=True)


def _holder(path: Path) -> Holder | None:
    try:
        return Holder(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


@contextmanager
def _guard(path: Path) -> Iterator[None]:
    with path.with_name(path.name + ".guard").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds a lock, told so that a dead process is recognised and a reused pid is not taken for it."""

    host: str
    boot: str
    namespace: str
    pid: int
    started: str
    job: str
    restarts: int
    """How often SLURM requeued the job before."""
    nonce: str

    @classmethod
    def myself(cls) -> Holder:
        return cls(
            **_machine(),
            pid=os.getpid(),
            started=_start_time(os.getpid()),
            job=job_id(),
            restarts=_restarts(),
            nonce=secrets.token_hex(8),
        )

    def is_gone(self) -> bool:
        """Whether the process has provably ended: only its own machine and pid namespace can tell."""
        if self.job != "-" and self.job == job_id() and self.restarts < _restarts():
            return True  # an earlier life of this very job
        here = _machine()
        if self.host != here["host"]:
            return False
        if self.boot != here["boot"]:
            return True
        return self.namespace == here["namespace"] and _start_time(self.pid) != self.started


def job_id() -> str:
    """The SLURM job this process runs in, ``-`` outside."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "-")


def _restarts() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


@cache
def _machine() -> dict[str, Any]:
    boot, namespace = "", ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - the link's text, not a path
    return {"host": socket.gethostname(), "boot": boot, "namespace": namespace}


def _start_time(pid: int) -> str:
    """Clock ticks from boot to the start of a process; empty where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]  # a zombie has ended
