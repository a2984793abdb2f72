"""Memory of the host: how much this process has and may use, how errors show that it is exhausted, and the message."""

from __future__ import annotations

import ctypes
import errno
import math
import os
import resource
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeGuard

from unetcli.core.errors import UnetcliError, one_line
from unetcli.core.records import MAX_DIGITS

TEXTS = (
    "can't allocate memory",
    "cannot allocate memory",
    "bad_alloc",
    "failed to map segment",
    "can't start new thread",
)
"""Phrases, in lower case, of errors of PyTorch and of the dynamic loader when the host's memory is exhausted."""
WHAT_WORKS = (
    "a smaller --tile (predict, train) or --block-voxels (label, evaluate), fewer --workers, or more memory (--mem for "
    "a job, a higher `ulimit -v`) works"
)


class OutOfMemory(UnetcliError):
    """The memory of the host, of the job or of this process is exhausted."""


def out_of_memory(error: BaseException) -> OutOfMemory | None:
    """Error for the user if an error, or one that led to it, says that the host's memory is exhausted; else None.

    >>> str(out_of_memory(MemoryError("Unable to allocate 3 GiB")))[:47]
    'not enough memory (Unable to allocate 3 GiB): a'
    >>> out_of_memory(ValueError("x")) is None
    True
    """
    if isinstance(error, OutOfMemory):
        return error
    reason = next((each for each in _causes(error) if _is_out_of_memory(each)), None)
    if reason is None:
        return None
    text = one_line(reason)
    return OutOfMemory(f"not enough memory{f' ({text})' if text != 'MemoryError' else ''}: {WHAT_WORKS}")


def _causes(error: BaseException | None) -> list[BaseException]:
    """An error and those that led to it, each once: Python uses the same MemoryError again, so they may form a ring."""
    found = list[BaseException]()
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, RuntimeError | ImportError) and any(words in str(error).lower() for words in TEXTS)


LINE = f"unetcli: not enough memory (std::bad_alloc): {WHAT_WORKS}\n".encode()
_BAD_ALLOC = b"St9bad_alloc"
"""Name of the C++ class ``std::bad_alloc``."""
_kept: list[Any] = []
"""Objects that C++ refers to, which must not be freed."""


def exit_on_bad_alloc(code: int) -> None:
    """End this process with one line and an exit code, instead of SIGABRT, where C++ code runs out of memory.

    A thread of PyTorch cannot report ``std::bad_alloc`` to Python; the C++ runtime would end the process with exit code
    134. Other errors that end it are left alone. Does nothing where the runtime is not GNU's.
    """
    with suppress(OSError, AttributeError):
        runtime = ctypes.CDLL("libstdc++.so.6")
        kind_of, replace = runtime["__cxa_current_exception_type"], runtime["_ZSt13set_terminatePFvvE"]
        kind_of.restype, replace.restype = ctypes.c_void_p, ctypes.c_void_p

        handler = ctypes.CFUNCTYPE(None)

        def is_bad_alloc() -> bool:
            try:
                kind = kind_of()  # a pointer to its table of functions, then one to its name
                return bool(kind) and ctypes.cast(kind, ctypes.POINTER(ctypes.c_char_p))[1] == _BAD_ALLOC
            except MemoryError:
                return True

        def end() -> None:
            if is_bad_alloc():
                os.write(2, LINE)
                os._exit(code)
            before()

        ended = handler(end)
        before = handler(replace(ended))
        _kept.append(ended)


def memory_bytes() -> int:
    """Return the resident memory of this process, in bytes; 0 if unknown."""
    with suppress(OSError, ValueError, IndexError):
        return _own_bytes(1)
    return 0


def _own_bytes(field: int) -> int:
    """A size of this process in bytes: 0 is its address space, 1 its resident memory (proc(5), statm)."""
    return int(Path("/proc/self/statm").read_text().split()[field]) * os.sysconf("SC_PAGE_SIZE")


def memory_limit() -> int | None:
    """Return the memory limit of this process, in bytes: SLURM's, else the control group's; None if unknown."""
    per_node, per_cpu = os.environ.get("SLURM_MEM_PER_NODE"), os.environ.get("SLURM_MEM_PER_CPU")
    cpus = os.environ.get("SLURM_CPUS_ON_NODE", "1")
    if _is_number(per_node):
        return int(per_node) * 2**20
    if _is_number(per_cpu) and _is_number(cpus):
        return int(per_cpu) * int(cpus) * 2**20
    return _control_group_limit()


def _is_number(text: str | None) -> TypeGuard[str]:
    """Return whether a variable that SLURM sets is a number; users can set it to anything."""
    return text is not None and text.isdecimal() and len(text) < MAX_DIGITS


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


def total_memory() -> int:
    """Memory of the host, or the limit of the job or control group if that is less, in bytes."""
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(host, memory_limit() or host)


def available_memory() -> tuple[float, str]:
    """Memory that this process can still use, in bytes, and what limits it: the host, the job or ``ulimit -v``."""
    found = [(math.inf, "available")]
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
        found.append((int(free) * 1024, "free on this machine"))
    if (limit := memory_limit()) is not None:
        found.append((limit - memory_bytes(), "left within the memory limit of this job or container"))
    ceiling = resource.getrlimit(resource.RLIMIT_AS)[0]
    if ceiling != resource.RLIM_INFINITY:
        with suppress(OSError, ValueError):
            found.append((ceiling - _own_bytes(0), "left within `ulimit -v`"))
    return min(found)
