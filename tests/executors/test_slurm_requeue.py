"""Tests of which process requests a requeue of its job; ``tests/slurm/test_requeue.py`` uses a real SLURM."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from unetcli.core.ranges import Ranges
from unetcli.executors.slurm.worker import requeue_job, run_share

SCONTROL = """#!/bin/bash
echo "$1" >> "$CALLS"
[ "$1" = "$AT" ] && { printf "%s" "$SAYS" >&2; kill -TERM $$; }
[ "$1" = show ] && echo "JobId=7 JobState=RUNNING BatchFlag=1"
exit 0
"""
"""Stand-in for scontrol. At a requeue, SLURM sends SIGTERM to all processes of the job, which may end scontrol too."""


@pytest.fixture
def _in_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Make this process a running batch job, with stand-ins for SLURM's commands."""
    for name in [name for name in os.environ if name.startswith(("SLURM", "UNETCLI"))]:
        monkeypatch.delenv(name)
    for name, content in (("scontrol", SCONTROL), ("squeue", "#!/bin/sh\necho RUNNING\n")):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "CALLS": str(tmp_path / "calls")}
    for name, value in (environment | {"SLURM_JOB_ID": "7", "AT": "", "SAYS": ""}).items():
        monkeypatch.setenv(name, value)
    caplog.set_level(logging.INFO, "unetcli")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("at", "says"), [("", ""), ("requeue", ""), ("requeue", "slurm_requeue error: terminated")], ids=str
)
@pytest.mark.usefixtures("_in_a_job")
def test_a_requeue_is_logged_even_if_its_sigterm_ends_scontrol(
    at: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AT", at)
    monkeypatch.setenv("SAYS", says)
    assert requeue_job()
    assert (tmp_path / "calls").read_text().split() == ["show", "requeue"]
    (message,) = caplog.messages
    assert message.startswith("job 7 asks SLURM to requeue it")


@pytest.mark.usefixtures("_in_a_job")
def test_a_sigterm_before_the_request_is_no_requeue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AT", "show")
    assert not requeue_job()
    assert (tmp_path / "calls").read_text().split() == ["show"]
    (message,) = caplog.messages
    assert message.startswith("job 7 is not requeued (scontrol: ")


def stop(folder: str, blocks: Ranges, stopping: Callable[[], bool] = bool) -> int:
    """Task that finishes one block and then receives SIGTERM."""
    os.kill(os.getpid(), signal.SIGTERM)
    assert stopping()
    return 1


@pytest.mark.parametrize("says", ["", "slurm_requeue error: terminated"], ids=str)
@pytest.mark.usefixtures("_in_a_job")
def test_a_requeued_job_writes_no_outcome(says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AT", "requeue")
    monkeypatch.setenv("SAYS", says)
    with pytest.raises(SystemExit, match="0"):
        run_share(stop, str(tmp_path), str(tmp_path), 0, ((0, 2),))
    assert (tmp_path / "calls").read_text().split() == ["requeue"]
    assert not (tmp_path / "outcomes").exists()


@pytest.mark.parametrize(
    ("environment", "asks"),
    [
        ({}, False),
        ({"SLURM_JOB_ID": "7"}, True),
        ({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0"}, True),
        ({"SLURM_JOB_ID": "7", "SLURM_PROCID": "1"}, False),
        ({"SLURM_JOB_ID": "7", "UNETCLI_SCRIPT_REQUEUES": "7"}, False),
        ({"SLURM_JOB_ID": "8", "UNETCLI_SCRIPT_REQUEUES": "7"}, True),
    ],
    ids=["no job", "batch", "first task", "second task", "script does", "submitted from such a script"],
)
def test_one_process_of_a_job_requests_the_requeue(
    environment: dict[str, str], asks: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that requests the requeue logs a warning here, as SLURM's commands are missing."""
    for name in [name for name in os.environ if name.startswith(("SLURM", "UNETCLI"))]:
        monkeypatch.delenv(name)
    for name, value in (environment | {"PATH": ""}).items():
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.INFO, "unetcli"):
        assert not requeue_job()
    expected = f"job {environment.get('SLURM_JOB_ID')} is not requeued (scontrol: not on PATH"
    assert [record.getMessage().startswith(expected) for record in caplog.records] == [True] * asks
