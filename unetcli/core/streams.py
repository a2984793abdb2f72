"""Stages that run at the same time: generators, threads, bounded queues; and reports of progress."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar


class ProgressCallback(Protocol):
    """Called with how much is done, of how much in all, and a few words on how it goes."""

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


def silent(done: int, total: int, note: str = "") -> None:
    """Reports nothing."""


T = TypeVar("T")
POLL_SECONDS = 0.1


class _Failure:
    """An exception on its way from one thread to the next."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def prefetch(items: Iterable[T], ahead: int) -> Generator[T]:
    """The same items, made up to ``ahead`` early in a thread of their own.

    An exception there is raised here, in its place. Closing the generator ends the thread at its next item.
    """
    ready: queue.Queue[T | _Failure | None] = queue.Queue(ahead)
    closed = threading.Event()
    thread = threading.Thread(target=_fill, args=(items, ready, closed), daemon=True)
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
    """Hand over an item as soon as there is room; False where nobody wants it any more."""
    while not closed.is_set():
        try:
            ready.put(item, timeout=POLL_SECONDS)
            return True
        except queue.Full:
            continue
    return False


def ordered_map(make: Callable[[int], T], numbers: Iterable[int], threads: int) -> Iterator[tuple[int, Future[T]]]:
    """Each number with what a thread makes of it, in order; never more in work or waiting than threads, and one."""
    waiting: deque[tuple[int, Future[T]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for number in numbers:
                waiting.append((number, pool.submit(make, number)))
                if len(waiting) > threads:
                    yield _ended(waiting)
            while waiting:
                yield _ended(waiting)
        finally:
            pool.shutdown(cancel_futures=True)


def _ended(waiting: deque[tuple[int, Future[T]]]) -> tuple[int, Future[T]]:
    number, future = waiting.popleft()
    future.exception()  # waits
    return number, future
