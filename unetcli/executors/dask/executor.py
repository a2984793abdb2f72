"""Blocks on a Dask cluster: batches of them, a few per worker at a time, so that nothing grows with their number."""

from __future__ import annotations

import logging
import queue
import secrets
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetcli.core.errors import UnetcliError
from unetcli.core.ranges import Ranges, count, numbers, to_ranges
from unetcli.executors.contract import JobFailure, Task
from unetcli.executors.dask.batches import Cutter, Outcome, batch_size, one_line, request_stop, run_batch
from unetcli.executors.dask.cluster import LOG, Cluster

if TYPE_CHECKING:
    from distributed import Future

log = logging.getLogger(__name__)

SECONDS_PER_TICK = 1.0
SECONDS_PER_RESULT = 10.0
SECONDS_PER_ANSWER = 3.0
AHEAD = 2
"""Batches per worker at the scheduler: one at work, one that waits, so that no worker does."""
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
        return _Run(self.cluster, task, folder, Cutter(blocks), tick, stopping, frozenset(avoid)).work()


@dataclass(frozen=True, slots=True)
class Batch:
    """Blocks that travel together."""

    blocks: Ranges
    care: int = BATCH
    failures: int = 0
    avoid: frozenset[str] = frozenset()
    """Hosts where these blocks failed."""


@dataclass(slots=True)
class _Run:
    """One call of the executor."""

    cluster: Cluster
    task: Task
    folder: Path
    fresh: Cutter
    tick: Callable[[], None]
    stopping: Callable[[], bool]
    avoid: frozenset[str]
    name: str = field(default_factory=lambda: secrets.token_hex(4))
    again: deque[Batch] = field(default_factory=deque)
    """Failed batches, cut into single blocks."""
    alone: deque[Batch] = field(default_factory=deque)
    later: list[Batch] = field(default_factory=list)
    """Of workers that leave, or that died with the outcome; sent again at the next look."""
    at_work: dict[Any, tuple[Future[Any], Batch]] = field(default_factory=dict)
    finished: queue.SimpleQueue[Future[Any]] = field(default_factory=queue.SimpleQueue)
    workers: list[str] = field(default_factory=list)
    hosts: dict[str, str] = field(default_factory=dict)
    """Host name by address of a worker."""
    failed: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    """Blocks by host and reason."""
    submitted: int = 0
    done: int = 0
    """Batches that ended well."""
    ticked: float = 0.0
    seen_worker: float = field(default_factory=time.monotonic)
    lost: list[JobFailure] = field(default_factory=list)
    """Why no worker is left."""

    def work(self) -> list[JobFailure]:
        try:
            self._look()
            while not self.lost and (self._submit() or self.at_work):
                self._collect()
                if time.monotonic() - self.ticked >= SECONDS_PER_TICK:
                    self._look()
        finally:
            self._give_up()
        self.tick()
        return self._failures()

    # -- submitting

    def _submit(self) -> bool:
        """Fill the window; whether anything waits to be submitted."""
        while (batch := self._next()) is not None:
            self._send(batch)
        return not self._ending() and bool(self.fresh.left or self.again or self.alone or self.later)

    def _work_waits(self) -> bool:
        """Whether one more worker would have something to do."""
        waiting = self.fresh.left or self.again or self.alone or self.later
        return bool(waiting) or len(self.at_work) > len(self.workers)

    def _next(self) -> Batch | None:
        """The next batch, where one may be submitted now."""
        window = len(self.workers) * AHEAD - len(self.at_work)
        if window <= 0 or self._ending() or any(batch.care == ALONE for _, batch in self.at_work.values()):
            return None
        if self.again:
            singles = sum(batch.care == SINGLE for _, batch in self.at_work.values())
            return self.again.popleft() if singles < len(self.workers) else None
        if self.fresh.left:
            size = batch_size(self.fresh.left, max(len(self.workers), self.cluster.expected))
            return Batch(self.fresh.cut(size), avoid=self.avoid)
        return self.alone.popleft() if self.alone and not self.at_work else None

    def _send(self, batch: Batch) -> None:
        self.submitted += 1
        key = (f"blocks-{self.name}", self.submitted)
        elsewhere = [address for address in self.workers if self.hosts.get(address) not in batch.avoid]
        place = {"workers": elsewhere, "allow_other_workers": True} if batch.avoid and elsewhere else {}
        future = self.cluster.client.submit(
            run_batch, self.task, str(self.folder), batch.blocks, self.name, key=key, pure=False, **place
        )
        self.at_work[key] = (future, batch)
        future.add_done_callback(self.finished.put)

    def _ending(self) -> bool:
        return self.stopping() or self._all_fail()

    def _all_fail(self) -> bool:
        return not self.done and sum(map(len, self.failed.values())) >= ALIKE

    # -- waiting

    def _collect(self) -> None:
        """Take what has ended, waiting a little where nothing has."""
        try:
            ended = [self.finished.get(timeout=SECONDS_PER_TICK / 4)]
        except queue.Empty:
            return
        while not self.finished.empty():
            ended.append(self.finished.get())
        self._require_scheduler(ended)
        for future in ended:
            _, batch = self.at_work.pop(future.key)
            self._judge(batch, future)

    def _judge(self, batch: Batch, future: Future[Any]) -> None:
        if future.status == "error":
            self._died(batch, future)
        elif (outcome := _fetch(future)) is None or outcome.left:
            self.later.append(batch)
        elif outcome.error:
            self._log(f"{_names(batch.blocks)} on {outcome.host}:\n{outcome.details}")
            self._retry(batch, outcome.host, outcome.error)
        else:
            self.done += 1

    def _died(self, batch: Batch, future: Future[Any]) -> None:
        """Dask gave the batch up: its workers died, or it cannot be read there."""
        error = future.exception()
        assert error is not None
        self._log(f"{_names(batch.blocks)}: {error!r}")
        last = getattr(error, "last_worker", None)
        if last is None:
            self._retry(batch, "-", one_line(error))
        elif batch.care < ALONE:
            waiting = self.alone if batch.care == SINGLE else self.again
            waiting.extend(_singly(batch, care=batch.care + 1))
        else:
            self._fail(
                batch,
                self._host(last.address),
                "its worker died each time, perhaps out of memory; logs/ of the run folder",
            )

    def _host(self, address: str) -> str:
        """Name of the host of a worker, which may have died before it was asked: then that of a neighbour."""
        neighbours = [name for other, name in self.hosts.items() if _place(other) == _place(address)]
        return self.hosts.get(address) or (neighbours or [_place(address)])[0]

    def _retry(self, batch: Batch, host: str, reason: str) -> None:
        """Once more, block by block and elsewhere where there is an elsewhere; then it has failed."""
        if batch.failures:
            self._fail(batch, host, reason)
        else:
            self.again.extend(_singly(batch, failures=1, avoid=batch.avoid | {host}, care=max(batch.care, SINGLE)))

    def _fail(self, batch: Batch, host: str, reason: str) -> None:
        self.failed.setdefault((host, reason), []).extend(numbers(batch.blocks))

    # -- looking around

    def _look(self) -> None:
        """Once a second: who is there, what is to be replaced, what is to be said."""
        self.ticked = time.monotonic()
        self.tick()
        self._require_scheduler()
        self._greet_workers()
        self.again.extend(self.later)
        self.later.clear()
        if self.stopping():
            self._ask(request_stop, self.name)  # again and again: workers come and go
        elif self._work_waits():
            self.cluster.tend(self.done)
        self._notice_absence()

    def _greet_workers(self) -> None:
        try:
            self.workers = list(self.cluster.client.nthreads())
        except (OSError, TimeoutError) as error:
            raise self._gone() from error
        if new := [address for address in self.workers if address not in self.hosts]:
            self.hosts |= {address: _place(address) for address in new} | self._ask(socket.gethostname, workers=new)

    def _ask(self, function: Callable[..., Any], *words: Any, workers: list[str] | None = None) -> dict[str, Any]:
        """What a function returns in each worker process; not waiting for long, as one may hang."""
        client = self.cluster.client
        try:
            found: dict[str, Any] = client.sync(
                client._run, function, *words, workers=workers, on_error="ignore", callback_timeout=SECONDS_PER_ANSWER
            )
        except (OSError, TimeoutError):
            return {}
        return found

    def _notice_absence(self) -> None:
        if self.workers:
            self.seen_worker = time.monotonic()
        elif self.stopping():
            self.lost.append(JobFailure(job="-", host="-", reason="stopped; no worker was left"))
        elif failure := self.cluster.hopeless(time.monotonic() - self.seen_worker):
            self.lost.append(failure)

    def _require_scheduler(self, ended: Sequence[Future[Any]] = ()) -> None:
        gone = any(future.status == "cancelled" for future in ended)
        if gone or self.cluster.client.status != "running":
            raise self._gone()

    def _gone(self) -> UnetcliError:
        return UnetcliError(f"the Dask scheduler at {self.cluster.address} is gone; the same command continues")

    # -- ending

    def _give_up(self) -> None:
        """Forget what is still at work, which only happens in an emergency; its workers notice and stop."""
        futures = [future for future, _ in self.at_work.values()]
        self.at_work.clear()
        if futures and self.cluster.client.status == "running":
            self.cluster.client.cancel(futures)

    def _failures(self) -> list[JobFailure]:
        failed = [
            JobFailure(job=_names(to_ranges(sorted(blocks))), host=host, reason=reason)
            for (host, reason), blocks in self.failed.items()
        ]
        return failed + self.lost

    def _log(self, text: str) -> None:
        with (self.folder / "logs" / LOG).open("a") as file:
            file.write(f"{text.rstrip()}\n")


def _fetch(future: Future[Any]) -> Outcome | None:
    """What came of a finished batch; None where the worker that knew has died since."""
    try:
        return None if future.status == "lost" else Outcome(*future.result(timeout=SECONDS_PER_RESULT))
    except (TimeoutError, CancelledError):
        return None


def _place(address: str) -> str:
    """The host in an address.

    >>> _place("tls://10.1.2.3:4567")
    '10.1.2.3'
    """
    return address.split("://")[-1].rpartition(":")[0]


def _singly(batch: Batch, **changes: Any) -> list[Batch]:
    return [replace(batch, blocks=((block, block + 1),), **changes) for block in numbers(batch.blocks)]


def _names(blocks: Ranges) -> str:
    """Block numbers for people.

    >>> _names(((3, 4),)), _names(((0, 3), (7, 8)))
    ('block 3', 'blocks 0-2, 7')
    """
    words = [str(a) if b - a == 1 else f"{a}-{b - 1}" for a, b in blocks]
    shown = ", ".join(words[:8]) + (f" and {len(words) - 8} more" if len(words) > 8 else "")
    return f"block{'s' if count(blocks) > 1 else ''} {shown}"
