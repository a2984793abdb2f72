"""label killed at any moment and run again gives the same bytes as without interruption."""

from __future__ import annotations

import random
import secrets
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from commands import Command, finished
from helpers import read_receipts, wait_for, write_prediction
from label.maps import blobs

SHAPE = (10, 300, 310)
STORE, FOLDER = "big.pred.zarr", "big.pred.zarr.run/instances"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_prediction(tmp_path / STORE, blobs(SHAPE, 3), (1, 64, 64), levels=2)
    return tmp_path


def label(place: Path, *words: str) -> Command:
    """The command as a user types it, with hundreds of small blocks; its messages go to a file."""
    return Command(
        "label", STORE, "--block-voxels", "17000", *words, cwd=place, talk=place / f"{secrets.token_hex(4)}.txt"
    )


def results(place: Path) -> dict[str, bytes]:
    labels = {str(f.relative_to(place)): f.read_bytes() for f in (place / STORE / "labels").rglob("*") if f.is_file()}
    return labels | {path.name: path.read_bytes() for path in place.glob("*.csv")}


def forget(place: Path) -> None:
    shutil.rmtree(place / STORE / "labels", ignore_errors=True)
    shutil.rmtree(place / f"{STORE}.run", ignore_errors=True)
    (place / f"{STORE}.instances.csv").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("method", "rounds"),
    [
        pytest.param("watershed", 1, marks=pytest.mark.slow),
        pytest.param("components", 30, marks=pytest.mark.slow),
        pytest.param("watershed", 30, marks=pytest.mark.slow),
    ],
)
def test_killed_at_random_moments_and_run_again_gives_the_same_bytes(place: Path, method: str, rounds: int) -> None:
    finished("--version")  # the process that forks is there
    started = time.monotonic()
    assert label(place, "--method", method).wait() == 0
    whole_time, whole = time.monotonic() - started, results(place)
    chance, kills = random.Random(2015), 0
    forget(place)
    while True:
        process = label(place, "--method", method)
        try:
            code = process.wait(timeout=chance.uniform(0.1, 0.9) * whole_time)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            continue
        assert code == 0, process.talk.read_text()
        if kills >= rounds:
            break
        forget(place)  # too lucky: once more from the start
    assert results(place) == whole
    assert not list(place.rglob("*.partial"))
    assert not (place / FOLDER / "blocks").exists()


@pytest.mark.slow
def test_sigterm_drains_and_the_same_command_continues(place: Path) -> None:
    process = label(place, "--method", "watershed")
    receipts = place / FOLDER / "receipts"
    wait_for(lambda: receipts.is_dir() and any(f.stat().st_size for f in receipts.iterdir()))
    process.terminate()
    assert process.wait() == 3, process.talk.read_text()
    assert "the same command continues" in process.talk.read_text()
    before = len(list(read_receipts(receipts)))
    assert label(place, "--method", "watershed").wait() == 0
    made = [receipt.block for receipt in read_receipts(receipts)]
    assert len(made) == len(set(made)) > before > 0  # nothing was made twice


def test_a_second_launcher_names_the_first_and_the_lock_of_a_dead_one_is_taken(place: Path) -> None:
    first = label(place)
    wait_for(lambda: any((place / FOLDER).glob("workers/*.json")))
    first.send_signal(signal.SIGSTOP)  # alive, for as long as we like
    second = label(place)
    assert second.wait() == 1
    assert f"pid {first.pid}" in second.talk.read_text()
    first.kill()
    first.wait()
    assert label(place).wait() == 0
