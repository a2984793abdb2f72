"""Running out of memory ends in one line, whether Python, PyTorch or a C++ thread runs out of it."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from unetcli.core.errors import UnetcliError
from unetcli.core.memory import LINE, WHAT_WORKS, out_of_memory

ABORT = """
import ctypes, os, sys
from unetcli.core.memory import exit_on_bad_alloc
exit_on_bad_alloc(1)
runtime = ctypes.CDLL("libstdc++.so.6")
{}
"""
BAD_ALLOC = "runtime._ZSt17__throw_bad_allocv()"
"""libstdc++'s function that throws std::bad_alloc; nobody catches it, so the C++ runtime ends the process."""
OTHER = 'runtime._ZSt19__throw_logic_errorPKc(b"wrong")'


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 3.00 GiB for an array"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        RuntimeError("can't start new thread"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_that_memory_caused_is_explained(error: Exception) -> None:
    later = ValueError("codec failed")
    later.__cause__ = error
    for each in (error, later):
        found = out_of_memory(each)
        assert isinstance(found, UnetcliError)
        assert str(found).startswith("not enough memory (")
        assert str(found).endswith(WHAT_WORKS)
    assert out_of_memory(ValueError("x")) is None


def test_a_ring_of_errors_ends() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    assert out_of_memory(one) is None


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's C++ runtime")
def test_bad_alloc_in_cpp_ends_in_one_line_and_other_errors_abort() -> None:
    done = subprocess.run([sys.executable, "-c", ABORT.format(BAD_ALLOC)], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (1, LINE)
    done = subprocess.run([sys.executable, "-c", ABORT.format(OTHER)], capture_output=True, check=False)
    assert done.returncode == -6
    assert b"logic_error" in done.stderr
