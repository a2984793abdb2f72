"""What a plan takes: memory, bytes, files and time, before anything runs."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.geometry import Architecture, AxisFootprint
from unetcli.planning.plan import Plan, Settings, axis_spans
from unetcli.planning.planner import ITEM_BYTES, forward_bytes

STARTUP_SECONDS = 20.0
"""Of a worker, until its first block is at work: Python, torch and the model over a shared file system."""
STARTUP_FRACTION = 0.02
"""The most of a share that start-up may cost."""
MOST_SHARES = 1000
"""Where the number of workers is not said: SLURM's own limit for one array is 1,001 (MaxArraySize)."""
SHARES_PER_WORKER = 20
"""More would balance no better: the last share to end is a twentieth of a worker's time."""

BYTES_PER_SECOND = 50e9
"""Typical of a large parallel file system (Lustre, GPFS), all clients together; for reading, and for writing."""
OPERATIONS_PER_SECOND = 20_000.0
"""Opens, creates and renames that its metadata servers do, all clients together."""
NOMINAL = {"cpu": {"float32": 5e10, "bfloat16": 1e11}, "cuda": {"float32": 3e13, "bfloat16": 2e14}}
"""Multiply-adds per second (of a CPU: per thread) of fast hardware; sizes shares where nothing was measured. Too fast
a guess only makes shares longer, and start-up cost less of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """How fast one worker is, and who says so."""

    tile_seconds: float
    """One forward pass of the plan's whole tile."""
    read_bytes_per_second: float | None = None
    """Of decoded input chunks."""
    write_bytes_per_second: float | None = None
    """Of results before compression."""
    origin: str


def forward_seconds(estimate: Estimate, rates: Rates) -> float:
    """Of all blocks on one worker; tiles cut short take their part of a whole one."""
    return rates.tile_seconds * estimate.multiply_adds / estimate.tile_multiply_adds


def seconds_per_block(estimate: Estimate, rates: Rates, device: str) -> float:
    """Mean time of a block. On a GPU the longest of the three stages counts; on a CPU they share the cores, so all do.

    A rate that is not known takes no time: it is hidden behind the network, or so we hope.
    """
    stages = [forward_seconds(estimate, rates)]
    for amount, rate in (
        (estimate.input_bytes, rates.read_bytes_per_second),
        (estimate.output_bytes, rates.write_bytes_per_second),
    ):
        stages.append(amount / rate if rate else 0.0)
    return (sum(stages) if device == "cpu" else max(stages)) / estimate.blocks


def nominal_rates(estimate: Estimate, device: str, precision: str, threads: int) -> Rates:
    """Those of fast hardware: only good to size shares."""
    speed = NOMINAL["cpu" if device == "cpu" else "cuda"][precision] * (threads if device == "cpu" else 1)
    return Rates(tile_seconds=estimate.tile_multiply_adds / speed, origin="nominal")


def blocks_per_share(seconds_per_block: float, startup_seconds: float = STARTUP_SECONDS) -> int:
    """Blocks that one worker job needs at least so that its start-up costs no more than 2 % of it.

    >>> blocks_per_share(10.0, startup_seconds=20.0)
    98
    """
    return max(1, math.ceil(startup_seconds * (1 / STARTUP_FRACTION - 1) / seconds_per_block - 1e-9))


def share_count(blocks: int, at_least: int, workers: int | None = None, forced: int | None = None) -> int:
    """Number of shares: each ``forced`` blocks, else ``at_least`` so many, but not far more shares than are of use.

    A worker asked for gets a share, though its start-up may then cost more.

    >>> share_count(10_000, 98), share_count(100, 98, workers=4), share_count(100, 98, forced=30)
    (102, 4, 4)
    """
    if forced is not None:
        return math.ceil(blocks / forced)
    most = MOST_SHARES if workers is None else SHARES_PER_WORKER * workers
    return min(blocks, max(blocks // at_least, workers or 1, 1), most)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How the blocks are shared out, and how long that takes where rates are known."""

    shares: int
    seconds_per_block: float | None
    worker_seconds: float | None
    """Of the whole run on one worker, with the start-up of each share."""


def timing(
    estimate: Estimate, settings: Settings, rates: Rates | None, workers: int | None, forced: int | None
) -> Timing:
    """Shares and time; without rates shares are sized for fast hardware, and the time is not known."""
    sizing = rates or nominal_rates(estimate, settings.device, settings.precision, settings.threads)
    per_block = seconds_per_block(estimate, sizing, settings.device)
    shares = share_count(estimate.blocks, blocks_per_share(per_block), workers, forced)
    if rates is None:
        return Timing(shares=shares, seconds_per_block=None, worker_seconds=None)
    total = estimate.blocks * per_block + shares * STARTUP_SECONDS
    return Timing(shares=shares, seconds_per_block=per_block, worker_seconds=total)


@dataclass(frozen=True, slots=True)
class Link:
    """One thing that all workers share: how much of it the whole run takes."""

    name: str
    amount: float
    limit: float
    """Per second, typical."""
    unit: str
    remedy: str

    @property
    def seconds(self) -> float:
        """What this link alone takes, however many workers there are."""
        return self.amount / self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What a number of workers ask of their file system together."""

    workers: int
    network_seconds: float | None
    """Of the run if nothing but the workers held it up; None where their speed is not known."""
    links: tuple[Link, ...]
    receipts: int
    receipts_bytes: int

    @property
    def weakest(self) -> Link:
        """Of what they share, that which takes longest."""
        return max(self.links, key=lambda link: link.seconds)

    @property
    def network_is_weakest(self) -> bool | None:
        """None where the workers' speed is not known."""
        return None if self.network_seconds is None else self.network_seconds >= self.weakest.seconds

    @property
    def seconds(self) -> float | None:
        """Of the run, at best."""
        return None if self.network_seconds is None else max(self.network_seconds, self.weakest.seconds)

    def per_second(self, amount: float) -> float | None:
        """What the workers would take per second if nothing held them up."""
        return None if self.network_seconds is None else amount / self.network_seconds

    def to_dict(self) -> dict[str, Any]:
        reading, writing, files = self.links
        return {
            "workers": self.workers,
            "seconds": self.seconds,
            "read_bytes_per_second": self.per_second(reading.amount),
            "write_bytes_per_second": self.per_second(writing.amount),
            "file_operations_per_second": self.per_second(files.amount),
            "receipts_per_second": self.per_second(self.receipts),
            "receipts_bytes": self.receipts_bytes,
            "read_bytes": reading.amount,
            "write_bytes": writing.amount,
            "file_operations": files.amount,
            "limits": {link.name: link.limit for link in self.links},
            "least_seconds": {link.name: link.seconds for link in self.links},
            "weakest_link": "network" if self.network_is_weakest else self.weakest.name,
        }


def traffic(estimate: Estimate, workers: int, worker_seconds: float | None) -> Traffic:
    """The traffic of that many workers; ``worker_seconds`` is what the run would take one of them."""
    operations = estimate.input_chunks + 2 * estimate.output_files  # an open; a create and a rename
    links = (
        Link("reading", estimate.input_bytes, BYTES_PER_SECOND, "bytes", "a larger tile reads less twice"),
        Link("writing", estimate.output_bytes, BYTES_PER_SECOND, "bytes", "--dtype uint8 writes least"),
        Link("file operations", operations, OPERATIONS_PER_SECOND, "", "larger chunks or shards need fewer"),
    )
    return Traffic(
        workers=workers,
        network_seconds=None if worker_seconds is None else worker_seconds / min(workers, estimate.blocks),
        links=links,
        receipts=estimate.blocks,
        receipts_bytes=estimate.receipts_bytes,
    )


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
    activations = forward_bytes(architecture, tile, item) - item * 32 * architecture.channels(architecture.depth) ** 2
    copies = 4 if precision == "float32" else 4 + item  # autocast keeps a second, short copy
    slack, extra = (CPU_SLACK[precision], CPU_EXTRA) if device == "cpu" else (CUDA_SLACK, CUDA_CONTEXT)
    return int(slack * activations) + copies * parameters(architecture) + extra


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
