"""What torch says of a network that it cannot compile, in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from unetcli.core.errors import UnetcliError

COMPILERS = ("torch._dynamo.", "torch._inductor.")
"""Modules of the errors that torch raises while it compiles; importing them takes seconds."""


@contextmanager
def telling_uncompilable() -> Iterator[None]:
    """Within, an error of torch's compilers is a :class:`UnetcliError`."""
    try:
        yield
    except RuntimeError as error:
        if not any(kind.__module__.startswith(COMPILERS) for kind in type(error).__mro__):
            raise
        raise UnetcliError(f"--compile: {reason(str(error))}; the same command without --compile goes on") from error


def reason(said: str) -> str:
    """The line that says why: a C++ compiler's first error, else the first one.

    >>> reason("CppCompileError: C++ compile error\\n\\nCommand:\\ng++ a.cpp\\n\\nfatal error: omp.h: not found\\n")
    'fatal error: omp.h: not found'
    >>> reason("InvalidCxxCompiler: No working C++ compiler found")
    'InvalidCxxCompiler: No working C++ compiler found'
    """
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["torch does not say why"]
    return next((line for line in lines[1:] if "error:" in line), lines[0])
