"""Journal of SLURM submissions, from which any launcher can find which job owns which blocks."""

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

from unetcli.core.errors import UnetcliError, warn
from unetcli.core.ranges import Ranges
from unetcli.core.records import decoded, parse_json
from unetcli.executors.slurm.job import command
from unetcli.executors.slurm.request import (
    SlurmError,
    SlurmRequest,
    array_limit,
    cancel,
    jobs_named,
    outside_of_jobs,
    reason_in,
    require_slurm,
)
from unetcli.executors.slurm.watch import ENDED, squeue
from unetcli.executors.slurm.worker import outcomes

SUBMITIT_FILES = ("*_submitted.pkl", "*_result.pkl", "*.save_tmp")
"""Files in which submitit passes the function to a job and its result back; not needed once the job has ended."""


@dataclass(slots=True)
class Submission:
    """One or more job arrays, or a single job, submitted together."""

    name: str
    """Name of the jobs, and of the folder with their logs and outcomes."""
    shares: tuple[Ranges, ...]
    jobs: tuple[str, ...] = ()
    """Job ids, in the order of the shares; empty until SLURM's answer is recorded."""
    ended: set[str] = field(default_factory=set)
    withdrawn: bool = False

    @property
    def open_jobs(self) -> dict[str, Ranges]:
        """Jobs that are not known to have ended, with their blocks."""
        pairs = zip(self.jobs, self.shares, strict=True) if self.jobs else ()
        return {job: share for job, share in pairs if job not in self.ended}


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalLine:
    """One line of the file; the name of a submission is the value of what happened to it."""

    submit: str = ""
    confirm: str = ""
    withdraw: str = ""
    end: str = ""
    shares: tuple[Ranges, ...] = ()
    jobs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class JobJournal:
    """The file ``jobs.jsonl`` of a run folder. Only the holder of the launcher's lock writes to it."""

    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "jobs.jsonl"

    @property
    def logs(self) -> Path:
        """Folder that contains one folder per submission."""
        return self.folder / "logs" / "slurm"

    def intend(self, shares: Sequence[Ranges]) -> Submission:
        """Record a submission, under a unique name, before it is made."""
        submission = Submission(f"unetcli-{secrets.token_hex(6)}", tuple(shares))
        self._append({"submit": submission.name, "shares": submission.shares})
        return submission

    def confirm(self, submission: Submission, jobs: Iterable[str]) -> None:
        """Record that SLURM has accepted the submission."""
        submission.jobs = tuple(jobs)
        self._append({"confirm": submission.name, "jobs": submission.jobs})

    def withdraw(self, submission: Submission) -> None:
        """Record that the submission was not made."""
        submission.withdrawn = True
        self._append({"withdraw": submission.name})

    def submit(
        self,
        submission: Submission,
        request: SlurmRequest,
        function: Callable[..., Any],
        arguments: Sequence[tuple[Any, ...]],
    ) -> None:
        """Submit one job per share with its arguments, and record the outcome. Raises as :func:`submit_jobs`."""
        try:
            jobs = submit_jobs(request, self.logs, function, arguments, name=submission.name)
        except Exception:
            self.withdraw(submission)
            raise
        self.confirm(submission, jobs)

    def end(self, submission: Submission, jobs: Iterable[str]) -> None:
        """Record that these jobs have ended and no longer own their blocks."""
        if new := sorted(set(jobs) - submission.ended):
            submission.ended |= set(new)
            self._append({"end": submission.name, "jobs": new})
            if not submission.open_jobs:
                for pattern in SUBMITIT_FILES:
                    for path in private_folder(self.logs / submission.name).glob(pattern):
                        path.unlink(missing_ok=True)

    def on_record(self) -> list[Submission]:
        """Read all submissions from the file, without asking SLURM."""
        found: dict[str, Submission] = {}
        for line in self._lines():
            if line.submit:
                found[line.submit] = Submission(line.submit, line.shares)
            elif submission := found.get(line.confirm):
                submission.jobs = line.jobs if len(line.jobs) == len(submission.shares) else submission.jobs
            elif submission := found.get(line.withdraw):
                submission.withdrawn = True
            elif submission := found.get(line.end):
                submission.ended |= set(line.jobs)
        return list(found.values())

    def live(self) -> list[Submission]:
        """Submissions with waiting or running jobs; all other jobs are recorded as ended.

        Raises
        ------
        SlurmError
            SLURM does not answer, so it is unknown which jobs run.
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
        """Find a submission's jobs by name, after its launcher died before it recorded SLURM's answer."""
        jobs = sorted(jobs_named(submission.name), key=lambda job: [int(number) for number in job.split("_")])
        folder = self.logs / submission.name
        written = (private_folder(folder) / f"{job}_submitted.pkl" for job in jobs)
        if len(jobs) == len(submission.shares) and all(file.exists() for file in written):
            self.confirm(submission, jobs)
            return
        cancel(jobs)  # submitit had not written the function of every job yet: they would wait in vain
        shutil.rmtree(folder, ignore_errors=True)  # a job that sbatch creates later ends at once
        self.withdraw(submission)

    def _lines(self) -> Iterable[JournalLine]:
        try:
            text = self.file.read_text(errors="replace")
        except FileNotFoundError:
            return
        for line in text.splitlines():
            with suppress(ValueError):  # incomplete: its writer was killed before doing what the line announces
                yield decoded(JournalLine, parse_json(line))

    def _append(self, line: dict[str, Any]) -> None:
        """Append a line and flush it to disk. It begins with a newline, as an earlier line may be incomplete."""
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
    """Submit jobs that each call the function with one tuple of arguments; returns their ids (``123_0`` in an array).

    Parameters
    ----------
    logs
        Folder that the nodes can access. The files of the submission are written to ``logs/name``.
    function
        Function of an importable module, as it is pickled by name.
    arguments
        Arguments of each job.
    name
        Unique name of the jobs, by which they can be found again.
    nodes, tasks_per_node
        Size of one job; each of its tasks calls the function with the same arguments.

    Raises
    ------
    UnetcliError
        SLURM is not available or refuses the jobs; no job and no file is left behind.
    """
    if not arguments:
        return []
    require_slurm()
    folder, limit = logs / name, array_limit()
    jobs: list[str] = []
    parameters = request.submitit_parameters() | {"job_name": name, "nodes": nodes, "ntasks_per_node": tasks_per_node}
    if nodes * tasks_per_node > 1:  # otherwise the other tasks would wait for one that failed
        parameters["srun_args"] = [*(parameters["srun_args"] or []), "--kill-on-bad-exit=1"]
    with _undone_on_error(logs, folder, jobs), outside_of_jobs(request.options()):
        for start in range(0, len(arguments), limit):
            jobs += _submit_array(folder, function, arguments[start : start + limit], parameters)
    return jobs


def private_folder(submission: Path) -> Path:
    """Folder of a submission's pickled functions and script, which other users must not change; logs are beside it."""
    return submission / "jobs"


def make_private(folder: Path) -> None:
    """Create a folder that only its owner can use; warn if its file system ignores modes."""
    folder.mkdir(mode=0o700)
    if folder.stat().st_mode & 0o077:
        warn(
            f"{folder}: its file system ignores modes, so other users may change the jobs before they start; choose a "
            "folder on another file system, for predict, label and evaluate with --run-folder"
        )


@contextmanager
def _undone_on_error(logs: Path, folder: Path, jobs: list[str]) -> Iterator[None]:
    """Create the folder of a submission; on an error, cancel its jobs and delete the folder."""
    made_logs = not logs.exists()
    folder.mkdir(parents=True)
    try:
        make_private(private_folder(folder))
        yield
    except BaseException:
        with suppress(SlurmError):
            cancel([*jobs, *jobs_named(folder.name)])  # by name: an interrupt may come before sbatch returns the id
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

    class Executor(SlurmExecutor):
        @property
        def _submitit_command_str(self) -> str:
            return command(self.folder)

    own = private_folder(folder)
    executor = Executor(own)
    executor.update_parameters(**{"array_parallelism": len(arguments)} | _logged(parameters, folder, len(arguments)))
    logging.getLogger("submitit").setLevel(logging.CRITICAL)  # its handlers would write to stdout
    try:
        with redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            submitted = executor.map_array(function, *zip(*arguments, strict=True))
    except (FailedJobError, FailedSubmissionError) as error:
        raise UnetcliError(f"SLURM refuses the jobs: {reason_in(str(error))}") from None
    for link in own.glob(".submission_file_*.sh"):  # links to the script, whose name has the job's id
        link.unlink()
    return [str(job.job_id) for job in submitted]


def _logged(parameters: dict[str, Any], folder: Path, jobs: int) -> dict[str, Any]:
    """Parameters with the log files of :func:`log_of`; submitit would write them to its own folder."""
    job = "%A_%a" if jobs > 1 else "%j"
    tasks = [*(parameters["srun_args"] or []), f"--output={folder / f'{job}_%t_log.out'}"]
    options = {**parameters["additional_parameters"], "output": str(folder / f"{job}_0_log.out")}
    return {**parameters, "srun_args": tasks, "additional_parameters": options}


def log_of(logs: Path, name: str, job: str) -> Path:
    """Log file of a job: its output and SLURM's messages."""
    return logs / name / f"{job}_0_log.out"
