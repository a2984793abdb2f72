"""A worker's sign of life: a small file with a counter that grows, what it has done, and its memory.

A process keeps one file per run, however often it is called: a run of 10^6 blocks leaves as many files as workers.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from unetcli.core.errors import one_line
from unetcli.core.files import draft_of
from unetcli.core.lock import Holder
from unetcli.engine.receipts import worker_name

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
    assigned: int
    """Blocks given to this process so far, in all its calls."""
    blocks: int
    """Finished of these."""
    set_aside: int = 0
    """Failed of these."""
    voxels: int
    """Of the finished blocks."""
    seconds: float
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
    """Of a worker that has done nothing yet."""
    return Beat(
        holder=Holder.myself(),
        counter=0,
        state=WORKING,
        assigned=0,
        blocks=0,
        voxels=0,
        seconds=0.0,
        memory_bytes=memory_bytes(),
        memory_limit_bytes=memory_limit(),
    )


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
