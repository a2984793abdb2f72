"""The workers of a run: who lives, who waits in a queue, and who was lost, and why.

The scheduler's word on a worker's job comes first, then that of this machine, then the worker's counter. No clock but
the reader's is asked.
"""

from __future__ import annotations

import functools
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from unetcli.core.lock import Holder
from unetcli.engine.heartbeat import FAILED, WORKING, Beat, read_beats
from unetcli.engine.runfolder import RunFolder
from unetcli.executors.slurm.journal import JobJournal
from unetcli.executors.slurm.watch import OVER, RUNNING, WAITING, JobState

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 35.0
"""A worker whose counter did not change for so long, seen from here, gives no sign of life. Heartbeats come every
5 s, but a client of NFS may show a folder as it was up to 30 s ago (acdirmin)."""
LOOK_SECONDS = 0.5
"""Between two looks at workers that are not decided yet."""


@dataclass
class Worker:
    """A heartbeat file, as often as the reader looked at it."""

    beat: Beat
    changed: bool = False
    """Between two looks: it lived then."""
    since: float = field(default_factory=time.monotonic)
    """When the reader saw its counter change, or first saw it."""

    def look(self, beat: Beat) -> None:
        """Take in what its file says now."""
        if beat != self.beat:
            self.beat, self.changed, self.since = beat, True, time.monotonic()

    @property
    def silence(self) -> float:
        """Seconds without a sign of life, by the reader's clock."""
        return time.monotonic() - self.since

    def lives(self, word: JobState | None, patience: float) -> bool | None:
        """Whether it works; None: not known.

        The scheduler's word on its job comes first, then that of this machine, then the counter.
        """
        holder = self.beat.holder
        if self.beat.state != WORKING or (word and word.state != RUNNING) or holder.is_gone():
            return False
        if is_here(holder) or ((word or self.changed) and self.silence < patience):
            return True
        return None


def await_workers(folder: RunFolder, attached: Collection[str], seconds: float) -> int:
    """Wait until workers of an earlier launch have ended, but for those in jobs that are attached to.

    Returns how many may still be at work after so long. A launcher that was killed leaves workers that notice only
    after their block; to begin at once would have that block computed twice.
    """
    seen: dict[str, Worker] = {}
    deadline = time.monotonic() + seconds
    while True:
        for name, beat in read_beats(folder.workers).items():
            seen.setdefault(name, Worker(beat)).look(beat)
        left = sum(
            worker.beat.holder.job not in attached and may_work(worker, PATIENCE_SECONDS) for worker in seen.values()
        )
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(LOOK_SECONDS)


def may_work(worker: Worker, patience: float) -> bool:
    """Whether a worker is at work, for all that can be known here."""
    lives = worker.lives(None, patience)
    return worker.silence < patience if lives is None else lives


def is_here(holder: Holder) -> bool:
    """Whether this process sees the pids that the holder's machine and container count."""
    mine = _myself()
    return (holder.host, holder.boot, holder.namespace) == (mine.host, mine.boot, mine.namespace)


@functools.cache
def _myself() -> Holder:
    return Holder.myself()


def memory_of(beat: Beat) -> str:
    """What a worker's last beat says of its memory.

    Near the limit this is why it was killed, most probably.
    """
    used = f"{beat.memory_bytes / 2**30:.1f}"
    if beat.memory_limit_bytes is None:
        return f"used {used} GB of memory at its last beat"
    of = f"{used} of {beat.memory_limit_bytes / 2**30:.1f} GB"
    if not beat.near_limit:
        return f"used {of} of memory at its last beat"
    return f"probably out of memory, {of}: " + ("give it more" if beat.holder.job == "-" else "raise --mem")


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
class Workers:
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
