"""A task for executors: what it does to a block is written in files of its folder.

A file ``block-N.done`` gets a line for each time that block N was worked off. ``raise-N``, ``exit-N`` and ``kill-N``
have the block raise, end its process, or kill it; ``slow`` holds the seconds that each block takes.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from unetcli.core.ranges import Ranges, numbers


def write_files(folder: str, blocks: Ranges, stopping: Callable[[], bool] = bool) -> int:
    place, done = Path(folder), 0
    for block in numbers(blocks):
        if stopping():
            break
        if not (place / f"block-{block}.done").exists():
            _work(place, block)
            done += 1
    return done


def _work(place: Path, block: int) -> None:
    with (place / f"begun-{block}").open("a") as file:
        file.write(f"{os.getpid()}\n")
    if (place / f"raise-{block}").exists():
        raise ValueError(f"block {block} has to\nfail")
    if (place / f"exit-{block}").exists():
        os._exit(7)
    if (place / f"kill-{block}").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    with suppress(FileNotFoundError):
        time.sleep(float((place / "slow").read_text()))
    with (place / f"block-{block}.done").open("a") as file:
        file.write(f"{os.getpid()}\n")


def nothing(folder: str, blocks: Ranges, stopping: Callable[[], bool] = bool) -> int:
    """No work: what is left is the cost of the executor."""
    return sum(not stopping() for _ in numbers(blocks))


def show_surroundings(folder: str, blocks: Ranges, stopping: Callable[[], bool] = bool) -> int:
    """Writes what the worker process finds around it, one file per block."""
    from unetcli.core.process import cpu_threads

    time.sleep(0.2)  # so that each worker gets some
    for block in numbers(blocks):
        names = ("CUDA_VISIBLE_DEVICES", "MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_", "OMP_NUM_THREADS")
        found = {name: os.environ.get(name) for name in names} | {"threads": cpu_threads()}
        (Path(folder) / f"seen-{block}").write_text(json.dumps(found))
    return 1
