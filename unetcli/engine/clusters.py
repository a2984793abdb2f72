"""From ``--cluster`` and its options to an executor that stands ready."""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unetcli.config import Where
from unetcli.core.errors import UnetcliError
from unetcli.core.files import Place, remove_aside, replacing
from unetcli.engine.liveness import await_workers
from unetcli.engine.machines import slurm_request
from unetcli.engine.run import Run
from unetcli.engine.runfolder import RunFolder
from unetcli.executors.contract import Executor, InProcess, JobFailure
from unetcli.executors.slurm.commands import SlurmError, call, named, would_start
from unetcli.executors.slurm.executor import SlurmExecutor
from unetcli.executors.slurm.journal import JobJournal, submit_jobs
from unetcli.executors.slurm.request import SlurmRequest
from unetcli.executors.slurm.watch import ENDED, JobEnd, JobWatch, squeue
from unetcli.predict.preview import GIB, MEMORY_MARGIN, sizes

log = logging.getLogger(__name__)

DASK_WORKERS = 8
"""Worker jobs that a Dask cluster on SLURM has where nobody says how many."""
PROBE_TIME = "00:10:00"
SECONDS_TO_FINISH = 120.0
"""For workers of a killed launcher, at most, to finish the block at hand."""
SECONDS_TO_LEAVE = 20.0
"""Worker jobs leave by themselves when their scheduler ends; after that long they are cancelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What an executor has to know of the work that it will be given."""

    folder: RunFolder
    blocks: int
    sized: Callable[[], tuple[SlurmRequest, int]]
    """What each SLURM job asks for, and how many blocks it gets."""
    every_gpu: bool = False
    """Whether here each GPU gets a worker."""

    @classmethod
    def of(cls, where: Where, run: Run) -> Work:
        """The blocks of a prediction."""
        return cls(
            folder=run.folder,
            blocks=run.plan.blocks,
            sized=lambda: sized_request(where, run),
            every_gpu=run.plan.choices.device == "cuda" and not run.request.device,
        )


def executor_for(where: Where, run: Run) -> AbstractContextManager[Executor]:
    """The executor that was asked for, for a prediction; see :func:`executor_on`."""
    return executor_on(where, Work.of(where, run))


@contextmanager
def executor_on(where: Where, work: Work) -> Iterator[Executor]:
    """The executor that was asked for; what it started ends with the block, except a SLURM array."""
    if where.cluster == "slurm":
        request, blocks = work.sized()
        yield SlurmExecutor(request=request, blocks_per_job=blocks, detach=where.detach)
    elif where.cluster == "dask":
        with dask_on_scheduler(where, work) if where.scheduler else dask_on_slurm(where, work) as executor:
            yield executor
    else:
        with local_executor(where, work) as executor:
            yield executor


def left_at_work(executor: Executor) -> list[str]:
    """SLURM jobs that an executor has started and does not wait for."""
    return executor.jobs if isinstance(executor, SlurmExecutor) and executor.detach else []


@contextmanager
def local_executor(where: Where, work: Work) -> Iterator[Executor]:
    """This process, or several here where there are several GPUs or ``--workers`` says so."""
    gpus = visible_gpus() if work.every_gpu else []
    count = where.workers or max(1, len(gpus))
    if count == 1:
        yield InProcess()
        return
    from unetcli.executors.dask.cluster import local_workers
    from unetcli.executors.dask.executor import DaskExecutor

    log.info("%d worker processes here%s", count, f" on {len(gpus)} GPUs" if gpus else "")
    with local_workers(work.folder.path, count, gpus=gpus) as cluster:
        yield DaskExecutor(cluster)


def visible_gpus() -> list[str]:
    """What to set ``CUDA_VISIBLE_DEVICES`` to, for each GPU that this process sees."""
    import torch

    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    return shown.split(",") if shown else [str(number) for number in range(torch.cuda.device_count())]


@contextmanager
def dask_on_scheduler(where: Where, work: Work) -> Iterator[Executor]:
    """Workers of a Dask scheduler that others started."""
    from unetcli.executors.dask.cluster import existing_scheduler
    from unetcli.executors.dask.executor import DaskExecutor

    assert where.scheduler is not None
    with existing_scheduler(where.scheduler, work.folder.path, where.tls) as cluster:
        yield DaskExecutor(cluster)


@contextmanager
def dask_on_slurm(where: Where, work: Work) -> Iterator[Executor]:
    """A Dask scheduler here, and workers as SLURM jobs."""
    from unetcli.executors.dask.cluster import own_scheduler
    from unetcli.executors.dask.executor import DaskExecutor

    request, _ = work.sized()
    count = min(where.workers or request.max_running or DASK_WORKERS, work.blocks)
    jobs = WorkerJobs(request, work.folder)
    log.info("a Dask scheduler here, %d worker jobs on SLURM", count)
    try:
        with own_scheduler(work.folder.path, jobs.launch, jobs.ended, count) as cluster:
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
    return [job for submission in JobJournal(folder.path).live() for job in submission.open_jobs]


def end_earlier_launch(folder: RunFolder, attached: Collection[str]) -> None:
    """See to it that nothing of a killed launcher is at work any more, but for the jobs that are attached to."""
    WorkerJobs(SlurmRequest(), folder).sweep()
    remove_aside(folder.tls)
    if left := await_workers(folder, attached, SECONDS_TO_FINISH):
        log.warning("%d workers of an earlier launch do not end; what they are at may be computed twice", left)


def require_accepted(where: Where, *, needed: bool) -> None:
    """Raise, before anything is written, where SLURM would refuse jobs that are needed."""
    if needed and where.cluster != "local" and not where.scheduler:
        would_start(slurm_request(where).options())


def require_no_jobs(where: Where, run: Run) -> None:
    """Raise where SLURM jobs of an earlier launcher work on the output, unless this call is to wait for them."""
    attaches = where.cluster == "slurm" and not run.request.overwrite
    if not attaches:
        require_no_live_jobs(run.request.output_path, run.folder, run.pyramid_folder)


def require_no_live_jobs(output: Place, *folders: RunFolder) -> None:
    """Raise where SLURM jobs of an earlier launcher work on an output, in one of its run folders."""
    if jobs := [job for folder in folders for job in live_jobs(folder)]:
        arrays = " ".join(sorted({job.partition("_")[0] for job in jobs}))
        raise UnetcliError(
            f"{output}: {len(jobs)} SLURM jobs work on it; --cluster slurm waits for them, `scancel {arrays}` ends them"
        )


def request_accepted(where: Where) -> Callable[[Mapping[str, str]], str]:
    """A function that tells what SLURM says of a request; also where it would refuse, or is not here."""

    def ask(options: Mapping[str, str]) -> str:
        try:
            return would_start(options)
        except UnetcliError as error:
            return str(error)

    return ask


def probe_in_job(where: Where) -> Callable[[Callable[[str], dict[str, Any]], str], dict[str, Any]]:
    """A function that has ``task(text)`` done by a short SLURM job and gives back what that returned."""

    def submit(task: Callable[[str], dict[str, Any]], text: str) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix=".unetcli-probe-", dir=Path.cwd()) as place:  # nodes have to see it
            result = Path(place) / "result.json"
            request = replace(slurm_request(where), time=PROBE_TIME)
            arguments = [(task, text, str(result))]
            jobs = submit_jobs(request, Path(place), write_result, arguments, name=f"unetcli-{secrets.token_hex(6)}")
            log.info("probe: SLURM job %s", jobs[0])
            try:
                end = await_end(jobs)
            finally:
                cancel_jobs(jobs)
            if not result.exists():
                raise UnetcliError(f"the probe's job {end.job} on {end.host}: {end.reason}")
            return dict(json.loads(result.read_text()))

    return submit


def write_result(task: Callable[[str], dict[str, Any]], text: str, path: str) -> None:
    """Store what a task returns, as a job does."""
    with replacing(Path(path)) as draft:
        draft.write_text(json.dumps(task(text)))


def await_end(jobs: Sequence[str]) -> JobEnd:
    """How a single job ended."""
    watch = JobWatch(jobs, every=2)
    while True:
        if ends := watch.poll():
            return ends[0]
        time.sleep(0.5)


def sized_request(where: Where, run: Run) -> tuple[SlurmRequest, int]:
    """What each job asks for, with memory by estimate where nothing was said, and how many blocks it gets."""
    asked = slurm_request(where)
    numbers, times = sizes(run.plan, run.source, run.model, asked)
    memory = f"{math.ceil(MEMORY_MARGIN * numbers.host_bytes / GIB)}G"
    says = asked.mem or any(name.startswith("mem-per-") for name, _ in asked.extra)
    return asked if says else replace(asked, mem=memory), math.ceil(run.plan.blocks / times.shares)
