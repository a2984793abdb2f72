"""The process and its machine: cores, memory, waiting threads, signals."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar, cast

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -3, -4, -8  # malloc.h
MMAP_THRESHOLD, TRIM_THRESHOLD = 1 << 30, 2**31 - 1
"""Bytes: larger blocks are mapped one by one; more than this at the top of the heap is returned."""
SPINS = 10_000
"""Rounds that a thread spins before it sleeps; GNU OpenMP's default is 300,000 (some ms)."""

GPU_FILES = ("dev/nvidia[0-9]*", "dev/kfd", "dev/dxg")
"""Device files of NVIDIA's driver, AMD's, and either under Windows' Linux."""
Loop = TypeVar("Loop", bound=Callable[..., Any])


def prepare() -> None:
    """Set up this process for the network; call first, in every entry point."""
    keep_freed_memory()
    spin_briefly()


def spin_briefly() -> None:
    """Let waiting OpenMP threads sleep soon. Left alone where the user chose a policy."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))


def keep_freed_memory() -> bool:
    """Set glibc's malloc for large tensors. False where nothing was done.

    One arena, because those of other threads cannot hold blocks over 64 MB. Left alone where the user chose.
    """
    if not sys.platform.startswith("linux") or _malloc_is_chosen():
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    mallopt(M_ARENA_MAX, 1)
    if not mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD):  # refused by older releases
        mallopt(M_MMAP_MAX, 0)
    return bool(mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD))


def malloc_variables() -> dict[str, str]:
    """Variables that do for a process to be started what :func:`keep_freed_memory` does; empty where the user chose.

    For processes whose threads start before anything of ours runs, as Dask's workers: one arena for all threads has to
    be chosen before.
    """
    if _malloc_is_chosen():
        return {}
    values = {"MALLOC_ARENA_MAX": 1, "MALLOC_MMAP_THRESHOLD_": MMAP_THRESHOLD, "MALLOC_TRIM_THRESHOLD_": TRIM_THRESHOLD}
    return {name: str(value) for name, value in values.items()}


def _malloc_is_chosen() -> bool:
    """Whether the user set ``MALLOC_*`` variables, or ``UNETCLI_MALLOC=0``."""
    return os.environ.get("UNETCLI_MALLOC") == "0" or any(name.startswith("MALLOC_") for name in os.environ)


def give_back_freed_memory() -> None:
    """Return to the kernel what malloc holds: where memory is short, others of this process need it."""
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where a plan is to run."""

    device: str
    """Kind of device: cpu, cuda, mps."""
    threads: int
    name: str | None = None
    """Of the device; None where it is not at hand."""
    free_bytes: int | None = None
    """Free memory of a GPU that is at hand."""


def cpu_threads() -> int:
    """Threads for the network on a CPU: ``OMP_NUM_THREADS``, else the cores this process may use."""
    chosen = os.environ.get("OMP_NUM_THREADS", "")
    return int(chosen) if chosen.isdigit() and int(chosen) > 0 else len(os.sched_getaffinity(0))


def cpu_name() -> str:
    """The processor as it calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def may_have_gpu(root: Path = Path("/")) -> bool:
    """False where torch need not be asked: no driver's device file is there, or all GPUs are hidden."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1", "NoDevFiles")
    return not hidden and any(any(root.glob(pattern)) for pattern in GPU_FILES)


def compiled(signature: str) -> Callable[[Loop], Loop]:
    """Decorator that turns a loop into machine code for one signature, kept on disk for the next process if it can be.

    It is compiled here and not at the first call, so that a cache folder that cannot be written, is full or holds a
    damaged file costs a second of compiling and nothing else. The loops release the interpreter's lock. This call
    imports numba: import modules of compiled loops inside functions.
    """

    import numba

    def decorate(loop: Loop) -> Loop:
        try:
            return cast(Loop, numba.njit(signature, nogil=True, cache=True)(loop))
        except Exception:  # what is wrong with the loop itself is raised by the next line
            return cast(Loop, numba.njit(signature, nogil=True)(loop))

    return decorate


STOPPING = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
"""From outside (``scancel``, shutdown), before a time limit (``sbatch --signal=USR2@120``), from the keyboard."""


class Signals:
    """What was asked of this process. Handlers only set flags: the work looks at them where it can follow.

    An object that does not listen was never asked for anything, which suits work that runs without a command.
    """

    def __init__(self) -> None:
        self._stop: int | None = None
        self._asked = self._answered = 0  # two counters: one flag, cleared, could lose a signal that comes meanwhile

    def listen(self) -> Signals:
        """Take the signals of this process from now on; in the main thread, and before anything slow begins.

        SIGINT too where a shell script has started this with ``&``, deaf to it: whoever sends it to such work means it.
        """
        for number in (*STOPPING, signal.SIGUSR1):
            signal.signal(number, self.note)
        return self

    def note(self, number: int, frame: FrameType | None = None) -> None:
        """A signal has come. The first one to stop counts; a second Ctrl-C interrupts at once, as Python does."""
        if number == signal.SIGUSR1:
            self._asked += 1
            return
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._stop = self._stop or number

    def stop(self) -> int | None:
        """The signal that asks for an orderly end, or None."""
        return self._stop

    def stopping(self) -> bool:
        """Whether one does."""
        return self._stop is not None

    def checkpoint(self) -> bool:
        """Whether SIGUSR1 came since the last call."""
        asked, before = self._asked, self._answered
        self._answered = asked
        return asked != before
