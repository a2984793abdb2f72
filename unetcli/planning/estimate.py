"""Estimates of a plan's memory, bytes, files and time, made before anything runs."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unetcli.core.geometry import Architecture, AxisFootprint
from unetcli.core.rescaling import resampled_extent
from unetcli.planning.plan import Plan, axis_spans
from unetcli.planning.planner import ITEM_BYTES, forward_bytes

MIB = 2**20
RECEIPT_BYTES = 110
"""Approximate length of a receipt line."""

CPU_SLACK, CPU_EXTRA = {"float32": 1.55, "bfloat16": 1.75}, 48 * MIB
"""Memory that the allocator keeps beside the tensors, as a factor and a constant. Chosen above the highest of many
measured peaks, which vary by 20 %."""
CUDA_SLACK, CUDA_CONTEXT = 1.25, 820 * MIB
"""Factor for workspaces and fragmentation, and memory of the CUDA context, measured on an H100 (docs/benchmarks.md)."""
MOST_RECORDED_SIDE, CUDA_RECORDED = 1212, 224 * MIB
"""Largest side of a tile whose kernels a GPU records (:class:`unetcli.predict.gpu.Graphs`), and memory of that."""
HOST_BASE = {"cpu": 450 * MIB, "cuda": 2048 * MIB}
"""Memory of Python, torch and zarr, and of the CUDA libraries on a GPU node."""
WINDOWS_HELD, RESULTS_HELD, PIECES_HELD = 4, 2, 6
"""Arrays that the stages of :mod:`unetcli.predict.predictor` hold at once, at most. Windows: read, waiting, computed,
assembled. Block results: assembled, stored. Tile results: computed, waiting (4), assembled."""
GPU_IO_THREADS = 4
"""Threads that read windows for a GPU, and as many that store blocks, at most; each holds one more array."""
CHUNKS_AT_ONCE = 10
"""Chunks that zarr decodes or encodes at once; each is held raw and compressed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredInput:
    """Storage layout of the volume that is read."""

    chunks: tuple[int, ...]
    """Chunk shape in voxels, without the channel axis."""
    bytes_per_voxel: int
    """Bytes of all channels that are read."""
    chunk_bytes: int
    """Bytes decoded at one position of the chunk grid, including unused channels."""
    files_per_place: int = 1
    """Chunks read at one position of the grid: several if channels are in separate chunks."""


@dataclass(frozen=True, slots=True)
class AxisWork:
    """Work of all blocks along one axis."""

    sides: dict[int, int]
    """Number of tiles of each input side."""
    chunks: int
    """Input chunks that the blocks' windows touch, counted once per block."""
    longest_window: int
    """Voxels."""

    @property
    def tiles(self) -> int:
        return sum(self.sides.values())

    @property
    def read(self) -> int:
        """Input voxels of all tiles along the axis."""
        return sum(side * count for side, count in self.sides.items())


def plan_work(plan: Plan, input_chunks: tuple[int, ...]) -> tuple[AxisWork, ...]:
    """Work along each axis. Every count of a plan is a product over the axes.

    With ``settings.rescale`` it is counted in voxels that the network sees, as if blocks had whole numbers of them.
    """
    seen, sizes = plan.rescaling.needed(plan.region), plan.rescaling.sizes
    blocks, chunks = (tuple(map(resampled_extent, sides, sizes)) for sides in (plan.block_shape, input_chunks))
    extent = plan.rescaling.resampled
    rows = zip(plan.footprint.axes, plan.tile, blocks, seen.start, seen.stop, extent, chunks, strict=True)
    return tuple(axis_work(*row) for row in rows)


def axis_work(axis: AxisFootprint, side: int, block: int, start: int, stop: int, extent: int, chunk: int) -> AxisWork:
    """Work along one axis of the blocks that start at ``start, start + block, ..`` and end at ``stop``."""
    sides: Counter[int] = Counter()
    chunks = longest = 0
    for first, length, stride, count in _same_tiling(start, stop, block, axis.alignment):
        spans = list(axis_spans(axis, side, first, first + length))
        low, high = spans[0][0][0], max(read[1] for read, _ in spans)
        longest = max(longest, high - low)
        for read, _ in spans:
            sides[read[1] - read[0]] += count
        chunks += _chunks_touched(low, high, stride, count, extent, chunk)
    return AxisWork(dict(sides), chunks, longest)


def _same_tiling(start: int, stop: int, block: int, alignment: int) -> Iterator[tuple[int, int, int, int]]:
    """Groups of blocks along an axis with the same tiles: (start of the first, length, stride, number of blocks).

    Blocks whose starts differ by a multiple of the alignment have the same tiles, shifted.
    """
    whole, rest = divmod(stop - start, block)
    period = alignment // math.gcd(block, alignment)
    for k in range(min(period, whole)):
        yield start + k * block, block, period * block, -(-(whole - k) // period)
    if rest:
        yield stop - rest, rest, block, 1


def _chunks_touched(low: int, high: int, stride: int, count: int, extent: int, chunk: int) -> int:
    """Chunks under the windows ``low..high``, ``low + stride..high + stride``, .., mirrored at the volume's edges."""
    total, step = 0, 1 << 16  # a part at a time, so that memory does not grow with the number of blocks
    for done in range(0, count, step):
        shift = stride * np.arange(done, min(done + step, count), dtype=np.int64)
        first, last = mirrored_span(low + shift, high + shift, extent)
        total += int((last // chunk - first // chunk + 1).sum())
    return total


def mirrored_span(
    low: NDArray[np.int64], high: NDArray[np.int64], extent: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last voxel that windows read along one axis when they are mirrored at the edges of the volume.

    Parameters
    ----------
    low, high : (window,), int64
        Half-open ranges in voxels; may reach outside ``0..extent``.
    extent : voxels of the volume along the axis

    Returns
    -------
    first, last : (window,), int64
        Both inclusive.

    Examples
    --------
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
    """Counts and sizes of a plan."""

    blocks: int
    tiles: int
    wasted_work: float
    """Extra multiply-adds of the tiles; see :func:`wasted_work`."""
    passes: int
    """Forward passes of each tile."""
    tile_multiply_adds: int
    """Multiply-adds of one forward pass of a tile of full size."""
    multiply_adds: int
    """Multiply-adds of all forward passes; the last tiles of a block are smaller."""
    device_bytes: int
    """Peak memory of the network on its device."""
    host_bytes: int
    """Peak memory of a worker process."""
    input_chunks: int
    """Chunks that workers read, counted once for each block that needs them."""
    input_bytes: int
    """Bytes of these chunks after decoding."""
    output_bytes: int
    """Bytes of the output before compression."""
    output_files: int
    """Chunks of the output, or shards if it has any. All-zero chunks are not stored, so there may be fewer files."""
    receipts_bytes: int


def estimate(
    plan: Plan, architecture: Architecture, stored: StoredInput, others: Sequence[Architecture] = ()
) -> Estimate:
    """Count the work, memory, bytes and files of a plan.

    Parameters
    ----------
    plan : Plan
    architecture : Architecture
        The network, for its multiply-adds and memory.
    stored : StoredInput
        Storage layout of the volume that is read.
    others : sequence of Architecture
        The networks of further models.

    Returns
    -------
    Estimate
        Blocks with the same tiles are counted together, so that 10^7 blocks take no longer than a few.
    """
    work, outputs = plan_work(plan, stored.chunks), plan.settings.outputs
    places = math.prod(axis.chunks for axis in work)
    files = math.prod(math.ceil(n / c) for n, c in zip(plan.region.shape, plan.write_chunks, strict=True))
    return Estimate(
        blocks=plan.blocks,
        tiles=math.prod(axis.tiles for axis in work),
        wasted_work=wasted_work(plan, architecture),
        tile_multiply_adds=multiply_adds(architecture, (plan.tile[-2], plan.tile[-1])),
        passes=plan.settings.passes,
        multiply_adds=plan.settings.rotations * sum(_all_multiply_adds(a, work) for a in (architecture, *others)),
        device_bytes=network_bytes(plan, architecture, others),
        host_bytes=host_bytes(plan, architecture, stored, work, others),
        input_chunks=places * stored.files_per_place,
        input_bytes=places * stored.chunk_bytes,
        output_bytes=plan.region.size * outputs * ITEM_BYTES[plan.settings.dtype],
        output_files=files * outputs,
        receipts_bytes=plan.blocks * RECEIPT_BYTES,
    )


def wasted_work(plan: Plan, architecture: Architecture) -> float:
    """Multiply-adds of a pass over all tiles, as a multiple of those of a tile without end, minus 1.

    It is the cost of context, alignment and edges.
    """
    work = plan_work(plan, plan.write_chunks)
    seen = plan.rescaling.needed(plan.region).size
    return _all_multiply_adds(architecture, work) / (seen * work_per_voxel(architecture)) - 1


def work_per_voxel(architecture: Architecture) -> float:
    """Multiply-adds per output voxel of a tile without end, of which no context is lost; see :func:`multiply_adds`.

    >>> round(work_per_voxel(Architecture()))  # the network of the paper
    733888
    """
    a, total, below = architecture, 0.0, architecture.in_channels
    for level in range(a.depth + 1):
        total += 9 * (below + a.channels(level)) * a.channels(level) / 4**level
        below = a.channels(level)
    for level in range(a.depth):
        total += (2 + 9 * 3) * a.channels(level) ** 2 / 4**level  # up-convolution, then two convolutions
    return total + a.channels(0) * a.classes


def _all_multiply_adds(architecture: Architecture, work: tuple[AxisWork, ...]) -> int:
    """Multiply-adds of all tiles; there are few different shapes, each of which occurs many times."""
    sections = math.prod(axis.tiles for axis in work[:-2])
    shapes = itertools.product(work[-2].sides.items(), work[-1].sides.items())
    return sections * sum(m * n * multiply_adds(architecture, (y, x)) for (y, m), (x, n) in shapes)


def multiply_adds(architecture: Architecture, shape: tuple[int, int]) -> int:
    """Multiply-adds of all convolutions (23 in the paper's network) in one forward pass.

    Parameters
    ----------
    architecture : Architecture
    shape : (y, x)
        Input shape of the tile, in voxels; both sides must be valid.
    """
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
        total += 2 * width * width * y * x  # 2x2 up-convolution of stride 2: one tap per output pixel
        for channels_in in (2 * width, width):
            y, x = y - 2, x - 2
            total += 9 * channels_in * width * y * x
    return total + a.channels(0) * a.classes * y * x


def network_bytes(plan: Plan, architecture: Architecture, others: Sequence[Architecture] = ()) -> int:
    """Peak memory of the networks of a plan on their device, in bytes."""
    return _pass_bytes(plan, architecture) + averaging_bytes(plan, architecture, others)


def averaging_bytes(plan: Plan, architecture: Architecture, others: Sequence[Architecture] = ()) -> int:
    """Memory on the device that averaging adds to a forward pass of the first network, in bytes.

    It is that of the sum, a copy turned back and a turned input; of the weights of the other networks, in float32 and
    once more in the precision of the plan; and what a pass of a larger one takes more than that of the first.
    """
    a, pixels = architecture, math.prod(plan.tile)
    own = 4 * (2 * a.classes + a.in_channels) * pixels if plan.settings.passes > 1 else 0
    first = _pass_bytes(plan, a)
    larger = max([0, *(_pass_bytes(plan, other) - first for other in others)])
    return own + 2 * 4 * sum(other.parameters for other in others) + larger


def _pass_bytes(plan: Plan, architecture: Architecture) -> int:
    """Peak memory of one network of a plan and its forward pass."""
    return device_bytes(architecture, plan.tile[-1], plan.settings.device, plan.settings.precision)


def device_bytes(architecture: Architecture, tile: int, device: str, precision: str) -> int:
    """Peak memory of the network on its device, in bytes: weights, one forward pass, allocator and CUDA context.

    Parameters
    ----------
    architecture : Architecture
    tile : voxels
        Input side of a forward pass.
    device : {"cpu", "cuda", "mps"}
    precision : {"float32", "bfloat16"}
    """
    item = {"float32": 4, "bfloat16": 2}[precision]
    activations = forward_bytes(architecture, tile, item) - item * 32 * architecture.channels(architecture.depth) ** 2
    copies = 4 if precision == "float32" else 4 + item  # autocast keeps a second copy in bfloat16
    slack, extra = (CPU_SLACK[precision], CPU_EXTRA) if device == "cpu" else (CUDA_SLACK, CUDA_CONTEXT)
    if device == "cuda":
        extra += CUDA_RECORDED  # for larger tiles too, so that the memory never falls as a tile grows
    return int(slack * activations) + copies * architecture.parameters + extra


def host_bytes(
    plan: Plan,
    architecture: Architecture,
    stored: StoredInput,
    work: tuple[AxisWork, ...],
    others: Sequence[Architecture] = (),
) -> int:
    """Peak memory of a worker process, in bytes: its libraries, and the arrays that the three stages hold at once.

    A mirrored window is copied once per axis while it is read. On a CPU the memory of the network is included. What is
    resampled is float32, and so is the volume that it is made of.
    """
    item = ITEM_BYTES[plan.settings.dtype] * plan.settings.outputs
    block = math.prod(min(b, n) for b, n in zip(plan.block_shape, plan.region.shape, strict=True))
    voxels = math.prod(axis.longest_window for axis in work)
    mask = voxels  # bool array of finite values
    rescaled, density = plan.settings.rescale is not None, math.prod(plan.rescaling.sizes)
    seen_item = 4 * architecture.classes if rescaled else item
    piece = math.prod(plan.footprint.output(plan.tile)) * seen_item
    chunk = max(stored.chunk_bytes // stored.files_per_place, math.prod(plan.write_chunks) * item)
    # while loading: the tensors of the files, and those of the networks
    network = 2 * 4 * sum(each.parameters for each in (architecture, *others))
    if plan.settings.device == "cpu":
        network = max(network, network_bytes(plan, architecture, others))
    more = GPU_IO_THREADS if plan.settings.device == "cuda" else 0
    windows, results = WINDOWS_HELD + 2 + more, RESULTS_HELD + more
    held = windows * voxels * stored.bytes_per_voxel + mask + results * block * item
    if rescaled:
        channels = architecture.in_channels
        read = voxels * density * (stored.bytes_per_voxel + 4 * channels)
        held += int(windows * voxels * 4 * channels + read + 3 * block * (1 + 1 / density) * seen_item)
    return (
        HOST_BASE.get(plan.settings.device, HOST_BASE["cuda"])
        + held
        + PIECES_HELD * piece
        + 2 * CHUNKS_AT_ONCE * chunk
        + network
    )
