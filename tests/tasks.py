"""Task for tests of executors, which is controlled by files in its folder and reports in other files.

It appends a line to ``block-N.done`` each time that block N is processed. With a file ``raise-N``, ``exit-N`` or
``kill-N`` the block raises an exception, or ends or kills its process; ``slow`` contains the seconds per block.
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
    """Do nothing, to measure the cost of the executor."""
    return sum(not stopping() for _ in numbers(blocks))


def show_surroundings(folder: str, blocks: Ranges, stopping: Callable[[], bool] = bool) -> int:
    """Write the environment of the worker process to one file per block."""
    from unetcli.core.process import cpu_threads

    time.sleep(0.2)  # so that each worker gets blocks
    for block in numbers(blocks):
        names = ("CUDA_VISIBLE_DEVICES", "MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_", "OMP_NUM_THREADS")
        found = {name: os.environ.get(name) for name in names} | {"threads": cpu_threads()}
        (Path(folder) / f"seen-{block}").write_text(json.dumps(found))
    return 1
