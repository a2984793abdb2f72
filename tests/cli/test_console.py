"""Progress as it appears on a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest
from helpers import write_zarr

PROGRAM = """
from unetcli.cli import console
console.set_up(verbose=False, quiet=False)
with console.progress("tiles") as report:
    for done in (100, 80_000):
        report(done, 80_000, "loss 0.268, held out 0.151, best 0.149")
    console.say("step 200: loss 0.27")
"""


def shown(columns: int) -> list[str]:
    """Lines written to a terminal of this width, without colours."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stderr=writer, env={**environment, "TERM": "xterm"}) as work:
        os.close(writer)
        output = b""
        try:
            while more := os.read(reader, 2**16):
                output += more
        except OSError:  # the other end is closed
            pass
        finally:
            os.close(reader)
    assert work.returncode == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", output.decode())
    return [line.rstrip() for line in re.split(r"[\r\n]+", plain) if line.strip()]


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_a_progress_bar_is_one_line_that_fits_the_terminal(columns: int) -> None:
    lines = shown(columns)
    assert "step 200: loss 0.27" in lines
    bars = [line for line in lines if line != "step 200: loss 0.27"]
    assert all("tiles/s" in line and len(line) <= columns for line in bars), lines
    assert "100% 80 k/80 k" in bars[-1]
    assert "loss 0.268" in bars[-1]
    if columns >= 80:
        assert bars[-1].endswith("0:00:00 loss 0.268, held out 0.151, best 0.149")
        assert "\u2501" * 4 in bars[-1]


@pytest.mark.parametrize(
    "closed",
    [pytest.param((2,), marks=pytest.mark.slow), pytest.param((1,), marks=pytest.mark.slow), (0, 1, 2)],
    ids=["stderr", "stdout", "all"],
)
def test_closed_streams_are_no_error_and_no_file_takes_their_numbers(tmp_path: Path, closed: tuple[int, ...]) -> None:
    """Close a stream, as the shell does in ``unetcli show a.tif 2>&-``."""
    write_zarr(tmp_path / "a.zarr", np.arange(144, dtype=np.uint8).reshape(1, 12, 12))
    redirections = " ".join(f"{number}>&-" for number in closed)
    words = f"{sys.executable} -m unetcli show a.zarr -o a.png {redirections}"
    done = subprocess.run(["sh", "-c", words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == ("" if 1 in closed else "a.png\n")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
