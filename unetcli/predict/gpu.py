"""Work of a GPU: copies between it and the host, made beside its computations, and recorded kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unetcli.planning.estimate import MOST_RECORDED_SIDE

DIRECT = frozenset(("bool", "uint8", "int8", "uint16", "int16", "int32", "float16", "float32"))
"""Data types that are sent to a GPU as they are stored; others are converted to float32 before."""
CALLS_BEFORE_RECORDING = 4
"""A shape is recorded when it comes for this time: tiles at edges come rarely."""


@dataclass(frozen=True, slots=True, eq=False)
class Download:
    """Values on their way to the host."""

    values: Tensor
    """Pinned memory of the host."""
    done: torch.cuda.Event
    started: torch.cuda.Event
    """Recorded on the computing stream before the work whose result is downloaded."""

    def wait(self) -> tuple[NDArray[Any], float]:
        """The values, and the seconds that the device took for them."""
        self.done.synchronize()
        return self.values.numpy(), self.started.elapsed_time(self.done) / 1000


class Transfers:
    """Uploads and downloads of one GPU, each on a stream of its own.

    The host's memory is pinned, so that copies do not wait for the processor; torch keeps it and uses it again.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._up, self._down = (torch.cuda.Stream(device) for _ in range(2))  # type: ignore[no-untyped-call]

    def upload(self, voxels: NDArray[Any]) -> Tensor:
        """Start an upload; later work on the computing stream waits for it.

        Parameters
        ----------
        voxels : any shape and real dtype
        """
        pinned = _pinned(voxels)
        computing = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._up):
            values = pinned.to(self.device, non_blocking=True)
        computing.wait_stream(self._up)
        values.record_stream(computing)
        return values

    def start(self) -> torch.cuda.Event:
        """An event on the computing stream, from which the time of the work after it is measured."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event

    def download(self, values: Tensor, started: torch.cuda.Event) -> Download:
        """Start a download of a result of the computing stream."""
        computing = torch.cuda.current_stream(self.device)
        pinned = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        done = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._down.wait_stream(computing)
        with torch.cuda.stream(self._down):
            pinned.copy_(values, non_blocking=True)
            done.record(self._down)
        values.record_stream(self._down)
        return Download(pinned, done, started)


def _pinned(voxels: NDArray[Any]) -> Tensor:
    """A copy of voxels in pinned memory, in C order."""
    dtype = voxels.dtype.newbyteorder("=") if voxels.dtype.name in DIRECT else np.dtype(np.float32)
    pinned = torch.empty(voxels.shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype, pin_memory=True)
    pinned.numpy()[...] = voxels
    return pinned


class Graphs:
    """Recorded kernels of tile shapes that come often, each started by one call instead of by one call per kernel.

    A tile of side 572 takes an H100 1.0 ms this way, and 1.5 ms with separate calls, which take the processor longer
    than the GPU computes. Recordings are replayed one after the other, so that they share their memory.
    """

    def __init__(self) -> None:
        self._pool: Any = None
        self._most_side = MOST_RECORDED_SIDE
        self._seen: Counter[tuple[torch.Size, torch.dtype]] = Counter()
        self._recorded: dict[tuple[torch.Size, torch.dtype], tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}

    def __call__(self, work: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
        """The result of ``work``, always the same function, whose kernels depend only on the shape and type of values.

        Both tensors are on the GPU.
        """
        key = values.shape, values.dtype
        self._seen[key] += 1
        if values.shape[-1] > self._most_side or self._seen[key] < CALLS_BEFORE_RECORDING:
            return work(values)
        if key not in self._recorded and not self._record(key, work, values):
            return work(values)
        graph, source, result = self._recorded[key]
        source.copy_(values)
        graph.replay()
        return result.clone()

    def _record(self, key: tuple[torch.Size, torch.dtype], work: Callable[[Tensor], Tensor], values: Tensor) -> bool:
        """Record ``work``; if there is no memory for it, nothing is recorded any more, and the result is False."""
        source, graph = values.clone(), torch.cuda.CUDAGraph()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        try:
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                result = work(source)
        except torch.OutOfMemoryError:
            self._most_side = 0
            torch.cuda.empty_cache()
            return False
        self._recorded[key] = graph, source, result
        return True
