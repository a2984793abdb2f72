"""Tests of status with a real SLURM (waiting, running and cancelled jobs), and with one that does not answer."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
from commands import finished
from helpers import grey, write_model, write_zarr
from slurm.cluster import SlurmCluster, until

from unetcli.engine.status import Watcher
from unetcli.executors.slurm.watch import JobStates
from unetcli.registry import steps_of

DETACHED = "predict big.zarr --tile 204 --cluster slurm --mem 1G --blocks-per-job 500 --max-running 1 --detach"


@pytest.mark.slow
def test_waiting_running_and_cancelled_jobs_are_shown(
    tmp_path: Path, slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "model")
    write_zarr(tmp_path / "big.zarr", grey(1500, 150, 150), chunks=(1, 150, 150))
    done = finished(*DETACHED.split())
    assert done.returncode == 0, done.stderr
    watcher = Watcher(steps_of("big.pred.zarr")[0], scheduler=JobStates(every=0))
    until(lambda: watcher.status().workers == 1, "a running worker")
    found = watcher.status()
    assert (found.queued, found.queued_for, found.failures) == (2, "JobArrayTaskLimit", [])
    subprocess.run(["scancel", done.stdout.strip()], check=True)
    until(lambda: watcher.status(wait=False).workers == 0, "no worker")
    after = watcher.status()
    assert after.queued == 0
    assert after.missing + after.done == 1500
    until(lambda: not slurm.jobs(), "an empty queue")


def test_status_does_not_wait_for_a_slurm_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "squeue").write_text("#!/bin/sh\nexec sleep 5\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    started = time.monotonic()
    assert JobStates(patience=0.2)({"1"}) == {}
    assert time.monotonic() - started < 4
