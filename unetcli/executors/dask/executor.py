"""Executor for Dask clusters. Sends blocks in batches, a few per worker, so that memory does not grow with them."""

from __future__ import annotations

import logging
import queue
import secrets
import socket
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetcli.core.errors import UnetcliError, one_line
from unetcli.core.ranges import Cutter, Ranges, count, numbers, to_ranges
from unetcli.executors.contract import JobFailure, Task
from unetcli.executors.dask.cluster import LOG, Cluster
from unetcli.executors.dask.worker import BatchResult, request_stop, run_batch

if TYPE_CHECKING:
    from distributed import Future

log = logging.getLogger(__name__)

SECONDS_PER_TICK = 1.0
SECONDS_PER_RESULT = 10.0
SECONDS_PER_ANSWER = 3.0
BATCHES_PER_WORKER = 2
"""Batches per worker at the scheduler: one that runs and one that waits, so that workers are never idle."""
LARGEST = 256
"""Maximum blocks per batch: 10^6 blocks are then 4,000 tasks for the scheduler."""
BATCHES_LEFT = 3
"""A batch is one of this many equal parts of the blocks left per worker. Batches shrink towards the end, so that all
workers end together."""
FAILURES_TO_STOP = 8
"""Failed blocks, without any success, after which the remaining blocks are not tried: they would fail too."""
BATCH, SINGLE, ALONE = range(3)
"""Isolation of a batch. Blocks of a failed batch are retried one by one. A block that ran when workers died is retried
while nothing else runs, as Dask blames every batch that was assigned to a worker that died."""


@dataclass(frozen=True, slots=True)
class DaskExecutor:
    """Runs batches on any Dask cluster. A block that fails or kills its worker is reported; the others continue."""

    cluster: Cluster

    def run(
        self,
        task: Task,
        folder: Path,
        blocks: Ranges,
        *,
        tick: Callable[[], None],
        stopping: Callable[[], bool],
        avoid: Sequence[str] = (),
    ) -> list[JobFailure]:
        batches = BatchQueue(Cutter(blocks), frozenset(avoid))
        return _Run(self.cluster, Workers(self.cluster), batches, task, folder, tick, stopping).work()


@dataclass(frozen=True, slots=True)
class Batch:
    """Blocks that are sent to a worker together."""

    blocks: Ranges
    isolation: int = BATCH
    failures: int = 0
    avoid: frozenset[str] = frozenset()
    """Hosts on which these blocks failed."""

    def split(self, **changes: Any) -> list[Batch]:
        """Return one batch per block, with changed fields."""
        return [replace(self, blocks=((block, block + 1),), **changes) for block in numbers(self.blocks)]


@dataclass(slots=True)
class BatchQueue:
    """Batches to send next, and blocks that failed finally. Does not depend on Dask."""

    fresh: Cutter
    """Blocks that have not been sent yet."""
    avoid: frozenset[str]
    """Hosts on which blocks are not tried first."""
    retries: deque[Batch] = field(default_factory=deque)
    """Failed batches, split into single blocks."""
    alone: deque[Batch] = field(default_factory=deque)
    """Blocks to be tried while nothing else runs."""
    failed: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    """Blocks by host and reason."""
    done: int = 0
    """Number of batches that succeeded."""

    def __bool__(self) -> bool:
        return bool(self.fresh.left or self.retries or self.alone)

    def next(self, running: Collection[Batch], workers: int, expected: int) -> Batch | None:
        """Return the next batch, or None if none may be sent now; ``expected`` is the number of workers to come."""
        if len(running) >= workers * BATCHES_PER_WORKER or any(batch.isolation == ALONE for batch in running):
            return None
        if self.retries:
            singles = sum(batch.isolation == SINGLE for batch in running)
            return self.retries.popleft() if singles < workers else None
        if self.fresh.left:
            size = batch_size(self.fresh.left, max(workers, expected))
            return Batch(self.fresh.cut(size), avoid=self.avoid)
        return self.alone.popleft() if self.alone and not running else None

    def worker_died(self, batch: Batch, host: str) -> None:
        """Retry a batch that ran when workers died, with more isolation; finally, its block has failed."""
        if batch.isolation < ALONE:
            waiting = self.alone if batch.isolation == SINGLE else self.retries
            waiting.extend(batch.split(isolation=batch.isolation + 1))
        else:
            self._fail(batch, host, "its worker died each time, perhaps out of memory; see logs/ in the run folder")

    def raised(self, batch: Batch, host: str, reason: str) -> None:
        """Retry a batch that raised an exception once, block by block and on another host if possible."""
        if batch.failures:
            self._fail(batch, host, reason)
            return
        isolation = max(batch.isolation, SINGLE)
        self.retries.extend(batch.split(failures=1, avoid=batch.avoid | {host}, isolation=isolation))

    def _fail(self, batch: Batch, host: str, reason: str) -> None:
        self.failed.setdefault((host, reason), []).extend(numbers(batch.blocks))

    def all_fail(self) -> bool:
        """Whether several blocks failed and none succeeded, so that the others would fail too."""
        return not self.done and sum(map(len, self.failed.values())) >= FAILURES_TO_STOP

    def failures(self) -> list[JobFailure]:
        return [
            JobFailure(job=describe_blocks(to_ranges(sorted(blocks))), host=host, reason=reason)
            for (host, reason), blocks in self.failed.items()
        ]


@dataclass(slots=True)
class Workers:
    """Workers of a cluster, which may join and leave at any time."""

    cluster: Cluster
    addresses: list[str] = field(default_factory=list)
    hosts: dict[str, str] = field(default_factory=dict)
    """Host name by worker address, also of workers that died."""
    seen: float = field(default_factory=time.monotonic)
    """Time at which a worker was last connected."""

    def update(self) -> None:
        """Update the addresses and host names of the workers."""
        self.require_scheduler()
        try:
            self.addresses = list(self.cluster.client.nthreads())
        except (OSError, TimeoutError) as error:
            raise self._gone() from error
        if new := [address for address in self.addresses if address not in self.hosts]:
            self.hosts |= {address: _place(address) for address in new} | self.call(socket.gethostname, workers=new)
        if self.addresses:
            self.seen = time.monotonic()

    def call(self, function: Callable[..., Any], *words: Any, workers: list[str] | None = None) -> dict[str, Any]:
        """Call a function in each worker process and return the results; workers that do not answer are left out."""
        client = self.cluster.client
        try:
            found: dict[str, Any] = client.sync(
                client._run, function, *words, workers=workers, on_error="ignore", callback_timeout=SECONDS_PER_ANSWER
            )
        except (OSError, TimeoutError):
            return {}
        return found

    def host(self, address: str) -> str:
        """Host name of a worker; that of another worker at the same address if it died before it reported its own."""
        neighbours = [name for other, name in self.hosts.items() if _place(other) == _place(address)]
        return self.hosts.get(address) or (neighbours or [_place(address)])[0]

    def on_other_hosts(self, avoid: frozenset[str]) -> list[str]:
        """Addresses of the workers on hosts other than ``avoid``."""
        return [address for address in self.addresses if self.hosts.get(address) not in avoid]

    def give_up(self) -> JobFailure | None:
        """Return why no worker is left and none is expected; None if there is one, or one may join."""
        return None if self.addresses else self.cluster.give_up(time.monotonic() - self.seen)

    def require_scheduler(self, ended: Iterable[Future[Any]] = ()) -> None:
        """Raise :class:`UnetcliError` if the scheduler is gone, which cancels all its batches."""
        if self.cluster.client.status != "running" or any(future.status == "cancelled" for future in ended):
            raise self._gone()

    def _gone(self) -> UnetcliError:
        return UnetcliError(f"the Dask scheduler at {self.cluster.address} is gone; the same command continues")


@dataclass(slots=True)
class _Run:
    """One call of the executor: sends batches to workers and collects their results."""

    cluster: Cluster
    workers: Workers
    batches: BatchQueue
    task: Task
    folder: Path
    tick: Callable[[], None]
    stopping: Callable[[], bool]
    name: str = field(default_factory=lambda: secrets.token_hex(4))
    running: dict[Any, tuple[Future[Any], Batch]] = field(default_factory=dict)
    """Batches at the scheduler, by the key of their future."""
    finished: queue.SimpleQueue[Future[Any]] = field(default_factory=queue.SimpleQueue)
    later: list[Batch] = field(default_factory=list)
    """Batches of workers that ended, or that died with the result; sent again after the next update."""
    sent: int = 0
    done_before: int = -1
    """Number of batches that were done when workers were last replaced."""
    updated: float = 0.0
    lost: list[JobFailure] = field(default_factory=list)
    """Why no worker is left."""

    def work(self) -> list[JobFailure]:
        try:
            self._update()
            while not self.lost and (self._send_all() or self.running):
                self._collect()
                if time.monotonic() - self.updated >= SECONDS_PER_TICK:
                    self._update()
        finally:
            self._cancel()
        self.tick()
        return self.batches.failures() + self.lost

    def _send_all(self) -> bool:
        """Send all batches that may be sent now; returns whether more are to be sent later."""
        while not (ending := self.stopping() or self.batches.all_fail()):
            running = [batch for _, batch in self.running.values()]
            batch = self.batches.next(running, len(self.workers.addresses), self.cluster.expected)
            if batch is None:
                break
            self._send(batch)
        return not ending and bool(self.batches or self.later)

    def _send(self, batch: Batch) -> None:
        self.sent += 1
        key = (f"blocks-{self.name}", self.sent)
        others = self.workers.on_other_hosts(batch.avoid)
        place = {"workers": others, "allow_other_workers": True} if batch.avoid and others else {}
        future = self.cluster.client.submit(
            run_batch, self.task, str(self.folder), batch.blocks, self.name, key=key, pure=False, **place
        )
        self.running[key] = (future, batch)
        future.add_done_callback(self.finished.put)

    def _collect(self) -> None:
        """Collect the batches that have ended, waiting briefly if none has."""
        try:
            ended = [self.finished.get(timeout=SECONDS_PER_TICK / 4)]
        except queue.Empty:
            return
        while not self.finished.empty():
            ended.append(self.finished.get())
        self.workers.require_scheduler(ended)
        for future in ended:
            _, batch = self.running.pop(future.key)
            self._take(batch, future)

    def _take(self, batch: Batch, future: Future[Any]) -> None:
        if future.status == "error":
            self._take_error(batch, future)
        elif (result := _fetch(future)) is None or result.left:
            self.later.append(batch)
        elif result.error:
            self._log(f"{describe_blocks(batch.blocks)} on {result.host}:\n{result.details}")
            self.batches.raised(batch, result.host, result.error)
        else:
            self.batches.done += 1

    def _take_error(self, batch: Batch, future: Future[Any]) -> None:
        """Handle a batch that Dask gave up, because its workers died or could not unpickle it."""
        error = future.exception()
        assert error is not None
        self._log(f"{describe_blocks(batch.blocks)}: {error!r}")
        last = getattr(error, "last_worker", None)
        if last is None:
            self.batches.raised(batch, "-", one_line(error, kind=True))
        else:
            self.batches.worker_died(batch, self.workers.host(last.address))

    def _update(self) -> None:
        """Update the workers and replace ended ones; called once a second."""
        self.updated = time.monotonic()
        self.tick()
        self.workers.update()
        self.batches.retries.extend(self.later)
        self.later.clear()
        stopping = self.stopping()
        if stopping:
            self.workers.call(request_stop, self.name)  # repeated, as workers may join
        elif self.batches or len(self.running) > len(self.workers.addresses):  # another worker would have work
            self.cluster.replace_workers(progress=self.batches.done > self.done_before)
            self.done_before = self.batches.done
        if stopping and not self.workers.addresses:
            self.lost.append(JobFailure(job="-", host="-", reason="stopped; no worker was left"))
        elif failure := self.workers.give_up():
            self.lost.append(failure)

    def _cancel(self) -> None:
        """Cancel batches that are still running, as after an error; their workers notice and stop."""
        futures = [future for future, _ in self.running.values()]
        self.running.clear()
        if futures and self.cluster.client.status == "running":
            self.cluster.client.cancel(futures)

    def _log(self, text: str) -> None:
        with (self.folder / "logs" / LOG).open("a") as file:
            file.write(f"{text.rstrip()}\n")


def batch_size(left: int, workers: int) -> int:
    """Number of blocks in the next batch.

    >>> batch_size(10**6, 2), batch_size(100, 4), batch_size(7, 4)
    (256, 9, 1)
    """
    return min(LARGEST, -(-left // (BATCHES_LEFT * max(workers, 1))))


def _fetch(future: Future[Any]) -> BatchResult | None:
    """Result of a finished batch; None if the worker that holds it has died since."""
    try:
        return None if future.status == "lost" else BatchResult(*future.result(timeout=SECONDS_PER_RESULT))
    except (TimeoutError, CancelledError):
        return None


def _place(address: str) -> str:
    """Host part of an address.

    >>> _place("tls://10.1.2.3:4567")
    '10.1.2.3'
    """
    return address.split("://")[-1].rpartition(":")[0]


def describe_blocks(blocks: Ranges) -> str:
    """Format block numbers for the user.

    >>> describe_blocks(((3, 4),)), describe_blocks(((0, 3), (7, 8)))
    ('block 3', 'blocks 0-2, 7')
    """
    words = [str(a) if b - a == 1 else f"{a}-{b - 1}" for a, b in blocks]
    shown = ", ".join(words[:8]) + (f" and {len(words) - 8} more" if len(words) > 8 else "")
    return f"block{'s' if count(blocks) > 1 else ''} {shown}"
