"""Runs blocks as SLURM job arrays: one share per job, each worked off as in a process here."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from unetcli.core.ranges import Ranges, split, subtract, union
from unetcli.executors.contract import JobFailure, Task
from unetcli.executors.slurm.journal import JobJournal, Submission, log_of
from unetcli.executors.slurm.request import SlurmRequest, array_limit, nodes, require_slurm
from unetcli.executors.slurm.watch import JobEnd, JobWatch, tail
from unetcli.executors.slurm.worker import ShareOutcome, outcomes, run_share

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
    """Jobs of the last run: those of earlier launchers that it attached to, and those it submitted."""

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
        journal = JobJournal(folder)
        submissions = journal.live()
        shares = split(subtract(blocks, blocks_of(submissions)), self.blocks_per_job)
        submissions += self._submit(journal, task, shares, self._request(avoid))
        self.jobs = [job for submission in submissions for job in submission.open_jobs]
        return [] if self.detach else self._wait(JobsAtWork(journal, submissions, self.every), tick, stopping)

    def _request(self, avoid: Sequence[str]) -> SlurmRequest:
        """Not on hosts where these blocks failed, as long as there are others."""
        short = {host.partition(".")[0] for host in avoid}
        here = nodes(self.request.partition) if short else set()
        shunned = sorted(node for node in here if node.partition(".")[0] in short)
        return self.request.without(",".join(shunned)) if shunned and len(shunned) < len(here) else self.request

    def _submit(
        self, journal: JobJournal, task: Task, shares: Sequence[Ranges], request: SlurmRequest
    ) -> list[Submission]:
        """A submission for every array of jobs."""
        limit, made = array_limit(), []
        for start in range(0, len(shares), limit):
            submission = journal.intend(shares[start : start + limit])
            place, folder = str(journal.logs / submission.name), str(journal.folder)
            arguments = [(task, folder, place, index, share) for index, share in enumerate(submission.shares)]
            journal.submit(submission, request, run_share, arguments)
            made.append(submission)
        return made

    def _wait(self, at_work: JobsAtWork, tick: Callable[[], None], stopping: Callable[[], bool]) -> list[JobFailure]:
        """Wait until every job has ended, or the launcher has to stop; jobs at work are then left to themselves."""
        while at_work:
            at_work.look()
            tick()
            if stopping():
                break
            time.sleep(PAUSE_SECONDS)
        return at_work.failures


class JobsAtWork:
    """Jobs that are waited for: brings together what they write in files and what SLURM says about them."""

    def __init__(self, journal: JobJournal, submissions: Sequence[Submission], every: float) -> None:
        self.journal, self.submissions = journal, submissions
        self.failures: list[JobFailure] = []
        self.late: dict[str, tuple[JobEnd, float]] = {}
        """Jobs that ended well according to SLURM and whose outcome is not to be seen yet, with the time they ended."""
        self.submission_of = {job: submission.name for submission in submissions for job in submission.open_jobs}
        self.watch = JobWatch(self.submission_of, every=every, log_of=self.log_of)

    def __bool__(self) -> bool:
        return bool(self.watch.states or self.late)

    def log_of(self, job: str) -> Path:
        return log_of(self.journal.logs, self.submission_of[job], job)

    def look(self) -> None:
        """Note what has ended since the last look."""
        ended = self.watch.poll()  # asked first: an outcome is written before its job ends
        outcomes = self._new_outcomes()
        self.watch.forget(outcomes)
        now = time.monotonic()
        self.late |= {end.job: (end, now) for end in ended if end.state == "COMPLETED"}
        self.late = {job: late for job, late in self.late.items() if job not in outcomes}
        overdue = [job for job, (_, since) in self.late.items() if now - since > LATE_SECONDS]
        lost = [end for end in ended if end.state != "COMPLETED" and end.job not in outcomes]
        lost += [self.late.pop(job)[0] for job in overdue]
        failed = [outcome for outcome in outcomes.values() if outcome.reason]
        new = [JobFailure(job=outcome.job, host=outcome.host, reason=outcome.reason) for outcome in failed]
        for failure in [*new, *map(self._failure, lost)]:
            log.warning("job %s on %s: %s", failure.job, failure.host or "no host", failure.reason)
            self.failures.append(failure)
        self._end({*outcomes, *(end.job for end in lost)})

    def _new_outcomes(self) -> dict[str, ShareOutcome]:
        """Outcomes of jobs that count as open so far."""
        found: dict[str, ShareOutcome] = {}
        for submission in self.submissions:
            files = outcomes(self.journal.logs / submission.name) if submission.open_jobs else {}
            for index, path in files.items():
                if (job := submission.jobs[index]) not in submission.ended:
                    found[job] = ShareOutcome.read(path)
        return found

    def _failure(self, end: JobEnd) -> JobFailure:
        file = self.log_of(end.job)
        reason = f"ended without telling how; {file} may say" if end.state == "COMPLETED" else end.reason
        if end.state == "FAILED" and end.exit_code and (last := last_words(tail(file))):
            reason = f"{reason}: {last}"
        return JobFailure(job=end.job, host=end.host, reason=reason, final=end.state == "CANCELLED")

    def _end(self, jobs: set[str]) -> None:
        for submission in self.submissions:
            if ended := jobs & submission.open_jobs.keys():
                self.journal.end(submission, ended)


def last_words(text: str) -> str:
    """The last line of a log that is not SLURM's or submitit's."""
    lines = [line.strip() for line in text.splitlines()]
    own = [line for line in lines if line and not line.startswith(("srun:", "slurmstepd", "submitit "))]
    return own[-1] if own else ""


def blocks_of(submissions: Iterable[Submission]) -> Ranges:
    """Blocks of all their open jobs."""
    return union(share for submission in submissions for share in submission.open_jobs.values())
