"""Training as one SLURM job of several processes: submitted, watched, and found again by the same command.

The processes of the job import this module before their environment is complete: torch is imported inside functions.
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

from unetcli.core.errors import Incomplete, UnetcliError, collected_warnings, require_no_warnings
from unetcli.core.lock import hold, holding_job
from unetcli.core.process import Signals, prepare
from unetcli.core.streams import ProgressCallback
from unetcli.executors.slurm.executor import LATE_SECONDS, last_log_line
from unetcli.executors.slurm.journal import JobJournal, Submission, log_of, submit_jobs
from unetcli.executors.slurm.request import SlurmRequest, require_log_folder, require_slurm
from unetcli.executors.slurm.watch import JobEnd, JobWatch, tail
from unetcli.executors.slurm.worker import requeue_job
from unetcli.train.request import TrainRequest

if TYPE_CHECKING:
    from unetcli.train.folder import TrainingFolder
    from unetcli.train.train import TrainSummary

log = logging.getLogger(__name__)
POLL_SECONDS = 5.0
"""Time between two queries to SLURM."""
PAUSE_SECONDS = 0.5
WHOLE = ((0, 1),)
"""Blocks of a training in the journal of jobs, where it counts as one."""
USER, INCOMPLETE, BUG = 1, 3, 70
"""Exit codes, the same as those of the command; SLURM keeps the highest of all processes."""
PORTS = range(20_000, 60_000)
"""Ports on which rank 0 may listen."""
MASTER = "UNETCLI_MASTER"
"""Environment variable with the address of rank 0, for clusters on which the names of nodes do not resolve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """Number of processes that train together: one per GPU, or ``tasks_per_node`` on CPUs.

    Raises
    ------
    UnetcliError
        A number is out of range, or two do not fit together.
    """

    nodes: int = 1
    gpus_per_node: int = 0
    tasks_per_node: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("nodes", 1), ("gpus_per_node", 0), ("tasks_per_node", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UnetcliError(f"--{name.replace('_', '-')} {value}: expected at least {least}")
        if self.gpus_per_node and self.tasks_per_node not in (None, self.gpus_per_node):
            raise UnetcliError(
                f"--tasks-per-node {self.tasks_per_node}: --gpus-per-node {self.gpus_per_node} starts one process per "
                "GPU; omit --tasks-per-node"
            )

    @property
    def per_node(self) -> int:
        """Number of processes on each node."""
        return self.gpus_per_node or self.tasks_per_node or 1

    @property
    def total(self) -> int:
        return self.nodes * self.per_node

    def with_gpus(self, slurm: SlurmRequest) -> SlurmRequest:
        """Replace the GPU of a profile, which is for jobs of one process, by the GPUs of each node."""
        if not self.gpus_per_node:
            return slurm
        extra = tuple(pair for pair in slurm.extra if not pair[0].startswith("gpus-per-"))
        gres = None if "gpu" in (slurm.gres or "") else slurm.gres
        kind, _, _ = (slurm.gpus or "").rpartition(":")  # a100 from a100:1
        gpus = f"{kind}:{self.gpus_per_node}" if kind else self.gpus_per_node
        return replace(slurm, gpus=None, gres=gres, extra=(*extra, ("gpus-per-node", str(gpus))))


def launch(
    request: TrainRequest,
    slurm: SlurmRequest,
    processes: Processes,
    report: ProgressCallback,
    signals: Signals,
    *,
    detach: bool,
) -> TrainSummary | str | None:
    """Submit the training, or attach to its job, and wait for the end of the job.

    Returns
    -------
    TrainSummary, str or None
        With ``detach``, the job's id. If a signal asks to stop, the job is left running and the summary describes its
        last checkpoint, or is None if there is none yet.

    Raises
    ------
    UnetcliError
        The input is bad (reported before anything is submitted), SLURM rejects the job, or the job failed with an
        error that the user can correct.
    Incomplete
        The job ended otherwise; the same command submits another one, which continues.
    """
    from unetcli.train.folder import TrainingFolder
    from unetcli.train.train import summarise

    folder = TrainingFolder(request.output)
    summary = partial(summarise, folder, request.steps, request.patience)
    done = None if request.overwrite else summary()
    if done is not None and done.finished:
        return done
    require_log_folder(folder.path)
    _check(request, slurm, processes)
    require_no_warnings()
    require_slurm()
    folder.jobs.mkdir(parents=True, exist_ok=True)
    with hold(folder.path / "launcher", take_over=request.take_over):
        book = JobJournal(folder.jobs)
        submission = _running(request, book) or _submit(request, slurm, processes, folder, book)
        if detach:
            return submission.jobs[0]
        return _wait(folder, book, submission, report, signals, summary)


def _check(request: TrainRequest, slurm: SlurmRequest, processes: Processes) -> None:
    """Raise the errors that the job would raise, except those that depend on a GPU: this host may have none."""
    from unetcli.train.data_checks import require_pairs
    from unetcli.train.distributed import ProcessGroup
    from unetcli.train.folder import TrainingFolder
    from unetcli.train.train import resolve_locally

    if slurm.wants_gpu or processes.gpus_per_node:
        TrainingFolder(request.output).require_own()
        require_pairs(request)
    else:
        resolve_locally(request, ProcessGroup(size=processes.total))


def _running(request: TrainRequest, book: JobJournal) -> Submission | None:
    """Find the submission of an earlier call whose job is pending or running."""
    found = book.live()
    if not found:
        return None
    job = found[-1].jobs[0]
    if request.overwrite:
        raise UnetcliError(f"--overwrite: job {job} is training {request.output}; scancel {job} first")
    log.info("job %s is already running or pending; attaching to it", job)
    return found[-1]


def _submit(
    request: TrainRequest, slurm: SlurmRequest, processes: Processes, folder: TrainingFolder, book: JobJournal
) -> Submission:
    """Submit one job with all processes; the submission is recorded before it is made."""
    if holding_job(folder.path / "lock") in {job for earlier in book.on_record() for job in earlier.jobs}:
        request = replace(request, take_over=True)  # the lock is of an earlier job, which has ended according to SLURM
    submission = book.intend([WHOLE])
    values = (request, os.getcwd())  # noqa: PTH109 - pickled as text
    try:
        jobs = submit_jobs(
            processes.with_gpus(slurm),
            book.logs,
            train_here,
            [values],
            name=submission.name,
            nodes=processes.nodes,
            tasks_per_node=processes.per_node,
        )
    except Exception:
        book.withdraw(submission)
        raise
    book.confirm(submission, jobs)
    log.info("job %s: %d x %d processes", jobs[0], processes.nodes, processes.per_node)
    return submission


def _wait(
    folder: TrainingFolder,
    book: JobJournal,
    submission: Submission,
    report: ProgressCallback,
    signals: Signals,
    summary: Callable[[], TrainSummary | None],
) -> TrainSummary | None:
    """Report the progress of the job until it ends."""
    job = submission.jobs[0]
    file = log_of(book.logs, submission.name, job)
    watch = JobWatch([job], every=POLL_SECONDS, log_of=lambda _: file)
    ends: list[JobEnd] = []
    while not ends and not signals.stopping():
        ends = watch.poll()
        frozen, rows = folder.frozen(), folder.rows()
        if frozen and rows:
            batch = frozen[0].optimisation.batch_size
            report(rows[-1]["step"] * batch, frozen[1] * batch, f"loss {rows[-1]['loss']:.3f}")
        time.sleep(PAUSE_SECONDS)
    if not ends:
        log.info("job %s keeps running; the same command attaches to it again", job)
        return summary()
    book.end(submission, [job])
    return outcome(ends[0], file, summary)


def outcome(
    end: JobEnd, file: Path, found: Callable[[], TrainSummary | None], late: float = LATE_SECONDS
) -> TrainSummary:
    """Return the summary of a job that has ended.

    Parameters
    ----------
    end : JobEnd
        How SLURM reports the end.
    file : Path
        Log of the job.
    found : callable
        Reads the summary from the training's folder.
    late : seconds
        Time to wait for files of a completed job.

    Raises
    ------
    UnetcliError
        The job failed with an error that the user can correct.
    Incomplete
        The job ended before the training was finished.
    """
    deadline = time.monotonic() + (late if end.state == "COMPLETED" else 0)  # a network file system may lag behind
    while not ((summary := found()) and summary.finished) and time.monotonic() < deadline:
        time.sleep(PAUSE_SECONDS)
    if summary and summary.finished:
        return summary
    line = f"job {end.job}: {failure_reason(end, tail(file))}"
    if end.state == "OUT_OF_MEMORY" or end.note == "JobLaunchFailure" or end.exit_code in (USER, BUG):
        raise UnetcliError(f"{line} (log: {file})")
    raise Incomplete(f"{line}; the same command continues (log: {file})")


def failure_reason(end: JobEnd, text: str) -> str:
    """Reason why a job ended: the message of unetcli if the end of the job's log has one, otherwise SLURM's.

    >>> failure_reason(JobEnd(job="1", state="FAILED", exit_code=1), "a\\nunetcli: the loss is nan\\nsrun: error: x\\n")
    'the loss is nan'
    >>> failure_reason(JobEnd(job="1", state="FAILED", exit_code=70), "ValueError: 3\\nsrun: error: x\\n")
    'crashed with exit code 70: ValueError: 3'
    >>> failure_reason(JobEnd(job="1", state="CANCELLED"), "step 9\\n")
    'cancelled'
    """
    messages = [line.removeprefix("unetcli: ") for line in text.splitlines() if line.startswith("unetcli: ")]
    if end.state != "FAILED" or not end.exit_code:
        return end.reason
    if messages:
        return messages[-1].removesuffix("; the same command continues from the last checkpoint")
    return f"{end.reason}: {last_log_line(text) or 'its log is empty'}"


def train_here(request: TrainRequest, place: str) -> None:
    """Train in one process of the job; submitit calls this in each task, and again after each requeue.

    SIGUSR2, which SLURM sends before the time limit or a preemption, requeues the job. If the training is not finished,
    SystemExit is raised: submitit would record a return as a success, and report an exception.
    """
    signals = Signals().listen()  # replaces submitit's handlers, so that training ends after its step
    os.chdir(place)
    os.environ |= torch_environment()
    first = os.environ["RANK"] == "0"
    logging.basicConfig(level=logging.INFO if first else logging.WARNING, format="%(message)s")
    prepare()  # before torch is imported
    if int(os.environ.get("SLURM_RESTART_COUNT") or 0):  # a requeued job keeps the steps that it has done
        request = replace(request, overwrite=False, take_over=False)
    try:
        finished = _trained(request, signals, first)
        if not finished:
            requeued = first and signals.stop() == signal.SIGUSR2 and requeue_job()
            raise SystemExit(INCOMPLETE if first and not requeued else 0)
    finally:
        # srun terminates the other processes once one has failed, which must not replace this process's exit code
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _trained(request: TrainRequest, signals: Signals, first: bool) -> bool:
    """Train, and return whether the training is finished; errors become one line of the log and an exit code."""
    from unetcli.train.distributed import OtherRankFailed, PeerLost
    from unetcli.train.train import train_model

    try:
        with collected_warnings(strict=request.strict):
            summary = train_model(request, signals=signals)
    except OtherRankFailed:
        raise SystemExit(USER) from None
    except PeerLost as error:
        if not first:  # SLURM keeps the highest exit code; a low one leaves it to the process that ended first
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


def torch_environment() -> dict[str, str]:
    """Environment variables from which torch reads rank, number of processes and address of rank 0."""
    names = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
    found = {name: os.environ[source] for name, source in names.items()}
    port = PORTS[int(os.environ["SLURM_JOB_ID"]) % len(PORTS)]  # different for jobs that share a node
    return {**found, "MASTER_ADDR": os.environ.get(MASTER) or first_host(), "MASTER_PORT": str(port)}


def first_host() -> str:
    """First node of the job, where SLURM starts rank 0; the loopback address if it is the only node."""
    if os.environ.get("SLURM_JOB_NUM_NODES") == "1":
        return "127.0.0.1"
    command = ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
