"""``train --cluster slurm`` on the real cluster: two nodes with a process each, requeued, cancelled, found again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import grey, write_zarr
from slurm.cluster import SlurmCluster, until

from unetcli.training.checkpoint import Checkpoint

COMMON = "--depth 1 --base-channels 8 --tile 44 --batch-size 2 --device cpu --precision float32 --recipe paper"
CLUSTER = "--cluster slurm --nodes 2 --tasks-per-node 1 --mem 1G --cpus-per-task 1 --time 60"


@pytest.fixture
def place(tmp_path: Path, slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNETCLI_MASTER", "127.0.0.1")  # the nodes' names do not resolve here
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    disc = np.hypot(*np.ogrid[-20:24, -25:25]) < 12
    labels = np.stack([np.roll(disc, 3 * k, 1) for k in range(4)]).astype(np.uint8)
    write_zarr(tmp_path / "raw.zarr", labels * 90 + grey(*labels.shape) // 4)
    write_zarr(tmp_path / "labels.zarr", labels)
    return tmp_path


def start(words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "unetcli", "train", "raw.zarr", "labels.zarr", *COMMON.split(), *words.split()]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def train(words: str) -> subprocess.CompletedProcess[str]:
    with start(words) as process:
        out, talk = process.communicate(timeout=240)
    return subprocess.CompletedProcess([], process.returncode, out, talk)


def step(folder: str = "model") -> int:
    file = Path(folder) / "checkpoint.pt"
    return Checkpoint.load(file).step if file.exists() else 0


def test_two_nodes_warned_of_the_limit_come_back_and_end_with_the_weights_of_one_process(
    place: Path, slurm: SlurmCluster
) -> None:
    steps = "--steps 3000 --validate-every 500"
    process = start(f"{steps} {CLUSTER}")
    until(lambda: step() >= 500, "a first look")
    (job,) = slurm.jobs()
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    out, talk = process.communicate(timeout=240)
    assert process.returncode == 0, talk + "".join(f.read_text() for f in Path("model/jobs").rglob("*.out"))
    assert out == "model/model.safetensors\n"
    logs = "".join(file.read_text() for file in Path("model/jobs").rglob("*_log.out"))
    assert "stopped at step" in logs
    assert "does not go back" not in logs
    assert logs.count("Starting with JobEnvironment") == 4  # two processes, two lives
    assert train(f"{steps} --output alone").returncode == 0
    ours, alone = (Checkpoint.load(Path(name) / "checkpoint.pt").network for name in ("model", "alone"))
    for name, values in alone.items():
        assert torch.allclose(ours[name], values, rtol=1e-3, atol=1e-3), name  # thousands of steps apart, not twenty
    again = train(f"{steps} {CLUSTER}")
    assert again.returncode == 0
    assert "finished already" in again.stderr


def test_detach_attach_and_a_cancelled_job(place: Path, slurm: SlurmCluster) -> None:
    words = f"--steps 1000000 --validate-every 500 {CLUSTER}"
    detached = train(f"{words} --detach")
    assert detached.returncode == 0, detached.stderr
    job = detached.stdout.strip()
    assert list(slurm.jobs()) == [job]
    until(lambda: step() >= 500, "a first look")
    attached = start(words)
    assert attached.stderr is not None
    line = attached.stderr.readline()
    assert f"job {job} is at work already" in line
    subprocess.run(["scancel", job], check=True)
    _, talk = attached.communicate(timeout=120)
    assert attached.returncode == 1
    assert f"job {job}: cancelled" in talk
    until(lambda: not slurm.jobs(), "an empty queue")
    assert step() >= 500


def test_what_the_job_would_refuse_is_refused_before_it_is_submitted(place: Path, slurm: SlurmCluster) -> None:
    done = train(f"--steps 5 --select dice {CLUSTER}")
    assert done.returncode == 1
    assert "--select dice" in done.stderr
    assert not slurm.jobs()
    assert not Path("model").exists()
    assert "SLURM_JOB_ID" not in os.environ
