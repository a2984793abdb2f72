"""Blocks counted in this process, by several threads, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def in_order(make: Callable[[int], T], numbers: Iterable[int], threads: int) -> Iterator[tuple[int, Future[T]]]:
    """Each number with what is made of it, in order; never more at work or waiting than there are threads, and one.

    What is made holds the interpreter's lock for a small part of the time only.
    """
    waiting: deque[tuple[int, Future[T]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="count") as pool:
        try:
            for number in numbers:
                waiting.append((number, pool.submit(make, number)))
                if len(waiting) > threads:
                    yield _ended(waiting)
            while waiting:
                yield _ended(waiting)
        finally:
            for _, future in waiting:
                future.cancel()


def _ended(waiting: deque[tuple[int, Future[T]]]) -> tuple[int, Future[T]]:
    number, future = waiting.popleft()
    future.exception()  # waits
    return number, future
