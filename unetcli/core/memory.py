"""Exhausted memory of the host: how errors show it, and the message for the user."""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import suppress
from typing import Any

from unetcli.core.errors import UnetcliError, one_line

TEXTS = (
    "can't allocate memory",
    "cannot allocate memory",
    "std::bad_alloc",
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

        def end() -> None:
            kind = kind_of()  # a pointer to its table of functions, then one to its name
            if kind and ctypes.cast(kind, ctypes.POINTER(ctypes.c_char_p))[1] == _BAD_ALLOC:
                os.write(2, LINE)
                os._exit(code)
            before()

        ended = handler(end)
        before = handler(replace(ended))
        _kept.append(ended)
