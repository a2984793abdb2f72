"""Several processes that train together, on CPUs: the same weights as one, one line for an error, one end for all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import grey, write_zarr

from unetcli.training.checkpoint import Checkpoint

COMMON = "--depth 1 --base-channels 8 --tile 44 --batch-size 4 --device cpu --precision float32 --validate-every 10"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sections of discs, some pixels of which say nothing."""
    monkeypatch.chdir(tmp_path)
    disc = np.hypot(*np.ogrid[-20:24, -25:25]) < 12
    labels = np.stack([np.roll(disc, 3 * k, 1) for k in range(4)]).astype(np.uint8)
    write_zarr(tmp_path / "raw.zarr", labels * 90 + grey(*labels.shape) // 4)
    labels[:, :9] = 7
    write_zarr(tmp_path / "labels.zarr", labels)
    return tmp_path


def start(output: str, words: str, processes: int = 2) -> subprocess.Popen[str]:
    command = [*(TORCHRUN if processes > 1 else [sys.executable]), "-m", "unetcli", "train", "raw.zarr", "labels.zarr"]
    command += ["--ignore", "7", "--truth", "binary", "--output", output, *COMMON.split(), *words.split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, error = process.communicate(timeout=90)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return process.returncode, out, error


@pytest.mark.parametrize(
    ("words", "close"),
    [
        ("--recipe paper --w0 10", 1e-5),
        ("--recipe fast --optimizer sgd --lr 0.01 --dropout 0.5 --ema 0.9 --seed 3", 1e-5),
        ("--recipe fast --no-batch-norm --clip 0.05 --seed 4", 1e-5),
        ("--recipe fast --seed 5", 1e-3),  # Adam divides by the gradient's size: the last bits of tiny ones show
    ],
    ids=["paper", "batch norm, dropout, average", "clipped", "Adam and batch norm"],
)
def test_two_processes_learn_what_one_does_with_the_whole_batch(place: Path, words: str, close: float) -> None:
    for output, processes in (("two", 2), ("one", 1)):
        code, out, error = ended(start(output, f"--steps 20 {words}", processes))
        assert code == 0, error
        assert out == f"{output}/model.safetensors\n"  # said once
    two, one = (Checkpoint.load(place / name / "checkpoint.pt") for name in ("two", "one"))
    require_close(two.network, one.network, close)
    if one.averaged is not None:
        assert two.averaged is not None
        require_close(two.averaged, one.averaged, close)


def require_close(ones: dict[str, torch.Tensor], others: dict[str, torch.Tensor], close: float) -> None:
    for name, values in others.items():
        assert torch.allclose(ones[name].double(), values.double(), rtol=close, atol=close), name


def test_what_one_process_began_two_go_on_with(place: Path) -> None:
    words = "--recipe paper"
    assert ended(start("shared", f"--steps 10 {words}", 1))[0] == 0
    assert ended(start("shared", f"--steps 20 {words}", 2))[0] == 0
    assert ended(start("alone", f"--steps 20 {words}", 1))[0] == 0
    shared, alone = (Checkpoint.load(place / name / "checkpoint.pt") for name in ("shared", "alone"))
    assert shared.step == alone.step == 20
    for name, values in alone.network.items():
        assert torch.allclose(shared.network[name], values, rtol=1e-5, atol=1e-5), name


def test_an_error_is_told_once_and_ends_all(place: Path) -> None:
    code, _, error = ended(start("two", "--steps 20 --batch-size 3"))
    assert code != 0
    assert error.count("unetcli: --batch-size 3: cannot be shared by 2 processes; 4 can") >= 1
    assert "Traceback" not in error.partition("torch.distributed.elastic")[0]
    assert not (place / "two").exists()


def pids_of_workers(process: subprocess.Popen[str]) -> list[int]:
    told = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False).stdout
    return [int(pid) for pid in told.split()]


def wait_for_step(folder: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    while not ((folder / "log.jsonl").exists() and (folder / "log.jsonl").read_text()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_sigterm_ends_all_at_one_step_and_the_same_command_continues(place: Path) -> None:
    process = start("two", "--steps 100000 --recipe paper")
    wait_for_step(place / "two", process)
    for pid in pids_of_workers(process)[:1]:  # one of them is asked; all end
        os.kill(pid, signal.SIGTERM)
    ended(process)
    step = Checkpoint.load(place / "two" / "checkpoint.pt").step
    assert step > 0
    assert not (place / "two" / "lock").exists()
    assert ended(start("two", f"--steps {step + 5} --recipe paper --overwrite", 2))[0] == 0


def test_a_process_that_dies_takes_the_others_with_it(place: Path) -> None:
    process = start("two", "--steps 100000 --recipe paper")
    wait_for_step(place / "two", process)
    os.kill(pids_of_workers(process)[-1], signal.SIGKILL)
    assert ended(process)[0] != 0
