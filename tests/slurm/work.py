"""Minimal task for SLURM jobs, which records its blocks in files and fails as ordered by other files."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from unetcli.core.ranges import Ranges, numbers
from unetcli.executors.slurm.executor import SlurmExecutor
from unetcli.executors.slurm.request import SlurmRequest

REQUEST = SlurmRequest(time="10", mem="300M")
RESERVE = 600 << 20


def work(folder: str, blocks: Ranges, stopping: Callable[[], bool] = bool) -> int:
    """Process blocks as a real task does: skip finished blocks, and record each block that is finished."""
    finished = 0
    for number in numbers(blocks):
        if number in done(Path(folder)):
            continue
        if stopping():
            break
        obey(Path(folder), number)
        with (Path(folder) / "done.txt").open("a") as file:
            file.write(f"{number}\n")
        finished += 1
    return finished


def done(folder: Path) -> list[int]:
    """Blocks in the order in which they were finished, with repetitions."""
    file = folder / "done.txt"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def order(folder: Path, number: int, *words: object) -> None:
    """Order what happens when the block is processed; see :func:`obey`."""
    (folder / f"order.{number}").write_text(" ".join(map(str, words)))


def begun(folder: Path, number: int) -> bool:
    """Whether processing of the block has begun at least once."""
    return (folder / f"begun.{number}").exists()


def release(folder: Path) -> None:
    """Let blocks with the order ``hold`` continue."""
    (folder / "released").touch()


def obey(folder: Path, number: int) -> None:
    """Carry out the order for a block: crash, raise an exception, use memory, or wait."""
    file = folder / f"order.{number}"
    what, *more = file.read_text().split() if file.exists() else ["nothing"]
    (folder / f"begun.{number}").touch()
    match what:
        case "signal":
            os.kill(os.getpid(), int(more[0]))
            signal.pause()
        case "exit":
            os._exit(int(more[0]))
        case "raise":
            raise ValueError("as ordered")
        case "sleep":
            time.sleep(float(more[0]))
        case "memory":
            held = bytearray(RESERVE)
            held[::4096] = bytes([1]) * len(held[::4096])  # write to every page
            time.sleep(60)
        case "hold":
            while not (folder / "released").exists():
                time.sleep(0.05)


def launch(folder: Path, blocks: Ranges, blocks_per_job: int = 1) -> None:
    """Run a launcher, for tests that kill it or run it in a job."""
    executor = SlurmExecutor(request=REQUEST, blocks_per_job=blocks_per_job, every=1)
    failures = executor.run(work, folder, blocks, tick=lambda: None, stopping=bool)
    assert not failures, failures
