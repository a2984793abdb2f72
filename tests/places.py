"""Executors for tests, each on a cluster as users have it, and functions that report which blocks were processed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil
import pytest
from commands import start_server
from helpers import wait_for
from slurm.cluster import SlurmCluster, enter

from unetcli.core.ranges import Ranges
from unetcli.executors.contract import Executor, InProcess, JobFailure
from unetcli.executors.dask.cluster import existing_scheduler, local_workers
from unetcli.executors.dask.executor import DaskExecutor
from unetcli.executors.dask.worker import write_certificate
from unetcli.executors.options import ClusterOptions
from unetcli.executors.slurm.executor import SlurmExecutor
from unetcli.executors.slurm.request import SlurmRequest

SECONDS = 120.0
"""Time limit for waiting; it is long, as the machine may be busy."""
TESTS = str(Path(__file__).parent)
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [TESTS, *sys.path]))}

Place = Callable[[Path], AbstractContextManager[Executor]]


@contextmanager
def in_process(folder: Path) -> Iterator[Executor]:
    yield InProcess()


@contextmanager
def local(folder: Path) -> Iterator[Executor]:
    """Scheduler in this process, with two workers on this host."""
    with local_workers(folder, 2) as cluster:
        yield DaskExecutor(cluster)


@contextmanager
def existing(folder: Path) -> Iterator[Executor]:
    """Existing scheduler, with two workers that were started by ``unetcli worker``."""
    with site(folder, workers=2) as there, existing_scheduler(there.address, folder, there.tls) as cluster:
        yield DaskExecutor(cluster)


@contextmanager
def slurm(cluster: SlurmCluster, folder: Path) -> Iterator[Executor]:
    """Job arrays on a SLURM cluster."""
    with pytest.MonkeyPatch.context() as patch:
        enter(cluster, patch)
        yield SlurmExecutor(request=SlurmRequest(mem="200M"), blocks_per_job=40, every=0.5)
    cluster.cancel_all()


@dataclass
class Site:
    """A Dask scheduler process and its ``unetcli worker`` processes."""

    folder: Path
    tls: Path
    scheduler: subprocess.Popen[bytes]
    address: str
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start_worker(self, *words: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "unetcli", "worker", "--scheduler", self.address, "--tls", str(self.tls)]
        with (self.folder / f"site-worker-{len(self.workers)}.log").open("wb") as log:
            worker = subprocess.Popen([*command, *words], env=ENVIRONMENT, stdout=log, stderr=log)
        self.workers.append(worker)
        return worker


@contextmanager
def site(folder: Path, workers: int) -> Iterator[Site]:
    tls, file = folder / "certificate", folder / "scheduler.json"
    if not tls.exists():
        write_certificate(tls)
    file.unlink(missing_ok=True)
    words = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
    words += ["--protocol", "tls", "--tls-ca-file", str(tls / "certificate.pem")]
    words += ["--tls-cert", str(tls / "certificate.pem"), "--tls-key", str(tls / "key.pem")]
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", *words, "--scheduler-file", str(file)]
    with (folder / "site-scheduler.log").open("wb") as log:
        environment = ENVIRONMENT | {"DASK_TEMPORARY_DIRECTORY": str(folder / "site")}
        scheduler = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    there = None
    try:
        wait_for(lambda: scheduler.poll() is not None or (file.exists() and file.read_text()))
        there = Site(folder, tls, scheduler, json.loads(file.read_text())["address"])
        for _ in range(workers):
            there.start_worker()
        yield there
    finally:
        for process in [*(there.workers if there else []), scheduler]:
            process.terminate()
            process.wait(SECONDS)


HERE: dict[str, Place] = {"in-process": in_process, "local": local, "existing": existing}
"""Executors whose workers end with the launcher."""
PLACES = [*HERE, "slurm"]


@contextmanager
def two_processes(folder: Path) -> Iterator[ClusterOptions]:
    yield ClusterOptions(workers=2)


@contextmanager
def scheduler_of_others(folder: Path) -> Iterator[ClusterOptions]:
    with site(folder, workers=2) as there:
        yield ClusterOptions(cluster="dask", scheduler=there.address, tls=there.tls)


OPTIONS: dict[str, Callable[[Path], AbstractContextManager[ClusterOptions]]] = {
    "two processes": two_processes,
    "a scheduler of others": scheduler_of_others,
}
"""Options with which a step runs in processes that end with the launcher."""


def place_of(name: str, request: pytest.FixtureRequest) -> Place:
    """Return the place of that name; ``slurm`` uses the cluster that all tests of this process share."""
    return partial(slurm, request.getfixturevalue("slurm_cluster")) if name == "slurm" else HERE[name]


@contextmanager
def nothing_left(folder: Path) -> Iterator[None]:
    """Check that the block leaves no process, temporary file or certificate below the folder.

    Children of earlier processes are ignored, as the daemons of a SLURM cluster start and end some at any time.
    """
    start_server()  # the server of the tests, which would else start with the first command and stay
    temporary = folder / "tmp"
    temporary.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(temporary))
        patch.setitem(ENVIRONMENT, "TMPDIR", str(temporary))
        patch.setattr(tempfile, "tempdir", None)
        before = set(psutil.Process().children())
        yield
        try:
            wait_for(lambda: not set(psutil.Process().children()) - before)
        except TimeoutError as error:
            left = [process.cmdline() for process in set(psutil.Process().children()) - before]
            raise AssertionError(f"still running: {left}") from error
    assert list(temporary.iterdir()) == []
    assert list(folder.rglob("tls")) == []


def run(
    executor: Executor,
    folder: Path,
    blocks: Ranges,
    task: Callable[..., int] | None = None,
    *,
    tick: Callable[[], None] = lambda: None,
    stopping: Callable[[], bool] = bool,
    avoid: tuple[str, ...] = (),
) -> list[JobFailure]:
    import tasks

    return executor.run(task or tasks.write_files, folder, blocks, tick=tick, stopping=stopping, avoid=avoid)


def done(folder: Path) -> dict[int, int]:
    """Number of times that each block was processed."""
    return {
        int(path.stem.partition("-")[2]): len(path.read_text().splitlines()) for path in folder.glob("block-*.done")
    }


def begun(folder: Path) -> dict[int, list[int]]:
    """Ids of the processes that began each block."""
    found = {}
    for path in folder.glob("begun-*"):
        found[int(path.name.partition("-")[2])] = [int(line) for line in path.read_text().splitlines()]
    return found
