"""What a plan takes before anything runs: tiles, work, memory, bytes and files.

Pure arithmetic, exact where it counts and in a time that does not depend on the number of blocks: along an axis the
blocks repeat every few, because tiles start on multiples of the alignment.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unetcli.core.footprint import Architecture, AxisFootprint
from unetcli.planning.plan import Plan, axis_spans
from unetcli.planning.planner import ITEM_BYTES, forward_bytes

MIB = 2**20
RECEIPT_BYTES = 110
"""About the length of a receipt's line."""

CPU_SLACK, CPU_EXTRA = {"float32": 1.5, "bfloat16": 1.7}, 48 * MIB
"""What the allocator keeps beside the tensors: above the highest of many measured peaks, which differ by a fifth."""
CUDA_SLACK, CUDA_CONTEXT = 1.25, 600 * MIB
"""Workspaces, and what a CUDA context takes by itself. Not measured yet: ``plan --probe`` on a GPU does."""
HOST_BASE = {"cpu": 330 * MIB, "cuda": 2048 * MIB}
"""Python, torch and zarr; CUDA's libraries come on top."""
WINDOWS_HELD, RESULTS_HELD, PIECES_HELD = 4, 2, 6
"""At most alive at a time in the three stages: windows read, waiting, computed and assembled; results assembled and
stored; pieces computed, waiting (4) and put together. See :mod:`unetcli.predict.predictor`."""
CHUNKS_AT_ONCE = 10
"""Chunks that zarr decodes or encodes together, each there twice: raw and compressed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredInput:
    """How the volume lies on disk."""

    chunks: tuple[int, ...]
    """Without the channel axis."""
    bytes_per_voxel: int
    """All channels that are read, together."""
    chunk_bytes: int
    """Of all that is decoded at one place of the grid, channels that are not used too."""
    files_per_place: int = 1
    """Chunks that lie side by side along the channel axis and are read together."""


@dataclass(frozen=True, slots=True)
class AxisWork:
    """What all blocks do along one axis, together."""

    sides: dict[int, int]
    """How many tiles there are of each input side."""
    chunks: int
    """Stored input chunks that the windows touch, counted once per block."""
    longest_window: int

    @property
    def tiles(self) -> int:
        return sum(self.sides.values())

    @property
    def read(self) -> int:
        """Input voxels of all tiles."""
        return sum(side * count for side, count in self.sides.items())


def plan_work(plan: Plan, input_chunks: tuple[int, ...]) -> tuple[AxisWork, ...]:
    """The work along each axis; all that is counted of a plan is a product of these."""
    rows = zip(
        plan.footprint.axes,
        plan.tile,
        plan.block_shape,
        plan.region.start,
        plan.region.stop,
        plan.extent,
        input_chunks,
        strict=True,
    )
    return tuple(axis_work(*row) for row in rows)


def axis_work(axis: AxisFootprint, side: int, block: int, start: int, stop: int, extent: int, chunk: int) -> AxisWork:
    """The work of the blocks ``start, start + block, ..`` up to ``stop`` along one axis."""
    sides: Counter[int] = Counter()
    chunks = longest = 0
    for first, length, stride, count in _alike(start, stop, block, axis.alignment):
        spans = list(axis_spans(axis, side, first, first + length))
        low, high = spans[0][0][0], max(read[1] for read, _ in spans)
        longest = max(longest, high - low)
        for read, _ in spans:
            sides[read[1] - read[0]] += count
        chunks += _chunks_touched(low, high, stride, count, extent, chunk)
    return AxisWork(dict(sides), chunks, longest)


def _alike(start: int, stop: int, block: int, alignment: int) -> Iterator[tuple[int, int, int, int]]:
    """Blocks along an axis in groups that tile alike: (first start, length, stride, how many).

    Blocks whose starts differ by a multiple of the alignment have the same tiles, moved.
    """
    whole, rest = divmod(stop - start, block)
    period = alignment // math.gcd(block, alignment)
    for k in range(min(period, whole)):
        yield start + k * block, block, period * block, -(-(whole - k) // period)
    if rest:
        yield stop - rest, rest, block, 1


def _chunks_touched(low: int, high: int, stride: int, count: int, extent: int, chunk: int) -> int:
    """Chunks under the windows ``low..high``, ``low + stride..high + stride``, .., mirrored at the volume's edges."""
    total, step = 0, 1 << 16  # in pieces: memory stays small for any number of blocks
    for done in range(0, count, step):
        shift = stride * np.arange(done, min(done + step, count), dtype=np.int64)
        first, last = mirrored_span(low + shift, high + shift, extent)
        total += int((last // chunk - first // chunk + 1).sum())
    return total


def mirrored_span(
    low: NDArray[np.int64], high: NDArray[np.int64], extent: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last stored voxel that windows ``low..high`` read; what reaches outside is mirrored.

    >>> [side.tolist() for side in mirrored_span(np.array([-5, 6]), np.array([3, 12]), 10)]
    [[0, 6], [5, 9]]
    """
    end = extent - 1
    before, behind = np.maximum(-low, 0), np.maximum(high - 1 - end, 0)
    first = np.where(before > 0, 0, np.where(behind > 0, np.minimum(low, end - behind), low))
    last = np.where(behind > 0, end, np.where(before > 0, np.maximum(high - 1, before), high - 1))
    return np.clip(first, 0, end), np.clip(last, 0, end)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A plan in numbers."""

    blocks: int
    tiles: int
    wasted_work: float
    """Input voxels of all forward passes per output voxel, less one: what context, alignment and edges cost."""
    tile_multiply_adds: int
    """Of one whole tile."""
    multiply_adds: int
    """Of all tiles; the last of a block are smaller."""
    device_bytes: int
    host_bytes: int
    input_chunks: int
    """Chunks that workers open and read, counted again for each block that needs them."""
    input_bytes: int
    """What these decode to."""
    output_bytes: int
    """Before compression."""
    output_files: int
    """Chunks, or shards where there are some; those that are all zero are not stored."""
    receipts_bytes: int


def estimate(plan: Plan, architecture: Architecture, stored: StoredInput) -> Estimate:
    """All that follows from a plan by counting."""
    work, outputs = plan_work(plan, stored.chunks), plan.settings.outputs
    places = math.prod(axis.chunks for axis in work)
    files = math.prod(math.ceil(n / c) for n, c in zip(plan.region.shape, plan.write_chunks, strict=True))
    return Estimate(
        blocks=plan.blocks,
        tiles=math.prod(axis.tiles for axis in work),
        wasted_work=math.prod(axis.read for axis in work) / plan.region.size - 1,
        tile_multiply_adds=multiply_adds(architecture, (plan.tile[-2], plan.tile[-1])),
        multiply_adds=_all_multiply_adds(architecture, work),
        device_bytes=device_bytes(architecture, plan.tile[-1], plan.settings.device, plan.settings.precision),
        host_bytes=host_bytes(plan, architecture, stored, work),
        input_chunks=places * stored.files_per_place,
        input_bytes=places * stored.chunk_bytes,
        output_bytes=plan.region.size * outputs * ITEM_BYTES[plan.settings.dtype],
        output_files=files * outputs,
        receipts_bytes=plan.blocks * RECEIPT_BYTES,
    )


def _all_multiply_adds(architecture: Architecture, work: tuple[AxisWork, ...]) -> int:
    """Over all tiles: there are few different shapes, each many times."""
    sections = math.prod(axis.tiles for axis in work[:-2])
    shapes = itertools.product(work[-2].sides.items(), work[-1].sides.items())
    return sections * sum(m * n * multiply_adds(architecture, (y, x)) for (y, m), (x, n) in shapes)


def multiply_adds(architecture: Architecture, shape: tuple[int, int]) -> int:
    """Multiply-adds of all convolutions (23 for the paper's network) in one forward pass of a tile (y, x)."""
    a, (y, x), total, below = architecture, shape, 0, architecture.in_channels
    for level in range(a.depth + 1):
        if level:
            y, x = y // 2, x // 2
        for channels_in in (below, a.channels(level)):
            y, x = y - 2, x - 2
            total += 9 * channels_in * a.channels(level) * y * x
        below = a.channels(level)
    for level in reversed(range(a.depth)):
        width = a.channels(level)
        y, x = 2 * y, 2 * x
        total += 2 * width * width * y * x  # 2x2 up-convolution: one tap for each pixel that comes out
        for channels_in in (2 * width, width):
            y, x = y - 2, x - 2
            total += 9 * channels_in * width * y * x
    return total + a.channels(0) * a.classes * y * x


def parameters(architecture: Architecture) -> int:
    """Weights and biases.

    >>> parameters(Architecture())
    31030658
    """
    a, total, below = architecture, 0, architecture.in_channels
    for level in range(a.depth + 1):
        width = a.channels(level)
        total += 9 * (below + width) * width + 2 * width
        below = width
    for level in range(a.depth):
        width = a.channels(level)
        total += (4 * 2 * width * width + width) + 9 * (2 * width + width) * width + 2 * width
    return total + a.channels(0) * a.classes + a.classes


def device_bytes(architecture: Architecture, tile: int, device: str, precision: str) -> int:
    """Peak memory of the network at work, where it runs: weights, one forward pass, and what the machine adds."""
    item = {"float32": 4, "bfloat16": 2}[precision]
    activations = forward_bytes(architecture, tile, item) - forward_bytes_of_weights(architecture, item)
    copies = 4 if precision == "float32" else 4 + item  # autocast keeps a second, short copy
    slack, extra = (CPU_SLACK[precision], CPU_EXTRA) if device == "cpu" else (CUDA_SLACK, CUDA_CONTEXT)
    return int(slack * activations) + copies * parameters(architecture) + extra


def forward_bytes_of_weights(architecture: Architecture, item: int) -> int:
    """The part of :func:`unetcli.planning.planner.forward_bytes` that does not depend on the tile."""
    return item * 32 * architecture.channels(architecture.depth) ** 2


def host_bytes(plan: Plan, architecture: Architecture, stored: StoredInput, work: tuple[AxisWork, ...]) -> int:
    """Peak memory of a worker's process: its libraries, and what the three stages hold at a time.

    A window that is mirrored is copied once per axis while it is read. On a CPU the network's memory is part of it.
    """
    item = ITEM_BYTES[plan.settings.dtype] * plan.settings.outputs
    block = math.prod(min(b, n) for b, n in zip(plan.block_shape, plan.region.shape, strict=True))
    voxels = math.prod(axis.longest_window for axis in work)
    mask = voxels  # which values are finite
    piece = math.prod(plan.footprint.output(plan.tile)) * item
    chunk = max(stored.chunk_bytes // stored.files_per_place, math.prod(plan.write_chunks) * item)
    network = 2 * 4 * parameters(architecture)  # the file's tensors and the network's, while it is loaded
    if plan.settings.device == "cpu":
        network = max(network, device_bytes(architecture, plan.tile[-1], "cpu", plan.settings.precision))
    held = (WINDOWS_HELD + 2) * voxels * stored.bytes_per_voxel + mask + RESULTS_HELD * block * item
    return (
        HOST_BASE.get(plan.settings.device, HOST_BASE["cuda"])
        + held
        + PIECES_HELD * piece
        + 2 * CHUNKS_AT_ONCE * chunk
        + network
    )
