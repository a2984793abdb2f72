"""The ``train`` command, killed at random times and run again: the same bytes as without a kill."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Command
from helpers import wait_for
from train.scenes import write_discs

from unetcli.train.folder import Checkpoint

SMALL = ["--depth", "1", "--base-channels", "4", "--tile", "44", "--device", "cpu"]
OFTEN = ["--checkpoint-minutes", "0.001"]
RECIPES = {
    "fast": ["--recipe", "fast", "--batch-norm", "--ema", "0.9", "--precision", "bfloat16", "--batch-size", "2"],
    "paper": ["--recipe", "paper", "--precision", "float32", "--select", "rand_error"],
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_discs(tmp_path)
    return tmp_path


def train(place: Path, *words: str, output: str = "model") -> Command:
    """Start the command, with its output in ``<output>.txt``."""
    command = ["train", "raw.zarr", "labels.zarr", "--output", output, *SMALL, *words]
    return Command(*command, cwd=place, talk=place / f"{output}.txt")


def log_text(place: Path) -> str:
    return (place / "model.txt").read_text()


def written(place: Path) -> int:
    """Modification time of the checkpoint, which identifies it; 0 if there is none."""
    try:
        return (place / "model/checkpoint.pt").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def step(place: Path) -> int:
    """Step of the last checkpoint; a kill between the two renames of a save leaves only the one before."""
    last, before = (place / "model" / name for name in ("checkpoint.pt", "checkpoint.previous.pt"))
    return Checkpoint.load(last if last.exists() else before).step


def same(one: Any, other: Any) -> bool:
    """Whether nested tensors and values are equal bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def rows(place: Path, output: str) -> list[dict[str, Any]]:
    """Rows of the log without the duration."""
    lines = (place / output / "log.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]


@pytest.mark.parametrize(
    ("recipe", "kills"),
    [
        ("fast", 2),
        pytest.param("paper", 2, marks=pytest.mark.slow),
        *(pytest.param(recipe, 20, marks=pytest.mark.slow) for recipe in RECIPES),
    ],
)
def test_killed_at_random_steps_and_run_again_ends_in_the_same_bytes(place: Path, recipe: str, kills: int) -> None:
    words = [*RECIPES[recipe], *OFTEN, "--validate-every", "30", "--steps", str(60 + 30 * kills)]
    straight = train(place, *words, output="straight")
    chance, steps = random.Random(f"{recipe} {kills}"), list[int]()
    while len(steps) < kills:
        process, before = train(place, *words), written(place)
        wait_for(lambda before=before, process=process: written(place) != before or process.poll() is not None)  # type: ignore[misc]
        time.sleep(chance.uniform(0, 0.2))
        process.kill()
        if process.wait() == -signal.SIGKILL:
            steps.append(step(place))
        else:  # it finished before the kill: start over
            assert process.returncode == 0, log_text(place)
            shutil.rmtree(place / "model")
            steps.clear()
    assert steps == sorted(steps)
    assert steps[-1] > 0
    assert train(place, *words).wait() == 0, log_text(place)
    assert straight.wait() == 0
    one, other = (Checkpoint.load(place / name / "checkpoint.pt") for name in ("model", "straight"))
    for name in ("network", "optimizer", "averaged", "best", "validations_since_best", "pending", "step"):
        assert same(getattr(one, name), getattr(other, name)), name
    assert rows(place, "model") == rows(place, "straight")
    for name in ("model.safetensors", "samples.png"):
        assert (place / "model" / name).read_bytes() == (place / "straight" / name).read_bytes(), name
    pictures = [sorted(f.name for f in (place / name / "predictions").iterdir()) for name in ("model", "straight")]
    assert pictures[0] == pictures[1]
    assert not list(place.rglob("*.partial"))
    assert not (place / "model/lock").exists()


def test_signals_ask_for_a_checkpoint_or_an_orderly_end(place: Path) -> None:
    words = [*RECIPES["paper"], "--steps", "1000000", "--validate-every", "1000000", "--checkpoint-minutes", "1000"]
    process = train(place, *words)
    wait_for(lambda: written(place) > 0)
    first = written(place)
    process.send_signal(signal.SIGUSR1)
    wait_for(lambda: written(place) != first)
    asked = step(place)
    assert asked > 0
    assert process.poll() is None
    process.terminate()
    assert process.wait() == 3, log_text(place)
    assert step(place) > asked
    assert f"model: stopped at step {step(place)} of 1000000; the same command continues\n" in log_text(place)
    assert "model.safetensors" not in log_text(place)  # no model has been saved yet
    assert not (place / "model/lock").exists()
    stopped, last = step(place), written(place)
    process = train(place, *words)
    wait_for((place / "model/lock").exists)
    process.send_signal(signal.SIGUSR1)
    wait_for(lambda: written(place) != last)  # it trains
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130, log_text(place)
    assert not (place / "model/lock").exists()
    assert step(place) > stopped
    assert "Traceback" not in log_text(place)
