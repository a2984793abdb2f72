"""Dask workers as processes of this host: one per GPU, or as many as asked for."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unetcli.executors.contract import JobFailure
from unetcli.executors.dask.cluster import Own, own_scheduler

SECONDS_TO_END = 10.0


@contextmanager
def local_workers(folder: Path, count: int, *, gpus: Sequence[str] = (), memory: int | None = None) -> Iterator[Own]:
    """A scheduler and ``count`` workers on this host, worker k on the k-th GPU of ``gpus`` where there are any."""
    with (
        tempfile.TemporaryDirectory(prefix="unetcli-", ignore_cleanup_errors=True) as scratch,
        processes(folder / "logs", gpus) as started,
        own_scheduler(
            folder, started.launch, started.ended, count, host="127.0.0.1", memory=memory, scratch=scratch
        ) as cluster,
    ):
        yield cluster


@dataclass(slots=True)
class Processes:
    """Launches worker jobs as processes here."""

    logs: Path
    gpus: Sequence[str] = ()
    running: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    """By place: a worker that replaces another takes its place, and so its GPU."""

    def launch(self, function: Callable[..., None], arguments: Sequence[Any], count: int) -> list[str]:
        return [self._start(function, arguments) for _ in range(count)]

    def _start(self, function: Callable[..., None], arguments: Sequence[Any]) -> str:
        place = next(place for place in range(len(self.running) + 1) if place not in self.running)
        call = f"from {function.__module__} import {function.__name__} as work; work(*{list(arguments)!r})"
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[place % len(self.gpus)]
        self.logs.mkdir(parents=True, exist_ok=True)
        with (self.logs / f"worker-{place}.log").open("ab") as output:
            self.running[place] = subprocess.Popen(
                [sys.executable, "-P", "-c", call],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for the launcher, which lets workers finish their blocks
            )
        return str(self.running[place].pid)

    def ended(self) -> list[JobFailure]:
        failures = []
        for place, process in list(self.running.items()):
            if process.poll() is not None:
                del self.running[place]
                reason = f"{_death(process.returncode)}; see {self.logs / f'worker-{place}.log'}"
                failures.append(JobFailure(job=str(process.pid), host=os.uname().nodename, reason=reason))
        return failures

    def close(self) -> None:
        """Ask all to end, as they do within seconds after their current block; kill what does not."""
        for process in self.running.values():
            process.terminate()
        deadline = time.monotonic() + SECONDS_TO_END
        for process in self.running.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            process.kill()  # does nothing to one that has ended
            process.wait()
        self.running.clear()


@contextmanager
def processes(logs: Path, gpus: Sequence[str] = ()) -> Iterator[Processes]:
    """A launcher of worker processes; at the end they have ended."""
    started = Processes(logs, gpus)
    try:
        yield started
    finally:
        started.close()


def _death(code: int) -> str:
    """How a process ended, in words.

    >>> _death(-9), _death(1)
    ('killed by signal 9', 'ended with code 1')
    """
    return f"killed by signal {-code}" if code < 0 else f"ended with code {code}"
