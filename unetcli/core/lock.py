"""Lock files that are created exclusively, name their holder, and are broken only if its process is provably gone."""

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
from unetcli.core.records import MAX_DIGITS, OddFile, read_record

WAIT_SECONDS = 0.1
"""Interval at which a waiting process checks the lock, in seconds."""


class InUse(UnetcliError):
    """Another process, which is not provably gone, holds the lock."""


@contextmanager
def hold(path: Path, *, take_over: bool = False, wait: float = 0) -> Iterator[None]:
    """Hold the lock file ``path``, whose folder must exist, while the block runs.

    Parameters
    ----------
    take_over
        Whether to break the lock of a process that may be alive.
    wait : seconds
        Time to wait for another process that holds the lock.

    Raises
    ------
    InUse
        Another process, which is not provably gone, holds the lock.
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
        # If the disk has become read-only, the lock file stays; the next process finds that its holder is gone.
        with suppress(OSError), _guard(path):
            if _holder(path) == mine:
                path.unlink()


def require_free(path: Path, *, take_over: bool = False) -> None:
    """Raise :class:`InUse` if another process holds the lock ``path``; remove the lock of a dead process."""
    if path.exists():
        _break(path, take_over)


def holding_job(path: Path) -> str | None:
    """SLURM job of the process that holds the lock ``path``: ``-`` outside of jobs, None if the lock is free."""
    holder = _holder(path)
    return holder.job if holder else None


def _break(path: Path, take_over: bool) -> None:
    """Remove the lock of a process that is gone; raise :class:`InUse` if the process may be alive."""
    with _guard(path):  # no other process may break and take the lock between the check and the removal
        if not path.exists():
            return  # released meanwhile; another process may take it next, so nothing must be removed
        holder = _holder(path)
        if holder and not take_over and not holder.is_gone():
            raise InUse(
                f"{path.parent}: in use by another unetcli (host {holder.host}, pid {holder.pid}, job {holder.job}); "
                f"wait until it ends, or use --take-over if it is certainly dead"
            )
        path.unlink(missing_ok=True)


def _holder(path: Path) -> Holder | None:
    try:
        return read_record(path, Holder, "")
    except (FileNotFoundError, OddFile):
        return None


@contextmanager
def _guard(path: Path) -> Iterator[None]:
    with path.with_name(path.name + ".guard").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Holder of a lock, described well enough to recognise a dead process and a reused process id."""

    host: str
    boot: str
    namespace: str
    pid: int
    started: str
    job: str
    restarts: int
    """Number of times that SLURM requeued the job before."""
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
        """Whether the process has provably ended, which only its own machine and pid namespace can show."""
        if self.job != "-" and self.job == job_id() and self.restarts < _restarts():
            return True  # this same job, before it was requeued
        here = _machine()
        if self.host != here["host"]:
            return False
        if self.boot != here["boot"]:
            return True
        return self.namespace == here["namespace"] and _start_time(self.pid) != self.started


def job_id() -> str:
    """Id of the SLURM job that this process runs in; ``-`` outside of jobs."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "-")


def _restarts() -> int:
    count = os.environ.get("SLURM_RESTART_COUNT", "")
    return int(count) if count.isdecimal() and len(count) < MAX_DIGITS else 0


@cache
def _machine() -> dict[str, Any]:
    boot, namespace = "", ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - the link's text, not a path
    return {"host": socket.gethostname(), "boot": boot, "namespace": namespace}


def _start_time(pid: int) -> str:
    """Start time of a process in clock ticks since boot; empty if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]  # a zombie has ended
