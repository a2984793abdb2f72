"""Chooses tile and block so that memory fits and the least work is wasted. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Architecture, AxisFootprint, Box, Footprint, ceil_to
from unetcli.planning.plan import Plan, Settings, Sources, axis_spans

CHUNK = 512
"""In-plane side of an output chunk."""
CPU_TILE = 700
"""Largest tile chosen by itself on a CPU."""
GPU_TILE = 2236
"""Largest tile chosen by itself on a GPU: gives 2052, so that context is an eighth of what is read."""
BLOCK_LIMIT = 4096
"""Largest in-plane block side: a block is what a killed worker loses."""
SHARD_SIDES = (1, 2, 4, 6, 8)
"""Chunks along a shard's sides in plane, tried in turn; 6 is the step of a tile of 572, 8 the largest block."""
MAX_FILES = 250_000
"""Files of an output before its chunks are gathered in shards: a quarter of a common quota."""
ITEM_BYTES = {"uint8": 1, "float16": 2, "float32": 4}
WINDOW_BYTES = 256 * 2**20
"""About the largest input window or result of a block; several of each are held at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """What planning needs to know about a volume; all tuples without the channel axis, in array order."""

    axes: str
    extent: tuple[int, ...]
    chunks: tuple[int, ...]
    bytes_per_voxel: int
    """All channels that are read, together."""


def make_plan(
    source: Input,
    region: Box,
    architecture: Architecture,
    tile: int,
    settings: Settings,
    sources: Sources,
    *,
    max_files: int = MAX_FILES,
    zarr_format: int = 3,
) -> Plan:
    """The plan for one region; ``tile`` is the input side along the axes that the network sees.

    More than ``max_files`` files are avoided by shards as far as a block's memory allows; see :func:`require_files`.
    """
    network = architecture.footprint()
    seen = len(network.axes)
    footprint = network.expanded_to(len(source.axes))
    shape = (1,) * (len(source.axes) - seen) + (tile,) * seen
    footprint.require_usable(shape)
    chunks = output_chunks(region.shape, seen)
    voxel_bytes = max(source.bytes_per_voxel, settings.outputs * ITEM_BYTES[settings.dtype])
    limit = (max_files - _metadata_files(zarr_format)) // settings.outputs
    shards = output_shards(region.shape, chunks, footprint, voxel_bytes, limit)
    write_chunks = shards if zarr_format > 2 else chunks
    return Plan(
        axes=source.axes,
        extent=source.extent,
        region=region,
        footprint=footprint,
        tile=shape,
        chunks=chunks,
        write_chunks=write_chunks,
        block_shape=_block_shape(source, region, footprint, shape, write_chunks, voxel_bytes),
        zarr_format=zarr_format,
        settings=settings,
        sources=sources,
    )


def output_chunks(shape: Sequence[int], seen: int) -> tuple[int, ...]:
    """Output chunks: one section, ``CHUNK`` in plane, never larger than the output."""
    leading = len(shape) - seen
    return (1,) * leading + tuple(min(CHUNK, n) for n in shape[leading:])


def output_shards(
    shape: tuple[int, ...], chunks: tuple[int, ...], footprint: Footprint, voxel_bytes: int, limit: int
) -> tuple[int, ...]:
    """The smallest shards of which at most ``limit`` hold the output; else the largest a block's memory allows."""
    best = chunks
    for shards in _growing(shape, chunks, footprint):
        if _window_voxels(shards, footprint) * voxel_bytes > WINDOW_BYTES and shards != chunks:
            continue
        if _pieces(shape, shards) < _pieces(shape, best):
            best = shards
        if _pieces(shape, best) <= limit:
            break
    return best


def output_files(plan: Plan) -> int:
    """Files of the output where no chunk is all zero (those have none); without pyramid."""
    pieces = _pieces(plan.region.shape, plan.write_chunks)
    return plan.settings.outputs * pieces + _metadata_files(plan.zarr_format)


def require_files(plan: Plan, max_files: int) -> None:
    """Raise :class:`UnetcliError` where an output has more files than that."""
    if (files := output_files(plan)) > max_files:
        way = "--zarr-format 3 gathers chunks in shards, " if plan.zarr_format == 2 else ""
        why = "Zarr 2 has no shards" if plan.zarr_format == 2 else "no larger shard fits the memory of a block"
        raise UnetcliError(
            f"the output would have {files} files, more than --max-files {max_files}: {why}; "
            f"{way}--max-files {files} allows them"
        )


def largest_tile(footprint: Footprint, limit: int) -> int:
    """Largest tile side usable along every axis of a network and at most ``limit``; at least the smallest one."""
    axis = max(footprint.axes, key=lambda a: a.alignment)
    smallest = axis.side_for(1)
    return smallest + max(0, limit - smallest) // axis.alignment * axis.alignment


def device_tile(architecture: Architecture, free_bytes: int, limit: int = GPU_TILE) -> int:
    """Largest tile whose forward pass fits ``free_bytes`` of device memory."""
    footprint = architecture.footprint()
    alignment, smallest = footprint.axes[-1].alignment, footprint.axes[-1].side_for(1)
    sides = range(largest_tile(footprint, limit), smallest, -alignment)
    return next((side for side in sides if forward_bytes(architecture, side) <= free_bytes), smallest)


def forward_bytes(architecture: Architecture, tile: int, bytes_per_value: int = 4) -> int:
    """Estimate of the device memory of one forward pass: weights, skips held, and the largest moment at work.

    At each up step the concatenation, its input and its convolved result are alive together; a workspace of the
    same size as the result is added for the convolution itself.
    """
    a = architecture
    skips, side = [], tile
    for level in range(a.depth + 1):
        side -= 4
        skips.append(a.channels(level) * side**2)
        side = side // 2 if level < a.depth else side
    moments = [2 * a.channels(0) * tile**2]
    for level in reversed(range(a.depth)):
        side = 2 * side
        moments.append(sum(skips[: level + 1]) + 5 * a.channels(level) * side**2)
        side -= 4
    weights = 32 * a.channels(a.depth) ** 2
    return bytes_per_value * (max(moments) + weights)


def _metadata_files(zarr_format: int) -> int:
    return 2 if zarr_format == 3 else 4  # zarr.json of group and array; .zgroup, .zattrs, 0/.zarray, 0/.zattrs


def _growing(shape: tuple[int, ...], chunks: tuple[int, ...], footprint: Footprint) -> Iterator[tuple[int, ...]]:
    """Shard shapes to try: wider in plane, then, for every width from the widest, over more and more sections."""
    seen = [axis != AxisFootprint() for axis in footprint.axes]
    planes = [
        tuple(
            min(chunk * side, ceil_to(n, chunk)) if is_seen else chunk
            for n, chunk, is_seen in zip(shape, chunks, seen, strict=True)
        )
        for side in SHARD_SIDES
    ]
    yield from planes
    for shards in reversed(planes):
        grown = list(shards)
        for place in reversed([i for i, is_seen in enumerate(seen) if not is_seen]):
            while grown[place] < shape[place]:
                grown[place] = min(2 * grown[place], shape[place])
                yield tuple(grown)


def _pieces(shape: Sequence[int], piece: Sequence[int]) -> int:
    """How many pieces cover a shape."""
    return math.prod(-(-n // side) for n, side in zip(shape, piece, strict=True))


def _window_voxels(block: Sequence[int], footprint: Footprint) -> int:
    """The most that the tiles of a block of that shape read."""
    return math.prod(side + _margin(axis) for side, axis in zip(block, footprint.axes, strict=True))


def _margin(axis: AxisFootprint) -> int:
    """The most that is read beside a block along one axis: context, and what tiles on the volume's grid are larger."""
    return 2 * (axis.context + axis.alignment - 1)


def _block_shape(
    source: Input, region: Box, footprint: Footprint, tile: tuple[int, ...], shards: tuple[int, ...], voxel_bytes: int
) -> tuple[int, ...]:
    seen = [axis != AxisFootprint() for axis in footprint.axes]
    sections = math.prod(n for n, is_seen in zip(shards, seen, strict=True) if not is_seen)
    limit = int((WINDOW_BYTES / voxel_bytes / sections) ** (1 / sum(seen)))
    block = [
        _least_wasteful(axis, side, shard, start, stop, min(limit - _margin(axis), BLOCK_LIMIT)) if is_seen else shard
        for is_seen, axis, side, shard, start, stop in zip(
            seen, footprint.axes, tile, shards, region.start, region.stop, strict=True
        )
    ]
    room = WINDOW_BYTES // (_window_voxels(block, footprint) * voxel_bytes)
    for place in reversed([i for i, is_seen in enumerate(seen) if not is_seen]):
        # Input chunks thick in z are decoded once per block: take as many sections as one chunk holds.
        wanted = min(source.chunks[place], region.shape[place]) // shards[place]
        times = max(1, min(wanted, room))
        block[place] *= times
        room //= times
        if room <= 1:
            break
    return tuple(block)


def _least_wasteful(axis: AxisFootprint, side: int, chunk: int, start: int, stop: int, limit: int) -> int:
    """Block side: a multiple of the chunk with the least input read per axis; the largest of equals."""
    limit = max(chunk, min(limit, ceil_to(stop - start, chunk)))
    return max(range(chunk, limit + 1, chunk), key=lambda block: (-work(axis, side, block, start, stop), block))


def work(axis: AxisFootprint, side: int, block: int, start: int, stop: int) -> int:
    """Input voxels that all tiles along one axis read, with blocks of that side."""
    whole, rest = divmod(stop - start, block)
    total = whole * _read(axis_spans(axis, side, start, start + block)) if whole else 0
    return total + (_read(axis_spans(axis, side, stop - rest, stop)) if rest else 0)


def wasted_work(plan: Plan) -> float:
    """Forward passes' input voxels per output voxel, less one: what context, alignment and edges cost."""
    parts = zip(plan.footprint.axes, plan.tile, plan.block_shape, plan.region.start, plan.region.stop, strict=True)
    return math.prod(work(*part) / (part[4] - part[3]) for part in parts) - 1


def _read(spans: Iterable[tuple[tuple[int, int], tuple[int, int]]]) -> int:
    return sum(stop - start for (start, stop), _ in spans)
