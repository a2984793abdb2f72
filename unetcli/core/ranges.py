"""Many block numbers as few ranges: short in JSON, in a pickle and in a log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

Ranges = tuple[tuple[int, int], ...]
"""Half-open ranges of block numbers, rising, not touching."""


def to_ranges(numbers: NDArray[np.integer] | Iterable[int]) -> Ranges:
    """Rising numbers as ranges.

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
    """The numbers again, one by one.

    >>> list(numbers(((0, 3), (7, 9))))
    [0, 1, 2, 7, 8]
    """
    return (number for start, stop in ranges for number in range(start, stop))


def count(ranges: Iterable[tuple[int, int]]) -> int:
    """How many numbers there are.

    >>> count(((0, 3), (7, 9)))
    5
    """
    return sum(stop - start for start, stop in ranges)
