"""Tests of label and evaluate with a real SLURM: job arrays, detached or cancelled and continued, and their status."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from commands import finished
from helpers import read_receipts, write_prediction, write_zarr
from label.maps import blobs
from slurm.cluster import SlurmCluster, until

from unetcli.engine.status import Status, Watcher
from unetcli.executors.slurm.watch import JobStates
from unetcli.registry import steps_of

STORE = "big.pred.zarr"
LABEL = ["label", STORE, "--block-voxels", "1500"]
SLURM = ["--cluster", "slurm", "--blocks-per-job", "10", "--mem", "1G"]
EVALUATE = ["evaluate", STORE, "t.zarr", "--metrics", "pixels", "--block-voxels", "900", "--json"]


@pytest.fixture
def place(tmp_path: Path, slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Prediction with 27 blocks to label and 90 to evaluate."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    values = blobs((3, 75, 90), 2, seed=7)
    write_prediction(STORE, values, (1, 16, 16), levels=2)
    write_zarr(Path("t.zarr"), (values > 127).astype(np.uint8), chunks=(1, 16, 16))
    return tmp_path


def labels() -> dict[str, bytes]:
    found = [path for path in Path(STORE, "labels").rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() for path in [*found, Path(f"{STORE}.instances.csv")]}


def look(step: str) -> Status:
    (found,) = steps_of(STORE, only=step)
    return Watcher(found, scheduler=JobStates(every=0)).status()


@pytest.mark.slow
def test_job_arrays_write_the_same_labels_as_one_process(place: Path) -> None:
    assert finished(*LABEL).returncode == 0
    here = labels()
    done = finished(*LABEL, *SLURM, "--overwrite")
    assert done.returncode == 0, done.stderr
    assert labels() == here
    receipts = list(read_receipts(Path(f"{STORE}.run/instances/receipts")))
    assert len({receipt.block for receipt in receipts}) == len(receipts) == look("instances").blocks
    assert all(receipt.job != "-" for receipt in receipts)
    assert finished("verify", STORE).returncode == 0


@pytest.mark.slow
def test_detached_stages_are_shown_and_continued(place: Path, slurm: SlurmCluster) -> None:
    unfinished = []
    for _ in range(8):
        done = finished(*LABEL, *SLURM, "--detach", "--max-running", "1")
        assert done.returncode == 0, done.stderr
        found = look("instances")
        unfinished.append([stage.name for stage in found.stages if stage.done < stage.blocks][:1])
        if found.complete:
            break
        assert done.stdout.strip().isdecimal()
        assert found.failures == []
        until(lambda: not slurm.jobs(), "an empty queue")
    assert unfinished == [["find"], ["merge"], ["number"], ["level"], []]
    assert finished("verify", STORE).returncode == 0


@pytest.mark.slow
def test_cancelled_stages_are_shown_and_continued(place: Path, slurm: SlurmCluster) -> None:
    done = finished(*LABEL, *SLURM, "--detach", "--slurm", "begin=now+1hour")
    assert done.returncode == 0, done.stderr
    found = look("instances")
    assert (found.workers, found.queued, found.done, found.missing) == (0, 3, 0, found.blocks)
    waiting = "3 jobs waiting (BeginTime)"  # the reason is known after the first scheduling cycle
    until(lambda: waiting in finished("status", STORE).stdout, waiting)
    subprocess.run(["scancel", done.stdout.strip()], check=True)
    until(lambda: not slurm.jobs(), "an empty queue")
    assert "the same label command continues" in finished("status", STORE).stdout
    assert finished(*LABEL).returncode == 0
    assert look("instances").complete


@pytest.mark.slow
def test_job_arrays_compute_the_same_scores_as_one_process(place: Path, slurm: SlurmCluster) -> None:
    here = json.loads(finished(*EVALUATE).stdout)
    done = finished(*EVALUATE, *SLURM, "--detach")
    assert done.returncode == 0, done.stderr
    found = look("evaluate")
    assert found.done + found.running + found.missing == found.blocks
    until(lambda: not slurm.jobs(), "an empty queue")
    assert (found := look("evaluate")).done == found.blocks
    assert "the same evaluate command computes the scores" in finished("status", STORE).stdout
    there = json.loads(finished(*EVALUATE, *SLURM).stdout)
    assert there["pixels"] == here["pixels"]
    assert not Path(f"{STORE}.run/evaluate").exists()
