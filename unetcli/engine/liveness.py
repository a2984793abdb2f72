"""Whether a worker lives: the scheduler's word on its job first, then this machine's, then its counter.

No clock but the reader's is asked.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Collection
from dataclasses import dataclass, field

from unetcli.core.lock import Holder
from unetcli.engine.heartbeat import WORKING, Beat, read_beats
from unetcli.engine.runfolder import RunFolder
from unetcli.executors.slurm.watch import RUNNING, JobState

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
