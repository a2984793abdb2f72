"""Runs blocks as SLURM job arrays: one share per job, each worked off as here."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from unetcli.core.ranges import Ranges, count
from unetcli.executors.contract import JobFailure, Task
from unetcli.executors.slurm.commands import SlurmError, array_limit, nodes, require_slurm
from unetcli.executors.slurm.journal import JobBook, Submission
from unetcli.executors.slurm.request import SlurmRequest
from unetcli.executors.slurm.submit import log_of, submit_jobs
from unetcli.executors.slurm.watch import ENDED, JobEnd, JobWatch, squeue, tail
from unetcli.executors.slurm.worker import Outcome, outcomes, run_element

log = logging.getLogger(__name__)

PAUSE_SECONDS = 0.5
LATE_SECONDS = 30.0
"""A network file system may show a job's outcome that much later than SLURM says that it has ended."""


@dataclass(slots=True, kw_only=True)
class SlurmExecutor:
    """Submits what no live job owns yet, and waits for all; a launcher that goes away leaves the jobs at work."""

    request: SlurmRequest
    blocks_per_job: int
    detach: bool = False
    """Return once everything is submitted."""
    every: float = 10.0
    """Seconds between questions to SLURM."""
    jobs: list[str] = field(init=False, default_factory=list)
    """Those of the last run, attached and submitted."""
    attached: list[str] = field(init=False, default_factory=list)
    """Those of them that an earlier launcher had submitted."""
    states: dict[str, str] = field(init=False, default_factory=dict)
    """Of jobs that have not ended, in SLURM's words."""
    waiting_for: Counter[str] = field(init=False, default_factory=Counter)
    """How many jobs wait for what, in SLURM's words."""
    problem: str = field(init=False, default="")
    """Why SLURM does not answer at the moment."""

    def run(
        self,
        task: Task,
        folder: Path,
        blocks: Ranges,
        *,
        tick: Callable[[], None],
        stopping: Callable[[], bool],
        avoid: Sequence[str] = (),
    ) -> list[JobFailure]:
        """Have the blocks worked off, by jobs that are at it already and by new ones.

        Raises
        ------
        UnetcliError
            No SLURM here, or it refuses; then no job and no file of this call is left.
        KeyboardInterrupt
            Jobs run on; the next call attaches to them.
        """
        require_slurm()
        book = JobBook(folder)
        running = still_live(book)
        self.attached = [job for submission in running for job in submission.open_jobs]
        rest = subtract(blocks, owned_by(running))
        submitted = self._submit(book, task, split(rest, self.blocks_per_job), self._request(avoid))
        self.jobs = [job for submission in [*running, *submitted] for job in submission.open_jobs]
        return [] if self.detach else self._wait(book, [*running, *submitted], tick, stopping)

    def live(self, folder: Path) -> Ranges:
        """Blocks that jobs which wait or run own; empty, without asking SLURM, where none was ever submitted."""
        book = JobBook(folder)
        return owned_by(still_live(book)) if book.file.exists() else ()

    def _request(self, avoid: Sequence[str]) -> SlurmRequest:
        """Not on hosts where these blocks failed, as long as there are others."""
        short = {host.partition(".")[0] for host in avoid}
        here = nodes(self.request.partition) if short else set()
        shunned = sorted(node for node in here if node.partition(".")[0] in short)
        return self.request.without(",".join(shunned)) if shunned and len(shunned) < len(here) else self.request

    def _submit(self, book: JobBook, task: Task, shares: Sequence[Ranges], request: SlurmRequest) -> list[Submission]:
        limit, made = array_limit(), []
        for start in range(0, len(shares), limit):
            submission = book.intend(shares[start : start + limit])
            place = str(book.logs / submission.name)
            elements = [(task, str(book.folder), place, index, share) for index, share in enumerate(submission.shares)]
            try:
                jobs = submit_jobs(request, book.logs, run_element, elements, name=submission.name)
            except Exception:
                book.withdraw(submission)
                raise
            book.confirm(submission, jobs)
            made.append(submission)
        return made

    def _wait(
        self,
        book: JobBook,
        submissions: Sequence[Submission],
        tick: Callable[[], None],
        stopping: Callable[[], bool],
    ) -> list[JobFailure]:
        """Until every job has ended, or the launcher has to stop; jobs at work are then left to themselves."""
        waiting = Waiting(book, submissions, self.every)
        while waiting.watch.states or waiting.late:
            waiting.look()
            self.states, self.problem = waiting.watch.states, waiting.watch.problem
            self.waiting_for = waiting.watch.waiting_for
            tick()
            if stopping():
                break
            time.sleep(PAUSE_SECONDS)
        return waiting.failures


class Waiting:
    """Brings together what jobs tell in files and what SLURM tells about them."""

    def __init__(self, book: JobBook, submissions: Sequence[Submission], every: float) -> None:
        self.book, self.submissions = book, submissions
        self.failures: list[JobFailure] = []
        self.late: dict[str, tuple[JobEnd, float]] = {}
        """Jobs that ended well by SLURM's word, and have not told so."""
        self.place = {
            job: (submission, index)
            for submission in submissions
            for index, job in enumerate(submission.jobs)
            if job in submission.open_jobs
        }
        self.watch = JobWatch(self.place, every=every, log_of=self.log_of)

    def log_of(self, job: str) -> Path:
        return log_of(self.book.logs, self.place[job][0].name, job)

    def look(self) -> None:
        """Note what has ended since the last look."""
        ends = self.watch.poll()  # asked first: an outcome is written before its job ends
        told = self._told()
        self._tell(failure for failure in map(failure_told, told.values()) if failure)
        self.watch.forget(told)
        lost = [end for end in ends if end.job not in told]
        self.late |= {end.job: (end, time.monotonic()) for end in lost if end.state == "COMPLETED"}
        self.late = {job: late for job, late in self.late.items() if job not in told}
        lost = [end for end in lost if end.state != "COMPLETED"] + self._too_late()
        self._tell(map(self._failure, lost))
        self._note({*told, *(end.job for end in lost)})

    def _tell(self, failures: Iterable[JobFailure]) -> None:
        for failure in failures:
            log.warning("job %s on %s: %s", failure.job, failure.host or "no host", failure.reason)
            self.failures.append(failure)

    def _told(self) -> dict[str, Outcome]:
        """Outcomes of jobs that count as open so far."""
        found: dict[str, Outcome] = {}
        for submission in self.submissions:
            files = outcomes(self.book.logs / submission.name) if submission.open_jobs else {}
            for index, path in files.items():
                if (job := submission.jobs[index]) not in submission.ended:
                    found[job] = Outcome.read(path)
        return found

    def _too_late(self) -> list[JobEnd]:
        over = [end for end, since in self.late.values() if time.monotonic() - since > LATE_SECONDS]
        for end in over:
            del self.late[end.job]
        return over

    def _failure(self, end: JobEnd) -> JobFailure:
        log = self.log_of(end.job)
        reason = f"ended without telling how; {log} may say" if end.state == "COMPLETED" else end.reason
        if end.state == "FAILED" and end.exit_code and (last := last_words(tail(log))):
            reason = f"{reason}: {last}"
        return JobFailure(job=end.job, host=end.host, reason=reason, final=end.state == "CANCELLED")

    def _note(self, jobs: set[str]) -> None:
        for submission in self.submissions:
            if ended := jobs & submission.open_jobs.keys():
                self.book.end(submission, ended)


def failure_told(outcome: Outcome) -> JobFailure | None:
    """What the job itself says went wrong."""
    if not outcome.reason:
        return None
    return JobFailure(job=outcome.job, host=outcome.host, reason=outcome.reason)


def last_words(text: str) -> str:
    """The last line of a log that is not SLURM's or submitit's."""
    lines = [line.strip() for line in text.splitlines()]
    own = [line for line in lines if line and not line.startswith(("srun:", "slurmstepd", "submitit "))]
    return own[-1] if own else ""


def still_live(book: JobBook) -> list[Submission]:
    """Submissions with jobs that wait or run; others are noted as ended.

    Raises
    ------
    SlurmError
        SLURM does not answer: nobody can say what runs.
    """
    found = book.submissions()
    known = squeue(job for submission in found for job in submission.open_jobs)
    for submission in found:
        told = {submission.jobs[index] for index in outcomes(book.logs / submission.name)}
        over = [job for job in submission.open_jobs if job in told or job not in known or known[job].state in ENDED]
        book.end(submission, over)
    return [submission for submission in found if submission.open_jobs]


def owned_by(submissions: Iterable[Submission]) -> Ranges:
    """Blocks of all their open jobs."""
    pairs = sorted(pair for submission in submissions for share in submission.open_jobs.values() for pair in share)
    joined: list[tuple[int, int]] = []
    for start, stop in pairs:
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return tuple(joined)


def subtract(blocks: Ranges, others: Ranges) -> Ranges:
    """Blocks that are not among the others.

    >>> subtract(((0, 10), (20, 30)), ((2, 4), (8, 25)))
    ((0, 2), (4, 8), (25, 30))
    """
    left: list[tuple[int, int]] = []
    first = 0
    for start, stop in blocks:
        while first < len(others) and others[first][1] <= start:  # behind us for good: both are rising
            first += 1
        for low, high in islice(others, first, None):
            if low >= stop:
                break
            if start < low:
                left.append((start, low))
            start = high
        if start < stop:
            left.append((start, stop))
    return tuple(left)


def split(blocks: Ranges, size: int) -> list[Ranges]:
    """Shares of that many blocks, the last of the rest.

    >>> split(((0, 5), (7, 9)), 3)
    [((0, 3),), ((3, 5), (7, 8)), ((8, 9),)]
    """
    return list(_shares(blocks, size))


def _shares(blocks: Ranges, size: int) -> Iterator[Ranges]:
    share: list[tuple[int, int]] = []
    for start, stop in blocks:
        while start < stop:
            end = min(stop, start + size - count(share))
            share.append((start, end))
            start = end
            if count(share) == size:
                yield tuple(share)
                share = []
    if share:
        yield tuple(share)


__all__ = ["SlurmError", "SlurmExecutor"]
