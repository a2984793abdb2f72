"""Samples of a volume: fingerprint of its content, mean and standard deviation, and planes to compare grey values."""

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
"""Word in a fingerprint for a chunk that could not be read."""
SAMPLES = 64
"""Maximum number of sampled chunks."""
SAMPLED_BYTES = 256 * 2**20
"""Approximate limit of the bytes read, so that huge chunks do not make every start slow."""
LEAST_PLANES = 4
"""Least number of chunks whose grey values are measured, if there are as many."""
PLANE_SIDE = 1024
"""Largest side of the middle of a chunk whose grey values are measured."""
SAMPLED_VOXELS = 2**24
"""Maximum number of voxels used of a chunk."""


def sampled_boxes(volume: Volume) -> list[Box]:
    """Boxes of up to ``SAMPLES`` chunks, spread evenly over the volume in C order; the choice is deterministic."""
    grid = [-(-n // chunk) for n, chunk in zip(volume.extent, volume.chunks, strict=True)]
    total = int(np.prod(grid, dtype=np.int64))
    places = np.unique(np.linspace(0, total - 1, _sample_count(volume, total, 1), dtype=np.int64))
    return [_chunk(volume, np.unravel_index(place, grid)) for place in places]


def _sample_count(volume: Volume, total: int, least: int) -> int:
    """Number of chunks, of ``total``, that are sampled; ``least`` of them are read whatever their size."""
    chunk_bytes = int(np.prod(volume.chunks, dtype=np.int64)) * volume.dtype.itemsize * volume.channels
    return min(SAMPLES, total, max(least, SAMPLED_BYTES // chunk_bytes))


def sampled_planes(volume: Volume, region: Box, channel: int | None) -> Iterator[NDArray[Any]]:
    """Yield the middle of up to ``SAMPLES`` chunks of a region that can be read, the first ones far apart.

    Of huge chunks, such as pages of a TIFF file of slides, only ``LEAST_PLANES`` are read.

    Yields
    ------
    (c, y, x), the volume's dtype
        At most ``PLANE_SIDE`` voxels along y and x.
    """
    chunks = volume.chunks
    first = [a // c for a, c in zip(region.start, chunks, strict=True)]
    grid = [-(-b // c) - n for b, c, n in zip(region.stop, chunks, first, strict=True)]
    total = math.prod(grid)
    places = np.unique(np.linspace(0, total - 1, _sample_count(volume, total, LEAST_PLANES), dtype=np.int64))
    for place in (*places[::4], *places[2::4], *places[1::4], *places[3::4]):
        corner = [(n + int(k)) * c for n, k, c in zip(first, np.unravel_index(place, grid), chunks, strict=True)]
        chunk = Box(tuple(corner), tuple(a + c for a, c in zip(corner, chunks, strict=True))).clipped(region)
        sides = [1] * (len(chunks) - 2) + [min(PLANE_SIDE, n) for n in chunk.shape[-2:]]
        start = [a + (n - side) // 2 for a, n, side in zip(chunk.start, chunk.shape, sides, strict=True)]
        try:
            voxels = volume.read(Box(tuple(start), tuple(a + s for a, s in zip(start, sides, strict=True))), channel)
        except UnreadableBlock:
            continue
        yield voxels.reshape(len(voxels), *sides[-2:])


def sampled_voxels(volume: Volume) -> Iterator[NDArray[Any] | None]:
    """Voxels of each sampled chunk, (c, *box.shape); None for a chunk that cannot be read."""
    for box in sampled_boxes(volume):
        try:
            yield volume.read(box)
        except UnreadableBlock:
            yield None


def fingerprint(volume: Volume) -> str:
    """Fingerprint of a volume's content.

    Consists of checksums, separated by blanks: one of shape, axes and dtype, and one of each sampled chunk; ``-``
    stands for an unreadable chunk. :func:`same_data` compares fingerprints, ignoring unreadable chunks.
    """
    words = [short_checksum(json.dumps([volume.array.shape, volume.stored_axes, str(volume.dtype)]).encode())]
    samples = (UNREADABLE if voxels is None else short_checksum(voxels) for voxels in sampled_voxels(volume))
    return " ".join([*words, *samples])


def same_data(one: str, other: str) -> bool:
    """Whether two fingerprints agree in all chunks that both could read.

    >>> same_data("a b -", "a - c"), same_data("a b", "a c")
    (True, False)
    """
    pairs = list(itertools.zip_longest(one.split(), other.split()))
    return all(UNREADABLE in pair or pair[0] == pair[1] for pair in pairs)


def sampled_statistics(volume: Volume, channel: int | None) -> tuple[PerChannel, PerChannel]:
    """Mean and standard deviation of the finite voxels of the sampled chunks.

    Parameters
    ----------
    channel
        Channel to use. Default: all channels.

    Returns
    -------
    mean, standard deviation
        One number each, or one per channel if there are several.
    """
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
