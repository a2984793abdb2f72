"""Which SLURM jobs own which blocks: written before they are submitted and after, so that any launcher can tell."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unetcli.core.ranges import Ranges
from unetcli.executors.slurm.commands import cancel, named
from unetcli.executors.slurm.submit import complete, tidy


@dataclass(slots=True)
class Submission:
    """One array, or one single job."""

    name: str
    """Of its jobs, and of the folder of their logs and outcomes."""
    shares: tuple[Ranges, ...]
    jobs: tuple[str, ...] = ()
    """In the order of the shares; empty until SLURM's answer is written down."""
    ended: set[str] = field(default_factory=set)
    withdrawn: bool = False

    @property
    def open_jobs(self) -> dict[str, Ranges]:
        """Blocks by the jobs that are not known to have ended."""
        pairs = zip(self.jobs, self.shares, strict=True) if self.jobs else ()
        return {job: share for job, share in pairs if job not in self.ended}


@dataclass(frozen=True, slots=True)
class JobBook:
    """``jobs.jsonl`` of a run folder; only who holds the launcher's lock writes to it."""

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
        """SLURM has taken it."""
        submission.jobs = tuple(jobs)
        self._append({"confirm": submission.name, "jobs": submission.jobs})

    def withdraw(self, submission: Submission) -> None:
        """It was not made."""
        submission.withdrawn = True
        self._append({"withdraw": submission.name})

    def end(self, submission: Submission, jobs: Iterable[str]) -> None:
        """These jobs own nothing any more."""
        if new := sorted(set(jobs) - submission.ended):
            submission.ended |= set(new)
            self._append({"end": submission.name, "jobs": new})
            if not submission.open_jobs:
                tidy(self.logs / submission.name)

    def on_record(self) -> list[Submission]:
        """All, as they are written down; nothing is looked up or changed."""
        return self._read()

    def submissions(self) -> list[Submission]:
        """All that have jobs which may not have ended, once those of a killed launcher are looked up.

        Raises
        ------
        SlurmError
            There are such, and SLURM does not answer.
        """
        found = self._read()
        for submission in found:
            if not submission.jobs and not submission.withdrawn:
                self._settle(submission)
        return [submission for submission in found if submission.open_jobs]

    def _settle(self, submission: Submission) -> None:
        """The launcher died between asking SLURM and noting its answer: SLURM knows the jobs by name."""
        jobs = sorted(named(submission.name), key=_element)
        if len(jobs) == len(submission.shares) and complete(self.logs / submission.name, jobs):
            self.confirm(submission, jobs)
            return
        cancel(jobs)  # they would wait in vain for what to do
        shutil.rmtree(self.logs / submission.name, ignore_errors=True)  # a job that sbatch still makes ends at once
        self.withdraw(submission)

    def _read(self) -> list[Submission]:
        found: dict[str, Submission] = {}
        for line in self._lines():
            if name := line.get("submit"):
                found[name] = Submission(name, tuple(_ranges(share) for share in line["shares"]))
            elif submission := found.get(line.get("confirm", "")):
                submission.jobs = tuple(line["jobs"])
            elif submission := found.get(line.get("withdraw", "")):
                submission.withdrawn = True
            elif submission := found.get(line.get("end", "")):
                submission.ended |= set(line["jobs"])
        return list(found.values())

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


def _element(job: str) -> tuple[int, int]:
    array, _, element = job.partition("_")
    return int(array), int(element or 0)


def _ranges(pairs: Iterable[Sequence[int]]) -> Ranges:
    return tuple((start, stop) for start, stop in pairs)
