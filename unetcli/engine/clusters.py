"""Start the executor that ``--cluster`` and its options ask for, and end what an earlier launch left running."""

from __future__ import annotations

import logging
import math
import os
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unetcli.core.errors import UnetcliError, counted, require_no_warnings, warn
from unetcli.core.files import Place, remove_aside
from unetcli.engine.runfolder import RunFolder
from unetcli.engine.step import Step
from unetcli.engine.workers import await_workers
from unetcli.executors.contract import Executor, InProcess, JobFailure
from unetcli.executors.options import ClusterOptions, slurm_request, unencrypted
from unetcli.executors.slurm.executor import SlurmExecutor
from unetcli.executors.slurm.journal import JobJournal, submit_jobs
from unetcli.executors.slurm.request import (
    SlurmError,
    SlurmRequest,
    call,
    jobs_named,
    require_log_folder,
    would_start,
)
from unetcli.executors.slurm.watch import ENDED, JobWatch, squeue

log = logging.getLogger(__name__)

DASK_WORKERS = 8
"""Default number of worker jobs of a Dask cluster on SLURM."""
GIB = 2**30
SECONDS_TO_FINISH = 120.0
"""Time to wait for workers of a killed launcher to finish their current block."""
SECONDS_TO_LEAVE = 20.0
"""Time for worker jobs to end after their scheduler has ended; then they are cancelled."""


@contextmanager
def executor_for(where: ClusterOptions, step: Step) -> Iterator[Executor]:
    """Provide the requested executor; everything it started ends with the context, except a SLURM array."""
    if where.cluster == "slurm":
        request, blocks = job_request(where, step)
        yield SlurmExecutor(request=request, blocks_per_job=blocks, detach=where.detach)
    elif where.cluster == "dask":
        with dask_on_scheduler(where, step) if where.scheduler else dask_on_slurm(where, step) as executor:
            yield executor
    else:
        with local_executor(where, step) as executor:
            yield executor


def job_request(where: ClusterOptions, step: Step) -> tuple[SlurmRequest, int]:
    """Return the SLURM request of each job, with estimated memory unless given, and the number of blocks per job."""
    asked = slurm_request(where)
    needed = step.resources(asked)
    given = asked.mem or any(name.startswith("mem-per-") for name, _ in asked.extra)
    memory = f"{math.ceil(needed.host_bytes / GIB)}G"
    return asked if given else replace(asked, mem=memory), asked.blocks_per_job or needed.blocks


def detached_jobs(executor: Executor) -> list[str]:
    """Return the SLURM jobs that an executor has started and does not wait for."""
    return executor.jobs if isinstance(executor, SlurmExecutor) and executor.detach else []


@contextmanager
def local_executor(where: ClusterOptions, step: Step) -> Iterator[Executor]:
    """Run in this process, or in several local ones if there are several GPUs or ``--workers`` is given."""
    gpus = visible_gpus() if step.every_gpu else []
    count = where.workers or max(1, len(gpus))
    if count == 1:
        yield InProcess()
        return
    from unetcli.executors.dask.cluster import local_workers
    from unetcli.executors.dask.executor import DaskExecutor

    log.info("%d local worker processes%s", count, f" on {len(gpus)} GPUs" if gpus else "")
    with local_workers(step.folder.path, count, gpus=gpus) as cluster:
        yield DaskExecutor(cluster)


def visible_gpus() -> list[str]:
    """Return a value of ``CUDA_VISIBLE_DEVICES`` for each GPU that this process sees."""
    import torch

    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    return shown.split(",") if shown else [str(number) for number in range(torch.cuda.device_count())]


@contextmanager
def dask_on_scheduler(where: ClusterOptions, step: Step) -> Iterator[Executor]:
    """Run on the workers of an existing Dask scheduler."""
    from unetcli.executors.dask.cluster import existing_scheduler
    from unetcli.executors.dask.executor import DaskExecutor

    assert where.scheduler is not None
    with existing_scheduler(where.scheduler, step.folder.path, where.tls) as cluster:
        yield DaskExecutor(cluster)


@contextmanager
def dask_on_slurm(where: ClusterOptions, step: Step) -> Iterator[Executor]:
    """Run a Dask scheduler in this process, with workers as SLURM jobs."""
    from unetcli.executors.dask.cluster import own_scheduler
    from unetcli.executors.dask.executor import DaskExecutor

    request, _ = job_request(where, step)
    count = min(where.workers or request.max_running or DASK_WORKERS, max(len(stage.blocks) for stage in step.stages))
    jobs = WorkerJobs(request, step.folder)
    log.info("a Dask scheduler in this process, %s on SLURM", counted(count, "worker job"))
    try:
        with own_scheduler(step.folder.path, jobs.launch, jobs.ended, count) as cluster:
            yield DaskExecutor(cluster)
    finally:
        jobs.end()


@dataclass
class WorkerJobs:
    """Dask workers as SLURM jobs. Their names are stored before they are submitted, so that none can be left behind."""

    request: SlurmRequest
    folder: RunFolder
    watch: JobWatch = field(default_factory=lambda: JobWatch([]))

    @property
    def file(self) -> Path:
        return self.folder.dask_jobs_file

    def launch(self, function: Callable[..., None], arguments: Sequence[Any], count: int) -> list[str]:
        name = f"unetcli-dask-{secrets.token_hex(6)}"
        with self.file.open("a") as file:
            file.write(f"{name}\n")
        logs = self.folder.logs / "slurm"
        jobs = submit_jobs(self.request, logs, function, [tuple(arguments)] * count, name=name)
        self.watch.add(jobs)
        return jobs

    def ended(self) -> list[JobFailure]:
        return [JobFailure(job=end.job, host=end.host, reason=end.reason) for end in self.watch.poll()]

    def end(self) -> None:
        """Wait for the jobs to end with their scheduler; cancel those that are queued or do not end in time."""
        deadline = time.monotonic() + SECONDS_TO_LEAVE
        try:
            while known := {job: now for job, now in squeue(self.watch.states).items() if now.state not in ENDED}:
                waiting = [job for job, now in known.items() if now.state == "PENDING"]
                cancel_jobs(list(known) if time.monotonic() > deadline else waiting)
                if time.monotonic() > deadline:
                    break
                time.sleep(1)
            self.file.unlink(missing_ok=True)
        except SlurmError as error:
            log.warning("cannot find out whether the worker jobs have ended: %s", error)

    def sweep(self) -> None:
        """Cancel the worker jobs that a killed launcher left."""
        if self.file.exists():
            for name in self.file.read_text().split():
                cancel_jobs(jobs_named(name))
            self.file.unlink()


def cancel_jobs(jobs: Sequence[str]) -> None:
    """Cancel single jobs, not their whole arrays."""
    if jobs:
        call("scancel", *jobs)


def live_jobs(folder: RunFolder) -> list[str]:
    """Return the SLURM jobs of earlier launchers that are queued or running."""
    return [job for submission in JobJournal(folder.path).live() for job in submission.open_jobs]


def end_earlier_launch(folder: RunFolder, attached: Collection[str]) -> int:
    """End the workers of a killed launcher, except those of jobs in ``attached``.

    Returns the number of workers that may still be running.
    """
    WorkerJobs(SlurmRequest(), folder).sweep()
    remove_aside(folder.tls)
    if left := await_workers(folder, attached, SECONDS_TO_FINISH):
        log.warning("an earlier launch left %s running; blocks may be computed twice", counted(left, "worker"))
    return left


def require_accepted(where: ClusterOptions, folder: Path, *, needed: bool) -> None:
    """Raise, before anything is written, if SLURM would reject the jobs, or no scheduler answers, that are needed.

    ``folder`` is the one that the logs of jobs are written to.
    """
    if needed and where.needs_slurm:
        require_log_folder(folder)
        would_start(slurm_request(where).options())
    elif needed and where.cluster == "dask" and where.scheduler:
        from unetcli.executors.dask.cluster import require_scheduler

        if (text := unencrypted(where.scheduler)) is not None:
            warn(text)
            require_no_warnings()
        require_scheduler(where.scheduler, where.tls)


def require_no_live_jobs(output: Place, *folders: RunFolder) -> None:
    """Raise if SLURM jobs of an earlier launcher, found in one of the run folders, use an output."""
    if jobs := [job for folder in folders for job in live_jobs(folder)]:
        arrays = " ".join(sorted({job.partition("_")[0] for job in jobs}))
        raise UnetcliError(
            f"{output}: in use by {counted(len(jobs), 'SLURM job')}; "
            f"wait with --cluster slurm, or cancel with `scancel {arrays}`"
        )
