"""Tests of killed commands, which give the same bytes after a rerun as without interruption."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import zarr
from commands import Command, finished
from helpers import grey, wait_for, write_model, write_zarr

SECTIONS, LONG, SIDE = 24, 120, 300


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_model(tmp_path / "model", depth=3, base_channels=8)
    write_zarr(tmp_path / "big.zarr", grey(SECTIONS, SIDE, SIDE), chunks=(1, 128, 128))
    return tmp_path


def start(place: Path, *words: str) -> Command:
    """Start the command as a user would; its stderr goes to ``talk.txt``."""
    (place / "talk.txt").write_text("")
    return Command(*words, cwd=place, errors=place / "talk.txt")


def predict(place: Path, *words: str) -> Command:
    """Start predict, with float32 output as this shows every bit."""
    return start(place, "predict", "big.zarr", "--dtype", "float32", *words)


def talk(place: Path) -> str:
    return (place / "talk.txt").read_text()


def files(store: Path) -> dict[str, bytes]:
    return {str(f.relative_to(store)): f.read_bytes() for f in sorted(store.rglob("*")) if f.is_file()}


def computed(place: Path, store: str) -> list[int]:
    """Blocks with a receipt, once for each receipt."""
    lines = [
        line for f in (place / f"{store}.run/predict/receipts").glob("*.txt") for line in f.read_text().splitlines()
    ]
    return [int(line.split()[0]) for line in lines]


@pytest.mark.parametrize("rounds", [2, pytest.param(40, marks=pytest.mark.slow)])
def test_killed_at_random_moments_and_run_again_gives_the_same_bytes(place: Path, rounds: int) -> None:
    finished("--version")  # starts the process that forks
    started = time.monotonic()
    assert predict(place, "--output", "whole.zarr").wait() == 0
    whole_time = time.monotonic() - started
    chance, kills = random.Random(2015), 0
    while True:
        process = predict(place)
        try:
            code = process.wait(timeout=chance.uniform(0.1, 1.2) * whole_time)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            continue
        assert code == 0, talk(place)
        if kills >= rounds:
            break
        for path in ("big.pred.zarr", "big.pred.zarr.run"):  # finished after too few kills: start from the beginning
            subprocess.run(["rm", "-r", str(place / path)], check=True)
    whole = {name: content for name, content in files(place / "whole.zarr").items() if name.startswith("0/")}
    found = {name: content for name, content in files(place / "big.pred.zarr").items() if name.startswith("0/")}
    assert found == whole
    assert set(computed(place, "big.pred.zarr")) == set(range(SECTIONS))
    assert not list(place.rglob("*.partial"))


def test_sigterm_drains_and_the_same_command_continues(place: Path) -> None:
    shutil.rmtree(place / "big.zarr")
    write_zarr(place / "big.zarr", grey(LONG, SIDE, SIDE), chunks=(1, 128, 128))
    process = predict(place)
    wait_for(lambda: computed(place, "big.pred.zarr"))
    process.terminate()
    assert process.wait() == 3, talk(place)
    assert "the same command continues" in talk(place)
    before = computed(place, "big.pred.zarr")
    assert 0 < len(before) < LONG
    assert predict(place).wait() == 0
    assert sorted(computed(place, "big.pred.zarr")) == list(range(LONG))  # no block was computed twice


@pytest.mark.parametrize(
    ("words", "folder", "begun"),
    [
        ("predict endless.zarr", "endless.pred.zarr.run/predict", "receipts/*.txt"),
        ("train big.zarr labels.zarr -o new --steps 100000 --depth 1 --tile 44", "new", "checkpoint.pt"),
    ],
    ids=["predict", "train"],
)
def test_an_interrupt_ends_with_130_and_leaves_no_lock(place: Path, words: str, folder: str, begun: str) -> None:
    write_zarr(place / "labels.zarr", grey(SECTIONS, SIDE, SIDE) // 128)
    # Receipts are written once a second; a machine that finishes within a second would leave nothing to interrupt.
    zarr.create_array(place / "endless.zarr", shape=(100_000, 60, 60), chunks=(1, 60, 60), dtype="uint8")
    process = start(place, *words.split())
    lock = place / folder / "lock"
    wait_for(lambda: any((place / folder).glob(begun)))
    assert lock.exists()
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130, talk(place)
    assert not lock.exists()
    assert "Traceback" not in talk(place)


def test_a_second_launcher_names_the_first_and_the_lock_of_a_dead_one_is_taken(place: Path) -> None:
    first = predict(place)
    lock = place / "big.pred.zarr.run/predict/lock"
    wait_for(lock.exists)
    first.send_signal(signal.SIGSTOP)  # keeps it alive
    second = predict(place)
    assert second.wait() == 1
    assert f"pid {first.pid}" in talk(place)
    assert len(talk(place).strip().splitlines()) == 1
    first.kill()
    first.wait()
    assert lock.exists()
    assert predict(place).wait() == 0
