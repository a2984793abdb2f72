"""What a SLURM job does: works off its share, stops in time, and goes back into the queue where that helps."""

from __future__ import annotations

import json
import logging
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

from unetcli.core.files import replacing
from unetcli.core.lock import job_id
from unetcli.core.ranges import Ranges
from unetcli.executors.contract import Task
from unetcli.executors.slurm.commands import SlurmError, call, requeue
from unetcli.executors.slurm.submit import SIGNAL_SECONDS

log = logging.getLogger(__name__)

BLOCKS_IN_FLIGHT = 3
"""Read, computed and written at a time: those are finished after the decision to stop."""
ENDING_SECONDS = 10.0
"""For writing receipts, leaving the process and asking for the requeue."""
EARLY_SECONDS = 60.0
"""SLURM's warning of the time limit may come that much too early."""
TOO_LONG = "not one block was finished within the time limit: raise --time"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an element's share ended; a file of its own says so, as exit codes are lost with SLURM's memory."""

    job: str
    host: str
    finished: int
    reason: str = ""
    """Why the share was not finished; empty where it was."""

    @classmethod
    def here(cls, finished: int, reason: str = "") -> Outcome:
        return cls(job=job_id(), host=host(), finished=finished, reason=reason)

    def write(self, path: Path) -> None:
        """Write the file, unless the run is over and its folder gone, which must not come back."""
        with suppress(FileNotFoundError):
            path.parent.mkdir(exist_ok=True)
            with replacing(path) as draft:
                draft.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Outcome:
        return cls(**json.loads(path.read_text()))


def outcomes(submission: Path) -> dict[int, Path]:
    """Files of those elements of a submission that have told how they ended."""
    try:
        return {int(path.stem): path for path in (submission / "outcomes").iterdir() if path.suffix == ".json"}
    except FileNotFoundError:
        return {}


def run_element(task: Task, folder: str, submission: str, index: int, blocks: Ranges) -> None:
    """One job's work; called by submitit in the job, again from the start after each requeue."""
    place = Path(submission) / "outcomes" / f"{index}.json"
    brakes = Brakes(seconds_left=seconds_left())
    brakes.listen()
    try:
        finished = task(folder, blocks, brakes.stopping)
    except Exception as error:
        Outcome.here(0, why(error)).write(place)
        raise
    if reason := brakes.stopped and _back_into_the_queue(finished):
        Outcome.here(finished, reason).write(place)
    elif not brakes.stopped:
        Outcome.here(finished).write(place)


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
class Brakes:
    """Says when to stop: by a signal, or because the next block would not fit into the job's time."""

    seconds_left: float | None
    """Of the job, None where it has no limit that we know of."""
    clock: Callable[[], float] = time.monotonic
    stopped: bool = field(init=False, default=False)
    """Whether the task was told to stop."""
    _started: float = field(init=False)
    _last_asked: float | None = field(init=False, default=None)
    _longest_block: float = field(init=False, default=0.0)
    _signalled: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._started = self.clock()

    def listen(self) -> None:
        """Take over from submitit, which ignores SIGTERM and ends a function at SIGUSR2."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGUSR2, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """SIGUSR2 warns of preemption or of the limit; near the limit, measured times know better."""
        left = self._left()
        near_the_limit = left is not None and left < SIGNAL_SECONDS + EARLY_SECONDS
        if number != signal.SIGUSR2 or not near_the_limit:
            self._signalled = True

    def stopping(self) -> bool:
        """Asked before each block."""
        now = self.clock()
        if self._last_asked is not None:
            self._longest_block = max(self._longest_block, now - self._last_asked)
        first, self._last_asked = self._last_asked is None, now
        self.stopped = self.stopped or self._signalled or (not first and not self._fits())
        return self.stopped

    def _fits(self) -> bool:
        left = self._left()
        return left is None or left > BLOCKS_IN_FLIGHT * self._longest_block + ENDING_SECONDS

    def _left(self) -> float | None:
        return None if self.seconds_left is None else self.seconds_left - (self.clock() - self._started)


def seconds_left() -> float | None:
    """Of this job's time; None where it is not limited, or SLURM does not tell."""
    if (end := os.environ.get("SLURM_JOB_END_TIME", "")).isdigit():  # not before SLURM 23.02
        return int(end) - time.time()
    try:
        return parse_left(call("squeue", "-h", "-j", job_id(), "-o", "%L").strip())
    except SlurmError as error:
        log.warning("how much time this job has left is not known: %s", error)
        return None


def parse_left(text: str) -> float | None:
    """Time left as squeue writes it, in seconds.

    >>> parse_left("9:58"), parse_left("1-02:00:00"), parse_left("UNLIMITED")
    (598.0, 93600.0, None)
    """
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){1,2}", text):
        return None
    days, _, time_of_day = text.rpartition("-")
    seconds = 0
    for part in time_of_day.split(":"):
        seconds = seconds * 60 + int(part)
    return float(int(days or 0) * 86400 + seconds)


def why(error: Exception) -> str:
    """An exception in one line."""
    said = str(error).strip().splitlines()
    if isinstance(error, MemoryError):
        return "out of memory: raise --mem"
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


def host() -> str:
    """As SLURM calls it, for ``--exclude``."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()
