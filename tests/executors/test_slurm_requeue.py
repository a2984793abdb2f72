"""Which process asks for its job to be requeued; that SLURM follows is in ``tests/slurm/test_requeue.py``."""

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
"""What SLURM's own does at a requeue: SIGTERM, which ends all processes of the job, may reach it at any moment."""


@pytest.fixture
def _in_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """This process is a batch job that runs, with stand-ins for SLURM's commands."""
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
def test_a_requeue_is_said_also_where_its_sigterm_reaches_scontrol_first(
    at: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AT", at)
    monkeypatch.setenv("SAYS", says)
    assert requeue_job()
    assert (tmp_path / "calls").read_text().split() == ["show", "requeue"]
    assert caplog.messages == ["job 7 asks to go back into the queue, to continue there"]


@pytest.mark.usefixtures("_in_a_job")
def test_a_sigterm_before_the_requeue_was_asked_for_is_no_requeue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AT", "show")
    assert not requeue_job()
    assert (tmp_path / "calls").read_text().split() == ["show"]
    (said,) = caplog.messages
    assert said.startswith("job 7 does not go back into the queue (scontrol: ")


def stop(folder: str, blocks: Ranges, stopping: Callable[[], bool] = bool) -> int:
    """A task that finishes one block and is then told to stop."""
    os.kill(os.getpid(), signal.SIGTERM)
    assert stopping()
    return 1


@pytest.mark.parametrize("says", ["", "slurm_requeue error: terminated"], ids=str)
@pytest.mark.usefixtures("_in_a_job")
def test_an_element_that_goes_back_into_the_queue_has_no_outcome(
    says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
def test_one_process_of_a_job_asks(
    environment: dict[str, str], asks: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without SLURM's commands, who asks is told that there is no answer."""
    for name in [name for name in os.environ if name.startswith(("SLURM", "UNETCLI"))]:
        monkeypatch.delenv(name)
    for name, value in (environment | {"PATH": ""}).items():
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.INFO, "unetcli"):
        assert not requeue_job()
    expected = f"job {environment.get('SLURM_JOB_ID')} does not go back into the queue (scontrol: not on PATH"
    assert [record.getMessage().startswith(expected) for record in caplog.records] == [True] * asks
