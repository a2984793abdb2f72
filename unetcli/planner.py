"""Chooses tile and block so that memory fits and the least work is wasted. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from unetcli.architecture import Architecture
from unetcli.footprint import AxisFootprint, Footprint
from unetcli.geometry import Box, ceil_to
from unetcli.plan import Choices, Plan, Sources, axis_spans

CHUNK = 512
"""In-plane side of an output chunk."""
CPU_TILE = 700
"""Largest tile chosen by itself on a CPU."""
GPU_TILE = 2236
"""Largest tile chosen by itself on a GPU: gives 2052, so that context is an eighth of what is read."""
BLOCK_LIMIT = 4096
"""Largest in-plane block side: a block is what a killed worker loses."""
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
    source: Input, region: Box, architecture: Architecture, tile: int, choices: Choices, sources: Sources
) -> Plan:
    """The plan for one region; ``tile`` is the input side along the axes that the network sees."""
    network = architecture.footprint()
    seen = len(network.axes)
    footprint = network.lifted(len(source.axes))
    shape = (1,) * (len(source.axes) - seen) + (tile,) * seen
    footprint.require_usable(shape)
    chunks = output_chunks(region.shape, seen)
    return Plan(
        axes=source.axes,
        extent=source.extent,
        region=region,
        footprint=footprint,
        tile=shape,
        write_chunks=chunks,
        block_shape=_block_shape(source, region, footprint, shape, chunks, choices.outputs * ITEM_BYTES[choices.dtype]),
        choices=choices,
        sources=sources,
    )


def output_chunks(shape: Sequence[int], seen: int) -> tuple[int, ...]:
    """Output chunks: one section, ``CHUNK`` in plane, never larger than the output."""
    leading = len(shape) - seen
    return (1,) * leading + tuple(min(CHUNK, n) for n in shape[leading:])


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


def _block_shape(
    source: Input,
    region: Box,
    footprint: Footprint,
    tile: tuple[int, ...],
    chunks: tuple[int, ...],
    output_bytes: int,
) -> tuple[int, ...]:
    seen = [axis != AxisFootprint() for axis in footprint.axes]
    limit = int((WINDOW_BYTES / max(source.bytes_per_voxel, output_bytes)) ** (1 / sum(seen)))
    plane = [
        _least_wasteful(axis, side, chunk, start, stop, min(limit, BLOCK_LIMIT)) if is_seen else 1
        for is_seen, axis, side, chunk, start, stop in zip(
            seen, footprint.axes, tile, chunks, region.start, region.stop, strict=True
        )
    ]
    window = math.prod(b + 2 * axis.context for b, axis in zip(plane, footprint.axes, strict=True))
    sections = max(1, WINDOW_BYTES // (window * max(source.bytes_per_voxel, output_bytes)))
    for place in reversed([i for i, is_seen in enumerate(seen) if not is_seen]):
        # Input chunks thick in z are decoded once per block: take as many sections as one chunk holds.
        plane[place] = min(source.chunks[place], sections, region.shape[place])
        sections //= plane[place]
        if sections <= 1:
            break
    return tuple(plane)


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
