"""What SLURM says of jobs: how they end, for who waits for them, and how they are, for who only looks on.

Ends are found out with ``sacct`` and without it, from one query for all jobs.
"""

from __future__ import annotations

import logging
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from pathlib import Path

from unetcli.executors.slurm.request import SlurmError, call

log = logging.getLogger(__name__)

ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"}
"""States that a job does not leave."""
PREEMPTED_SECONDS = 15.0
"""After which a preempted job counts as ended: it would be back in the queue by then."""
GONE = "GONE"
"""State of a job that SLURM has forgotten and keeps no accounts of; a word of unetcli, not of SLURM."""
VANISHED_FROM = {"PENDING": "CANCELLED", "PREEMPTED": "PREEMPTED"}
"""What became of a job that SLURM forgot at once: of an array element cancelled while it waits, nothing is kept."""
FORGOTTEN = "Invalid job id"
LOOKS_UNTIL_GONE = 2
IDS_PER_CALL = 500
COLUMNS = {"JobArrayID": 32, "State": 20, "exit_code": 12, "NodeList": 200, "Reason": 64}
MEMORY_WORDS = re.compile(r"exceeded (?:job |step )?memory limit|oom[-_ ]kill|out of memory", re.IGNORECASE)
TAIL_BYTES = 8192

WAITING, RUNNING, OVER = "waiting", "running", "over"
STATES = {"PENDING": WAITING, "REQUEUED": WAITING, "RUNNING": RUNNING, "COMPLETING": RUNNING}
"""By SLURM's names; all but those in ``ENDED``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnd:
    """How a job ended; also how it is, for a row of squeue about one that has not."""

    job: str
    state: str
    """SLURM's, or ``GONE``."""
    host: str = ""
    exit_code: int = 0
    signal: int = 0
    """Number of the signal that ended the job, or the process whose code the job passed on."""
    note: str = ""
    """SLURM's reason, where it says more than the state."""

    @classmethod
    def of(cls, job: str, state: str, status: str, host: str, note: str) -> JobEnd:
        """From a row of squeue or sacct, whose states may say more, as in ``CANCELLED by 1000``."""
        code, number = exit_of(status)
        return cls(job=job, state=state.partition(" ")[0], host=host, exit_code=code, signal=number, note=note)

    @property
    def reason(self) -> str:
        """One line for people; ``completed`` where all is well."""
        if self.state == "FAILED":
            return self._failure()
        return REASONS.get(self.state, f"ended as {self.state}")

    def _failure(self) -> str:
        if self.note == "JobLaunchFailure":
            return "SLURM could not start it (JobLaunchFailure): does the node see the run folder?"
        if self.signal == signal.SIGKILL:
            return "killed (SIGKILL) by the system or by hand; if for its memory, raise --mem"
        if self.signal:
            return f"crashed by signal {self.signal} ({signal_name(self.signal)})"
        return f"crashed with exit code {self.exit_code}"


REASONS = {
    "COMPLETED": "completed",
    "CANCELLED": "cancelled",
    "TIMEOUT": "stopped at its time limit: raise --time",
    "NODE_FAIL": "its node was lost",
    "OUT_OF_MEMORY": "out of memory: raise --mem",
    "BOOT_FAIL": "its node did not boot",
    "DEADLINE": "stopped at its deadline",
    "PREEMPTED": "preempted by another job, and not put back into the queue",
    GONE: "lost: SLURM does not know it any more and keeps no accounts (no sacct) that would say how it ended",
}


def signal_name(number: int) -> str:
    """
    >>> signal_name(11), signal_name(99)
    ('SIGSEGV', 'unknown')
    """
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


@dataclass(slots=True)
class JobWatch:
    """Watches jobs that are waiting or running.

    ``poll`` may be called as often as one likes; SLURM is asked at most every ``every`` seconds.
    """

    jobs: Iterable[str]
    every: float = 10.0
    log_of: Callable[[str], Path] | None = None
    """Where a job's log lies: some causes are told only there."""
    clock: Callable[[], float] = time.monotonic
    states: dict[str, str] = field(init=False, default_factory=dict)
    """Of jobs that have not ended, as SLURM last told them."""
    problem: str = field(init=False, default="")
    """Why SLURM did not answer the last time it was asked; empty where it did."""
    _missed: dict[str, int] = field(init=False, default_factory=dict)
    _preempted: dict[str, float] = field(init=False, default_factory=dict)
    """Since when."""
    _asked: float = field(init=False, default=-float("inf"))
    _accounts: bool | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.add(self.jobs)

    def add(self, jobs: Iterable[str]) -> None:
        self.states |= {job: "UNKNOWN" for job in jobs if job not in self.states}

    def forget(self, jobs: Iterable[str]) -> None:
        """Ask no more about jobs whose end is known from elsewhere."""
        for job in jobs:
            self.states.pop(job, None)
            self._missed.pop(job, None)

    def poll(self) -> list[JobEnd]:
        """Jobs that have ended since the last call, each told once."""
        if not self.states or self.clock() - self._asked < self.every:
            return []
        self._asked = self.clock()
        try:
            known = squeue(self.states)
        except SlurmError as error:
            if not self.problem:
                log.warning("SLURM does not answer (%s); it is asked again", error)
            self.problem = str(error)
            return []  # no answer says nothing about the jobs
        self.problem = ""
        ends = [self._explained(end) for end in known.values() if self._has_ended(end)]
        ends += self._vanished(set(self.states) - set(known))
        self.states |= {job: end.state for job, end in known.items()}
        self.forget(end.job for end in ends)
        return ends

    def _has_ended(self, end: JobEnd) -> bool:
        if end.state != "PREEMPTED":
            self._preempted.pop(end.job, None)
            return end.state in ENDED
        return self._asked - self._preempted.setdefault(end.job, self._asked) >= PREEMPTED_SECONDS

    def _vanished(self, missing: set[str]) -> list[JobEnd]:
        """Those that SLURM twice in a row knew nothing of."""
        self._missed = {job: self._missed.get(job, 0) + 1 for job in missing}
        gone = {job for job, times in self._missed.items() if times >= LOOKS_UNTIL_GONE}
        accounts = self._from_accounts(gone)
        return [
            self._explained(accounts.get(job) or JobEnd(job=job, state=VANISHED_FROM.get(self.states[job], GONE)))
            for job in sorted(gone)
        ]

    def _from_accounts(self, jobs: set[str]) -> dict[str, JobEnd]:
        if not jobs or self._accounts is False:
            return {}
        try:
            ends = sacct(jobs)
        except SlurmError:
            self._accounts = False if self._accounts is None else self._accounts
            return {}
        self._accounts = True
        return {job: end for job, end in ends.items() if end.state in {*ENDED, "PREEMPTED"}}

    def _explained(self, end: JobEnd) -> JobEnd:
        """Where the step was killed for its memory, the job is told as FAILED, and only its log says why."""
        killed = end.state == "FAILED" and end.signal == signal.SIGKILL
        if killed and self.log_of and MEMORY_WORDS.search(tail(self.log_of(end.job))):
            return replace(end, state="OUT_OF_MEMORY")
        return end


def squeue(jobs: Iterable[str]) -> dict[str, JobEnd]:
    """State, host and exit code of those jobs that squeue lists.

    Raises
    ------
    SlurmError
        SLURM does not answer; an unknown job is no error.
    """
    wanted = set(jobs)
    found: dict[str, JobEnd] = {}
    arrays = sorted({job.partition("_")[0] for job in wanted})
    columns = ",".join(f"{name}:{width}" for name, width in COLUMNS.items())
    cells = [slice(*edges) for edges in pairwise(accumulate(COLUMNS.values(), initial=0))]
    for start in range(0, len(arrays), IDS_PER_CALL):
        ids = ",".join(arrays[start : start + IDS_PER_CALL])
        try:
            text = call("squeue", "-h", "-r", "-t", "all", "-O", columns, "-j", ids)
        except SlurmError as error:
            if FORGOTTEN not in str(error):
                raise
            continue
        rows = (JobEnd.of(*(row[cell].strip() for cell in cells)) for row in text.splitlines() if row.strip())
        found |= {row.job: row for row in rows if row.job in wanted}
    return found


def exit_of(text: str) -> tuple[int, int]:
    """Exit code and signal as squeue (a wait status) and sacct (``code:signal``) tell them.

    Where srun or a shell passed on a signal as 128 + its number, it is the signal.

    >>> exit_of("768"), exit_of("9"), exit_of("137:0"), exit_of("")
    ((3, 0), (0, 9), (0, 9), (0, 0))
    """
    if ":" in text:
        code, number = map(int, text.split(":"))
    else:
        status = int(text) if text.isdigit() else 0
        code, number = status >> 8 & 0xFF, status & 0x7F
    return (0, code - 128) if 128 < code < 128 + 65 and not number else (code, number)


def sacct(jobs: Iterable[str]) -> dict[str, JobEnd]:
    """Ends of jobs that only the accounts know any more.

    Raises
    ------
    SlurmError
        This cluster keeps none.
    """
    wanted = set(jobs)
    arrays = ",".join(sorted({job.partition("_")[0] for job in wanted}))
    text = call("sacct", "-n", "-X", "-P", "-o", "JobID,State,ExitCode,NodeList,Reason", "-j", arrays)
    rows = (JobEnd.of(*line.split("|", 4)) for line in text.splitlines())
    return {row.job: row for row in rows if row.job in wanted}


def tail(path: Path) -> str:
    """The end of a log; empty where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class JobState:
    """How a job is, and why: what it waits for, or what ended it."""

    state: str
    reason: str = ""

    @classmethod
    def of(cls, end: JobEnd) -> JobState | None:
        """State by a row of squeue; None where it says nothing about the job's worker.

        >>> JobState.of(JobEnd(job="1", state="PENDING", note="Priority"))
        JobState(state='waiting', reason='Priority')
        >>> JobState.of(JobEnd(job="1", state="TIMEOUT"))
        JobState(state='over', reason='stopped at its time limit: raise --time')
        """
        if end.state in ENDED:
            return None if end.state == "COMPLETED" else cls(OVER, end.reason)
        state = STATES.get(end.state)
        return cls(state, end.note if state == WAITING else "") if state else None


@dataclass
class JobStates:
    """States of jobs for who only looks on: never late, and none where no SLURM answers.

    ``squeue`` is asked at most every ``every`` seconds, and its answer waited for no longer than ``patience``.
    """

    every: float = 10.0
    patience: float = 3.0
    states: Mapping[str, JobState] = field(default_factory=dict)
    asked: float = -float("inf")

    def __call__(self, jobs: Collection[str]) -> Mapping[str, JobState]:
        """States of the jobs that SLURM knows."""
        if jobs and shutil.which("squeue") and time.monotonic() - self.asked >= self.every:
            self.asked = time.monotonic()
            # A thread of its own: a controller under load may answer after a minute.
            thread = threading.Thread(target=self._ask, args=(set(jobs),), daemon=True)
            thread.start()
            thread.join(self.patience)
        return self.states

    def _ask(self, jobs: Collection[str]) -> None:
        with suppress(SlurmError):
            self.states = {job: state for job, end in squeue(jobs).items() if (state := JobState.of(end))}
