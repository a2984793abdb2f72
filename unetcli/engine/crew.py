"""The workers of a run: who lives, who waits in a queue, and who was lost, and why."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from unetcli.engine.heartbeat import FAILED, WORKING, Beat, read_beats
from unetcli.engine.liveness import LOOK_SECONDS, Worker, memory_of
from unetcli.engine.runfolder import RunFolder
from unetcli.executors.slurm.journal import JobJournal
from unetcli.executors.slurm.watch import OVER, WAITING, JobState

log = logging.getLogger(__name__)

Scheduler = Callable[[Collection[str]], Mapping[str, JobState]]
"""Says how some jobs are, of those that it can speak for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A worker that did not end in good order, or a block that has no result; the last word on it."""

    job: str
    host: str
    block: int | None
    """None: it is the worker that failed."""
    place: str | None
    """Of the block."""
    reason: str


@dataclass
class Crew:
    """All workers that a run folder knows, as often as they are looked at."""

    folder: RunFolder
    scheduler: Scheduler
    patience: float
    _workers: dict[str, Worker] = field(default_factory=dict)
    _words: Mapping[str, JobState] = field(default_factory=dict)

    def look(self) -> None:
        """Read all heartbeats, and ask the scheduler."""
        beats = read_beats(self.folder.workers)
        for name, beat in beats.items():
            self._workers.setdefault(name, Worker(beat)).look(beat)
        for name in self._workers.keys() - beats.keys():  # of an earlier launch
            del self._workers[name]
        self._words = self.scheduler(self._jobs())

    def await_signs(self) -> None:
        """Look until each worker is known to live or not, as long as patience lasts."""
        if count := self.undecided:
            log.info("%d workers on other hosts: waiting up to %.0f s for signs of life", count, self.patience)
        deadline = time.monotonic() + self.patience
        while self.undecided and time.monotonic() < deadline:
            time.sleep(min(LOOK_SECONDS, self.patience))
            self.look()

    @property
    def living(self) -> list[Beat]:
        """The last beats of those that live."""
        return [worker.beat for worker in self._workers.values() if self._lives(worker)]

    @property
    def undecided(self) -> int:
        """How many may live or not."""
        return sum(self._lives(worker) is None for worker in self._workers.values())

    @property
    def queue(self) -> dict[str, Any]:
        """How many jobs wait, and what most of them wait for."""
        reasons = Counter(word.reason for word in self._words.values() if word.state == WAITING)
        return {"queued": reasons.total(), "queued_for": reasons.most_common(1)[0][0] if reasons else ""}

    def lost(self) -> list[Failure]:
        """Workers that failed, were killed or fell silent, unless the same job was started again since."""
        last_life: dict[str, int] = {}
        for holder in (worker.beat.holder for worker in self._workers.values()):
            last_life[holder.job] = max(last_life.get(holder.job, 0), holder.restarts)
        return [
            Failure(job=holder.job, host=holder.host, block=None, place=None, reason=reason)
            for worker in self._workers.values()
            if (holder := worker.beat.holder).restarts == last_life[holder.job] and (reason := self._why_lost(worker))
        ]

    def _jobs(self) -> set[str]:
        """Those of workers that are not known to have ended, and those that were submitted."""
        working = {worker.beat.holder.job for worker in self._workers.values() if worker.beat.state == WORKING}
        submitted = (job for submission in JobJournal(self.folder.path).on_record() for job in submission.open_jobs)
        return working.union(submitted) - {"-"}

    def _lives(self, worker: Worker) -> bool | None:
        return worker.lives(self._words.get(worker.beat.holder.job), self.patience)

    def _why_lost(self, worker: Worker) -> str | None:
        """Why a worker is at work no more, in one line; None where it is, may be, or ended in good order."""
        beat, lives = worker.beat, self._lives(worker)
        if beat.state == FAILED:
            return beat.reason
        if beat.state != WORKING or lives:
            return None
        if word := self._words.get(beat.holder.job):
            if word.state == WAITING:  # to be started again
                return None
            if word.state == OVER:
                return f"{word.reason} ({memory_of(beat)})" if beat.near_limit else word.reason
        if lives is False:
            return f"killed, {memory_of(beat)}"
        if worker.silence < self.patience:
            return None
        return f"no sign of life for {worker.silence:.0f} s: killed, or its host is lost; {memory_of(beat)}"
