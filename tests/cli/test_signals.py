"""Exit codes of commands that are stopped by a signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

PROGRAM = """
import signal, sys, time, typer
signal.signal(signal.SIGINT, signal.default_int_handler)
from unetcli.cli.console import leave
from unetcli.core.process import Signals

def work():
    signals = Signals().listen()
    print("ready", flush=True)
    while not signals.stopping():
        time.sleep(0.005)
    leave(signals)

typer.run(work)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 3), (signal.SIGUSR2, 3), (signal.SIGINT, 130)], ids=str)
def test_work_that_was_stopped_exits_as_its_signal_says(number: signal.Signals, code: int) -> None:
    """Outside SLURM, where there is no queue to return to."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    command = [sys.executable, "-c", PROGRAM]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == code
