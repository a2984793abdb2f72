"""A worker's sign of life: a small file with a counter that grows, what it has done, and its memory."""

from __future__ import annotations

import json
import os
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from unetcli.files import draft_of
from unetcli.lock import Holder
from unetcli.receipts import worker_name

SECONDS = 5.0
"""Between two beats."""
WORKING, ENDED = "working", "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """What a worker says of itself."""

    holder: Holder
    counter: int
    """Grows with each beat: a worker whose counter changed between two looks is alive, whatever clocks say."""
    state: str
    assigned: int
    """Blocks of the call it works on."""
    blocks: int
    """Finished in that call."""
    voxels: int
    seconds: float
    """Since the call began."""
    memory_bytes: int
    memory_limit_bytes: int | None
    """What the job may use, by the scheduler's or the kernel's word."""

    @property
    def voxels_per_second(self) -> float:
        return self.voxels / self.seconds if self.seconds > 0 else 0.0


class Heartbeat:
    """Writes beats into ``folder`` while it is open; the last one says that the worker ended in good order."""

    def __init__(self, folder: Path, assigned: int) -> None:
        self.path = folder / f"{worker_name()}.json"
        self._beat = Beat(
            holder=Holder.myself(),
            counter=0,
            state=WORKING,
            assigned=assigned,
            blocks=0,
            voxels=0,
            seconds=0.0,
            memory_bytes=memory_bytes(),
            memory_limit_bytes=memory_limit(),
        )
        self._started = time.monotonic()
        self._changing = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._write(WORKING)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._write(ENDED)

    def done(self, voxels: int) -> None:
        """One more block is finished."""
        with self._changing:
            self._beat = replace(self._beat, blocks=self._beat.blocks + 1, voxels=self._beat.voxels + voxels)

    def _run(self) -> None:
        while not self._ended.wait(SECONDS):
            self._write(WORKING)

    def _write(self, state: str) -> None:
        with self._changing:
            beat = self._beat = replace(
                self._beat,
                counter=self._beat.counter + 1,
                state=state,
                seconds=time.monotonic() - self._started,
                memory_bytes=memory_bytes(),
            )
        draft = draft_of(self.path)
        try:
            draft.write_text(json.dumps(asdict(beat)))
            os.replace(draft, self.path)  # no sync: a beat is worth little
        except OSError:  # a full disk must not end the work
            with suppress(OSError):
                draft.unlink(missing_ok=True)


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
