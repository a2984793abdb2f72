"""From ``--cluster`` and its options to an executor that stands ready."""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unetcli.config import PredictRequest, Where
from unetcli.errors import UnetcliError
from unetcli.executors.contract import Executor, JobFailure
from unetcli.executors.local import InProcess
from unetcli.executors.slurm import SlurmExecutor, still_live
from unetcli.executors.slurm_commands import SlurmError, call, named
from unetcli.executors.slurm_jobs import JobBook
from unetcli.executors.slurm_request import SlurmRequest
from unetcli.executors.slurm_submit import submit_jobs
from unetcli.executors.slurm_watch import ENDED, JobWatch, squeue
from unetcli.run import Run
from unetcli.runfolder import RunFolder

log = logging.getLogger(__name__)

PROFILE = "UNETCLI_PROFILE"
DASK_WORKERS = 8
"""Worker jobs that a Dask cluster on SLURM has where nobody says how many."""
SECONDS_TO_LEAVE = 20.0
"""Worker jobs leave by themselves when their scheduler ends; after that long they are cancelled."""


def slurm_request(where: Where) -> SlurmRequest:
    """What is asked of SLURM: the profile of ``--profile`` or ``$UNETCLI_PROFILE``, and options over it."""
    named_profile = where.profile or (Path(os.environ[PROFILE]) if os.environ.get(PROFILE) else None)
    return SlurmRequest.load(named_profile, **where.slurm)


def with_machine(request: PredictRequest, where: Where) -> PredictRequest:
    """The request, planned for the machines that will run it, which may not be this one."""
    if where.cluster == "local":
        return replace(request, threads=threads_each(where.workers)) if where.workers else request
    if where.scheduler:
        return replace(request, elsewhere=True, threads=request.threads or 1)
    asked = slurm_request(where)
    device = request.device or ("cuda" if asked.wants_gpu else "cpu")
    return replace(request, elsewhere=True, device=device, threads=request.threads or asked.cpus_per_task or 1)


def threads_each(workers: int) -> int:
    """CPU threads for each of several processes here."""
    from unetcli.device import cpu_threads

    return max(1, cpu_threads() // workers)


@contextmanager
def executor_for(where: Where, run: Run) -> Iterator[Executor]:
    """The executor that was asked for; what it started ends with the block, except a SLURM array."""
    if where.cluster == "slurm":
        request = slurm_request(where)
        yield SlurmExecutor(
            request=request, blocks_per_job=request.blocks_per_job or blocks_per_job(run), detach=where.detach
        )
    elif where.cluster == "dask":
        with dask_on_scheduler(where, run) if where.scheduler else dask_on_slurm(where, run) as executor:
            yield executor
    else:
        with local_executor(where, run) as executor:
            yield executor


@contextmanager
def local_executor(where: Where, run: Run) -> Iterator[Executor]:
    """This process, or several here where there are several GPUs or ``--workers`` says so."""
    gpus = visible_gpus() if run.plan.choices.device == "cuda" and not run.request.device else []
    count = where.workers or max(1, len(gpus))
    if count == 1:
        yield InProcess()
        return
    from unetcli.executors.dask import DaskExecutor
    from unetcli.executors.dask_local import local_workers

    log.info("%d worker processes here%s", count, f" on {len(gpus)} GPUs" if gpus else "")
    with local_workers(run.folder.path, count, gpus=gpus) as cluster:
        yield DaskExecutor(cluster)


def visible_gpus() -> list[str]:
    """What to set ``CUDA_VISIBLE_DEVICES`` to, for each GPU that this process sees."""
    import torch

    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    return shown.split(",") if shown else [str(number) for number in range(torch.cuda.device_count())]


@contextmanager
def dask_on_scheduler(where: Where, run: Run) -> Iterator[Executor]:
    """Workers of a Dask scheduler that others started."""
    from unetcli.executors.dask import DaskExecutor
    from unetcli.executors.dask_cluster import existing_scheduler

    assert where.scheduler is not None
    with existing_scheduler(where.scheduler, run.folder.path, where.tls) as cluster:
        yield DaskExecutor(cluster)


@contextmanager
def dask_on_slurm(where: Where, run: Run) -> Iterator[Executor]:
    """A Dask scheduler here, and workers as SLURM jobs."""
    from unetcli.executors.dask import DaskExecutor
    from unetcli.executors.dask_cluster import own_scheduler

    request = slurm_request(where)
    count = min(where.workers or request.max_running or DASK_WORKERS, run.plan.blocks)
    jobs = WorkerJobs(request, run.folder)
    jobs.sweep()
    log.info("a Dask scheduler here, %d worker jobs on SLURM", count)
    try:
        with own_scheduler(run.folder.path, jobs.launch, jobs.ended, count) as cluster:
            yield DaskExecutor(cluster)
    finally:
        jobs.leave()


@dataclass
class WorkerJobs:
    """Dask workers as SLURM jobs. Their names are on file before they exist, so that none is ever left behind."""

    request: SlurmRequest
    folder: RunFolder
    watch: JobWatch = field(default_factory=lambda: JobWatch([]))

    @property
    def file(self) -> Path:
        return self.folder.path / "dask-jobs.txt"

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

    def leave(self) -> None:
        """Wait for the jobs to end with their scheduler; cancel those that wait in the queue, or stay."""
        deadline = time.monotonic() + SECONDS_TO_LEAVE
        try:
            while known := {job: told for job, told in squeue(self.watch.states).items() if told.state not in ENDED}:
                waiting = [job for job, told in known.items() if told.state == "PENDING"]
                cancel_jobs(list(known) if time.monotonic() > deadline else waiting)
                if time.monotonic() > deadline:
                    break
                time.sleep(1)
            self.file.unlink(missing_ok=True)
        except SlurmError as error:
            log.warning("cannot tell whether the worker jobs have ended: %s", error)

    def sweep(self) -> None:
        """Cancel what a killed launcher left."""
        if self.file.exists():
            for name in self.file.read_text().split():
                cancel_jobs(named(name))
            self.file.unlink()


def cancel_jobs(jobs: Sequence[str]) -> None:
    """End single jobs, not their whole arrays."""
    if jobs:
        call("scancel", *jobs)


def live_jobs(folder: RunFolder) -> list[str]:
    """SLURM jobs of an earlier launcher that wait or run."""
    book = JobBook(folder.path)
    return [job for submission in still_live(book) for job in submission.open_jobs] if book.file.exists() else []


def require_no_jobs(where: Where, run: Run) -> None:
    """Raise where SLURM jobs of an earlier launcher work on the output and this call would not attach to them."""
    if where.cluster == "slurm" or run.request.take_over:
        return
    if jobs := live_jobs(run.folder):
        arrays = " ".join(sorted({job.partition("_")[0] for job in jobs}))
        raise UnetcliError(
            f"{run.request.output_path}: {len(jobs)} SLURM jobs work on it; --cluster slurm waits for them, "
            f"`scancel {arrays}` ends them"
        )


def blocks_per_job(run: Run) -> int:
    """So many blocks that starting a job costs little, yet all jobs have work."""
    return max(1, -(-run.plan.blocks // 100))
