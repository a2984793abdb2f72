"""Sets of block numbers as ranges, which stay short in JSON, pickles and logs."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray

Ranges = tuple[tuple[int, int], ...]
"""Half-open ranges of block numbers, ascending, with gaps between them."""


def to_ranges(numbers: NDArray[np.integer] | Iterable[int]) -> Ranges:
    """Convert ascending numbers to ranges.

    >>> to_ranges([0, 1, 2, 7, 8])
    ((0, 3), (7, 9))
    """
    values = numbers if isinstance(numbers, np.ndarray) else np.fromiter(numbers, np.int64)
    if not len(values):
        return ()
    breaks = np.flatnonzero(np.diff(values) != 1) + 1
    firsts, lasts = values[np.r_[0, breaks]], values[np.r_[breaks - 1, len(values) - 1]]
    return tuple((int(a), int(b) + 1) for a, b in zip(firsts, lasts, strict=True))


def numbers(ranges: Iterable[tuple[int, int]]) -> Iterator[int]:
    """Iterate over the numbers in ranges.

    >>> list(numbers(((0, 3), (7, 9))))
    [0, 1, 2, 7, 8]
    """
    return (number for start, stop in ranges for number in range(start, stop))


def count(ranges: Iterable[tuple[int, int]]) -> int:
    """Count the numbers in ranges.

    >>> count(((0, 3), (7, 9)))
    5
    """
    return sum(stop - start for start, stop in ranges)


def union(parts: Iterable[Ranges]) -> Ranges:
    """Union of several sets of ranges.

    >>> union([((5, 7),), ((0, 3), (6, 9))])
    ((0, 3), (5, 9))
    """
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(pair for part in parts for pair in part):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return tuple(joined)


def subtract(ranges: Ranges, others: Ranges) -> Ranges:
    """Numbers of ``ranges`` that are not in ``others``.

    >>> subtract(((0, 10), (20, 30)), ((2, 4), (8, 25)))
    ((0, 2), (4, 8), (25, 30))
    """
    left: list[tuple[int, int]] = []
    first = 0
    for start, stop in ranges:
        while first < len(others) and others[first][1] <= start:  # never needed again: both ascend
            first += 1
        for low, high in islice(others, first, None):
            if low >= stop:
                break
            if start < low:
                left.append((start, low))
            start = high
        if start < stop:
            left.append((start, stop))
    return tuple(left)


class Cutter:
    """Cuts ranges into pieces, from the front, without listing the numbers.

    >>> cutter = Cutter(((0, 3), (7, 9)))
    >>> cutter.cut(4), cutter.left, cutter.cut(4), cutter.left
    (((0, 3), (7, 8)), 1, ((8, 9),), 0)
    """

    def __init__(self, ranges: Ranges) -> None:
        self._ranges = deque(ranges)
        self.left = count(ranges)

    def cut(self, size: int) -> Ranges:
        """Cut off and return the next ``size`` numbers, or as many as are left."""
        piece = []
        while size and self._ranges:
            start, stop = self._ranges.popleft()
            end = min(stop, start + size)
            piece.append((start, end))
            if end < stop:
                self._ranges.appendleft((end, stop))
            size -= end - start
            self.left -= end - start
        return tuple(piece)


def split(ranges: Ranges, size: int) -> list[Ranges]:
    """Split ranges into pieces of ``size`` numbers; the last piece may be smaller.

    >>> split(((0, 5), (7, 9)), 3)
    [((0, 3),), ((3, 5), (7, 8)), ((8, 9),)]
    """
    cutter = Cutter(ranges)
    return [cutter.cut(size) for _ in range(-(-cutter.left // size))]


def spread_order(count: int) -> Iterator[int]:
    """The numbers below ``count``, neighbours far apart.

    >>> list(spread_order(5))
    [0, 3, 1, 4, 2]
    """
    step = next(n for n in range(max(1, round(0.618 * count)), count + 1) if math.gcd(n, count) == 1)
    return (place * step % count for place in range(count))
