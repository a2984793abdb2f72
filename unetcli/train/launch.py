"""Training as one SLURM job of many processes: submitted, watched, and found again by the same command."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from unetcli.core.errors import Incomplete, UnetcliError
from unetcli.core.lock import hold, holding_job
from unetcli.core.signals import Signals
from unetcli.executors.slurm.commands import require_slurm
from unetcli.executors.slurm.executor import LATE_SECONDS, last_words
from unetcli.executors.slurm.journal import JobJournal, Submission, log_of, submit_jobs
from unetcli.executors.slurm.request import SlurmRequest
from unetcli.executors.slurm.watch import JobEnd, JobWatch, tail
from unetcli.train.folder import TrainingFolder
from unetcli.train.learning import Report
from unetcli.train.request import TrainRequest
from unetcli.train.resolve import require_pairs
from unetcli.train.task import BUG, USER, train_here
from unetcli.train.train import TrainSummary, settle, summarise
from unetcli.train.world import World

log = logging.getLogger(__name__)

SECONDS_PER_QUESTION = 5.0
PAUSE_SECONDS = 0.5
WHOLE = ((0, 1),)
"""A training is one block, in the words of the book of jobs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """How many processes train together: one per GPU, or as many as asked for on CPUs."""

    nodes: int = 1
    gpus_per_node: int = 0
    tasks_per_node: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("nodes", 1), ("gpus_per_node", 0), ("tasks_per_node", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UnetcliError(f"--{name.replace('_', '-')} {value}: at least {least}")
        if self.gpus_per_node and self.tasks_per_node not in (None, self.gpus_per_node):
            raise UnetcliError(
                f"--tasks-per-node {self.tasks_per_node}: with --gpus-per-node {self.gpus_per_node} there is a process "
                "for each GPU; leave it out"
            )

    @property
    def on_each(self) -> int:
        return self.gpus_per_node or self.tasks_per_node or 1

    @property
    def all(self) -> int:
        return self.nodes * self.on_each

    def asked_of(self, slurm: SlurmRequest) -> SlurmRequest:
        """A profile's one GPU, for jobs of one process, gives way to those of each node."""
        if not self.gpus_per_node:
            return slurm
        ours = tuple(pair for pair in slurm.extra if not pair[0].startswith("gpus-per-"))
        gres = None if "gpu" in (slurm.gres or "") else slurm.gres
        kind, _, _ = (slurm.gpus or "").rpartition(":")  # of a100:1
        wanted = f"{kind}:{self.gpus_per_node}" if kind else self.gpus_per_node
        return replace(slurm, gpus=None, gres=gres, extra=ours).with_extra("gpus-per-node", wanted)


def launch(
    request: TrainRequest, slurm: SlurmRequest, processes: Processes, report: Report, signals: Signals, *, detach: bool
) -> TrainSummary | str | None:
    """Submit the training, or find its job, and wait for it; the job's id at once where ``detach``.

    A launcher that is asked to stop leaves the job at work, and tells how far it is: None where nothing is trained yet.

    Raises
    ------
    UnetcliError
        Bad input, told before anything is submitted; SLURM refuses; or the job found something to put right.
    Incomplete
        The job ended otherwise: the same command submits another one, which goes on.
    """
    folder = TrainingFolder(request.output)
    done = None if request.overwrite else summarise(folder, request.steps, request.patience)
    if done is not None and done.finished:
        return done
    check(request, slurm, processes)
    require_slurm()
    folder.jobs.mkdir(parents=True, exist_ok=True)
    with hold(folder.path / "launcher", take_over=request.take_over):
        book = JobJournal(folder.jobs)
        submission = at_work(request, book) or submit(request, slurm, processes, folder, book)
        return submission.jobs[0] if detach else wait(request, folder, book, submission, report, signals)


def check(request: TrainRequest, slurm: SlurmRequest, processes: Processes) -> None:
    """Refuse here what the job would refuse; what depends on a GPU that this host may lack is left to the job."""
    if slurm.wants_gpu or processes.gpus_per_node:
        TrainingFolder(request.output).require_ours()
        require_pairs(request)
    else:
        settle(request, World(size=processes.all))


def at_work(request: TrainRequest, book: JobJournal) -> Submission | None:
    """What an earlier call submitted, if its job waits or runs."""
    found = book.live()
    if not found:
        return None
    job = found[-1].jobs[0]
    if request.overwrite:
        raise UnetcliError(f"--overwrite: job {job} trains {request.output}; scancel {job} first")
    log.info("job %s is at work already", job)
    return found[-1]


def submit(
    request: TrainRequest, slurm: SlurmRequest, processes: Processes, folder: TrainingFolder, book: JobJournal
) -> Submission:
    """One job of all processes; written down before it is made."""
    if holding_job(folder.path / "lock") in {job for earlier in book.on_record() for job in earlier.jobs}:
        request = replace(request, take_over=True)  # the lock of a job of ours that SLURM knows to be over
    submission = book.intend([WHOLE])
    values = (request, os.getcwd())  # noqa: PTH109 - text that travels
    try:
        jobs = submit_jobs(
            processes.asked_of(slurm),
            book.logs,
            train_here,
            [values],
            name=submission.name,
            nodes=processes.nodes,
            tasks_per_node=processes.on_each,
        )
    except Exception:
        book.withdraw(submission)
        raise
    book.confirm(submission, jobs)
    log.info("job %s: %d x %d processes", jobs[0], processes.nodes, processes.on_each)
    return submission


def wait(
    request: TrainRequest,
    folder: TrainingFolder,
    book: JobJournal,
    submission: Submission,
    report: Report,
    signals: Signals,
) -> TrainSummary | None:
    """Show how far the job is until it ends."""
    job = submission.jobs[0]
    file = log_of(book.logs, submission.name, job)
    watch = JobWatch([job], every=SECONDS_PER_QUESTION, log_of=lambda _: file)
    ends: list[JobEnd] = []
    while not ends and not signals.stopping():
        ends = watch.poll()
        tell(folder, report)
        time.sleep(PAUSE_SECONDS)

    def found() -> TrainSummary | None:
        return summarise(folder, request.steps, request.patience)

    if not ends:
        log.info("job %s stays at work; the same command attaches to it again", job)
        return found()
    book.end(submission, [job])
    return outcome(ends[0], file, found)


def outcome(
    end: JobEnd, file: Path, found: Callable[[], TrainSummary | None], late: float = LATE_SECONDS
) -> TrainSummary:
    """What an ended job has trained, or why it has not."""
    deadline = time.monotonic() + (late if end.state == "COMPLETED" else 0)  # a network file system may lag behind
    while not ((summary := found()) and summary.finished) and time.monotonic() < deadline:
        time.sleep(PAUSE_SECONDS)
    if summary and summary.finished:
        return summary
    line = f"job {end.job}: {reason(end, tail(file))}"
    if end.state == "OUT_OF_MEMORY" or end.note == "JobLaunchFailure" or end.exit_code in (USER, BUG):
        raise UnetcliError(f"{line} (log: {file})")
    raise Incomplete(f"{line}; the same command continues (log: {file})")


def reason(end: JobEnd, said: str) -> str:
    """Why a job ended, in unetcli's own words where it has said so.

    >>> reason(JobEnd(job="1", state="FAILED", exit_code=1), "step 9\\nunetcli: the loss is nan\\nsrun: error: x\\n")
    'the loss is nan'
    >>> reason(JobEnd(job="1", state="FAILED", exit_code=70), "ValueError: 3\\nsrun: error: x\\n")
    'crashed with exit code 70: ValueError: 3'
    >>> reason(JobEnd(job="1", state="CANCELLED"), "step 9\\n")
    'cancelled'
    """
    ours = [line.removeprefix("unetcli: ") for line in said.splitlines() if line.startswith("unetcli: ")]
    if end.state != "FAILED" or not end.exit_code:
        return end.reason
    if ours:
        return ours[-1].removesuffix("; the same command continues from the last checkpoint")
    return f"{end.reason}: {last_words(said) or 'it said nothing'}"


def tell(folder: TrainingFolder, report: Report) -> None:
    """Progress as the log of the training has it."""
    frozen, rows = folder.frozen(), folder.rows()
    if frozen and rows:
        batch = frozen[0].optimisation.batch_size
        report(rows[-1]["step"] * batch, frozen[1] * batch, f"loss {rows[-1]['loss']:.3f}")
