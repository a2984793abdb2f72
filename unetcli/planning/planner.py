"""Choice of tile, block and shard shapes: as little wasted work as memory allows. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Architecture, AxisFootprint, Box, Footprint, ceil_to
from unetcli.planning.plan import Plan, Settings, Sources, axis_spans, stored_values

CHUNK = 512
"""In-plane side of an output chunk."""
KNOWN_TO_FIT = 700
"""Largest input side that is chosen by default on a CPU of which the memory is not known."""
LARGEST_TILE = 2236
"""Largest input side that is chosen by default: its output is 2052, and context is 1/6 of the input."""
BLOCK_LIMIT = 4096
"""Largest in-plane side of a block; a killed worker loses at most the block it works on."""
SHARD_SIDES = (1, 2, 4, 6, 8)
"""In-plane sides of a shard in chunks, tried in turn. 6 is a multiple of the step of tile 572, 8 the largest block."""
MAX_FILES = 250_000
"""Files of an output above which chunks are packed into shards: a quarter of a common quota."""
ITEM_BYTES = {"uint8": 1, "float16": 2, "float32": 4}
WINDOW_BYTES = 256 * 2**20
"""Approximate limit for the input window and the result of a block; several of each are held at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """Properties of the volume that planning needs; tuples are in array order, without the channel axis."""

    axes: str
    extent: tuple[int, ...]
    """Voxels."""
    chunks: tuple[int, ...]
    """Voxels."""
    bytes_per_voxel: int
    """Bytes of all channels that are read."""


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
    """Plan the prediction of one region.

    Parameters
    ----------
    source : Input
        The volume that is read.
    region : Box
        Region to predict, in voxels of the volume.
    architecture : Architecture
    tile : voxels
        Input side of a forward pass along the axes that the network convolves; 1 along the others.
    settings, sources
        Stored in the plan as they are.
    max_files : files
        Chunks are packed into shards if the output would have more files. If a block of the smallest sufficient
        shards does not fit the memory, the output still has more files; see :func:`require_files`.
    zarr_format : {3, 2}
        Format 2 has no shards.

    Raises
    ------
    UnetcliError
        The tile is not a usable input side, or the region is empty or not inside the volume.
    """
    network = architecture.footprint()
    convolved = len(network.axes)
    footprint = network.expanded_to(len(source.axes))
    shape = (1,) * (len(source.axes) - convolved) + (tile,) * convolved
    footprint.require_usable(shape)
    chunks = output_chunks(region.shape, convolved)
    voxel_bytes = max(source.bytes_per_voxel, settings.outputs * ITEM_BYTES[settings.dtype])
    sizes = settings.rescale or (1.0,) * len(source.axes)
    if settings.rescale is not None:  # a voxel is float32 while it is resampled, and so is what the network returns
        read, returned = source.bytes_per_voxel + 4 * architecture.in_channels, 4 * stored_values(architecture.classes)
        voxel_bytes = math.ceil(max(read, returned / math.prod(sizes)))
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
        block_shape=_block_shape(source, region, footprint, shape, write_chunks, voxel_bytes, sizes),
        zarr_format=zarr_format,
        settings=settings,
        sources=sources,
    )


def output_chunks(shape: Sequence[int], convolved: int) -> tuple[int, ...]:
    """Chunk shape of the output: ``CHUNK`` along the last ``convolved`` axes, 1 along the others, at most ``shape``."""
    leading = len(shape) - convolved
    return (1,) * leading + tuple(min(CHUNK, n) for n in shape[leading:])


def output_shards(
    shape: tuple[int, ...], chunks: tuple[int, ...], footprint: Footprint, voxel_bytes: int, limit: int
) -> tuple[int, ...]:
    """The smallest shards with which the output has at most ``limit`` files, or else the largest that fit the memory.

    Parameters
    ----------
    shape, chunks : voxels
        Shape and chunk shape of the output.
    footprint : Footprint
        Expanded to the axes of the output; its context enlarges the input window of a block.
    voxel_bytes : bytes
        Larger of input and output bytes per voxel; windows are limited to ``WINDOW_BYTES``.
    limit : files
        Per class that is stored.

    Returns
    -------
    voxels
        Multiples of ``chunks``; ``chunks`` itself if no shards are needed.
    """
    best = chunks
    for shards in _shard_shapes(shape, chunks, footprint):
        if _window_voxels(shards, footprint) * voxel_bytes > WINDOW_BYTES and shards != chunks:
            continue
        if _pieces(shape, shards) < _pieces(shape, best):
            best = shards
        if _pieces(shape, best) <= limit:
            break
    return best


def output_files(plan: Plan) -> int:
    """Number of files of the output without coarser levels, if no chunk is all zero (those have no file)."""
    pieces = _pieces(plan.region.shape, plan.write_chunks)
    return plan.settings.outputs * pieces + _metadata_files(plan.zarr_format)


def require_files(plan: Plan, max_files: int) -> None:
    """Raise :class:`UnetcliError` if the output has more than ``max_files`` files."""
    if (files := output_files(plan)) > max_files:
        way = "--zarr-format 3 packs chunks into shards, " if plan.zarr_format == 2 else ""
        why = "Zarr 2 has no shards" if plan.zarr_format == 2 else "no larger shard fits the memory of a block"
        raise UnetcliError(
            f"the output would have {files} files, more than --max-files {max_files}: {why}; "
            f"{way}--max-files {files} would work"
        )


def largest_tile(footprint: Footprint, limit: int) -> int:
    """Largest usable input side of a tile, in voxels, up to ``limit``; at least the smallest usable one."""
    axis = max(footprint.axes, key=lambda a: a.alignment)
    smallest = axis.side_for(1)
    return smallest + max(0, limit - smallest) // axis.alignment * axis.alignment


def device_tile(architecture: Architecture, free_bytes: int, limit: int = LARGEST_TILE) -> int:
    """Largest input side, up to ``limit`` voxels, whose forward pass fits ``free_bytes`` of device memory.

    If none fits, it is the smallest usable side.
    """
    footprint = architecture.footprint()
    alignment, smallest = footprint.axes[-1].alignment, footprint.axes[-1].side_for(1)
    sides = range(largest_tile(footprint, limit), smallest, -alignment)
    return next((side for side in sides if forward_bytes(architecture, side) <= free_bytes), smallest)


def forward_bytes(architecture: Architecture, tile: int, bytes_per_value: int = 4) -> int:
    """Estimated peak memory of one forward pass, in bytes: weights, stored skips, and the largest set of temporaries.

    At each up step the concatenated maps, their inputs and the convolved result exist at once; a workspace as large
    as the result is added for the convolution.

    Parameters
    ----------
    architecture : Architecture
    tile : voxels
        Input side.
    bytes_per_value : bytes
        4 for float32, 2 for bfloat16.
    """
    a = architecture
    skips, side = [], tile
    for level in range(a.depth + 1):
        side -= 4
        skips.append(a.channels(level) * side**2)
        side = side // 2 if level < a.depth else side
    temporaries = [2 * a.channels(0) * tile**2]
    for level in reversed(range(a.depth)):
        side = 2 * side
        temporaries.append(sum(skips[: level + 1]) + 5 * a.channels(level) * side**2)
        side -= 4
    weights = 32 * a.channels(a.depth) ** 2
    return bytes_per_value * (max(temporaries) + weights)


def _convolved(footprint: Footprint) -> list[bool]:
    """Whether the network convolves along each axis; leading axes of a stack are predicted section by section."""
    return [axis != AxisFootprint() for axis in footprint.axes]


def _metadata_files(zarr_format: int) -> int:
    return 2 if zarr_format == 3 else 4  # zarr.json of group and array; .zgroup, .zattrs, 0/.zarray, 0/.zattrs


def _shard_shapes(shape: tuple[int, ...], chunks: tuple[int, ...], footprint: Footprint) -> Iterator[tuple[int, ...]]:
    """Shard shapes to try: first wider in plane, then over more sections, starting with the widest."""
    convolved = _convolved(footprint)
    planes = [
        tuple(
            min(chunk * side, ceil_to(n, chunk)) if is_convolved else chunk
            for n, chunk, is_convolved in zip(shape, chunks, convolved, strict=True)
        )
        for side in SHARD_SIDES
    ]
    yield from planes
    for shards in reversed(planes):
        grown = list(shards)
        for axis in reversed([i for i, is_convolved in enumerate(convolved) if not is_convolved]):
            while grown[axis] < shape[axis]:
                grown[axis] = min(2 * grown[axis], shape[axis])
                yield tuple(grown)


def _pieces(shape: Sequence[int], piece: Sequence[int]) -> int:
    """Number of pieces that cover a shape."""
    return math.prod(-(-n // side) for n, side in zip(shape, piece, strict=True))


def _window_voxels(block: Sequence[int], footprint: Footprint) -> int:
    """Largest number of voxels that the tiles of a block of this shape read."""
    return math.prod(side + _margin(axis) for side, axis in zip(block, footprint.axes, strict=True))


def _margin(axis: AxisFootprint) -> int:
    """Most voxels read beyond a block along one axis: context, and rounding of tile origins to the alignment."""
    return 2 * (axis.context + axis.alignment - 1)


def _block_shape(
    source: Input,
    region: Box,
    footprint: Footprint,
    tile: tuple[int, ...],
    shards: tuple[int, ...],
    voxel_bytes: int,
    sizes: tuple[float, ...],
) -> tuple[int, ...]:
    convolved = _convolved(footprint)
    sections = math.prod(n for n, is_convolved in zip(shards, convolved, strict=True) if not is_convolved)
    limit = int((WINDOW_BYTES / voxel_bytes / sections) ** (1 / sum(convolved)))
    block = [
        _best_side(axis, side, shard, start, stop, min(limit - int(_margin(axis) * size), BLOCK_LIMIT), size)
        if is_convolved
        else shard
        for is_convolved, axis, side, shard, start, stop, size in zip(
            convolved, footprint.axes, tile, shards, region.start, region.stop, sizes, strict=True
        )
    ]
    room = WINDOW_BYTES // (_window_voxels(block, footprint) * voxel_bytes)
    for axis in reversed([i for i, is_convolved in enumerate(convolved) if not is_convolved]):
        # A chunk that is thick in z is decoded once per block, so a block takes as many sections as one chunk has.
        wanted = min(source.chunks[axis], region.shape[axis]) // shards[axis]
        times = max(1, min(wanted, room))
        block[axis] *= times
        room //= times
        if room <= 1:
            break
    return tuple(block)


def _best_side(axis: AxisFootprint, side: int, chunk: int, start: int, stop: int, limit: int, size: float = 1.0) -> int:
    """Block side, a multiple of the chunk, with the least input along the axis; the largest one of equals.

    The network sees voxels whose side is ``size`` voxels of the volume.
    """
    limit = max(chunk, min(limit, ceil_to(stop - start, chunk)))
    first, end = math.floor(start / size), math.ceil(stop / size)

    def cost(block: int) -> int:
        return input_voxels(axis, side, math.ceil(block / size), first, end)

    return max(range(chunk, limit + 1, chunk), key=lambda block: (-cost(block), block))


def input_voxels(axis: AxisFootprint, side: int, block: int, start: int, stop: int) -> int:
    """Input voxels of all tiles along one axis; ``side`` is that of a full tile, ``block`` that of a block."""
    whole, rest = divmod(stop - start, block)
    total = whole * _read(axis_spans(axis, side, start, start + block)) if whole else 0
    return total + (_read(axis_spans(axis, side, stop - rest, stop)) if rest else 0)


def _read(spans: Iterable[tuple[tuple[int, int], tuple[int, int]]]) -> int:
    return sum(stop - start for (start, stop), _ in spans)
