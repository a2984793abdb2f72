"""Volumes too large for memory, read by chunk and kept for a while: windows that lie near each other cost one read."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.volumes.volume import Volume

BUDGET_BYTES = 2**30


def cached(volume: Volume, budget_bytes: int = BUDGET_BYTES) -> Volume:
    """The same volume; up to ``budget_bytes`` of decoded chunks are kept, those used last. At least one always is."""
    return replace(volume, array=_Chunks(volume.array, budget_bytes))


class _Chunks:
    """Slices of an array put together from whole chunks."""

    def __init__(self, array: Any, budget_bytes: int) -> None:
        self._array, self._budget = array, budget_bytes
        self.shape, self.dtype = tuple(array.shape), array.dtype
        self.chunks = tuple(getattr(array, "chunks", array.shape))
        self.size = array.size
        self._kept: OrderedDict[tuple[int, ...], NDArray[Any]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __getitem__(self, picks: tuple[slice, ...]) -> NDArray[Any]:
        spans = [_span(pick, n) for pick, n in zip(picks, self.shape, strict=True)]
        result = np.empty([b - a for a, b in spans], self.dtype)
        places = [range(a // c, -(-b // c)) for (a, b), c in zip(spans, self.chunks, strict=True)]
        for place in itertools.product(*places):
            corner = [p * c for p, c in zip(place, self.chunks, strict=True)]
            low = [max(a, k) for (a, _), k in zip(spans, corner, strict=True)]
            high = [min(b, k + c) for (_, b), k, c in zip(spans, corner, self.chunks, strict=True)]
            there = tuple(slice(i - a, j - a) for i, j, (a, _) in zip(low, high, spans, strict=True))
            here = tuple(slice(i - k, j - k) for i, j, k in zip(low, high, corner, strict=True))
            result[there] = self._chunk(place)[here]
        return result

    def _chunk(self, place: tuple[int, ...]) -> NDArray[Any]:
        with self._lock:
            if place in self._kept:
                self._kept.move_to_end(place)
                return self._kept[place]
            box = (slice(p * c, min((p + 1) * c, n)) for p, c, n in zip(place, self.chunks, self.shape, strict=True))
            chunk = self._kept[place] = np.asarray(self._array[tuple(box)])
            self._bytes += chunk.nbytes
            while self._bytes > self._budget and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
            return chunk


def _span(pick: slice, extent: int) -> tuple[int, int]:
    """First and stop of a slice; the same where it is empty."""
    first, stop, step = pick.indices(extent)
    if step != 1:
        raise NotImplementedError(f"slices with a step of {step}")
    return first, max(first, stop)
