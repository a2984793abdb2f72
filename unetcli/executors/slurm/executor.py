"""Executor that runs blocks as SLURM job arrays, one share per job."""

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
"""Time after the end of a job until its outcome file must be visible on a network file system."""


@dataclass(slots=True, kw_only=True)
class SlurmExecutor:
    """Submits the blocks that no live job owns, and waits for all jobs. Jobs continue if the launcher ends."""

    request: SlurmRequest
    blocks_per_job: int
    detach: bool = False
    """Return once everything is submitted."""
    every: float = 10.0
    """Seconds between queries to SLURM."""
    jobs: list[str] = field(init=False, default_factory=list)
    """Jobs of the last run: those it submitted, and those of earlier launchers to which it attached."""

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
        """Process the blocks, in jobs that are already running and in new ones.

        Raises
        ------
        UnetcliError
            SLURM is not available or refuses the jobs; no job and no file of this call is left behind.
        KeyboardInterrupt
            The user interrupted the launcher; jobs continue, and the next call attaches to them.
        """
        require_slurm()
        journal = JobJournal(folder)
        submissions = journal.live()
        shares = split(subtract(blocks, blocks_of(submissions)), self.blocks_per_job)
        submissions += self._submit(journal, task, shares, self._request(avoid))
        self.jobs = [job for submission in submissions for job in submission.open_jobs]
        return [] if self.detach else self._wait(OpenJobs(journal, submissions, self.every), tick, stopping)

    def _request(self, avoid: Sequence[str]) -> SlurmRequest:
        """The request, without hosts where these blocks failed as long as there are others."""
        short = {host.partition(".")[0] for host in avoid}
        known = nodes(self.request.partition) if short else set()
        avoided = sorted(node for node in known if node.partition(".")[0] in short)
        return self.request.without(",".join(avoided)) if avoided and len(avoided) < len(known) else self.request

    def _submit(
        self, journal: JobJournal, task: Task, shares: Sequence[Ranges], request: SlurmRequest
    ) -> list[Submission]:
        """Submit the shares, as one submission per job array."""
        limit, made = array_limit(), []
        for start in range(0, len(shares), limit):
            submission = journal.intend(shares[start : start + limit])
            place, folder = str(journal.logs / submission.name), str(journal.folder)
            arguments = [(task, folder, place, index, share) for index, share in enumerate(submission.shares)]
            journal.submit(submission, request, run_share, arguments)
            made.append(submission)
        return made

    def _wait(self, jobs: OpenJobs, tick: Callable[[], None], stopping: Callable[[], bool]) -> list[JobFailure]:
        """Wait until all jobs have ended or the launcher must stop, in which case the jobs continue."""
        while jobs:
            jobs.update()
            tick()
            if stopping():
                break
            time.sleep(PAUSE_SECONDS)
        return jobs.failures


class OpenJobs:
    """Jobs that have not ended; combines the outcome files that they write with the states that SLURM reports."""

    def __init__(self, journal: JobJournal, submissions: Sequence[Submission], every: float) -> None:
        self.journal, self.submissions = journal, submissions
        self.failures: list[JobFailure] = []
        self.late: dict[str, tuple[JobEnd, float]] = {}
        """Jobs that SLURM reports as completed while their outcome file is not visible, with the time of the report."""
        self.submission_of = {job: submission.name for submission in submissions for job in submission.open_jobs}
        self.watch = JobWatch(self.submission_of, every=every, log_of=self.log_of)

    def __bool__(self) -> bool:
        return bool(self.watch.states or self.late)

    def log_of(self, job: str) -> Path:
        return log_of(self.journal.logs, self.submission_of[job], job)

    def update(self) -> None:
        """Record the jobs that have ended since the last call."""
        ended = self.watch.poll()  # before reading outcomes: a job writes its outcome before it ends
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
        """Read the outcomes of jobs that are still recorded as open."""
        found: dict[str, ShareOutcome] = {}
        for submission in self.submissions:
            files = outcomes(self.journal.logs / submission.name) if submission.open_jobs else {}
            for index, path in files.items():
                if (job := submission.jobs[index]) not in submission.ended:
                    found[job] = ShareOutcome.read(path)
        return found

    def _failure(self, end: JobEnd) -> JobFailure:
        file = self.log_of(end.job)
        reason = f"ended without reporting its outcome; see {file}" if end.state == "COMPLETED" else end.reason
        if end.state == "FAILED" and end.exit_code and (last := last_log_line(tail(file))):
            reason = f"{reason}: {last}"
        return JobFailure(job=end.job, host=end.host, reason=reason, final=end.state == "CANCELLED")

    def _end(self, jobs: set[str]) -> None:
        for submission in self.submissions:
            if ended := jobs & submission.open_jobs.keys():
                self.journal.end(submission, ended)


def last_log_line(text: str) -> str:
    """Last line of a log that neither SLURM nor submitit wrote."""
    lines = [line.strip() for line in text.splitlines()]
    own = [line for line in lines if line and not line.startswith(("srun:", "slurmstepd", "submitit "))]
    return own[-1] if own else ""


def blocks_of(submissions: Iterable[Submission]) -> Ranges:
    """Blocks of all open jobs of the submissions."""
    return union(share for submission in submissions for share in submission.open_jobs.values())
