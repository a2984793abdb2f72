"""Checksums, distinct values, and mean and standard deviation per channel of voxel arrays.

Voxels are hashed with XXH3 (128 bits), which runs at memory speed and detects damage. Model files are hashed with
SHA-256, which also detects tampering.
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

TABLE_SLICE = 2**20
"""Voxels whose values are looked up at once; an index takes 8 bytes."""
TABLE_PER_VOXEL = 4
"""A lookup table over all values is faster than sorting up to about this many table entries per voxel."""
COUNTED_AT_ONCE = 2**20
"""Number of 8-bit values that are counted at once; numpy copies them to 8 bytes each."""
PerChannel = float | tuple[float, ...]
"""One number per channel, in channel order, or a single number for all channels."""


class Checksum:
    """XXH3 hash (128 bits) of all added data, in order."""

    def __init__(self) -> None:
        self._state = xxhash.xxh3_128()

    def add(self, values: NDArray[Any] | bytes) -> None:
        """Add the bytes of an array in C order, or a bytes object."""
        self._state.update(_bytes(values))

    def hexdigest(self) -> str:
        """Return the hash as 32 hexadecimal digits."""
        return str(self._state.hexdigest())


def checksum(values: NDArray[Any] | bytes) -> str:
    """XXH3 hash (128 bits) of an array in C order or of a bytes object, as 32 hexadecimal digits.

    >>> checksum(np.zeros((2, 3), np.uint8)) == checksum(bytes(6))
    True
    """
    return str(xxhash.xxh3_128_hexdigest(_bytes(values)))


def short_checksum(values: NDArray[Any] | bytes) -> str:
    """XXH3 hash (64 bits) of an array in C order or of a bytes object, as 16 hexadecimal digits."""
    return str(xxhash.xxh3_64_hexdigest(_bytes(values)))


def _bytes(values: NDArray[Any] | bytes) -> bytes | memoryview:
    return values if isinstance(values, bytes) else np.ascontiguousarray(values).data


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def distinct(labels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """Sorted distinct values of an integer array, and the index of each element's value.

    A faster ``numpy.unique(labels, return_inverse=True)`` for label images: ``values[places]`` equals ``labels``.
    Values up to 2^64 - 1 are kept exactly.

    Parameters
    ----------
    labels : any shape, integer
        Label image.

    Returns
    -------
    values : (n,), the dtype of ``labels``
        Distinct values, ascending.
    places : the shape of ``labels``, intp
        Index into ``values`` of each element.

    >>> values, places = distinct(np.array([[7, 0], [2**63, 7]], np.uint64))
    >>> values.tolist(), places.tolist()
    ([0, 7, 9223372036854775808], [[1, 0], [2, 1]])
    """
    values, places = (_by_table if _fits_a_table(labels) else _by_sorting)(labels.ravel())
    return values, places.reshape(labels.shape)


def distinct_values(labels: NDArray[Any]) -> NDArray[Any]:
    """Sorted distinct values of an array, without the memory of :func:`distinct`.

    >>> distinct_values(np.array([[7, 0], [300, 7]], np.uint16)).tolist()
    [0, 7, 300]
    """
    flat = labels.ravel()
    if labels.dtype.kind == "u" and labels.dtype.itemsize <= 2:
        used = np.zeros(np.iinfo(labels.dtype).max + 1, np.bool_)
        for first in range(0, flat.size, TABLE_SLICE):
            used[flat[first : first + TABLE_SLICE]] = True
        return np.flatnonzero(used).astype(labels.dtype)
    return np.unique(flat[np.r_[True, flat[1:] != flat[:-1]][: flat.size]])


def _by_table(flat: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.intp]]:
    numbers = flat.astype(np.intp, copy=False)
    used = np.bincount(numbers) > 0
    index = np.cumsum(used) - 1
    return np.flatnonzero(used).astype(flat.dtype), index[numbers]


def _by_sorting(flat: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """Sort runs of equal values instead of pixels: ten times as fast where objects are large."""
    starts = np.flatnonzero(np.r_[True, flat[1:] != flat[:-1]])[: flat.size]
    values, places = np.unique(flat[starts], return_inverse=True)
    return values, np.repeat(places, np.diff(starts, append=flat.size))


def _fits_a_table(labels: NDArray[Any]) -> bool:
    if labels.size == 0 or labels.dtype.kind not in "bui":
        return False
    return bool(labels.min() >= 0 and int(labels.max()) < TABLE_PER_VOXEL * labels.size)


def as_per_channel(values: float | Sequence[float]) -> PerChannel:
    """Convert per-channel values read from JSON, which turns tuples into lists.

    >>> as_per_channel([1.5, 2.0]), as_per_channel(1.5)
    ((1.5, 2.0), 1.5)
    """
    return values if isinstance(values, int | float) else tuple(values)


def broadcast_channels(values: PerChannel, axes: int) -> NDArray[np.float64]:
    """Reshape per-channel values to broadcast against an array with ``axes`` axes, channels first.

    >>> broadcast_channels((1.5, 2.0), 3).shape, broadcast_channels(1.5, 3).shape
    ((2, 1, 1), ())
    """
    found = np.asarray(values, np.float64)
    return found.reshape(-1, *(1,) * (axes - 1)) if found.ndim else found


@dataclass(slots=True)
class Moments:
    """Running mean and standard deviation per channel; values that are not finite are ignored."""

    count: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))
    total: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))
    squares: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))

    def add(self, values: NDArray[Any]) -> None:
        """Add an array of shape (c, ...)."""
        if values.dtype.itemsize == 1:
            self._add_bytes(values)
            return
        exact = values.reshape(len(values), -1).astype(np.float64)
        if not (finite := np.isfinite(exact)).all():
            exact[~finite] = 0
        self.count = self.count + finite.sum(1)
        self.total = self.total + exact.sum(1)
        self.squares = self.squares + (exact**2).sum(1)

    def _add_bytes(self, values: NDArray[Any]) -> None:
        """Add an array of 8-bit integers: their sums are exact, and counting needs no copy of 8 bytes per value."""
        counts = np.array([_byte_counts(channel) for channel in values], np.float64)  # (c, 256)
        table = np.arange(256, dtype=np.uint8).view(values.dtype).astype(np.float64)
        self.count = self.count + counts.sum(1)
        self.total = self.total + counts @ table
        self.squares = self.squares + counts @ table**2

    @property
    def mean(self) -> PerChannel:
        """Mean per channel; 0 for a channel without finite values."""
        return _each(self._mean)

    @property
    def std(self) -> PerChannel:
        """Standard deviation per channel; 1 where all values are equal, so that it can divide."""
        variance = self.squares / np.maximum(self.count, 1) - self._mean**2
        deviation = np.sqrt(np.maximum(variance, 0))
        return _each(np.where(deviation > 0, deviation, 1.0))

    @property
    def _mean(self) -> NDArray[np.float64]:
        mean: NDArray[np.float64] = self.total / np.maximum(self.count, 1)
        return mean


def _byte_counts(values: NDArray[Any]) -> NDArray[np.int64]:
    """Number of each byte among 8-bit values, (256,)."""
    flat, counts = np.ascontiguousarray(values).view(np.uint8).ravel(), np.zeros(256, np.int64)
    for first in range(0, flat.size, COUNTED_AT_ONCE):
        counts += np.bincount(flat[first : first + COUNTED_AT_ONCE], minlength=256)
    return counts


def _each(values: NDArray[np.float64]) -> PerChannel:
    """Convert to a single number for one channel, else to a tuple."""
    return float(values[0]) if len(values) == 1 else tuple(values.tolist())
