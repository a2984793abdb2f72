"""What is computed of arrays of voxels: checksums, distinct values, mean and standard deviation of each channel.

Voxels are summed by XXH3 (128 bits), which is as fast as memory and guards against damage; files of models by SHA-256,
which also guards against forgery.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

TABLE_PER_VOXEL = 4
"""A table of all numbers up to the highest beats sorting up to about this many entries a voxel."""
PerChannel = float | tuple[float, ...]
"""A number for every channel, in their order; a plain one is meant for all of them."""


class Checksum:
    """XXH3 (128 bits) of everything that was added, in order."""

    def __init__(self) -> None:
        self._state = xxhash.xxh3_128()

    def add(self, values: NDArray[Any] | bytes) -> None:
        """Add the bytes of an array in C order, or bytes as they are."""
        self._state.update(_bytes(values))

    def hexdigest(self) -> str:
        """32 hexadecimal digits."""
        return str(self._state.hexdigest())


def checksum(values: NDArray[Any] | bytes) -> str:
    """XXH3 (128 bits) of the bytes of an array in C order, or of bytes: 32 hexadecimal digits.

    >>> checksum(np.zeros((2, 3), np.uint8)) == checksum(bytes(6))
    True
    """
    return str(xxhash.xxh3_128_hexdigest(_bytes(values)))


def short_checksum(values: NDArray[Any] | bytes) -> str:
    """XXH3 (64 bits) of the same: 16 hexadecimal digits."""
    return str(xxhash.xxh3_64_hexdigest(_bytes(values)))


def _bytes(values: NDArray[Any] | bytes) -> bytes | memoryview:
    return values if isinstance(values, bytes) else np.ascontiguousarray(values).data


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes: 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def distinct(labels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """The sorted distinct values of an integer array, and for each element the index of its value.

    The same as ``numpy.unique(labels, return_inverse=True)``: ``values[places]`` gives ``labels`` back. Values up to
    2^64 - 1 are kept as they are.

    Returns
    -------
    values : (n,), the dtype of ``labels``
    places : the shape of ``labels``, intp

    >>> values, places = distinct(np.array([[7, 0], [2**63, 7]], np.uint64))
    >>> values.tolist(), places.tolist()
    ([0, 7, 9223372036854775808], [[1, 0], [2, 1]])
    """
    values, places = (_by_table if _fits_a_table(labels) else _by_sorting)(labels.ravel())
    return values, places.reshape(labels.shape)


def _by_table(flat: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.intp]]:
    numbers = flat.astype(np.intp, copy=False)
    used = np.bincount(numbers) > 0
    index = np.cumsum(used) - 1
    return np.flatnonzero(used).astype(flat.dtype), index[numbers]


def _by_sorting(flat: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """Sorts runs of equal values, which takes a tenth of the time of sorting pixels where objects are large."""
    starts = np.flatnonzero(np.r_[True, flat[1:] != flat[:-1]])[: flat.size]
    values, places = np.unique(flat[starts], return_inverse=True)
    return values, np.repeat(places, np.diff(starts, append=flat.size))


def _fits_a_table(labels: NDArray[Any]) -> bool:
    if labels.size == 0 or labels.dtype.kind not in "bui":
        return False
    return bool(labels.min() >= 0 and int(labels.max()) < TABLE_PER_VOXEL * labels.size)


def stored(values: float | Sequence[float]) -> PerChannel:
    """As it was before a way through JSON, which has lists for tuples.

    >>> stored([1.5, 2.0]), stored(1.5)
    ((1.5, 2.0), 1.5)
    """
    return values if isinstance(values, int | float) else tuple(values)


def along(values: PerChannel, axes: int) -> NDArray[np.float64]:
    """To compute with an array of so many axes, the channels' first.

    >>> along((1.5, 2.0), 3).shape, along(1.5, 3).shape
    ((2, 1, 1), ())
    """
    found = np.asarray(values, np.float64)
    return found.reshape(-1, *(1,) * (axes - 1)) if found.ndim else found


@dataclass(slots=True)
class Moments:
    """Mean and standard deviation of each channel of values that come piece by piece; only finite ones count."""

    count: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))
    total: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))
    squares: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))

    def add(self, values: NDArray[Any]) -> None:
        """Values (c, ..) of a place."""
        exact = values.reshape(len(values), -1).astype(np.float64)
        if not (finite := np.isfinite(exact)).all():
            exact[~finite] = 0
        self.count = self.count + finite.sum(1)
        self.total = self.total + exact.sum(1)
        self.squares = self.squares + (exact**2).sum(1)

    @property
    def mean(self) -> PerChannel:
        """0 where there are no values."""
        return _each(self._mean)

    @property
    def std(self) -> PerChannel:
        """Never zero: 1 where all values are equal."""
        variance = self.squares / np.maximum(self.count, 1) - self._mean**2
        deviation = np.sqrt(np.maximum(variance, 0))
        return _each(np.where(deviation > 0, deviation, 1.0))

    @property
    def _mean(self) -> NDArray[np.float64]:
        mean: NDArray[np.float64] = self.total / np.maximum(self.count, 1)
        return mean


def _each(values: NDArray[np.float64]) -> PerChannel:
    """A plain number of an only channel."""
    return float(values[0]) if len(values) == 1 else tuple(values.tolist())
