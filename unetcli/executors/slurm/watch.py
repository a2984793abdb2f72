"""States of SLURM jobs: how they end, for a launcher that waits for them, and what they do, for ``status``.

Works with and without ``sacct``, with one query for all jobs.
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
"""Final states of a job."""
PREEMPTED_SECONDS = 15.0
"""Time after which a preempted job counts as ended, as SLURM would have requeued it by then."""
GONE = "GONE"
"""State, defined by unetcli, of a job that neither squeue nor sacct knows any more."""
STATE_OF_VANISHED = {"PENDING": "CANCELLED", "PREEMPTED": "PREEMPTED"}
"""Final state of a job that vanished from squeue, by its last state. SLURM forgets a cancelled waiting job at once."""
UNKNOWN_JOB = "Invalid job id"
QUERIES_UNTIL_GONE = 2
IDS_PER_CALL = 500
COLUMNS = {"JobArrayID": 32, "State": 20, "exit_code": 12, "NodeList": 200, "Reason": 64}
MEMORY_WORDS = re.compile(r"exceeded (?:job |step )?memory limit|oom[-_ ]kill|out of memory", re.IGNORECASE)
TAIL_BYTES = 8192

WAITING, RUNNING, OVER = "waiting", "running", "over"
STATES = {"PENDING": WAITING, "REQUEUED": WAITING, "RUNNING": RUNNING, "COMPLETING": RUNNING}
"""States shown by ``status``, by SLURM's names, for jobs that have not ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnd:
    """State of a job as reported by squeue or sacct, in most cases of a job that has ended."""

    job: str
    state: str
    """State in SLURM's terms, or ``GONE``."""
    host: str = ""
    exit_code: int = 0
    signal: int = 0
    """Number of the signal that ended the job, or the process whose exit code the job returned."""
    note: str = ""
    """SLURM's reason for the state."""

    @classmethod
    def of(cls, job: str, state: str, status: str, host: str, note: str) -> JobEnd:
        """Parse a row of squeue or sacct. Only the first word of a state such as ``CANCELLED by 1000`` counts."""
        code, number = parse_exit_status(status)
        return cls(job=job, state=state.partition(" ")[0], host=host, exit_code=code, signal=number, note=note)

    @property
    def reason(self) -> str:
        """Explanation for the user, on one line; ``completed`` if the job succeeded."""
        if self.state == "FAILED":
            return self._failure()
        return REASONS.get(self.state, f"ended as {self.state}")

    def _failure(self) -> str:
        if self.note == "JobLaunchFailure":
            return "SLURM could not start it (JobLaunchFailure): can the node access the run folder?"
        if self.signal == signal.SIGKILL:
            return "killed (SIGKILL) by the system or a user; if it ran out of memory, raise --mem"
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
    "PREEMPTED": "preempted by another job and not requeued",
    GONE: "lost: SLURM no longer knows it, and without accounting (sacct) its end is unknown",
}


def signal_name(number: int) -> str:
    """Name of a signal.

    >>> signal_name(11), signal_name(99)
    ('SIGSEGV', 'unknown')
    """
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


@dataclass(slots=True)
class JobWatch:
    """Watches waiting and running jobs.

    :meth:`poll` may be called at any rate; SLURM is queried at most every ``every`` seconds.
    """

    jobs: Iterable[str]
    every: float = 10.0
    log_of: Callable[[str], Path] | None = None
    """Returns the path of a job's log, as some causes of failure appear only there."""
    clock: Callable[[], float] = time.monotonic
    states: dict[str, str] = field(init=False, default_factory=dict)
    """Last known state of the jobs that have not ended, in SLURM's terms."""
    problem: str = field(init=False, default="")
    """Why SLURM did not answer the last query; empty if it did."""
    _missed: dict[str, int] = field(init=False, default_factory=dict)
    """Number of successive queries in which SLURM did not know a job."""
    _preempted: dict[str, float] = field(init=False, default_factory=dict)
    """Time at which a job was first seen preempted."""
    _asked: float = field(init=False, default=-float("inf"))
    _accounts: bool | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.add(self.jobs)

    def add(self, jobs: Iterable[str]) -> None:
        self.states |= {job: "UNKNOWN" for job in jobs if job not in self.states}

    def forget(self, jobs: Iterable[str]) -> None:
        """Stop watching jobs whose end is already known."""
        for job in jobs:
            self.states.pop(job, None)
            self._missed.pop(job, None)

    def poll(self) -> list[JobEnd]:
        """Jobs that have ended since the last call; each is returned once."""
        if not self.states or self.clock() - self._asked < self.every:
            return []
        self._asked = self.clock()
        try:
            known = squeue(self.states)
        except SlurmError as error:
            if not self.problem:
                log.warning("SLURM does not answer (%s); the query will be repeated", error)
            self.problem = str(error)
            return []  # without an answer nothing is known about the jobs
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
        """Ends of the jobs that SLURM did not know in two successive queries."""
        self._missed = {job: self._missed.get(job, 0) + 1 for job in missing}
        gone = {job for job, times in self._missed.items() if times >= QUERIES_UNTIL_GONE}
        accounts = self._from_accounts(gone)
        return [
            self._explained(accounts.get(job) or JobEnd(job=job, state=STATE_OF_VANISHED.get(self.states[job], GONE)))
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
        """Recognise jobs out of memory: if only a step was killed, the state is FAILED and the log has the cause."""
        killed = end.state == "FAILED" and end.signal == signal.SIGKILL
        if killed and self.log_of and MEMORY_WORDS.search(tail(self.log_of(end.job))):
            return replace(end, state="OUT_OF_MEMORY")
        return end


def squeue(jobs: Iterable[str]) -> dict[str, JobEnd]:
    """State, host and exit code of the given jobs, without those that squeue does not know.

    Raises
    ------
    SlurmError
        SLURM does not answer.
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
            if UNKNOWN_JOB not in str(error):
                raise
            continue
        rows = (JobEnd.of(*(row[cell].strip() for cell in cells)) for row in text.splitlines() if row.strip())
        found |= {row.job: row for row in rows if row.job in wanted}
    return found


def parse_exit_status(text: str) -> tuple[int, int]:
    """Exit code and signal, from a wait status (squeue) or ``code:signal`` (sacct).

    An exit code of 128 + n, by which srun or a shell reports signal n, counts as that signal.

    >>> parse_exit_status("768"), parse_exit_status("9"), parse_exit_status("137:0"), parse_exit_status("")
    ((3, 0), (0, 9), (0, 9), (0, 0))
    """
    if ":" in text:
        code, number = map(int, text.split(":"))
    else:
        status = int(text) if text.isdigit() else 0
        code, number = status >> 8 & 0xFF, status & 0x7F
    return (0, code - 128) if 128 < code < 128 + 65 and not number else (code, number)


def sacct(jobs: Iterable[str]) -> dict[str, JobEnd]:
    """Ends of jobs from SLURM's accounting.

    Raises
    ------
    SlurmError
        The cluster has no accounting, or it does not answer.
    """
    wanted = set(jobs)
    arrays = ",".join(sorted({job.partition("_")[0] for job in wanted}))
    text = call("sacct", "-n", "-X", "-P", "-o", "JobID,State,ExitCode,NodeList,Reason", "-j", arrays)
    rows = (JobEnd.of(*line.split("|", 4)) for line in text.splitlines())
    return {row.job: row for row in rows if row.job in wanted}


def tail(path: Path) -> str:
    """Last part of a log file; empty if it does not exist."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class JobState:
    """State of a job as ``status`` shows it, with the reason why it waits or ended."""

    state: str
    reason: str = ""

    @classmethod
    def of(cls, end: JobEnd) -> JobState | None:
        """Convert a row of squeue; None if the state says nothing about the job's worker.

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
    """States of jobs for ``status``, which must not block; empty if SLURM does not answer.

    ``squeue`` is called at most every ``every`` seconds, and each call waits at most ``patience`` seconds for it.
    """

    every: float = 10.0
    patience: float = 3.0
    states: Mapping[str, JobState] = field(default_factory=dict)
    asked: float = -float("inf")

    def __call__(self, jobs: Collection[str]) -> Mapping[str, JobState]:
        """States of those jobs that SLURM knows."""
        if jobs and shutil.which("squeue") and time.monotonic() - self.asked >= self.every:
            self.asked = time.monotonic()
            # In a thread, as a busy controller may take a minute to answer.
            thread = threading.Thread(target=self._ask, args=(set(jobs),), daemon=True)
            thread.start()
            thread.join(self.patience)
        return self.states

    def _ask(self, jobs: Collection[str]) -> None:
        with suppress(SlurmError):
            self.states = {job: state for job, end in squeue(jobs).items() if (state := JobState.of(end))}
