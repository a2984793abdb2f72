"""Several processes that train together on CPUs: the weights of a single one, one-line errors, a common end."""

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
from commands import Command
from helpers import grey, wait_for, write_zarr

from unetcli.train.folder import Checkpoint

COMMON = "--depth 1 --base-channels 8 --tile 44 --batch-size 4 --device cpu --precision float32 --validate-every 10"
WORDS = ["train", "raw.zarr", "labels.zarr", "--ignore", "7", "--truth", "binary", *COMMON.split()]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "unetcli"]
BATCH_NORM = "--recipe fast --optimizer sgd --lr 0.01 --dropout 0.5 --ema 0.9"
ENDLESS = "--steps 1000000 --recipe paper"
SOON = 120
"""Seconds within which all processes end once one has; torch would wait for an hour."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with sections of discs, some pixels of which are ignored."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    disc = np.hypot(*np.ogrid[-20:24, -25:25]) < 12
    labels = np.stack([np.roll(disc, 3 * k, 1) for k in range(4)]).astype(np.uint8)
    write_zarr(tmp_path / "raw.zarr", labels * 90 + grey(*labels.shape) // 4)
    labels[:, :9] = 7
    write_zarr(tmp_path / "labels.zarr", labels)
    return tmp_path


@dataclass
class Ranks:
    """Processes started one by one, as a scheduler does, each with its own exit code and log."""

    place: Path
    started: list[Command] = field(default_factory=list)

    def start(self, words: str | Sequence[str], output: str = "two") -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        of_each = [words, words] if isinstance(words, str) else words
        for rank, own in enumerate(of_each):
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": len(of_each), "MASTER_PORT": port}
            environment = {"MASTER_ADDR": "127.0.0.1", **{name: str(n) for name, n in names.items()}}
            command = [*WORDS, "--output", output, *own.split()]
            self.log_file(rank).write_text("")
            self.started.append(Command(*command, cwd=self.place, talk=self.log_file(rank), environment=environment))

    def train(self, output: str, words: str, processes: int) -> None:
        """Train to the end."""
        self.start([words] * processes, output)
        assert self.codes() == [0] * processes, self.log(0)
        self.started.clear()

    def log_file(self, rank: int) -> Path:
        return self.place / f"rank-{rank}.txt"

    def log(self, rank: int) -> str:
        return self.log_file(rank).read_text()

    def wait_for_validation(self) -> None:
        """Wait for the first validation."""
        log = self.place / "two" / "log.jsonl"
        wait_for(lambda: self.alive() and log.exists() and log.read_text())

    def alive(self) -> bool:
        assert all(process.poll() is None for process in self.started), self.log(0) + self.log(1)
        return True

    def codes(self) -> list[int]:
        """Wait for all processes and return their exit codes."""
        deadline = time.monotonic() + SOON
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
        pytest.param("--recipe paper --w0 10 --dropout 0.5 --ema 0.9 --seed 1", marks=pytest.mark.slow),
        pytest.param("--recipe paper --w0 10 --dropout 0.5 --clip 0.05 --ema 0.9 --seed 2", marks=pytest.mark.slow),
        pytest.param(f"{BATCH_NORM} --w0 10 --seed 3", marks=pytest.mark.slow),
        f"{BATCH_NORM} --w0 10 --clip 0.05 --seed 4",
        pytest.param("--recipe fast --seed 5", marks=pytest.mark.slow),
    ],
    ids=["paper", "clipped", "batch norm", "batch norm, clipped", "Adam"],
)
def test_two_processes_learn_what_one_does_with_the_whole_batch(ranks: Ranks, words: str) -> None:
    ranks.train("two", f"--steps 20 {words}", 2)
    assert (ranks.log(0).count("two/model.safetensors"), ranks.log(1)) == (1, "")
    ranks.train("one", f"--steps 20 {words}", 1)
    require_same_training(ranks.place, "two", "one")


@pytest.mark.slow
def test_two_processes_start_from_one_initial_model(ranks: Ranks) -> None:
    """Step 0 is the model; the statistics of batch norm are those of the first process's part of the first batch."""
    ranks.train("old", "--recipe paper --steps 5", 1)
    words = "--recipe paper --steps 10 --init old --seed 3"
    ranks.train("two", words, 2)
    ranks.train("one", f"{words} --batch-size 4", 1)
    require_same_training(ranks.place, "two", "one")
    ranks.train("normed", "--recipe fast --steps 10 --init old --seed 3", 2)
    assert "unetcli: " not in ranks.log(0)


@pytest.mark.slow
def test_two_processes_of_torchrun_are_one_training(ranks: Ranks) -> None:
    """They are started as a user does; the path of the model is printed once."""
    words = "--steps 10 --recipe paper"
    command = [*TORCHRUN, *WORDS, "--output", "two", *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "two/model.safetensors\n"
    ranks.train("one", words, 1)
    require_same_training(ranks.place, "two", "one")


def require_same_training(place: Path, *names: str) -> None:
    """Assert equal numbers of steps, and weights and averages that are equal up to rounding."""
    one, other = (Checkpoint.load(place / name / "checkpoint.pt") for name in names)
    assert one.step == other.step
    require_close(one.network, other.network)
    assert (one.averaged is None) == (other.averaged is None)
    if one.averaged is not None and other.averaged is not None:
        require_close(one.averaged, other.averaged)


def require_close(ones: dict[str, torch.Tensor], others: dict[str, torch.Tensor], close: float = 1e-5) -> None:
    for name, values in others.items():
        assert torch.allclose(ones[name].double(), values.double(), rtol=close, atol=close), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then"),
    [(1, 2), (2, 1)],
    ids=["one, then two", "two, then one"],
)
def test_another_number_of_processes_goes_on(ranks: Ranks, first: int, then: int) -> None:
    ranks.train("shared", "--steps 10 --recipe paper", first)
    ranks.train("shared", "--steps 20 --recipe paper", then)
    ranks.train("alone", "--steps 20 --recipe paper", 1)
    require_same_training(ranks.place, "shared", "alone")


@pytest.mark.by_default("under way")
@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--steps 9 --batch-size 3", "unetcli: --batch-size 3: not divisible by the 2 processes; 4 would work\n"),
        ("--steps 9 --select dice", "unetcli: --select dice: expected one of"),
        ("--folds 2", "unetcli: --fold all: the 2 processes train one model; start them for each fold: --fold 1"),
        ("--steps 300 --recipe paper --lr 1e30", "unetcli: the loss is nan"),
        pytest.param(
            "--steps 9 --recipe paper --lr 1e30 --tile 700", "unetcli: the loss is nan", marks=pytest.mark.slow
        ),
    ],
    ids=["of the batch", "of the request", "of folds", "under way", "seen by the progress of the first"],
)
def test_an_error_of_all_processes_is_reported_by_the_first(ranks: Ranks, words: str, line: str) -> None:
    ranks.start(words)
    assert ranks.codes() == [1, 1]
    assert ranks.log(0).count("unetcli: ") == 1
    assert line in ranks.log(0)
    assert ranks.log(1) == ""


def test_an_error_of_one_other_process_is_reported_by_that_one(ranks: Ranks) -> None:
    ranks.start(["--steps 9", "--steps 9 --tile 45"])
    assert ranks.codes() == [1, 1]
    assert ranks.log(0) == ""
    assert ranks.log(1).startswith("unetcli: --tile 45: not a usable tile")
    assert ranks.log(1).count("\n") == 1
    assert not (ranks.place / "two").exists()


def test_processes_that_would_train_different_things_are_refused(ranks: Ranks) -> None:
    ranks.start(["--steps 9 --seed 1", "--steps 9 --seed 2"])
    assert ranks.codes() == [1, 1]
    assert ranks.log(1).startswith("unetcli: the training: seed is 2 in process 1 and 1 in process 0;")
    assert not (ranks.place / "two").exists()


def test_a_folder_that_cannot_be_written_ends_all_with_one_line(ranks: Ranks) -> None:
    ranks.start(ENDLESS)
    ranks.wait_for_validation()
    (ranks.place / "two").rename(ranks.place / "gone")
    (ranks.place / "two").touch()
    assert ranks.codes() == [1, 1]
    assert ranks.log(0).count("unetcli: ") == 1
    assert "Traceback" not in ranks.log(0)
    assert ranks.log(1) == ""
    assert Checkpoint.load(ranks.place / "gone" / "checkpoint.pt").step % 10 == 0  # the checkpoint of a validation


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        pytest.param(signal.SIGTERM, 3, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR2, 3, marks=pytest.mark.slow),
        (signal.SIGINT, 130),
    ],
    ids=["TERM", "USR2", "INT"],
)
def test_a_signal_to_one_ends_all_at_one_step_and_the_same_command_continues(
    ranks: Ranks, asked: signal.Signals, code: int
) -> None:
    ranks.start(ENDLESS)
    ranks.wait_for_validation()
    ranks.started[1].send_signal(asked)
    assert ranks.codes() == [code, code]
    step = Checkpoint.load(ranks.place / "two" / "checkpoint.pt").step
    assert f"stopped at step {step} of 1000000; the same command continues" in ranks.log(0)
    assert ranks.log(1) == ""
    assert not (ranks.place / "two" / "lock").exists()
    ranks.started.clear()
    ranks.start(ENDLESS)
    log = ranks.place / "two" / "log.jsonl"
    validations = log.read_text().count("\n")
    wait_for(lambda: ranks.alive() and log.read_text().count("\n") > validations)
    assert "step 10:" not in ranks.log(0)


def test_sigusr1_to_any_writes_a_checkpoint(ranks: Ranks) -> None:
    ranks.start(f"{ENDLESS} --validate-every 1000000")
    file = ranks.place / "two" / "checkpoint.pt"
    wait_for(lambda: ranks.alive() and file.exists())
    ranks.started[1].send_signal(signal.SIGUSR1)
    wait_for(lambda: ranks.alive() and Checkpoint.load(file).step)


@pytest.mark.parametrize("killed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_process_that_is_killed_ends_the_others_in_order(ranks: Ranks, killed: int) -> None:
    ranks.start(ENDLESS)
    ranks.wait_for_validation()
    ranks.started[killed].kill()
    codes = ranks.codes()
    assert codes[killed] == -signal.SIGKILL
    assert codes[1 - killed] == 3
    assert "Traceback" not in ranks.log(0) + ranks.log(1)
    message = "unetcli: another of the 2 processes has ended; the same command continues from the last checkpoint"
    assert (message in ranks.log(0)) == (killed == 1)
    assert ranks.log(1) == ""


@pytest.mark.slow
def test_killing_one_ends_torchrun(ranks: Ranks) -> None:
    command = [*TORCHRUN, *WORDS, "--output", "two", *ENDLESS.split()]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        ranks.wait_for_validation()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        assert process.wait(60) != 0


@pytest.mark.slow
def test_the_probe_of_one_process_waits_for_no_other(ranks: Ranks) -> None:
    """Without ``--steps`` rank 0 measures some steps of its own network, batch normalisation included."""
    ranks.start("--minutes 0.003 --recipe fast")
    assert ranks.codes() == [0, 0]
    assert "finished, " in ranks.log(0)
