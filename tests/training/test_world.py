"""Several processes that train together, on CPUs: the same weights as one, one line for an error, one end for all."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import grey, write_zarr

from unetcli.training.checkpoint import Checkpoint

COMMON = "--depth 1 --base-channels 8 --tile 44 --batch-size 4 --device cpu --precision float32 --validate-every 10"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
UNETCLI = [sys.executable, "-m", "unetcli", "train", "raw.zarr", "labels.zarr", "--ignore", "7", "--truth", "binary"]
ENDLESS = "--steps 1000000 --recipe paper"
SOON = 30
"""Seconds within which all end once one has; torch's own patience is an hour here."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sections of discs, some pixels of which say nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    disc = np.hypot(*np.ogrid[-20:24, -25:25]) < 12
    labels = np.stack([np.roll(disc, 3 * k, 1) for k in range(4)]).astype(np.uint8)
    write_zarr(tmp_path / "raw.zarr", labels * 90 + grey(*labels.shape) // 4)
    labels[:, :9] = 7
    write_zarr(tmp_path / "labels.zarr", labels)
    return tmp_path


def train(output: str, words: str, processes: int) -> None:
    """From start to end, as a user does it: two through torchrun."""
    command = [*TORCHRUN, *UNETCLI[1:]] if processes > 1 else list(UNETCLI)
    command += ["--output", output, *COMMON.split(), *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{output}/model.safetensors\n"  # said once


@dataclass
class Ranks:
    """Processes started one by one, as a scheduler does it, so that each one's end and words can be told apart."""

    place: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, words: str | Sequence[str], output: str = "two") -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        of_each = [words, words] if isinstance(words, str) else words
        for rank, own in enumerate(of_each):
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": len(of_each), "MASTER_PORT": port}
            environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", **{name: str(n) for name, n in names.items()}}
            command = [*UNETCLI, "--output", output, *COMMON.split(), *own.split()]
            with self.talk(rank).open("w") as talk:
                self.started.append(subprocess.Popen(command, env=environment, stdout=talk, stderr=talk, text=True))

    def talk(self, rank: int) -> Path:
        return self.place / f"rank-{rank}.txt"

    def said(self, rank: int) -> str:
        return self.talk(rank).read_text()

    def begun(self) -> None:
        """Wait for the first look."""
        log, deadline = self.place / "two" / "log.jsonl", time.monotonic() + 60
        while not (log.exists() and log.read_text()):
            assert all(process.poll() is None for process in self.started), self.said(0) + self.said(1)
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def codes(self, seconds: float = SOON) -> list[int]:
        """Exit codes, once all have ended."""
        deadline = time.monotonic() + seconds
        return [process.wait(max(0.1, deadline - time.monotonic())) for process in self.started]


@pytest.fixture
def ranks(place: Path) -> Iterator[Ranks]:
    found = Ranks(place)
    yield found
    for process in found.started:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    "words",
    [
        "--recipe paper --w0 10 --dropout 0.5 --ema 0.9 --seed 1",
        "--recipe paper --w0 10 --dropout 0.5 --clip 0.05 --ema 0.9 --seed 2",
        "--recipe fast --optimizer sgd --lr 0.01 --dropout 0.5 --ema 0.9 --w0 10 --seed 3",
        "--recipe fast --optimizer sgd --lr 0.01 --dropout 0.5 --ema 0.9 --clip 0.05 --seed 4",
        "--recipe fast --seed 5",
    ],
    ids=["paper", "clipped", "batch norm", "batch norm, clipped", "Adam"],
)
def test_two_processes_learn_what_one_does_with_the_whole_batch(place: Path, words: str) -> None:
    train("two", f"--steps 20 {words}", 2)
    train("one", f"--steps 20 {words}", 1)
    two, one = (Checkpoint.load(place / name / "checkpoint.pt") for name in ("two", "one"))
    require_close(two.network, one.network)
    assert one.averaged is not None
    assert two.averaged is not None
    require_close(two.averaged, one.averaged)


def require_close(ones: dict[str, torch.Tensor], others: dict[str, torch.Tensor], close: float = 1e-5) -> None:
    for name, values in others.items():
        assert torch.allclose(ones[name].double(), values.double(), rtol=close, atol=close), name


@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1)], ids=["one, then two", "two, then one"])
def test_another_number_of_processes_goes_on(place: Path, first: int, then: int) -> None:
    words = "--recipe paper"
    train("shared", f"--steps 10 {words}", first)
    train("shared", f"--steps 20 {words}", then)
    train("alone", f"--steps 20 {words}", 1)
    shared, alone = (Checkpoint.load(place / name / "checkpoint.pt") for name in ("shared", "alone"))
    assert shared.step == alone.step == 20
    require_close(shared.network, alone.network)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--steps 9 --batch-size 3", "unetcli: --batch-size 3: cannot be shared by 2 processes; 4 can\n"),
        ("--steps 9 --select dice", "unetcli: --select dice: expected one of"),
        ("--steps 300 --recipe paper --lr 1e30", "unetcli: the loss is nan"),
        ("--steps 9 --recipe paper --lr 1e30 --tile 700", "unetcli: the loss is nan"),
    ],
    ids=["of the batch", "of the request", "under way", "seen by the progress of the first"],
)
def test_an_error_of_all_is_told_by_the_first(ranks: Ranks, words: str, line: str) -> None:
    ranks.start(words)
    assert ranks.codes(seconds=120) == [1, 1]
    assert ranks.said(0).count("unetcli: ") == 1
    assert line in ranks.said(0)
    assert ranks.said(1) == ""


def test_an_error_of_another_alone_is_told_by_that_one(ranks: Ranks) -> None:
    ranks.start(["--steps 9", "--steps 9 --tile 45"])
    assert ranks.codes() == [1, 1]
    assert ranks.said(0) == ""
    assert ranks.said(1).startswith("unetcli: --tile 45: no usable tile")
    assert ranks.said(1).count("\n") == 1
    assert not (ranks.place / "two").exists()


def test_processes_that_would_train_different_things_are_refused(ranks: Ranks) -> None:
    ranks.start(["--steps 9 --seed 1", "--steps 9 --seed 2"])
    assert ranks.codes() == [1, 1]
    assert ranks.said(1).startswith("unetcli: the training: seed is 2 in process 1 and 1 in process 0;")
    assert not (ranks.place / "two").exists()


def test_a_folder_that_cannot_be_written_ends_all_with_one_line(ranks: Ranks) -> None:
    ranks.start(ENDLESS)
    ranks.begun()
    (ranks.place / "two").rename(ranks.place / "gone")
    (ranks.place / "two").touch()
    assert ranks.codes() == [1, 1]
    assert ranks.said(0).count("unetcli: ") == 1
    assert "Traceback" not in ranks.said(0)
    assert ranks.said(1) == ""
    assert Checkpoint.load(ranks.place / "gone" / "checkpoint.pt").step % 10 == 0  # whole


@pytest.mark.parametrize(
    ("asked", "code"), [(signal.SIGTERM, 3), (signal.SIGUSR2, 3), (signal.SIGINT, 130)], ids=["TERM", "USR2", "INT"]
)
def test_a_signal_to_one_ends_all_at_one_step_and_the_same_command_continues(
    ranks: Ranks, asked: signal.Signals, code: int
) -> None:
    ranks.start(ENDLESS)
    ranks.begun()
    ranks.started[1].send_signal(asked)
    assert ranks.codes() == [code, code]
    step = Checkpoint.load(ranks.place / "two" / "checkpoint.pt").step
    assert f"stopped at step {step} of 1000000; the same command continues" in ranks.said(0)
    assert ranks.said(1) == ""
    assert not (ranks.place / "two" / "lock").exists()
    ranks.started.clear()
    ranks.start(ENDLESS)
    looks = (ranks.place / "two" / "log.jsonl").read_text().count("\n")
    deadline = time.monotonic() + 60
    while (ranks.place / "two" / "log.jsonl").read_text().count("\n") == looks:
        assert time.monotonic() < deadline, ranks.said(0)
        time.sleep(0.05)
    assert "step 10:" not in ranks.said(0)


def test_sigusr1_to_any_writes_a_checkpoint(ranks: Ranks) -> None:
    ranks.start(f"{ENDLESS} --validate-every 1000000")
    file, deadline = ranks.place / "two" / "checkpoint.pt", time.monotonic() + 60
    while not (file.exists() and Checkpoint.load(file).step):
        assert time.monotonic() < deadline, ranks.said(0)
        if "classes" in ranks.said(0) and file.exists():
            ranks.started[1].send_signal(signal.SIGUSR1)
        time.sleep(0.2)
    assert all(process.poll() is None for process in ranks.started)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_is_killed_ends_the_others_in_order(ranks: Ranks, killed: int) -> None:
    ranks.start(ENDLESS)
    ranks.begun()
    ranks.started[killed].kill()
    codes = ranks.codes()
    assert codes[killed] == -signal.SIGKILL
    assert codes[1 - killed] == 3
    assert "Traceback" not in ranks.said(0) + ranks.said(1)
    told = "unetcli: another of the 2 processes has ended; the same command continues from the last checkpoint"
    assert (told in ranks.said(0)) == (killed == 1)
    assert ranks.said(1) == ""


def test_killing_one_ends_torchrun(place: Path) -> None:
    command = [*TORCHRUN, *UNETCLI[1:], "--output", "two", *COMMON.split(), *ENDLESS.split()]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        watched = Ranks(place)
        watched.talk(0).touch()
        watched.begun()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        assert process.wait(60) != 0


def test_the_probe_of_one_process_waits_for_no_other(ranks: Ranks) -> None:
    """Without ``--steps`` the first process takes a few on a network of its own, batch normalisation included."""
    ranks.start("--minutes 0.02 --recipe fast")
    assert ranks.codes(seconds=90) == [0, 0]
    assert "finished, " in ranks.said(0)
