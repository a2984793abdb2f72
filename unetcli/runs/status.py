"""How far a run is, who works on it and what went wrong: from the files of its run folder alone."""

from __future__ import annotations

import functools
import logging
import statistics
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from unetcli.errors import UnetcliError
from unetcli.executors.slurm_jobs import JobBook
from unetcli.executors.slurm_word import OVER, RUNNING, WAITING, JobWord, SlurmWord
from unetcli.files import place_of
from unetcli.lock import Holder
from unetcli.planning.plan import Plan
from unetcli.runs.heartbeat import FAILED, WORKING, Beat, read_beats
from unetcli.runs.paces import HostPace, host_paces
from unetcli.runs.receipts import Ledger
from unetcli.runs.runfolder import RunFolder
from unetcli.runs.troubles import Trouble, read_troubles

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 35.0
"""A worker whose counter did not change for so long, seen from here, gives no sign of life. Heartbeats come every
5 s, but a client of NFS may show a folder as it was up to 30 s ago (acdirmin)."""
LOOK_SECONDS = 0.5
"""Between two looks at workers that are not decided yet."""
STATES = ("done", "running", "failed", "missing")
"""Every block is in one of these."""
SLOWEST = 5
"""Hosts told of."""

Scheduler = Callable[[Collection[str]], Mapping[str, JobWord]]
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A look at a run. Every block is one of done, running, failed and missing."""

    blocks: int
    done: int
    running: int
    """In the hands of workers that live."""
    failed: int
    """Tried without success; the same command tries them again."""
    missing: int
    """Nobody works on these yet, or any more."""
    voxels_per_second: float
    """Of all living workers together, each since it began."""
    seconds_left: float | None
    """For all that is not done; None: nobody works."""
    failures: list[Failure]
    """What keeps blocks missing; none once all are done."""
    output: str
    complete: bool
    """By the output's own word."""
    workers: int
    """Those that live."""
    silent: int
    """Workers of other hosts that gave no sign of life."""
    hosts: int
    """With living workers."""
    queued: int
    """Jobs that wait in SLURM's queue."""
    queued_for: str
    """What most of them wait for, in SLURM's words."""
    voxels_done: int
    voxels: int
    stopped: str | None
    """Why no worker begins another block."""
    slowest_hosts: list[HostPace]
    median_seconds_per_block: float | None
    """Of the hosts."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


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

    def lives(self, word: JobWord | None, patience: float) -> bool | None:
        """Whether it works; None: not known.

        The scheduler's word on its job comes first, then that of this machine, then the counter.
        """
        holder = self.beat.holder
        if self.beat.state != WORKING or (word and word.state != RUNNING) or holder.is_gone():
            return False
        if is_here(holder) or ((word or self.changed) and self.silence < patience):
            return True
        return None


class Watcher:
    """Looks at one run, as often as asked; receipts that a look has read are not read again."""

    def __init__(
        self,
        output: str,
        run_folder: Path | None = None,
        scheduler: Scheduler | None = None,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self.output, self.folder = output, run_folder_of(output, run_folder)
        self.scheduler, self.patience = scheduler or SlurmWord(), patience
        self.plan = planned(self.folder, output)
        self.ledger = Ledger(self.folder.receipts, self.plan.blocks)
        self._workers: dict[str, Worker] = {}
        self._words: Mapping[str, JobWord] = {}

    def look(self, wait: bool = True) -> Status:
        """The state of the run.

        Where only the counters of workers tell whether they live, waits for each to change, as long as patience lasts:
        no clock but the reader's is asked. Without ``wait``, it takes later looks to know.
        """
        self._look_at_workers()
        if wait:
            self._await_signs()
        living = [worker.beat for worker in self._workers.values() if self._lives(worker)]
        self.ledger.refresh()
        troubles = last_troubles(self.folder, self.ledger)
        return Status(
            failures=[] if self.ledger.complete else [*self._lost(), *map(_of_block, troubles)],
            output=self.output,
            complete=self.ledger.complete and is_marked_complete(self.output),
            workers=len(living),
            silent=self._undecided(),
            hosts=len({beat.holder.host for beat in living}),
            stopped=_first_line(self.folder.stop),
            **self._queue(),
            **self._counts(living, len(troubles)),
            **self._pace(living),
            **self._hosts(),
        )

    def _look_at_workers(self) -> None:
        beats = read_beats(self.folder.workers)
        for name, beat in beats.items():
            self._workers.setdefault(name, Worker(beat)).look(beat)
        for name in self._workers.keys() - beats.keys():  # of an earlier launch
            del self._workers[name]
        self._words = self.scheduler(self._jobs())

    def _jobs(self) -> set[str]:
        """Those of workers that are not known to have ended, and those that were submitted."""
        working = {worker.beat.holder.job for worker in self._workers.values() if worker.beat.state == WORKING}
        submitted = (job for submission in JobBook(self.folder.path).on_record() for job in submission.open_jobs)
        return working.union(submitted) - {"-"}

    def _await_signs(self) -> None:
        if count := self._undecided():
            log.info("%d workers on other hosts: waiting up to %.0f s for signs of life", count, self.patience)
        deadline = time.monotonic() + self.patience
        while self._undecided() and time.monotonic() < deadline:
            time.sleep(min(LOOK_SECONDS, self.patience))
            self._look_at_workers()

    def _lives(self, worker: Worker) -> bool | None:
        return worker.lives(self._words.get(worker.beat.holder.job), self.patience)

    def _undecided(self) -> int:
        return sum(self._lives(worker) is None for worker in self._workers.values())

    def _queue(self) -> dict[str, Any]:
        reasons = Counter(word.reason for word in self._words.values() if word.state == WAITING)
        return {"queued": reasons.total(), "queued_for": reasons.most_common(1)[0][0] if reasons else ""}

    def _counts(self, living: Sequence[Beat], failed: int) -> dict[str, Any]:
        done = int(np.count_nonzero(self.ledger.done))
        rest = self.plan.blocks - done - failed
        running = min(sum(beat.in_hand for beat in living), rest)
        return {
            "blocks": self.plan.blocks,
            "done": done,
            "running": running,
            "failed": failed,
            "missing": rest - running,
        }

    def _pace(self, living: Sequence[Beat]) -> dict[str, Any]:
        rate = float(sum(beat.voxels_per_second for beat in living))
        total, done = self.plan.region.size, self.plan.voxels(self.ledger.done)
        left = (total - done) / rate if rate else None
        return {
            "voxels_per_second": round(rate, 1),
            "seconds_left": 0.0 if done == total else left and round(left, 1),
            "voxels_done": done,
            "voxels": total,
        }

    def _lost(self) -> list[Failure]:
        """Workers that failed, were killed or fell silent, unless the same job was started again since."""
        last_life: dict[str, int] = {}
        for holder in (worker.beat.holder for worker in self._workers.values()):
            last_life[holder.job] = max(last_life.get(holder.job, 0), holder.restarts)
        return [
            Failure(job=holder.job, host=holder.host, block=None, place=None, reason=reason)
            for worker in self._workers.values()
            if (holder := worker.beat.holder).restarts == last_life[holder.job] and (reason := self._why_lost(worker))
        ]

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

    def _hosts(self) -> dict[str, Any]:
        hosts = self.ledger.hosts
        blocks = np.bincount(self.ledger.host[self.ledger.done], minlength=len(hosts))
        paces = host_paces(self.folder.receipts, dict(zip(hosts, blocks.tolist(), strict=True)))
        middle = statistics.median(pace.seconds_per_block for pace in paces) if paces else None
        return {"slowest_hosts": paces[:SLOWEST], "median_seconds_per_block": middle}


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


def run_folder_of(output: str, named: Path | None = None) -> RunFolder:
    """The run folder of an output, or the one that the user names."""
    return RunFolder(named) if named else RunFolder.of(place_of(output))


def planned(folder: RunFolder, output: str) -> Plan:
    """The plan of an output.

    Raises
    ------
    UnetcliError
        There is no run folder that says how the output is made.
    """
    plan = folder.plan()
    if plan is None:
        raise UnetcliError(f"{output}: no plan in {folder.path}; unetcli predict makes one, --run-folder names another")
    return plan


def is_marked_complete(output: str) -> bool:
    """Whether the output says so itself."""
    from unetcli.volumes.output import marker  # zarr

    return bool((marker(output) or {}).get("complete"))


def is_here(holder: Holder) -> bool:
    """Whether this process sees the pids that the holder's machine and container count."""
    mine = _myself()
    return (holder.host, holder.boot, holder.namespace) == (mine.host, mine.boot, mine.namespace)


@functools.cache
def _myself() -> Holder:
    return Holder.myself()


def last_troubles(folder: RunFolder, ledger: Ledger) -> list[Trouble]:
    """The last trouble of each block that has no receipt."""
    last = {trouble.block: trouble for trouble in read_troubles(folder.troubles)}
    return [trouble for block, trouble in sorted(last.items()) if block < len(ledger.done) and not ledger.done[block]]


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


def _of_block(trouble: Trouble) -> Failure:
    return Failure(job=trouble.job, host=trouble.host, block=trouble.block, place=trouble.place, reason=trouble.reason)


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text().partition("\n")[0]
    except FileNotFoundError:
        return None
