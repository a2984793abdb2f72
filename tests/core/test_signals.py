"""Tests that send real signals to real processes."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from signal import Signals as Number

import pytest

from unetcli.core.process import Signals

PROGRAM = """
import signal, sys, time
signal.signal(signal.SIGINT, {interrupt})
from unetcli.core.process import Signals
signals, seen = Signals().listen(), None
print("ready", flush=True)
while True:
    if signals.checkpoint():
        print("checkpoint", flush=True)
    if signals.stop() != seen:
        seen = signals.stop()
        print("stop", seen, signals.stopping(), flush=True)
    time.sleep(0.005)
"""


def start(interrupt: str = "signal.default_int_handler") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM.format(interrupt=interrupt)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert said(process) == "ready"
    return process


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    with start() as process:
        yield process
        process.kill()


def test_each_sigusr1_requests_one_checkpoint_and_the_work_continues(process: subprocess.Popen[str]) -> None:
    for _ in range(200):
        process.send_signal(signal.SIGUSR1)
        assert said(process) == "checkpoint"
    process.send_signal(signal.SIGTERM)
    assert said(process) == f"stop {signal.SIGTERM.value} True"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT], ids=str)
def test_the_first_signal_to_stop_is_the_one_that_counts(process: subprocess.Popen[str], number: Number) -> None:
    process.send_signal(number)
    assert said(process) == f"stop {number.value} True"
    others = {signal.SIGTERM, signal.SIGUSR2} - {number}
    for other in (*others, signal.SIGUSR1):
        process.send_signal(other)
    assert said(process) == "checkpoint"  # and nothing before it: the stop signal is the same and the work continues
    assert process.poll() is None


def test_a_second_ctrl_c_interrupts_at_once(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    assert said(process) == f"stop {signal.SIGINT.value} True"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert "KeyboardInterrupt" in stderr


def test_a_process_that_a_script_started_in_the_background_handles_sigint() -> None:
    with start("signal.SIG_IGN") as process:
        process.send_signal(signal.SIGINT)
        assert said(process) == f"stop {signal.SIGINT.value} True"
        process.kill()


def test_without_listening_no_stop_is_requested() -> None:
    signals = Signals()
    assert (signals.stop(), signals.stopping(), signals.checkpoint()) == (None, False, False)
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
