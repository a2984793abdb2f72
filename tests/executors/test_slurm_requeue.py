"""Which process asks for its job to be requeued; that SLURM follows is in ``tests/slurm/test_requeue.py``."""

from __future__ import annotations

import logging
import os

import pytest

from unetcli.executors.slurm_requeue import requeue_job


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
