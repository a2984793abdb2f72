"""What a SLURM job does: works off its share, stops in time, and goes back into the queue where that helps.

So does a command that runs as a SLURM job of its own: see :func:`requeue_job`.
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
from unetcli.core.ranges import Ranges
from unetcli.executors.contract import Task
from unetcli.executors.slurm.request import SIGNAL_SECONDS, SlurmError, call, requeue, seconds

log = logging.getLogger(__name__)

BLOCKS_IN_FLIGHT = 3
"""Read, computed and written at a time: those are finished after the decision to stop."""
ENDING_SECONDS = 10.0
"""For writing receipts, leaving the process and asking for the requeue."""
EARLY_SECONDS = 60.0
"""SLURM's warning of the time limit may come that much too early."""
TOO_LONG = "not one block was finished within the time limit: raise --time"

SCRIPT_REQUEUES = "UNETCLI_SCRIPT_REQUEUES"
"""Set by a batch script that requeues its job itself, to that job's id: jobs submitted from it inherit the variable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareOutcome:
    """How the share of a job ended; a file of its own says so, as SLURM forgets exit codes."""

    job: str
    host: str
    finished: int
    reason: str = ""
    """Why the share was not finished; empty where it was."""

    @classmethod
    def here(cls, finished: int, reason: str = "") -> ShareOutcome:
        host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()  # as SLURM calls it, for ``--exclude``
        return cls(job=job_id(), host=host, finished=finished, reason=reason)

    def write(self, path: Path) -> None:
        """Write the file, unless the run is over and its folder gone, which must not come back."""
        with suppress(FileNotFoundError):
            path.parent.mkdir(exist_ok=True)
            with replacing(path) as draft:
                draft.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> ShareOutcome:
        return cls(**json.loads(path.read_text()))


def outcomes(submission: Path) -> dict[int, Path]:
    """Files in which jobs of a submission say how they ended, by the place of the job among its jobs."""
    try:
        return {int(path.stem): path for path in (submission / "outcomes").iterdir() if path.suffix == ".json"}
    except FileNotFoundError:
        return {}


def run_share(task: Task, folder: str, submission: str, index: int, blocks: Ranges) -> None:
    """Work off the share of one job; called by submitit in the job, again from the start after each requeue."""
    place = Path(submission) / "outcomes" / f"{index}.json"
    condition = StopCondition(seconds_left=seconds_left())
    condition.listen()
    try:
        finished = task(folder, blocks, condition.stopping)
    except Exception as error:
        memory = isinstance(error, MemoryError)
        ShareOutcome.here(0, "out of memory: raise --mem" if memory else one_line(error, kind=True)).write(place)
        raise
    if reason := condition.stopped and _back_into_the_queue(finished):
        ShareOutcome.here(finished, reason).write(place)
    elif not condition.stopped:
        ShareOutcome.here(finished).write(place)


def _back_into_the_queue(finished: int) -> str:
    """Leave the share to this job's next life; returns the reason where there will be none."""
    try:
        if call("squeue", "-h", "-j", job_id(), "-o", "%T").strip() != "RUNNING":
            raise SystemExit(0)  # cancelled, or put back by SLURM itself: not for us to change
        if not finished:
            return TOO_LONG
        requeue(job_id())
    except SlurmError as error:
        return f"stopped in time, but SLURM does not put it back into the queue ({error})"
    raise SystemExit(0)  # unlike a return, tells submitit nothing


@dataclass(slots=True)
class StopCondition:
    """Says when to stop: by a signal, or because the next block would not fit into the job's time."""

    seconds_left: float | None
    """Time that the job has left; None where no limit is known."""
    clock: Callable[[], float] = time.monotonic
    stopped: bool = field(init=False, default=False)
    """Whether :meth:`stopping` has said so."""
    _deadline: float = field(init=False)
    _last_asked: float | None = field(init=False, default=None)
    _longest_block: float = field(init=False, default=0.0)
    _signalled: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._deadline = self.clock() + (math.inf if self.seconds_left is None else self.seconds_left)

    def listen(self) -> None:
        """Take over from submitit, which ignores SIGTERM and ends a function at SIGUSR2."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGUSR2, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """SIGUSR2 warns of preemption or of the limit; near the limit, measured times know better."""
        near_the_limit = self._deadline - self.clock() < SIGNAL_SECONDS + EARLY_SECONDS
        if number != signal.SIGUSR2 or not near_the_limit:
            self._signalled = True

    def stopping(self) -> bool:
        """Whether to stop; the task asks before each block."""
        now = self.clock()
        if self._last_asked is not None:
            self._longest_block = max(self._longest_block, now - self._last_asked)
        first, self._last_asked = self._last_asked is None, now
        fits = self._deadline - now > BLOCKS_IN_FLIGHT * self._longest_block + ENDING_SECONDS
        self.stopped = self.stopped or self._signalled or not (first or fits)
        return self.stopped


def seconds_left() -> float | None:
    """Time that this job has left; None where it is not limited, or SLURM does not say."""
    if (end := os.environ.get("SLURM_JOB_END_TIME", "")).isdigit():  # not before SLURM 23.02
        return int(end) - time.time()
    try:
        return seconds(call("squeue", "-h", "-j", job_id(), "-o", "%L"))
    except SlurmError as error:
        log.warning("how much time this job has left is not known: %s", error)
        return None


def requeue_job() -> bool:
    """Put the job this process runs in back into the queue, once; whether this call did.

    Done by the first task of a batch job that runs: a cancelled one is over, and stays so. Where SLURM does not want
    to, a warning says why. SLURM ends the job at once, so everything has to be on disk, and the log says what is asked
    for before it is asked.
    """
    own, first = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_PROCID", "0") == "0"
    if own is None or not first or os.environ.get(SCRIPT_REQUEUES) == own:  # another process asks, or none
        return False
    job = job_id()
    try:
        if not _runs_as_batch(call("scontrol", "show", "job", "-o", job)):
            return False
        log.info("job %s asks to go back into the queue, to continue there", job)
        requeue(job)
    except SlurmError as error:
        log.warning("job %s does not go back into the queue (%s); the same command continues", job, error)
        return False
    return True


def _runs_as_batch(shown: str) -> bool:
    """Whether a job, as scontrol shows it, runs and has a script that can be run again.

    >>> _runs_as_batch("JobId=7 JobName=a JobState=RUNNING Reason=None Requeue=1 BatchFlag=1")
    True
    >>> _runs_as_batch("JobId=7 JobName=a JobState=COMPLETING Reason=None Requeue=1 BatchFlag=1")
    False
    """
    found = dict(re.findall(r"\b(JobState|BatchFlag)=(\w+)", shown))
    return found.get("JobState") == "RUNNING" and found.get("BatchFlag") == "1"
