"""Workers of a run: their signs of life, who lives, who waits in a queue, and who was lost, and why."""

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

from unetcli.core.errors import one_line
from unetcli.core.files import draft_of
from unetcli.core.lock import Holder
from unetcli.engine.receipts import worker_name
from unetcli.engine.runfolder import RunFolder
from unetcli.executors.slurm.journal import JobJournal
from unetcli.executors.slurm.watch import OVER, RUNNING, WAITING, JobState

log = logging.getLogger(__name__)

SECONDS = 5.0
"""Between two beats."""
MEMORY_LOOK_SECONDS = 0.25
"""Between two looks at the memory; a beat is written early where it has come near the limit."""
NEAR_LIMIT = 0.9
"""A worker that vanished with so much of its memory limit in use was probably killed for it."""
WORKING, ENDED, FAILED = "working", "ended", "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """What a worker says of itself."""

    holder: Holder
    counter: int
    """Grows with each beat: a worker whose counter changed between two looks is alive, whatever clocks say."""
    state: str
    """``working``, ``ended`` in good order, or ``failed``: what ended it is the reason."""
    assigned: int = 0
    """Blocks given to this process so far, in all its calls."""
    blocks: int = 0
    """Finished of these."""
    set_aside: int = 0
    """Failed of these."""
    voxels: int = 0
    """Of the finished blocks."""
    seconds: float = 0.0
    """In all calls so far."""
    memory_bytes: int
    memory_limit_bytes: int | None
    """What the job may use, by the scheduler's or the kernel's word."""
    reason: str = ""
    """Of a failure: one line."""

    @property
    def in_hand(self) -> int:
        """Blocks it has still to do."""
        return max(self.assigned - self.blocks - self.set_aside, 0) if self.state == WORKING else 0

    @property
    def near_limit(self) -> bool:
        """Whether hardly any memory was left."""
        limit = self.memory_limit_bytes
        return limit is not None and self.memory_bytes >= NEAR_LIMIT * limit

    @property
    def voxels_per_second(self) -> float:
        return self.voxels / self.seconds if self.seconds > 0 else 0.0


class Heartbeat:
    """Writes beats into ``folder`` while it is open; the last one says how the worker ended."""

    def __init__(self, folder: Path, assigned: int) -> None:
        self.path, self._beat = _IDLE.take(folder)
        self._beat = replace(self._beat, assigned=self._beat.blocks + self._beat.set_aside + assigned, reason="")
        self._before, self._started = self._beat.seconds, time.monotonic()
        self._told = self._beat
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
        failed = isinstance(error, Exception)  # an interrupt or exit is an end that was wanted
        self._write(FAILED if failed else ENDED, reason=one_line(error, kind=True) if error and failed else "")
        _IDLE.give_back(self.path, self._beat)

    def done(self, voxels: int) -> None:
        """One more block is finished."""
        with self._changing:
            self._beat = replace(self._beat, blocks=self._beat.blocks + 1, voxels=self._beat.voxels + voxels)

    def set_aside(self) -> None:
        """One more block failed."""
        with self._changing:
            self._beat = replace(self._beat, set_aside=self._beat.set_aside + 1)

    def _run(self) -> None:
        last = time.monotonic()
        while not self._ended.wait(MEMORY_LOOK_SECONDS):
            if time.monotonic() - last >= SECONDS or self._is_news():
                last = time.monotonic()
                self._write(WORKING)

    def _is_news(self) -> bool:
        """Whether the first block is finished, or memory came near its limit, since the last beat."""
        now, told = replace(self._beat, memory_bytes=memory_bytes()), self._told
        return (now.blocks > 0) > (told.blocks > 0) or now.near_limit > told.near_limit

    def _write(self, state: str, reason: str = "") -> None:
        seconds = self._before + time.monotonic() - self._started
        with self._changing:
            beat = replace(self._beat, counter=self._beat.counter + 1, state=state, seconds=seconds, reason=reason)
            self._beat = replace(beat, memory_bytes=memory_bytes(), memory_limit_bytes=memory_limit())
            self._told = self._beat
        draft = draft_of(self.path)
        try:
            draft.write_text(json.dumps(asdict(self._told)))
            os.replace(draft, self.path)  # no sync: a beat is worth little
        except OSError:  # a full disk must not end the work
            with suppress(OSError):
                draft.unlink(missing_ok=True)


class _Idle:
    """Files of this process that no call writes to at the moment, by folder, each with its last beat."""

    def __init__(self) -> None:
        self._files: dict[tuple[int, Path], list[tuple[Path, Beat]]] = {}

    def take(self, folder: Path) -> tuple[Path, Beat]:
        """A file to go on with, or a new one; calls in several threads at once get one each."""
        try:
            return self._files[os.getpid(), folder].pop()
        except (KeyError, IndexError):
            return folder / f"{worker_name()}-{secrets.token_hex(2)}.json", first_beat()

    def give_back(self, path: Path, beat: Beat) -> None:
        self._files.setdefault((os.getpid(), path.parent), []).append((path, beat))


_IDLE = _Idle()


def first_beat() -> Beat:
    """The beat of a worker that has done nothing yet."""
    used, limit = memory_bytes(), memory_limit()
    return Beat(holder=Holder.myself(), counter=0, state=WORKING, memory_bytes=used, memory_limit_bytes=limit)


def read_beats(folder: Path) -> dict[str, Beat]:
    """The last beat of every worker of a run, by the name of its file."""
    beats = {}
    for path in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError, TypeError, KeyError):
            values: dict[str, Any] = json.loads(path.read_text())
            beats[path.stem] = Beat(**{**values, "holder": Holder(**values["holder"])})
    return beats


def memory_bytes() -> int:
    """Resident memory of this process."""
    with suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0


def memory_limit() -> int | None:
    """What this process may use at most: SLURM's word for the job, else the control group's; None: no limit known."""
    per_node, per_cpu = os.environ.get("SLURM_MEM_PER_NODE"), os.environ.get("SLURM_MEM_PER_CPU")
    if per_node and per_node.isdigit():
        return int(per_node) * 2**20
    if per_cpu and per_cpu.isdigit():
        return int(per_cpu) * int(os.environ.get("SLURM_CPUS_ON_NODE", "1")) * 2**20
    return _control_group_limit()


def _control_group_limit() -> int | None:
    places = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
    with suppress(OSError, IndexError):
        own = Path("/proc/self/cgroup").read_text().strip().splitlines()[-1].split(":")[2]
        places.insert(0, f"/sys/fs/cgroup{own}/memory.max")
    for place in places:
        with suppress(OSError, ValueError):
            if (limit := int(Path(place).read_text())) < 2**60:  # a very large number stands for none
                return limit
    return None


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
