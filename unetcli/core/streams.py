"""Concurrent stages as generators with threads and bounded queues; progress callbacks."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar


class ProgressCallback(Protocol):
    """Callback for progress: amount done, total amount, and a short note on the state."""

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


def silent(done: int, total: int, note: str = "") -> None:
    """Progress callback that reports nothing."""


S = TypeVar("S")
T = TypeVar("T")
POLL_SECONDS = 0.1


class _Failure:
    """An exception passed from one thread to the next."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def prefetch(items: Iterable[T], ahead: int) -> Generator[T]:
    """Yield the same items, produced up to ``ahead`` items early in a separate thread.

    An exception in that thread is raised in place of its item. Closing the generator ends the thread at its next item.
    """
    ready: queue.Queue[T | _Failure | None] = queue.Queue(ahead)
    closed = threading.Event()
    context = contextvars.copy_context()  # a warning in the thread belongs to the command that started it
    thread = threading.Thread(target=context.run, args=(_fill, items, ready, closed), daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, _Failure):
                raise item.error
            yield item
    finally:
        closed.set()
        thread.join()


def _fill(items: Iterable[T], ready: queue.Queue[T | _Failure | None], closed: threading.Event) -> None:
    iterator = iter(items)
    try:
        for item in iterator:
            if not _put(ready, item, closed):
                return
        _put(ready, None, closed)
    except BaseException as error:
        _put(ready, _Failure(error), closed)
    finally:
        close: Callable[[], None] | None = getattr(iterator, "close", None)
        if close:
            close()


def _put(ready: queue.Queue[T | _Failure | None], item: T | _Failure | None, closed: threading.Event) -> bool:
    """Queue an item as soon as there is room; returns False if the consumer has closed the generator."""
    while not closed.is_set():
        try:
            ready.put(item, timeout=POLL_SECONDS)
            return True
        except queue.Full:
            continue
    return False


def ordered_map(make: Callable[[S], T], items: Iterable[S], threads: int) -> Generator[tuple[S, Future[T]]]:
    """Apply ``make`` to items in threads; yields each item with its finished future, in order.

    At most ``threads + 1`` results are computed or kept at a time.
    """
    waiting: deque[tuple[S, Future[T]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(contextvars.copy_context().run, make, item)))
                if len(waiting) > threads:
                    yield _ended(waiting)
            while waiting:
                yield _ended(waiting)
        finally:
            pool.shutdown(cancel_futures=True)


def _ended(waiting: deque[tuple[S, Future[T]]]) -> tuple[S, Future[T]]:
    item, future = waiting.popleft()
    future.exception()  # waits
    return item, future
