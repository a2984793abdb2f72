"""Blocks on a Dask cluster: batches of them, a few per worker at a time, so that nothing grows with their number."""

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
AHEAD = 2
"""Batches per worker at the scheduler: one at work, one that waits, so that no worker does."""
LARGEST = 256
"""Blocks per batch at most: 10^6 blocks are 4,000 tasks for the scheduler then."""
PER_WORKER = 3
"""A batch is this part of what is left per worker: large first, single blocks last, so that workers end together."""
ALIKE = 8
"""Blocks that fail, none having been done, after which the rest is not tried: it would fail alike."""
BATCH, SINGLE, ALONE = range(3)
"""Care taken: blocks of a batch that failed are tried singly; one that was at work when workers died is tried again
with nothing else at work, for Dask blames all that was assigned to a worker that died."""


@dataclass(frozen=True, slots=True)
class DaskExecutor:
    """Runs batches on any Dask cluster; a block that fails or kills its worker is reported, and the rest goes on."""

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
    """Blocks that travel together."""

    blocks: Ranges
    care: int = BATCH
    failures: int = 0
    avoid: frozenset[str] = frozenset()
    """Hosts where these blocks failed."""

    def singly(self, **changes: Any) -> list[Batch]:
        """A batch for each block."""
        return [replace(self, blocks=((block, block + 1),), **changes) for block in numbers(self.blocks)]


@dataclass(slots=True)
class BatchQueue:
    """What is to be sent next, and what has failed for good; knows nothing of Dask."""

    fresh: Cutter
    """Blocks that were not sent yet."""
    avoid: frozenset[str]
    """Hosts on which no block is to be tried first."""
    again: deque[Batch] = field(default_factory=deque)
    """Failed batches, cut into single blocks."""
    alone: deque[Batch] = field(default_factory=deque)
    """Blocks that are tried with nothing else at work."""
    failed: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    """Blocks by host and reason."""
    done: int = 0
    """Batches that ended well."""

    def __bool__(self) -> bool:
        return bool(self.fresh.left or self.again or self.alone)

    def next(self, at_work: Collection[Batch], workers: int, expected: int) -> Batch | None:
        """The next batch, where one may be sent now; ``expected`` workers will come, as far as is known."""
        if len(at_work) >= workers * AHEAD or any(batch.care == ALONE for batch in at_work):
            return None
        if self.again:
            singles = sum(batch.care == SINGLE for batch in at_work)
            return self.again.popleft() if singles < workers else None
        if self.fresh.left:
            size = batch_size(self.fresh.left, max(workers, expected))
            return Batch(self.fresh.cut(size), avoid=self.avoid)
        return self.alone.popleft() if self.alone and not at_work else None

    def worker_died(self, batch: Batch, host: str) -> None:
        """The batch was at work when workers died: its blocks are tried with more care, in the end each alone."""
        if batch.care < ALONE:
            waiting = self.alone if batch.care == SINGLE else self.again
            waiting.extend(batch.singly(care=batch.care + 1))
        else:
            self._fail(batch, host, "its worker died each time, perhaps out of memory; logs/ of the run folder")

    def raised(self, batch: Batch, host: str, reason: str) -> None:
        """Once more, block by block and elsewhere where there is an elsewhere; then it has failed."""
        if batch.failures:
            self._fail(batch, host, reason)
        else:
            self.again.extend(batch.singly(failures=1, avoid=batch.avoid | {host}, care=max(batch.care, SINGLE)))

    def _fail(self, batch: Batch, host: str, reason: str) -> None:
        self.failed.setdefault((host, reason), []).extend(numbers(batch.blocks))

    def all_fail(self) -> bool:
        """Whether blocks failed and none was done, so that the rest would fail alike."""
        return not self.done and sum(map(len, self.failed.values())) >= ALIKE

    def failures(self) -> list[JobFailure]:
        return [
            JobFailure(job=names(to_ranges(sorted(blocks))), host=host, reason=reason)
            for (host, reason), blocks in self.failed.items()
        ]


@dataclass(slots=True)
class Workers:
    """The workers of a cluster, as they come and go."""

    cluster: Cluster
    addresses: list[str] = field(default_factory=list)
    hosts: dict[str, str] = field(default_factory=dict)
    """Host name by address of a worker, of those that died too."""
    seen: float = field(default_factory=time.monotonic)
    """When there was one last."""

    def look(self) -> None:
        """Note who is there."""
        self.require_scheduler()
        try:
            self.addresses = list(self.cluster.client.nthreads())
        except (OSError, TimeoutError) as error:
            raise self._gone() from error
        if new := [address for address in self.addresses if address not in self.hosts]:
            self.hosts |= {address: _place(address) for address in new} | self.ask(socket.gethostname, workers=new)
        if self.addresses:
            self.seen = time.monotonic()

    def ask(self, function: Callable[..., Any], *words: Any, workers: list[str] | None = None) -> dict[str, Any]:
        """What a function returns in each worker process; not waiting for long, as one may hang."""
        client = self.cluster.client
        try:
            found: dict[str, Any] = client.sync(
                client._run, function, *words, workers=workers, on_error="ignore", callback_timeout=SECONDS_PER_ANSWER
            )
        except (OSError, TimeoutError):
            return {}
        return found

    def host(self, address: str) -> str:
        """Name of the host of a worker, which may have died before it was asked: then that of a neighbour."""
        neighbours = [name for other, name in self.hosts.items() if _place(other) == _place(address)]
        return self.hosts.get(address) or (neighbours or [_place(address)])[0]

    def elsewhere(self, avoid: frozenset[str]) -> list[str]:
        """Addresses of workers on other hosts."""
        return [address for address in self.addresses if self.hosts.get(address) not in avoid]

    def none_to_come(self) -> JobFailure | None:
        """Why there is no worker, and none will ever come; None where there is one, or one may come."""
        return None if self.addresses else self.cluster.hopeless(time.monotonic() - self.seen)

    def require_scheduler(self, ended: Iterable[Future[Any]] = ()) -> None:
        """Raise where the scheduler is gone: then all it had been given counts as cancelled."""
        if self.cluster.client.status != "running" or any(future.status == "cancelled" for future in ended):
            raise self._gone()

    def _gone(self) -> UnetcliError:
        return UnetcliError(f"the Dask scheduler at {self.cluster.address} is gone; the same command continues")


@dataclass(slots=True)
class _Run:
    """One call of the executor: sends batches to workers and takes back what became of them."""

    cluster: Cluster
    workers: Workers
    batches: BatchQueue
    task: Task
    folder: Path
    tick: Callable[[], None]
    stopping: Callable[[], bool]
    name: str = field(default_factory=lambda: secrets.token_hex(4))
    at_work: dict[Any, tuple[Future[Any], Batch]] = field(default_factory=dict)
    """By the key of the future."""
    finished: queue.SimpleQueue[Future[Any]] = field(default_factory=queue.SimpleQueue)
    later: list[Batch] = field(default_factory=list)
    """Batches of workers that leave, or that died with the outcome; sent again at the next look."""
    sent: int = 0
    done_before: int = -1
    """Batches that had been done when the cluster was last tended."""
    looked: float = 0.0
    lost: list[JobFailure] = field(default_factory=list)
    """Why no worker is left."""

    def work(self) -> list[JobFailure]:
        try:
            self._look()
            while not self.lost and (self._send_all() or self.at_work):
                self._collect()
                if time.monotonic() - self.looked >= SECONDS_PER_TICK:
                    self._look()
        finally:
            self._give_up()
        self.tick()
        return self.batches.failures() + self.lost

    def _send_all(self) -> bool:
        """Send what workers have room for; whether anything waits to be sent."""
        while not (ending := self.stopping() or self.batches.all_fail()):
            at_work = [batch for _, batch in self.at_work.values()]
            batch = self.batches.next(at_work, len(self.workers.addresses), self.cluster.expected)
            if batch is None:
                break
            self._send(batch)
        return not ending and bool(self.batches or self.later)

    def _send(self, batch: Batch) -> None:
        self.sent += 1
        key = (f"blocks-{self.name}", self.sent)
        elsewhere = self.workers.elsewhere(batch.avoid)
        place = {"workers": elsewhere, "allow_other_workers": True} if batch.avoid and elsewhere else {}
        future = self.cluster.client.submit(
            run_batch, self.task, str(self.folder), batch.blocks, self.name, key=key, pure=False, **place
        )
        self.at_work[key] = (future, batch)
        future.add_done_callback(self.finished.put)

    def _collect(self) -> None:
        """Take what has ended, waiting a little where nothing has."""
        try:
            ended = [self.finished.get(timeout=SECONDS_PER_TICK / 4)]
        except queue.Empty:
            return
        while not self.finished.empty():
            ended.append(self.finished.get())
        self.workers.require_scheduler(ended)
        for future in ended:
            _, batch = self.at_work.pop(future.key)
            self._take(batch, future)

    def _take(self, batch: Batch, future: Future[Any]) -> None:
        if future.status == "error":
            self._given_up(batch, future)
        elif (result := _fetch(future)) is None or result.left:
            self.later.append(batch)
        elif result.error:
            self._log(f"{names(batch.blocks)} on {result.host}:\n{result.details}")
            self.batches.raised(batch, result.host, result.error)
        else:
            self.batches.done += 1

    def _given_up(self, batch: Batch, future: Future[Any]) -> None:
        """Dask gave the batch up: its workers died, or it cannot be read there."""
        error = future.exception()
        assert error is not None
        self._log(f"{names(batch.blocks)}: {error!r}")
        last = getattr(error, "last_worker", None)
        if last is None:
            self.batches.raised(batch, "-", one_line(error, kind=True))
        else:
            self.batches.worker_died(batch, self.workers.host(last.address))

    def _look(self) -> None:
        """Once a second: who is there, what is to be replaced, what is to be said."""
        self.looked = time.monotonic()
        self.tick()
        self.workers.look()
        self.batches.again.extend(self.later)
        self.later.clear()
        stopping = self.stopping()
        if stopping:
            self.workers.ask(request_stop, self.name)  # again and again: workers come and go
        elif self.batches or len(self.at_work) > len(self.workers.addresses):  # one more would have something to do
            self.cluster.tend(progress=self.batches.done > self.done_before)
            self.done_before = self.batches.done
        if stopping and not self.workers.addresses:
            self.lost.append(JobFailure(job="-", host="-", reason="stopped; no worker was left"))
        elif failure := self.workers.none_to_come():
            self.lost.append(failure)

    def _give_up(self) -> None:
        """Forget what is still at work, which only happens in an emergency; its workers notice and stop."""
        futures = [future for future, _ in self.at_work.values()]
        self.at_work.clear()
        if futures and self.cluster.client.status == "running":
            self.cluster.client.cancel(futures)

    def _log(self, text: str) -> None:
        with (self.folder / "logs" / LOG).open("a") as file:
            file.write(f"{text.rstrip()}\n")


def batch_size(left: int, workers: int) -> int:
    """Blocks in the next batch.

    >>> batch_size(10**6, 2), batch_size(100, 4), batch_size(7, 4)
    (256, 9, 1)
    """
    return min(LARGEST, -(-left // (PER_WORKER * max(workers, 1))))


def _fetch(future: Future[Any]) -> BatchResult | None:
    """What became of a finished batch; None where the worker that knew has died since."""
    try:
        return None if future.status == "lost" else BatchResult(*future.result(timeout=SECONDS_PER_RESULT))
    except (TimeoutError, CancelledError):
        return None


def _place(address: str) -> str:
    """The host in an address.

    >>> _place("tls://10.1.2.3:4567")
    '10.1.2.3'
    """
    return address.split("://")[-1].rpartition(":")[0]


def names(blocks: Ranges) -> str:
    """Block numbers for people.

    >>> names(((3, 4),)), names(((0, 3), (7, 8)))
    ('block 3', 'blocks 0-2, 7')
    """
    words = [str(a) if b - a == 1 else f"{a}-{b - 1}" for a, b in blocks]
    shown = ", ".join(words[:8]) + (f" and {len(words) - 8} more" if len(words) > 8 else "")
    return f"block{'s' if count(blocks) > 1 else ''} {shown}"
