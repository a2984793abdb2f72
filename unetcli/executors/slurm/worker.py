"""Code that runs in a SLURM job: it processes the share, stops before the time limit and requeues the job if useful.

:func:`requeue_job` also requeues the user's own SLURM job in which a command runs.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType

from unetcli.core.errors import one_line
from unetcli.core.files import replacing
from unetcli.core.lock import job_id
from unetcli.core.memory import out_of_memory
from unetcli.core.ranges import Ranges
from unetcli.core.records import read_record
from unetcli.executors.contract import Task
from unetcli.executors.slurm.request import SIGNAL_SECONDS, SlurmError, call, requeue, seconds

log = logging.getLogger(__name__)

BLOCKS_IN_FLIGHT = 3
"""Blocks being read, computed and written at a time; these are finished after the decision to stop."""
ENDING_SECONDS = 10.0
"""Time for writing receipts, ending the process and requesting the requeue."""
EARLY_SECONDS = 60.0
"""SLURM may send the warning signal up to this much before the requested time."""
TOO_LONG = "no block was finished within the time limit: raise --time"

SCRIPT_REQUEUES = "UNETCLI_SCRIPT_REQUEUES"
"""Variable that a batch script which requeues itself sets to its job id; jobs submitted from it inherit the variable
but have other ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareOutcome:
    """Result of a job's share; each job writes it to its own file, as SLURM forgets exit codes."""

    job: str
    host: str
    finished: int
    """Number of blocks that this job finished."""
    reason: str = ""
    """Why the share was not finished; empty if it was."""

    @classmethod
    def of_this_job(cls, finished: int, reason: str = "") -> ShareOutcome:
        host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()  # SLURM's name, for ``--exclude``
        return cls(job=job_id(), host=host, finished=finished, reason=reason)

    def write(self, path: Path) -> None:
        """Write the file, unless the run is over and its folder deleted: it must not be created again."""
        with suppress(FileNotFoundError):
            path.parent.mkdir(exist_ok=True)
            with replacing(path) as draft:
                draft.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> ShareOutcome:
        return read_record(path, cls, "delete it; the job's blocks are then computed again")


def outcomes(submission: Path) -> dict[int, Path]:
    """Outcome files of a submission's jobs, by the index of the job."""
    try:
        return {int(path.stem): path for path in (submission / "outcomes").iterdir() if path.suffix == ".json"}
    except FileNotFoundError:
        return {}


def run_share(task: Task, folder: str, submission: str, index: int, blocks: Ranges) -> None:
    """Process the share of one job; submitit calls this in the job, and again after each requeue."""
    place = Path(submission) / "outcomes" / f"{index}.json"
    condition = StopCondition(seconds_left=seconds_left())
    condition.listen()
    try:
        finished = task(folder, blocks, condition.stopping)
    except Exception as error:
        memory = out_of_memory(error)
        ShareOutcome.of_this_job(0, "out of memory: raise --mem" if memory else one_line(error, kind=True)).write(place)
        raise
    if reason := condition.stopped and _requeue(finished):
        ShareOutcome.of_this_job(finished, reason).write(place)
    elif not condition.stopped:
        ShareOutcome.of_this_job(finished).write(place)


def _requeue(finished: int) -> str:
    """Requeue this job, so that it continues its share when it starts again; returns why, if it cannot be requeued."""
    try:
        if call("squeue", "-h", "-j", job_id(), "-o", "%T").strip() != "RUNNING":
            raise SystemExit(0)  # cancelled, or already requeued by SLURM
        if not finished:
            return TOO_LONG
        requeue(job_id())
    except SlurmError as error:
        return f"stopped before its time limit, but SLURM did not requeue it ({error})"
    raise SystemExit(0)  # unlike a return, leaves no result for submitit


@dataclass(slots=True)
class StopCondition:
    """Decides when a job stops: after a signal, or if the next block would exceed the job's time limit."""

    seconds_left: float | None
    """Time left to the job at its start, in seconds; None if no limit is known."""
    clock: Callable[[], float] = time.monotonic
    stopped: bool = field(init=False, default=False)
    """Whether :meth:`stopping` has returned True."""
    _deadline: float = field(init=False)
    _last_asked: float | None = field(init=False, default=None)
    _longest_block: float = field(init=False, default=0.0)
    _signalled: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._deadline = self.clock() + (math.inf if self.seconds_left is None else self.seconds_left)

    def listen(self) -> None:
        """Replace submitit's signal handlers, which ignore SIGTERM and end the function at SIGUSR2."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGUSR2, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal. SIGUSR2 near the time limit is ignored, as measured block times are more precise."""
        near_the_limit = self._deadline - self.clock() < SIGNAL_SECONDS + EARLY_SECONDS
        if number != signal.SIGUSR2 or not near_the_limit:
            self._signalled = True

    def stopping(self) -> bool:
        """Whether to stop; the task calls this before each block."""
        now = self.clock()
        if self._last_asked is not None:
            self._longest_block = max(self._longest_block, now - self._last_asked)
        first, self._last_asked = self._last_asked is None, now
        fits = self._deadline - now > BLOCKS_IN_FLIGHT * self._longest_block + ENDING_SECONDS
        self.stopped = self.stopped or self._signalled or not (first or fits)
        return self.stopped


def seconds_left() -> float | None:
    """Time left to this job, in seconds; None if it has no limit or SLURM does not report it."""
    if (end := os.environ.get("SLURM_JOB_END_TIME", "")).isdigit():  # not before SLURM 23.02
        return int(end) - time.time()
    try:
        return seconds(call("squeue", "-h", "-j", job_id(), "-o", "%L"))
    except SlurmError as error:
        log.warning("the time left to this job is unknown: %s", error)
        return None


def requeue_job() -> bool:
    """Requeue the SLURM job that this process runs in; returns whether it did.

    Only the first task of a running batch job does this; a cancelled job stays cancelled. If SLURM refuses, a warning
    gives the reason. SLURM ends the job at once, so all data must be on disk, and the log line comes first.
    """
    own, first = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_PROCID", "0") == "0"
    if own is None or not first or os.environ.get(SCRIPT_REQUEUES) == own:  # no job, or another process requeues it
        return False
    job = job_id()
    try:
        if not _runs_as_batch(call("scontrol", "show", "job", "-o", job)):
            return False
        log.info("job %s asks SLURM to requeue it and will continue when it starts again", job)
        requeue(job)
    except SlurmError as error:
        log.warning("job %s is not requeued (%s); the same command continues", job, error)
        return False
    return True


def _runs_as_batch(shown: str) -> bool:
    """Whether a job, given the output of scontrol, is running and has a batch script that can be run again.

    >>> _runs_as_batch("JobId=7 JobName=a JobState=RUNNING Reason=None Requeue=1 BatchFlag=1")
    True
    >>> _runs_as_batch("JobId=7 JobName=a JobState=COMPLETING Reason=None Requeue=1 BatchFlag=1")
    False
    """
    found = dict(re.findall(r"\b(JobState|BatchFlag)=(\w+)", shown))
    return found.get("JobState") == "RUNNING" and found.get("BatchFlag") == "1"
