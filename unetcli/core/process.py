"""Settings of this process and facts about its machine: cores, memory, threads, signals."""

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
"""Allocation size above which malloc maps memory separately, and free heap that it keeps, both in bytes."""
SPINS = 10_000
"""Iterations that a waiting thread spins before it sleeps; the default of GNU OpenMP is 300,000 (some ms)."""

GPU_FILES = ("dev/nvidia[0-9]*", "dev/kfd", "dev/dxg")
"""Device files of the drivers of NVIDIA and AMD, and of either in the Windows Subsystem for Linux."""
BFLOAT16_FLAGS = frozenset(("avx512_bf16", "amx_bf16", "bf16"))
"""Names that Linux gives to instructions for bfloat16: of x86, and of ARM."""
SWITCH_SECONDS = 0.0005
"""Time after which a thread gives Python's lock to another one that waits for it, in processes that use a GPU."""
Loop = TypeVar("Loop", bound=Callable[..., Any])


def prepare() -> None:
    """Configure this process to run the network. Every entry point calls this first."""
    keep_freed_memory()
    spin_briefly()


def switch_threads_often() -> None:
    """Let a thread that gives work to a GPU wait shortly for Python's lock, which the threads of files hold by turns.

    By default, a thread waits 5 ms before it asks for the lock, which is as long as a GPU takes for half a tile.
    """
    sys.setswitchinterval(SWITCH_SECONDS)


def spin_briefly() -> None:
    """Make waiting OpenMP threads sleep early, unless the user set a policy."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))


def keep_freed_memory() -> bool:
    """Configure glibc's malloc to reuse the memory of large tensors; returns whether it did.

    Uses one arena, because the arenas of further threads cannot hold blocks over 64 MB. Settings of the user take
    precedence.
    """
    if not sys.platform.startswith("linux") or _malloc_is_chosen():
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    mallopt(M_ARENA_MAX, 1)
    if not mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD):  # older releases refuse it
        mallopt(M_MMAP_MAX, 0)
    return bool(mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD))


def malloc_variables() -> dict[str, str]:
    """Environment variables that have the effect of :func:`keep_freed_memory` in a new process.

    For processes such as Dask workers, whose threads start before unetcli runs: the number of arenas must be set
    before. Empty if the user set malloc's options.
    """
    if _malloc_is_chosen():
        return {}
    values = {"MALLOC_ARENA_MAX": 1, "MALLOC_MMAP_THRESHOLD_": MMAP_THRESHOLD, "MALLOC_TRIM_THRESHOLD_": TRIM_THRESHOLD}
    return {name: str(value) for name, value in values.items()}


def _malloc_is_chosen() -> bool:
    """Whether the user set a ``MALLOC_*`` variable or ``UNETCLI_MALLOC=0``."""
    return os.environ.get("UNETCLI_MALLOC") == "0" or any(name.startswith("MALLOC_") for name in os.environ)


def give_back_freed_memory() -> None:
    """Return memory that malloc keeps to the kernel, so that other libraries of this process can use it."""
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Machine for which a plan is made."""

    device: str
    """Kind of device: cpu, cuda or mps."""
    threads: int
    name: str | None = None
    """Name of the device; None if this machine does not have it."""
    free_bytes: int | None = None
    """Free memory of the GPU; None if this machine does not have it."""


def usable_cores() -> int:
    """Number of CPU cores that this process may use; all cores on macOS, which has no CPU affinity."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_beside(device: str, most: int, cores_each: int) -> int:
    """Threads that prepare or store what a device computes, one for each ``cores_each`` usable cores, at most ``most``.

    One for a CPU, whose cores belong to the network; several for a GPU, which is faster than one thread.
    """
    return 1 if device != "cuda" else max(1, min(most, usable_cores() // cores_each))


def cpu_threads() -> int:
    """Threads for the network on a CPU: ``OMP_NUM_THREADS``, else the number of usable cores."""
    chosen = os.environ.get("OMP_NUM_THREADS", "")
    return int(chosen) if chosen.isdigit() and int(chosen) > 0 else usable_cores()


def cpu_name() -> str:
    """Model name of the processor."""
    return _cpu_property("model name") or platform.processor() or platform.machine()


def computes_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16; Linux says so, and torch need not be imported."""
    flags = f"{_cpu_property('flags')} {_cpu_property('Features')}".split()
    return not BFLOAT16_FLAGS.isdisjoint(flags)


def _cpu_property(name: str) -> str:
    """Value of the first line of a name that Linux says about the processor; empty if it says nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in pairs if key.strip() == name), "")


def may_have_gpu(root: Path = Path("/")) -> bool:
    """Whether this machine may have a visible GPU; a quick check that spares importing torch."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1", "NoDevFiles")
    return not hidden and any(any(root.glob(pattern)) for pattern in GPU_FILES)


def compiled(signature: str) -> Callable[[Loop], Loop]:
    """Decorator that compiles a loop for one signature with numba, and caches it on disk where possible.

    Compilation happens at decoration, not at the first call, so that an unwritable, full or damaged cache folder costs
    a second of compiling and nothing else. Compiled loops release the GIL. Decorating imports numba, so modules with
    compiled loops are imported inside functions.
    """

    import numba

    def decorate(loop: Loop) -> Loop:
        try:
            return cast(Loop, numba.njit(signature, nogil=True, cache=True)(loop))
        except Exception:  # an error in the loop itself is raised by the next line
            return cast(Loop, numba.njit(signature, nogil=True)(loop))

    return decorate


STOPPING = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
"""Signals that request a stop: ``scancel`` or shutdown, a time limit (``sbatch --signal=USR2@120``), and Ctrl-C."""


class Signals:
    """Signals that this process received. Handlers only set flags, which the work checks between its units.

    Without a call to :meth:`listen` no flag is ever set, which suits work that runs outside of a command.
    """

    def __init__(self) -> None:
        self._stop: int | None = None
        self._asked = self._answered = 0  # two counters: clearing a flag could lose a signal that arrives meanwhile

    def listen(self) -> Signals:
        """Install the signal handlers; call from the main thread, before any slow work.

        SIGINT is handled even if a shell script started this process with ``&``, which makes it ignore SIGINT: a
        signal sent to such a process is intended.
        """
        for number in (*STOPPING, signal.SIGUSR1):
            signal.signal(number, self.note)
        return self

    def note(self, number: int, frame: FrameType | None = None) -> None:
        """Handle a signal. The first stop signal counts; a second Ctrl-C interrupts at once, as usual in Python."""
        if number == signal.SIGUSR1:
            self._asked += 1
            return
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._stop = self._stop or number

    def stop(self) -> int | None:
        """Signal that requested an orderly stop, or None."""
        return self._stop

    def stopping(self) -> bool:
        """Whether a signal requested an orderly stop."""
        return self._stop is not None

    def checkpoint(self) -> bool:
        """Whether SIGUSR1 requested a checkpoint since the last call."""
        asked, before = self._asked, self._answered
        self._answered = asked
        return asked != before
