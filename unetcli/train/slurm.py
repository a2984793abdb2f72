"""Training as one SLURM job of many processes: submitted, watched, and found again by the same command.

The processes of the job import this module before they know which of them they are: torch is imported in functions.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from unetcli.core.errors import Incomplete, UnetcliError
from unetcli.core.lock import hold, holding_job
from unetcli.core.process import Signals, prepare
from unetcli.core.streams import ProgressCallback
from unetcli.executors.slurm.executor import LATE_SECONDS, last_log_line
from unetcli.executors.slurm.journal import JobJournal, Submission, log_of, submit_jobs
from unetcli.executors.slurm.request import SlurmRequest, require_slurm
from unetcli.executors.slurm.watch import JobEnd, JobWatch, tail
from unetcli.executors.slurm.worker import requeue_job
from unetcli.train.request import TrainRequest

if TYPE_CHECKING:
    from unetcli.train.folder import TrainingFolder
    from unetcli.train.train import TrainSummary

log = logging.getLogger(__name__)
SECONDS_PER_QUESTION = 5.0
PAUSE_SECONDS = 0.5
WHOLE = ((0, 1),)
"""A training counts as one block in the journal of jobs."""
USER, INCOMPLETE, BUG = 1, 3, 70
"""Exit codes, those of the command; SLURM keeps the highest of all processes."""
PORTS = range(20_000, 60_000)
MASTER = "UNETCLI_MASTER"
"""Environment variable with the address of the first process, where its node's name does not resolve."""


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
        """Processes on each node."""
        return self.gpus_per_node or self.tasks_per_node or 1

    @property
    def all(self) -> int:
        return self.nodes * self.on_each

    def asked_of(self, slurm: SlurmRequest) -> SlurmRequest:
        """The request with the GPUs of each node in place of a profile's one GPU, which is for jobs of one process."""
        if not self.gpus_per_node:
            return slurm
        ours = tuple(pair for pair in slurm.extra if not pair[0].startswith("gpus-per-"))
        gres = None if "gpu" in (slurm.gres or "") else slurm.gres
        kind, _, _ = (slurm.gpus or "").rpartition(":")  # of a100:1
        wanted = f"{kind}:{self.gpus_per_node}" if kind else self.gpus_per_node
        return replace(slurm, gpus=None, gres=gres, extra=(*ours, ("gpus-per-node", str(wanted))))


def launch(
    request: TrainRequest,
    slurm: SlurmRequest,
    processes: Processes,
    report: ProgressCallback,
    signals: Signals,
    *,
    detach: bool,
) -> TrainSummary | str | None:
    """Submit the training, or find its job, and wait for it; the job's id at once where ``detach``.

    Asked to stop, it leaves the job running and returns how far that is: None where nothing is trained yet.

    Raises
    ------
    UnetcliError
        Bad input, reported before anything is submitted; SLURM refuses; or the job met an error of the user's.
    Incomplete
        The job ended otherwise; the same command submits another one, which goes on.
    """
    from unetcli.train.folder import TrainingFolder
    from unetcli.train.train import summarise

    folder = TrainingFolder(request.output)
    summary = partial(summarise, folder, request.steps, request.patience)
    done = None if request.overwrite else summary()
    if done is not None and done.finished:
        return done
    _check(request, slurm, processes)
    require_slurm()
    folder.jobs.mkdir(parents=True, exist_ok=True)
    with hold(folder.path / "launcher", take_over=request.take_over):
        book = JobJournal(folder.jobs)
        submission = _running(request, book) or _submit(request, slurm, processes, folder, book)
        if detach:
            return submission.jobs[0]
        return _wait(folder, book, submission, report, signals, summary)


def _check(request: TrainRequest, slurm: SlurmRequest, processes: Processes) -> None:
    """Refuse here what the job would refuse; what depends on a GPU that this host may lack is left to the job."""
    from unetcli.train.distributed import World
    from unetcli.train.folder import TrainingFolder
    from unetcli.train.resolve import require_pairs
    from unetcli.train.train import resolve_locally

    if slurm.wants_gpu or processes.gpus_per_node:
        TrainingFolder(request.output).require_ours()
        require_pairs(request)
    else:
        resolve_locally(request, World(size=processes.all))


def _running(request: TrainRequest, book: JobJournal) -> Submission | None:
    """The submission of an earlier call, if its job waits or runs."""
    found = book.live()
    if not found:
        return None
    job = found[-1].jobs[0]
    if request.overwrite:
        raise UnetcliError(f"--overwrite: job {job} trains {request.output}; scancel {job} first")
    log.info("job %s is at work already", job)
    return found[-1]


def _submit(
    request: TrainRequest, slurm: SlurmRequest, processes: Processes, folder: TrainingFolder, book: JobJournal
) -> Submission:
    """Submit one job of all processes; it is recorded before it is made."""
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


def _wait(
    folder: TrainingFolder,
    book: JobJournal,
    submission: Submission,
    report: ProgressCallback,
    signals: Signals,
    summary: Callable[[], TrainSummary | None],
) -> TrainSummary | None:
    """Report how far the job is until it ends."""
    job = submission.jobs[0]
    file = log_of(book.logs, submission.name, job)
    watch = JobWatch([job], every=SECONDS_PER_QUESTION, log_of=lambda _: file)
    ends: list[JobEnd] = []
    while not ends and not signals.stopping():
        ends = watch.poll()
        frozen, rows = folder.frozen(), folder.rows()
        if frozen and rows:
            batch = frozen[0].optimisation.batch_size
            report(rows[-1]["step"] * batch, frozen[1] * batch, f"loss {rows[-1]['loss']:.3f}")
        time.sleep(PAUSE_SECONDS)
    if not ends:
        log.info("job %s stays at work; the same command attaches to it again", job)
        return summary()
    book.end(submission, [job])
    return outcome(ends[0], file, summary)


def outcome(
    end: JobEnd, file: Path, found: Callable[[], TrainSummary | None], late: float = LATE_SECONDS
) -> TrainSummary:
    """The summary of an ended job; an error where it has not finished."""
    deadline = time.monotonic() + (late if end.state == "COMPLETED" else 0)  # a network file system may lag behind
    while not ((summary := found()) and summary.finished) and time.monotonic() < deadline:
        time.sleep(PAUSE_SECONDS)
    if summary and summary.finished:
        return summary
    line = f"job {end.job}: {reason(end, tail(file))}"
    if end.state == "OUT_OF_MEMORY" or end.note == "JobLaunchFailure" or end.exit_code in (USER, BUG):
        raise UnetcliError(f"{line} (log: {file})")
    raise Incomplete(f"{line}; the same command continues (log: {file})")


def reason(end: JobEnd, text: str) -> str:
    """Why a job ended: unetcli's own message, if the end of the job's log has one.

    >>> reason(JobEnd(job="1", state="FAILED", exit_code=1), "step 9\\nunetcli: the loss is nan\\nsrun: error: x\\n")
    'the loss is nan'
    >>> reason(JobEnd(job="1", state="FAILED", exit_code=70), "ValueError: 3\\nsrun: error: x\\n")
    'crashed with exit code 70: ValueError: 3'
    >>> reason(JobEnd(job="1", state="CANCELLED"), "step 9\\n")
    'cancelled'
    """
    ours = [line.removeprefix("unetcli: ") for line in text.splitlines() if line.startswith("unetcli: ")]
    if end.state != "FAILED" or not end.exit_code:
        return end.reason
    if ours:
        return ours[-1].removesuffix("; the same command continues from the last checkpoint")
    return f"{end.reason}: {last_log_line(text) or 'it said nothing'}"


def train_here(request: TrainRequest, place: str) -> None:
    """Join the others and train; SIGUSR2, before the time limit or for preemption, sends the job back into the queue.

    Called by submitit in each task of the job, again from the start after each requeue. It ends by SystemExit wherever
    work is left: submitit would record a return as a success, and report an exception.
    """
    signals = Signals().listen()  # over submitit's own handlers: training ends at its next step
    os.chdir(place)
    os.environ |= joining()
    first = os.environ["RANK"] == "0"
    logging.basicConfig(level=logging.INFO if first else logging.WARNING, format="%(message)s")
    prepare()  # before torch is imported
    if int(os.environ.get("SLURM_RESTART_COUNT") or 0):  # a job that comes back keeps what its earlier life has done
        request = replace(request, overwrite=False, take_over=False)
    try:
        finished = _trained(request, signals, first)
        if not finished:
            requeued = first and signals.stop() == signal.SIGUSR2 and requeue_job()
            raise SystemExit(INCOMPLETE if first and not requeued else 0)
    finally:
        # srun ends the others as soon as one has failed: that must not replace the exit code of who is about to leave
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _trained(request: TrainRequest, signals: Signals, first: bool) -> bool:
    """Train; whether it is finished. Whatever goes wrong is one line of the log and an exit code."""
    from unetcli.train.distributed import OtherRankFailed, PeerLost
    from unetcli.train.train import train_model

    try:
        summary = train_model(request, signals=signals)
    except OtherRankFailed:
        raise SystemExit(USER) from None
    except PeerLost as error:
        if not first:  # SLURM keeps the highest code of all: the lowest leaves the word to whoever ended first
            raise SystemExit(USER) from None
        log.error("unetcli: %s", error)
        raise SystemExit(INCOMPLETE) from None
    except (UnetcliError, OSError) as error:
        log.error("unetcli: %s", " ".join(str(error).split()))
        raise SystemExit(USER) from None
    except Exception:
        traceback.print_exc()
        raise SystemExit(BUG) from None
    log.info("%s", summary.sentence)
    return summary.finished


def joining() -> dict[str, str]:
    """Environment from which torch knows the rank of this process, their number, and the address of the first."""
    words = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
    found = {ours: os.environ[theirs] for ours, theirs in words.items()}
    port = PORTS[int(os.environ["SLURM_JOB_ID"]) % len(PORTS)]  # jobs that share a node do not meet
    return {**found, "MASTER_ADDR": os.environ.get(MASTER) or first_host(), "MASTER_PORT": str(port)}


def first_host() -> str:
    """The job's first node, where SLURM starts process 0; this host itself where there is no other."""
    if os.environ.get("SLURM_JOB_NUM_NODES") == "1":
        return "127.0.0.1"
    command = ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
