"""Heartbeats of the workers of a run: which workers are alive, queued or lost, and why."""

from __future__ import annotations

import functools
import json
import logging
import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from unetcli.core.errors import counted, one_line
from unetcli.core.files import draft_of
from unetcli.core.lock import Holder
from unetcli.core.memory import memory_bytes, memory_limit
from unetcli.core.records import OddFile, read_record
from unetcli.engine.receipts import worker_name
from unetcli.engine.runfolder import RunFolder
from unetcli.executors.slurm.journal import JobJournal
from unetcli.executors.slurm.watch import OVER, RUNNING, WAITING, JobState

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0
"""Time between two heartbeats."""
MEMORY_POLL_SECONDS = 0.25
"""Time between two memory checks; a heartbeat is written early if memory comes near its limit."""
NEAR_LIMIT = 0.9
"""Fraction of the memory limit above which a worker that disappeared was probably killed for using too much."""
WORKING, ENDED, FAILED = "working", "ended", "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """One heartbeat: the state that a worker reports."""

    holder: Holder
    counter: int
    """Increases with each heartbeat: if it changes between two reads, the worker is alive, whatever clocks say."""
    state: str
    """``working``, ``ended`` normally, or ``failed`` with a :attr:`reason`."""
    assigned: int = 0
    """Blocks assigned to this process so far, in all its calls."""
    blocks: int = 0
    """Assigned blocks that are finished."""
    set_aside: int = 0
    """Assigned blocks that failed."""
    voxels: int = 0
    """Voxels in the finished blocks."""
    seconds: float = 0.0
    """Running time of all calls so far."""
    memory_bytes: int
    memory_limit_bytes: int | None
    """Memory limit of the job, set by the scheduler or the kernel; None: unknown."""
    reason: str = ""
    """Reason of a failure, on one line."""

    @property
    def blocks_left(self) -> int:
        """Assigned blocks that are still to be computed."""
        return max(self.assigned - self.blocks - self.set_aside, 0) if self.state == WORKING else 0

    @property
    def near_limit(self) -> bool:
        """Whether memory use is above :data:`NEAR_LIMIT` of the limit."""
        limit = self.memory_limit_bytes
        return limit is not None and self.memory_bytes >= NEAR_LIMIT * limit

    @property
    def voxels_per_second(self) -> float:
        return self.voxels / self.seconds if self.seconds > 0 else 0.0


class Heartbeat:
    """Writes heartbeats to ``folder`` while it is open; the last one reports how the worker ended."""

    def __init__(self, folder: Path, assigned: int) -> None:
        self.path, self._beat = _IDLE.take(folder)
        self._beat = replace(self._beat, assigned=self._beat.blocks + self._beat.set_aside + assigned, reason="")
        self._before, self._started = self._beat.seconds, time.monotonic()
        self._written = self._beat
        self._changing = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._write(WORKING)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._ended.set()
        self._thread.join()
        failed = isinstance(error, Exception)  # an interrupt or an exit is intended
        self._write(FAILED if failed else ENDED, reason=one_line(error, kind=True) if error and failed else "")
        _IDLE.give_back(self.path, self._beat)

    def done(self, voxels: int) -> None:
        """Count one more finished block."""
        with self._changing:
            self._beat = replace(self._beat, blocks=self._beat.blocks + 1, voxels=self._beat.voxels + voxels)

    def set_aside(self) -> None:
        """Count one more failed block."""
        with self._changing:
            self._beat = replace(self._beat, set_aside=self._beat.set_aside + 1)

    def _run(self) -> None:
        last = time.monotonic()
        while not self._ended.wait(MEMORY_POLL_SECONDS):
            if time.monotonic() - last >= HEARTBEAT_SECONDS or self._is_news():
                last = time.monotonic()
                self._write(WORKING)

    def _is_news(self) -> bool:
        """Return whether, since the last heartbeat, the first block was finished or memory came near its limit."""
        now, last = replace(self._beat, memory_bytes=memory_bytes()), self._written
        return (now.blocks > 0) > (last.blocks > 0) or now.near_limit > last.near_limit

    def _write(self, state: str, reason: str = "") -> None:
        seconds = self._before + time.monotonic() - self._started
        with self._changing:
            beat = replace(self._beat, counter=self._beat.counter + 1, state=state, seconds=seconds, reason=reason)
            self._beat = replace(beat, memory_bytes=memory_bytes(), memory_limit_bytes=memory_limit())
            self._written = self._beat
        draft = draft_of(self.path)
        try:
            draft.write_text(json.dumps(asdict(self._written)))
            os.replace(draft, self.path)  # not synced: the next heartbeat replaces it
        except OSError:  # a full disk must not end the work
            with suppress(OSError):
                draft.unlink(missing_ok=True)


class _Idle:
    """Heartbeat files of this process that are not in use, by folder, each with its last heartbeat."""

    def __init__(self) -> None:
        self._files: dict[tuple[int, Path], list[tuple[Path, Beat]]] = {}

    def take(self, folder: Path) -> tuple[Path, Beat]:
        """Return an unused file, or a new one; concurrent calls from several threads get one each."""
        try:
            return self._files[os.getpid(), folder].pop()
        except (KeyError, IndexError):
            return folder / f"{worker_name()}-{secrets.token_hex(2)}.json", first_beat()

    def give_back(self, path: Path, beat: Beat) -> None:
        self._files.setdefault((os.getpid(), path.parent), []).append((path, beat))


_IDLE = _Idle()


def first_beat() -> Beat:
    """Return the heartbeat of a worker that has just started."""
    used, limit = memory_bytes(), memory_limit()
    return Beat(holder=Holder.myself(), counter=0, state=WORKING, memory_bytes=used, memory_limit_bytes=limit)


def read_beats(folder: Path) -> dict[str, Beat]:
    """Read the last heartbeat of every worker of a run, by file name."""
    beats = {}
    for path in sorted(folder.glob("*.json")):
        with suppress(OSError, OddFile):
            beats[path.stem] = read_record(path, Beat, "")
    return beats


PATIENCE_SECONDS = 35.0
"""Time without a change of its counter after which a worker counts as silent. Heartbeats come every 5 s, but an NFS
client may show a folder as it was up to 30 s ago (acdirmin)."""
POLL_SECONDS = 0.5
"""Time between two reads of heartbeats, while the state of some workers is unknown."""


@dataclass
class Worker:
    """One worker as seen through repeated reads of its heartbeat file."""

    beat: Beat
    changed: bool = False
    """Whether the heartbeat changed between two reads, so that the worker was alive then."""
    since: float = field(default_factory=time.monotonic)
    """Time at which the reader saw the counter change, or first read it."""

    def update(self, beat: Beat) -> None:
        """Take the heartbeat that was just read."""
        if beat != self.beat:
            self.beat, self.changed, self.since = beat, True, time.monotonic()

    @property
    def seconds_silent(self) -> float:
        """Seconds since the last change of the heartbeat, by the reader's clock."""
        return time.monotonic() - self.since

    def is_alive(self, job: JobState | None, patience: float) -> bool | None:
        """Return whether the worker is running; None if that is unknown.

        The scheduler's state of its job takes precedence, then this machine's process table, then the counter.
        """
        holder = self.beat.holder
        if self.beat.state != WORKING or (job and job.state != RUNNING) or holder.is_gone():
            return False
        if is_on_this_machine(holder) or ((job or self.changed) and self.seconds_silent < patience):
            return True
        return None


def await_workers(folder: RunFolder, attached: Collection[str], seconds: float) -> int:
    """Wait until the workers of an earlier launch have ended, except those of jobs in ``attached``.

    Returns the number of workers that may still be running after ``seconds``. Workers of a killed launcher notice only
    after their current block; starting at once would compute that block twice.
    """
    seen: dict[str, Worker] = {}
    deadline = time.monotonic() + seconds
    while True:
        for name, beat in read_beats(folder.workers).items():
            seen.setdefault(name, Worker(beat)).update(beat)
        left = sum(
            worker.beat.holder.job not in attached and may_be_alive(worker, PATIENCE_SECONDS)
            for worker in seen.values()
        )
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(POLL_SECONDS)


def may_be_alive(worker: Worker, patience: float) -> bool:
    """Return False only if the worker is known to have ended, or has been silent for longer than ``patience``."""
    alive = worker.is_alive(None, patience)
    return worker.seconds_silent < patience if alive is None else alive


def is_on_this_machine(holder: Holder) -> bool:
    """Return whether this process sees the holder's pid: same machine, boot and container."""
    mine = _myself()
    return (holder.host, holder.boot, holder.namespace) == (mine.host, mine.boot, mine.namespace)


@functools.cache
def _myself() -> Holder:
    return Holder.myself()


def describe_memory(beat: Beat) -> str:
    """Describe the memory in a worker's last heartbeat; near the limit it is the probable reason of a kill."""
    used = f"{beat.memory_bytes / 2**30:.1f}"
    if beat.memory_limit_bytes is None:
        return f"used {used} GB of memory at its last heartbeat"
    usage = f"{used} of {beat.memory_limit_bytes / 2**30:.1f} GB"
    if not beat.near_limit:
        return f"used {usage} of memory at its last heartbeat"
    return f"probably out of memory, {usage}: " + ("give it more" if beat.holder.job == "-" else "raise --mem")


Scheduler = Callable[[Collection[str]], Mapping[str, JobState]]
"""Returns the states of the given jobs, as far as it knows them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A worker that ended abnormally, or a block that has no result, with the latest reason."""

    job: str
    host: str
    block: int | None
    """Number of the block; None if a worker failed."""
    place: str | None
    """Location of the block."""
    reason: str


@dataclass
class Workers:
    """All workers with a heartbeat in a run folder, followed over repeated reads."""

    folder: RunFolder
    scheduler: Scheduler
    patience: float
    _workers: dict[str, Worker] = field(default_factory=dict)
    _job_states: Mapping[str, JobState] = field(default_factory=dict)

    def update(self) -> None:
        """Read all heartbeats and query the scheduler."""
        beats = read_beats(self.folder.workers)
        for name, beat in beats.items():
            self._workers.setdefault(name, Worker(beat)).update(beat)
        for name in self._workers.keys() - beats.keys():  # of an earlier launch
            del self._workers[name]
        self._job_states = self.scheduler(self._jobs())

    def wait_for_heartbeats(self) -> None:
        """Update until the state of every worker is known, for at most ``patience`` seconds."""
        if count := self.unknown:
            log.info("%s on other hosts: waiting up to %.0f s for a heartbeat", counted(count, "worker"), self.patience)
        deadline = time.monotonic() + self.patience
        while self.unknown and time.monotonic() < deadline:
            time.sleep(min(POLL_SECONDS, self.patience))
            self.update()

    @property
    def alive(self) -> list[Beat]:
        """Last heartbeats of the workers that are alive."""
        return [worker.beat for worker in self._workers.values() if self._is_alive(worker)]

    @property
    def unknown(self) -> int:
        """Number of workers whose state is unknown."""
        return sum(self._is_alive(worker) is None for worker in self._workers.values())

    @property
    def queue(self) -> dict[str, Any]:
        """Number of queued jobs and the most frequent reason that SLURM gives for waiting."""
        reasons = Counter(job.reason for job in self._job_states.values() if job.state == WAITING)
        return {"queued": reasons.total(), "queued_for": reasons.most_common(1)[0][0] if reasons else ""}

    def lost(self) -> list[Failure]:
        """Return workers that failed, were killed or fell silent, unless their job was restarted since."""
        restarts: dict[str, int] = {}
        for holder in (worker.beat.holder for worker in self._workers.values()):
            restarts[holder.job] = max(restarts.get(holder.job, 0), holder.restarts)
        return [
            Failure(job=holder.job, host=holder.host, block=None, place=None, reason=reason)
            for worker in self._workers.values()
            if (holder := worker.beat.holder).restarts == restarts[holder.job] and (reason := self._why_lost(worker))
        ]

    def _jobs(self) -> set[str]:
        """Return the jobs of workers that have not reported their end, and the submitted jobs."""
        working = {worker.beat.holder.job for worker in self._workers.values() if worker.beat.state == WORKING}
        submitted = (job for submission in JobJournal(self.folder.path).on_record() for job in submission.open_jobs)
        return working.union(submitted) - {"-"}

    def _is_alive(self, worker: Worker) -> bool | None:
        return worker.is_alive(self._job_states.get(worker.beat.holder.job), self.patience)

    def _why_lost(self, worker: Worker) -> str | None:
        """Return why a worker was lost, on one line; None if it is or may be alive, or ended normally."""
        beat, alive = worker.beat, self._is_alive(worker)
        if beat.state == FAILED:
            return beat.reason
        if beat.state != WORKING or alive:
            return None
        if job := self._job_states.get(beat.holder.job):
            if job.state == WAITING:  # to be restarted
                return None
            if job.state == OVER:
                return f"{job.reason} ({describe_memory(beat)})" if beat.near_limit else job.reason
        if alive is False:
            return f"killed, {describe_memory(beat)}"
        if worker.seconds_silent < self.patience:
            return None
        return f"no heartbeat for {worker.seconds_silent:.0f} s: killed, or its host is lost; {describe_memory(beat)}"
