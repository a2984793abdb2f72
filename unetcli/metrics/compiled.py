"""Inner loops that numba turns into machine code. Importing this module imports numba: do it inside functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Loop = TypeVar("Loop", bound=Callable[..., Any])


def compiled(signature: str) -> Callable[[Loop], Loop]:
    """Decorator: machine code for one signature, kept on disk for the next process where that can be.

    It is compiled here and not at the first call, so that a cache folder that cannot be written, is full or holds a
    damaged file costs a second of compiling and nothing else. The loops release the interpreter's lock.
    """

    def decorate(loop: Loop) -> Loop:
        try:
            return cast(Loop, numba.njit(signature, nogil=True, cache=True)(loop))
        except Exception:  # what is wrong with the loop itself is raised by the next line
            return cast(Loop, numba.njit(signature, nogil=True)(loop))

    return decorate
