"""What SLURM says of some jobs, for whoever only looks on: never late, and nothing where no SLURM answers."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from unetcli.executors.slurm.commands import SlurmError
from unetcli.executors.slurm.watch import ENDED, JobEnd, squeue

WAITING, RUNNING, OVER = "waiting", "running", "over"
SLURMS_WORDS = {"PENDING": WAITING, "REQUEUED": WAITING, "RUNNING": RUNNING, "COMPLETING": RUNNING}


@dataclass(frozen=True, slots=True)
class JobWord:
    """How a job is, and why: what it waits for, or what ended it."""

    state: str
    reason: str = ""


@dataclass
class SlurmWord:
    """Asks ``squeue``, at most every so many seconds, and waits for its answer no longer than said."""

    every: float = 10.0
    patience: float = 3.0
    words: Mapping[str, JobWord] = field(default_factory=dict)
    asked: float = -float("inf")

    def __call__(self, jobs: Collection[str]) -> Mapping[str, JobWord]:
        """Of the jobs that SLURM knows; all others it says nothing of."""
        if jobs and shutil.which("squeue") and time.monotonic() - self.asked >= self.every:
            self.asked = time.monotonic()
            # A thread of its own: a controller under load may answer after a minute.
            thread = threading.Thread(target=self._ask, args=(set(jobs),), daemon=True)
            thread.start()
            thread.join(self.patience)
        return self.words

    def _ask(self, jobs: Collection[str]) -> None:
        try:
            told = squeue(jobs)
        except SlurmError:
            return
        self.words = {job: word for job, end in told.items() if (word := word_of(end)) is not None}


def word_of(end: JobEnd) -> JobWord | None:
    """One row of squeue; None where it tells nothing about the job's worker.

    >>> word_of(JobEnd(job="1", state="PENDING", note="Priority"))
    JobWord(state='waiting', reason='Priority')
    >>> word_of(JobEnd(job="1", state="TIMEOUT"))
    JobWord(state='over', reason='stopped at its time limit: raise --time')
    """
    if end.state in ENDED:
        return None if end.state == "COMPLETED" else JobWord(OVER, end.reason)
    state = SLURMS_WORDS.get(end.state)
    return JobWord(state, end.note if state == WAITING else "") if state else None
