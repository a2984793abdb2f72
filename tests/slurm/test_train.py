"""Tests of ``train --cluster slurm`` with a real SLURM: jobs on two nodes, requeued, cancelled and found again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import finished
from helpers import grey, write_zarr
from slurm.cluster import SlurmCluster, until

from unetcli.core.lock import Holder
from unetcli.train.folder import Checkpoint

COMMON = "--depth 1 --base-channels 8 --tile 44 --batch-size 2 --device cpu --precision float32 --recipe paper"
CLUSTER = "--cluster slurm --nodes 2 --mem 1G --cpus-per-task 1 --time 60"
SLOW = "--depth 2 --base-channels 16 --tile 236 --validate-every 10 --checkpoint-minutes 0.02"
"""Options for steps that are slow enough to interrupt a short training."""
ENDLESS = f"--steps 1000000 --validate-every 500 {CLUSTER}"
ROOT = Path(__file__).parents[2]


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


def command(words: str) -> list[str]:
    return ["train", "raw.zarr", "labels.zarr", *COMMON.split(), *words.split()]


def start(words: str) -> subprocess.Popen[str]:
    whole = [sys.executable, "-m", "unetcli", *command(words)]
    return subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def train(words: str) -> subprocess.CompletedProcess[str]:
    return finished(*command(words))


def step(folder: str = "model") -> int:
    file = Path(folder) / "checkpoint.pt"
    return Checkpoint.load(file).step if file.exists() else 0


def logs() -> str:
    """Logs of all processes of all jobs."""
    return "".join(file.read_text() for file in sorted(Path("model/jobs").rglob("*_log.out")))


@pytest.mark.slow
def test_a_job_on_two_nodes_that_is_requeued_ends_with_the_weights_of_one_process(
    place: Path, slurm: SlurmCluster
) -> None:
    steps = f"--steps 40 {SLOW}"
    process = start(f"{steps} {CLUSTER}")
    until(lambda: step() >= 10, "a first look")
    (job,) = slurm.jobs()
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    out, talk = process.communicate(timeout=240)
    assert process.returncode == 0, talk + logs()
    assert out == "model/model.safetensors\n"
    assert logs().count("stopped at step") == 1  # only the first process reports it
    assert logs().count("asks SLURM to requeue it") == 1
    assert logs().count("Starting with JobEnvironment") == 4  # two processes, each started twice
    assert train(f"{steps} --output alone").returncode == 0
    clustered, alone = (Checkpoint.load(Path(name) / "checkpoint.pt") for name in ("model", "alone"))
    assert clustered.step == alone.step == 40
    for name, values in alone.network.items():
        assert torch.allclose(clustered.network[name], values, rtol=1e-5, atol=1e-5), name
    again = train(f"{steps} {CLUSTER}")
    assert again.returncode == 0
    assert "already finished" in again.stderr


@pytest.mark.slow
def test_a_detached_job_is_found_again_and_after_its_cancellation_another_continues(
    place: Path, slurm: SlurmCluster
) -> None:
    detached = train(f"{ENDLESS} --detach")
    assert detached.returncode == 0, detached.stderr
    job = detached.stdout.strip()
    assert slurm.jobs() == [job]
    until(lambda: step() >= 500, "a first look")
    left = start(ENDLESS)
    assert left.stderr is not None
    assert f"job {job} is already running or pending" in left.stderr.readline()
    left.send_signal(signal.SIGINT)
    _, talk = left.communicate(timeout=60)
    assert left.returncode == 130
    assert f"job {job} keeps running; the same command attaches to it again" in talk
    assert slurm.jobs() == [job]
    attached = start(ENDLESS)
    assert attached.stderr is not None
    assert f"job {job} is already running or pending" in attached.stderr.readline()
    subprocess.run(["scancel", job], check=True)
    _, talk = attached.communicate(timeout=120)
    assert attached.returncode == 3
    assert f"unetcli: job {job}: cancelled; the same command continues" in talk
    until(lambda: not slurm.jobs(), "an empty queue")
    before = step()
    assert before >= 500
    leave_lock(job)
    again = train(f"{ENDLESS} --detach")
    assert again.returncode == 0, again.stderr
    assert slurm.jobs() == [again.stdout.strip()]
    assert again.stdout.strip() != job
    until(lambda: step() > before, "another checkpoint")
    assert logs().count("step 500:") == 1


def leave_lock(job: str) -> None:
    """Write the lock of a process whose node is down, so that no other host can verify that the process is gone."""
    gone = Holder(host="elsewhere", boot="", namespace="", pid=1, started="", job=job, restarts=0, nonce="")
    Path("model/lock").write_text(json.dumps(asdict(gone)))


@pytest.mark.slow
def test_a_killed_process_ends_the_job_and_is_reported(place: Path, slurm: SlurmCluster) -> None:
    process = start(ENDLESS)
    until(lambda: step() >= 500, "a first look")
    (job,) = slurm.jobs()
    os.kill(rank_of(job, 1), signal.SIGKILL)
    _, talk = process.communicate(timeout=60)
    assert process.returncode == 3
    assert f"unetcli: job {job}: killed (SIGKILL) by the system or a user" in talk
    assert "Traceback" not in talk + logs()
    until(lambda: not slurm.jobs(), "an empty queue")


def rank_of(job: str, rank: int) -> int:
    """Id of the job's process with the given rank."""
    wanted = {f"SLURM_JOB_ID={job}".encode(), f"SLURM_PROCID={rank}".encode()}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment, words = (entry / "environ").read_bytes(), (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if wanted <= set(environment.split(b"\0")) and b"unetcli.executors.slurm.job" in words and b"srun" not in words:
            return int(entry.name)
    raise LookupError(f"rank {rank} of job {job}")


@pytest.mark.slow
def test_an_error_of_the_job_is_reported_with_its_message(place: Path, slurm: SlurmCluster) -> None:
    done = train(f"--steps 300 --lr 1e30 --tasks-per-node 1 {CLUSTER}")
    assert done.returncode == 1, done.stderr + logs()
    assert "the loss is nan; a smaller --lr than 1e+30 may help (log: model/jobs/logs/slurm/" in done.stderr
    assert logs().count("the loss is nan") == 1


@pytest.mark.slow
def test_each_gpu_has_a_process_although_the_profile_requests_gpus_otherwise(place: Path, slurm: SlurmCluster) -> None:
    gpus = f"--gpus-per-node 2 --profile {ROOT / 'slurm' / 'gpu.toml'} --mem 2G --cpus-per-task 1"
    done = train(f"--steps 3 --batch-size 2 --cluster slurm --nodes 1 {gpus}")
    assert done.returncode == 0, done.stderr + logs()
    assert "1 x 2 processes" in done.stderr
    script = next(Path("model/jobs").rglob("*_submission.sh")).read_text()
    assert "#SBATCH --gpus-per-node=2" in script
    assert "#SBATCH --gpus=" not in script


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--select dice", "--select dice"),
        ("--tasks-per-node 2", "--batch-size 2: not divisible by the 4 processes; 4 would work"),
        ("--nodes 0", "--nodes 0: expected at least 1"),
        ("--gpus-per-node 2 --tasks-per-node 3", "--tasks-per-node 3: --gpus-per-node 2 starts one process per GPU"),
        ("--gpus-per-node 2 --channel 5", "channel"),
    ],
)
def test_invalid_options_are_refused_before_a_job_is_submitted(
    place: Path, slurm: SlurmCluster, words: str, line: str
) -> None:
    done = train(f"--steps 5 {CLUSTER} {words}")
    assert done.returncode == 1
    assert line in done.stderr
    assert done.stderr.count("\n") == 1
    assert not slurm.jobs()
    assert not Path("model").exists()
