"""Cache for the decoded chunks of a volume."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.volumes.views import chunks_of
from unetcli.volumes.volume import Volume

BUDGET_BYTES = 2**30
"""Default size of a chunk cache, 1 GiB."""


def cached(volume: Volume, budget_bytes: int = BUDGET_BYTES) -> Volume:
    """Return the volume with a cache of up to ``budget_bytes`` for the decoded chunks used last, or for one chunk."""
    return replace(volume, array=_ChunkCache(volume.array, budget_bytes))


class _ChunkCache:
    """Array that assembles slices from whole chunks, which it caches."""

    def __init__(self, array: Any, budget_bytes: int) -> None:
        self._array, self._budget = array, budget_bytes
        self.shape, self.dtype = tuple(array.shape), array.dtype
        self.chunks = chunks_of(array)
        self._cached: OrderedDict[tuple[int, ...], NDArray[Any]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __getitem__(self, selection: tuple[slice, ...]) -> NDArray[Any]:
        spans = [_span(part, n) for part, n in zip(selection, self.shape, strict=True)]
        result = np.empty([b - a for a, b in spans], self.dtype)
        places = [range(a // c, -(-b // c)) for (a, b), c in zip(spans, self.chunks, strict=True)]
        for place in itertools.product(*places):
            corner = [p * c for p, c in zip(place, self.chunks, strict=True)]
            low = [max(a, k) for (a, _), k in zip(spans, corner, strict=True)]
            high = [min(b, k + c) for (_, b), k, c in zip(spans, corner, self.chunks, strict=True)]
            target = tuple(slice(i - a, j - a) for i, j, (a, _) in zip(low, high, spans, strict=True))
            source = tuple(slice(i - k, j - k) for i, j, k in zip(low, high, corner, strict=True))
            result[target] = self._chunk(place)[source]
        return result

    def viewed(self, selection: tuple[slice, ...]) -> tuple[Any, tuple[slice, ...]]:
        """The array behind the cache, and the same selection in it."""
        return self._array, selection

    def _chunk(self, place: tuple[int, ...]) -> NDArray[Any]:
        with self._lock:
            if place in self._cached:
                self._cached.move_to_end(place)
                return self._cached[place]
            box = (slice(p * c, min((p + 1) * c, n)) for p, c, n in zip(place, self.chunks, self.shape, strict=True))
            chunk = self._cached[place] = np.asarray(self._array[tuple(box)])
            self._bytes += chunk.nbytes
            while self._bytes > self._budget and len(self._cached) > 1:
                self._bytes -= self._cached.popitem(last=False)[1].nbytes
            return chunk


def _span(part: slice, extent: int) -> tuple[int, int]:
    """Start and stop of a slice, which are equal if it is empty."""
    first, stop, step = part.indices(extent)
    if step != 1:
        raise NotImplementedError(f"slices with a step of {step}")
    return first, max(first, stop)
