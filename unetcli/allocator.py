"""Keeps freed memory in the process, so that tensors of 100 MB are not mapped, zeroed and unmapped at every layer.

On glibc, blocks over 32 MB are returned to the kernel at each free; for a U-Net on a CPU the page faults that follow
cost about a tenth of the time.
"""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -3, -4, -8  # malloc.h


def keep_freed_memory() -> bool:
    """Set glibc's malloc for large tensors; call before other threads start. False where nothing was done.

    One arena, because those of other threads cannot hold blocks over 64 MB. Left alone where the user set
    ``MALLOC_*`` variables, or ``UNETCLI_MALLOC=0``.
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ)
    if not sys.platform.startswith("linux") or chosen or os.environ.get("UNETCLI_MALLOC") == "0":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    mallopt(M_ARENA_MAX, 1)
    if not mallopt(M_MMAP_THRESHOLD, 1 << 30):  # refused by older releases
        mallopt(M_MMAP_MAX, 0)
    return bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
