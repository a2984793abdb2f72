"""Recognises input by what it holds, not by path or time stamp."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.arrays import Moments, PerChannel, short_checksum
from unetcli.core.errors import UnreadableBlock
from unetcli.core.geometry import Box
from unetcli.volumes.volume import Volume

UNREADABLE = "-"
"""Stands in a fingerprint for a chunk that could not be read."""
SAMPLES = 64
SAMPLED_BYTES = 256 * 2**20
"""At most about this much is read, so that huge chunks do not make every start slow."""
SAMPLED_VOXELS = 2**24
"""At most this many voxels of a chunk are looked at."""


def sampled_boxes(volume: Volume) -> list[Box]:
    """Up to ``SAMPLES`` chunks, evenly spread over the volume in C order; always the same ones."""
    grid = [-(-n // chunk) for n, chunk in zip(volume.extent, volume.chunks, strict=True)]
    total = int(np.prod(grid, dtype=np.int64))
    chunk_bytes = int(np.prod(volume.chunks, dtype=np.int64)) * volume.dtype.itemsize * volume.channels
    count = min(SAMPLES, total, max(1, SAMPLED_BYTES // chunk_bytes))
    places = np.unique(np.linspace(0, total - 1, count, dtype=np.int64))
    return [_chunk(volume, np.unravel_index(place, grid)) for place in places]


def sampled_voxels(volume: Volume) -> Iterator[NDArray[Any] | None]:
    """Voxels of the sampled chunks, (c, *box.shape) each; None where one cannot be read."""
    for box in sampled_boxes(volume):
        try:
            yield volume.read(box)
        except UnreadableBlock:
            yield None


def fingerprint(volume: Volume) -> str:
    """Words: a digest of shape, axes and dtype, then one of each sampled chunk's voxels, ``-`` where unreadable.

    Compared by :func:`same_data`: a chunk that is mended later makes no other volume of it.
    """
    words = [short_checksum(json.dumps([volume.array.shape, volume.stored_axes, str(volume.dtype)]).encode())]
    for voxels in sampled_voxels(volume):
        words.append(UNREADABLE if voxels is None else short_checksum(voxels))
    return " ".join(words)


def same_data(one: str, other: str) -> bool:
    """Whether two fingerprints agree wherever both could be taken.

    >>> same_data("a b -", "a - c"), same_data("a b", "a c")
    (True, False)
    """
    pairs = list(itertools.zip_longest(one.split(), other.split()))
    return all(UNREADABLE in pair or pair[0] == pair[1] for pair in pairs)


def sampled_statistics(volume: Volume, channel: int | None) -> tuple[PerChannel, PerChannel]:
    """Mean and standard deviation of each channel over the sampled chunks, leaving out what is not finite."""
    found = Moments()
    for voxels in sampled_voxels(volume):
        if voxels is not None:
            found.add(voxels if channel is None else voxels[channel : channel + 1])
    return found.mean, found.std


def _chunk(volume: Volume, place: tuple[Any, ...]) -> Box:
    corner = tuple(int(p) * c for p, c in zip(place, volume.chunks, strict=True))
    shape = list(volume.chunks)
    while math.prod(shape) * volume.channels > SAMPLED_VOXELS:
        longest = shape.index(max(shape))
        shape[longest] = -(-shape[longest] // 2)
    return Box(corner, tuple(a + n for a, n in zip(corner, shape, strict=True))).clipped(volume.whole())
