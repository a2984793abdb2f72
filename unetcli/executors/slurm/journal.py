"""Submissions, and which SLURM jobs own which blocks: on record before and after, so that any launcher can tell."""

from __future__ import annotations

import io
import json
import logging
import os
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unetcli.core.errors import UnetcliError
from unetcli.core.ranges import Ranges
from unetcli.executors.slurm.request import (
    SlurmError,
    SlurmRequest,
    array_limit,
    cancel,
    named,
    outside_of_jobs,
    reason_in,
    require_slurm,
)
from unetcli.executors.slurm.watch import ENDED, squeue
from unetcli.executors.slurm.worker import outcomes

CARRIERS = ("*_submitted.pkl", "*_result.pkl", "*.save_tmp")
"""Files by which submitit sends a job its function and gets back what it returned; not needed once the job ended."""


@dataclass(slots=True)
class Submission:
    """One or more arrays of jobs, or one single job."""

    name: str
    """Of its jobs, and of the folder of their logs and outcomes."""
    shares: tuple[Ranges, ...]
    jobs: tuple[str, ...] = ()
    """In the order of the shares; empty until SLURM's answer is on record."""
    ended: set[str] = field(default_factory=set)
    withdrawn: bool = False

    @property
    def open_jobs(self) -> dict[str, Ranges]:
        """Blocks by the jobs that are not known to have ended."""
        pairs = zip(self.jobs, self.shares, strict=True) if self.jobs else ()
        return {job: share for job, share in pairs if job not in self.ended}


@dataclass(frozen=True, slots=True)
class JobJournal:
    """``jobs.jsonl`` of a run folder; only the holder of the launcher's lock writes to it."""

    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "jobs.jsonl"

    @property
    def logs(self) -> Path:
        """A folder for each submission."""
        return self.folder / "logs" / "slurm"

    def intend(self, shares: Sequence[Ranges]) -> Submission:
        """A submission that is about to be made, under a name that nothing else has."""
        submission = Submission(f"unetcli-{secrets.token_hex(6)}", tuple(shares))
        self._append({"submit": submission.name, "shares": submission.shares})
        return submission

    def confirm(self, submission: Submission, jobs: Iterable[str]) -> None:
        """Record that SLURM has taken it."""
        submission.jobs = tuple(jobs)
        self._append({"confirm": submission.name, "jobs": submission.jobs})

    def withdraw(self, submission: Submission) -> None:
        """Record that it was not made."""
        submission.withdrawn = True
        self._append({"withdraw": submission.name})

    def submit(
        self,
        submission: Submission,
        request: SlurmRequest,
        function: Callable[..., Any],
        arguments: Sequence[tuple[Any, ...]],
    ) -> None:
        """Submit one job per share, with these arguments, and record what became of it; raises as submit_jobs does."""
        try:
            jobs = submit_jobs(request, self.logs, function, arguments, name=submission.name)
        except Exception:
            self.withdraw(submission)
            raise
        self.confirm(submission, jobs)

    def end(self, submission: Submission, jobs: Iterable[str]) -> None:
        """Record that these jobs own nothing any more."""
        if new := sorted(set(jobs) - submission.ended):
            submission.ended |= set(new)
            self._append({"end": submission.name, "jobs": new})
            if not submission.open_jobs:
                for pattern in CARRIERS:
                    for path in (self.logs / submission.name).glob(pattern):
                        path.unlink(missing_ok=True)

    def on_record(self) -> list[Submission]:
        """All submissions as the file has them; nothing is looked up or changed."""
        found: dict[str, Submission] = {}
        for line in self._lines():
            if name := line.get("submit"):
                shares = tuple(tuple((start, stop) for start, stop in share) for share in line["shares"])
                found[name] = Submission(name, shares)
            elif submission := found.get(line.get("confirm", "")):
                submission.jobs = tuple(line["jobs"])
            elif submission := found.get(line.get("withdraw", "")):
                submission.withdrawn = True
            elif submission := found.get(line.get("end", "")):
                submission.ended |= set(line["jobs"])
        return list(found.values())

    def live(self) -> list[Submission]:
        """Submissions with jobs that wait or run; other jobs are noted as ended.

        Raises
        ------
        SlurmError
            SLURM does not answer: nobody can say what runs.
        """
        found = self.on_record()
        for submission in found:
            if not submission.jobs and not submission.withdrawn:
                self._resolve(submission)
        known = squeue(job for submission in found for job in submission.open_jobs)
        for submission in found:
            if submission.open_jobs:
                ended = {submission.jobs[index] for index in outcomes(self.logs / submission.name)}
                ended |= {job for job in submission.open_jobs if job not in known or known[job].state in ENDED}
                self.end(submission, submission.open_jobs.keys() & ended)
        return [submission for submission in found if submission.open_jobs]

    def _resolve(self, submission: Submission) -> None:
        """The launcher died between asking SLURM and noting its answer: SLURM knows the jobs by name."""
        jobs = sorted(named(submission.name), key=lambda job: [int(number) for number in job.split("_")])
        folder = self.logs / submission.name
        if len(jobs) == len(submission.shares) and all((folder / f"{job}_submitted.pkl").exists() for job in jobs):
            self.confirm(submission, jobs)
            return
        cancel(jobs)  # submitit did not get so far as to give every job its function: they would wait in vain
        shutil.rmtree(folder, ignore_errors=True)  # a job that sbatch still makes ends at once
        self.withdraw(submission)

    def _lines(self) -> Iterable[dict[str, Any]]:
        try:
            text = self.file.read_text()
        except FileNotFoundError:
            return
        for line in text.splitlines():
            try:
                yield json.loads(line)
            except ValueError:  # torn: its writer was killed, and did not go on to what it announces
                continue

    def _append(self, line: dict[str, Any]) -> None:
        """On disk when this returns. A newline first: an earlier line may be torn."""
        handle = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(handle, f"\n{json.dumps(line)}\n".encode())
            os.fsync(handle)
        finally:
            os.close(handle)


def submit_jobs(
    request: SlurmRequest,
    logs: Path,
    function: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
    *,
    name: str,
    nodes: int = 1,
    tasks_per_node: int = 1,
) -> list[str]:
    """Ids of jobs, ``123_0`` in an array, that call the function with one tuple of arguments each.

    Parameters
    ----------
    logs
        Folder that the nodes see. What belongs to the submission lies in ``logs/name``: nothing else should.
    function
        Of an importable module: it travels by name.
    name
        Of the jobs, too; unique, so that they can be found again.
    nodes, tasks_per_node
        Of one job: each task calls the function, with the same arguments.

    Raises
    ------
    UnetcliError
        No SLURM here, or it refuses; then nothing is left behind, no job and no file.
    """
    if not arguments:
        return []
    require_slurm()
    folder, limit = logs / name, array_limit()
    jobs: list[str] = []
    parameters = request.submitit_parameters() | {"job_name": name, "nodes": nodes, "ntasks_per_node": tasks_per_node}
    if nodes * tasks_per_node > 1:  # tasks that wait for one that failed would wait for long
        parameters["srun_args"] = [*(parameters["srun_args"] or []), "--kill-on-bad-exit=1"]
    with _undone_where_refused(logs, folder, jobs), outside_of_jobs(request.options()):
        for start in range(0, len(arguments), limit):
            jobs += _submit_array(folder, function, arguments[start : start + limit], parameters)
    return jobs


@contextmanager
def _undone_where_refused(logs: Path, folder: Path, jobs: list[str]) -> Iterator[None]:
    made_logs = not logs.exists()
    folder.mkdir(parents=True)
    try:
        yield
    except BaseException:
        with suppress(SlurmError):
            cancel([*jobs, *named(folder.name)])  # by name too: an interrupt may come after sbatch has said yes
        shutil.rmtree(folder, ignore_errors=True)
        if made_logs:
            with suppress(OSError):
                logs.rmdir()
        raise


def _submit_array(
    folder: Path, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], parameters: dict[str, Any]
) -> list[str]:
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    executor = SlurmExecutor(folder)
    executor.update_parameters(**{"array_parallelism": len(arguments), **parameters})
    logging.getLogger("submitit").setLevel(logging.CRITICAL)  # its handlers would write to our stdout
    try:
        with redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            submitted = executor.map_array(function, *zip(*arguments, strict=True))
    except (FailedJobError, FailedSubmissionError) as error:
        raise UnetcliError(f"SLURM refuses the jobs: {reason_in(str(error))}") from None
    for link in folder.glob(".submission_file_*.sh"):  # to the script, which has the job's id in its name
        link.unlink()
    return [str(job.job_id) for job in submitted]


def log_of(logs: Path, name: str, job: str) -> Path:
    """What the job printed, and what SLURM said about it."""
    return logs / name / f"{job}_0_log.out"
