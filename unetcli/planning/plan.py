"""Which voxels are computed by whom: grids of blocks, stages, and the plan of a prediction with its tiles."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.arrays import PerChannel, as_per_channel
from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import AxisFootprint, Box, Footprint, ceil_to, hull
from unetcli.core.records import changed
from unetcli.volumes.volume import same_data


@dataclass(frozen=True, slots=True)
class AxisBlocks:
    """Blocks along one axis. Those at the ends may be cut; nothing is stored for each of 10^7 blocks."""

    start: int
    stop: int
    side: int
    inner: int
    """Where the second block begins, if there is one."""
    count: int

    @classmethod
    def of(cls, start: int, stop: int, side: int, origin: int) -> AxisBlocks:
        """Edges on multiples of the side, counted from ``origin``; a block that could hold everything is not cut.

        >>> [AxisBlocks.of(3, 22, 8, 1).edge(i) for i in range(4)], AxisBlocks.of(3, 8, 8, 1).count
        ([3, 9, 17, 22], 1)
        """
        inner = stop if side >= stop - start else origin + ceil_to(start - origin + 1, side)
        return cls(start, stop, side, inner, 1 + max(0, -(-(stop - inner) // side)))

    def edge(self, index: int) -> int:
        """Where a block begins; for the number of blocks, where the last one ends."""
        return self.start if index == 0 else min(self.stop, self.inner + (index - 1) * self.side)

    def index(self, place: int) -> int:
        """The block that holds a voxel."""
        return 0 if place < self.inner else 1 + (place - self.inner) // self.side

    def equal_parts(self) -> list[tuple[slice, int]]:
        """Ranges of blocks of equal sides, and these: the first block, those amid, and the last."""
        last = self.edge(self.count) - self.edge(self.count - 1)
        parts = [(slice(0, 1), self.edge(1) - self.start), (slice(1, -1), self.side), (slice(-1, None), last)]
        return parts[: self.count] if self.count < 2 else [parts[0], *parts[1:][self.count == 2 :]]


@dataclass(frozen=True)
class BlockGrid:
    """Blocks of equal sides that cover a region once, numbered in C order; those at the edges are cut.

    All sizes in voxels, axes in array order.
    """

    region: Box
    block_shape: tuple[int, ...]
    origin: tuple[int, ...] | None = None
    """Block edges lie on multiples of the sides, counted from here. Default: from the start of the region."""

    @functools.cached_property
    def axes(self) -> tuple[AxisBlocks, ...]:
        """The blocks along each axis."""
        origin = self.region.start if self.origin is None else self.origin
        sides = zip(self.region.start, self.region.stop, self.block_shape, origin, strict=True)
        return tuple(AxisBlocks.of(*values) for values in sides)

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """Number of blocks along each axis."""
        return tuple(axis.count for axis in self.axes)

    @functools.cached_property
    def blocks(self) -> int:
        return math.prod(self.shape)

    def place(self, number: int) -> tuple[int, ...]:
        """Position of a block in the grid.

        Raises
        ------
        IndexError
            There is no block of that number.
        """
        if not 0 <= number < self.blocks:
            raise IndexError(f"block {number} of {self.blocks}")
        place, rest = [], number
        for n in reversed(self.shape):
            rest, index = divmod(rest, n)
            place.append(index)
        return tuple(reversed(place))

    def number(self, place: Sequence[int]) -> int | None:
        """The block at a position of the grid; None outside."""
        if not all(0 <= i < n for i, n in zip(place, self.shape, strict=True)):
            return None
        return int(np.ravel_multi_index(tuple(place), self.shape)) if place else 0

    def box(self, number: int) -> Box:
        """The voxels of a block."""
        places = list(zip(self.place(number), self.axes, strict=True))
        return Box(tuple(axis.edge(i) for i, axis in places), tuple(axis.edge(i + 1) for i, axis in places))

    def voxels(self, blocks: NDArray[np.bool_]) -> int:
        """Voxels of the blocks that a mask over ``range(blocks)`` picks.

        Only the first and the last block along an axis can be cut, so that at most 3 parts an axis are counted and no
        size is computed for each of 10^7 blocks.
        """
        picked, total = blocks.reshape(self.shape), 0
        for part in itertools.product(*(axis.equal_parts() for axis in self.axes)):
            slices, sides = zip(*part, strict=True) if part else ((), ())
            total += int(np.count_nonzero(picked[slices])) * math.prod(sides)
        return total

    def touching(self, box: Box) -> NDArray[np.intp]:
        """Numbers of the blocks that share voxels with a box, rising."""
        ranges = [
            range(axis.index(a), axis.index(b - 1) + 1)
            for axis, a, b in zip(self.axes, box.start, box.stop, strict=True)
        ]
        places = np.array(list(itertools.product(*ranges)), np.intp)
        numbers = np.ravel_multi_index(tuple(places.reshape(-1, len(self.shape)).T), self.shape)
        return np.asarray(numbers, np.intp)


@dataclass(frozen=True, slots=True)
class Stage:
    """A range of blocks that needs the stages before it, and nothing of each other."""

    name: str
    blocks: range


def stage_of(stages: Sequence[Stage], number: int) -> Stage:
    """The stage of a block.

    Raises
    ------
    IndexError
        There is no block of that number.
    """
    for stage in stages:
        if number in stage.blocks:
            return stage
    raise IndexError(f"block {number} of {stages[-1].blocks.stop}")


def within(numbers: NDArray[np.intp], blocks: range) -> NDArray[np.intp]:
    """Those of rising numbers that are in a range.

    >>> within(np.array([0, 3, 4, 9]), range(3, 9)).tolist()
    [3, 4]
    """
    start, stop = np.searchsorted(numbers, [blocks.start, blocks.stop])
    return numbers[start:stop]


def pending(stages: Sequence[Stage], missing: NDArray[np.intp]) -> NDArray[np.intp]:
    """Missing blocks of the first stage that has some: what can be worked off now. Empty once nothing is missing.

    >>> pending([Stage("find", range(3)), Stage("merge", range(3, 4))], np.array([1, 2, 3])).tolist()
    [1, 2]
    """
    parts = (within(missing, stage.blocks) for stage in stages)
    return next((part for part in parts if len(part)), missing[:0])


FORMAT = 3
"""Version of a plan's JSON."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One forward pass. Both boxes in coordinates of the volume."""

    read: Box
    """Input window; may reach outside the volume, where it is mirrored."""
    write: Box
    """The voxels of the result that this tile gives."""

    def crop(self, context: Sequence[int]) -> tuple[slice, ...]:
        """Where ``write`` lies in the network's output, which starts ``context`` inside ``read``."""
        origin = tuple(start + c for start, c in zip(self.read.start, context, strict=True))
        return self.write.shifted(tuple(-o for o in origin)).slices


@dataclass(frozen=True, slots=True)
class Block:
    """The owner of whole output chunks: unit of writing, retry and resume. Its box is in coordinates of the volume."""

    number: int
    box: Box


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings beside geometry that affect the bytes of the result; frozen when a run is planned."""

    dtype: str
    """Of the output: uint8, float16 or float32."""
    outputs: int
    """Probabilities stored per voxel: 1 for two classes (the foreground's), else one per class."""
    channel: int | None
    """The one input channel used, or None for all of them."""
    normalise: str
    mean: PerChannel
    std: PerChannel
    nonfinite: float | None
    """What stands in for NaN and infinity, or None: their block is set aside."""
    device: str
    """Kind of device: cpu, cuda, mps."""
    precision: str
    threads: int
    mask: str | None = None
    """Fingerprint of what a mask leaves to be computed, or None: everything."""
    skip_below: float | None = None
    """Cells in which every value is below it are not computed; None: all are."""

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, as_per_channel(getattr(self, name)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What is read: where it was when planned, and what it was."""

    volume: str
    volume_fingerprint: str
    model: str
    model_fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Blocks that cover a region of a volume once; block edges lie on edges of output chunks.

    Sizes in voxels; axes in array order, without the channel axis. The output starts where the region starts.
    """

    axes: str
    extent: tuple[int, ...]
    """Shape of the volume read: where mirroring begins."""
    region: Box
    """The part that is predicted."""
    footprint: Footprint
    tile: tuple[int, ...]
    """Input shape of the largest forward pass; the last tiles of a block are smaller where less is left."""
    chunks: tuple[int, ...]
    """Of the output; where it has shards, the chunks inside them."""
    write_chunks: tuple[int, ...]
    """Smallest region of the output written as a unit: shards where it has them, else chunks."""
    block_shape: tuple[int, ...]
    zarr_format: int
    """3 (OME-Zarr 0.5) or 2 (OME-Zarr 0.4, without shards)."""
    levels: int = 1
    """Resolution levels of the output."""
    settings: Settings
    sources: Sources

    def __post_init__(self) -> None:
        self.footprint.require_usable(self.tile)
        self._require_storable()
        if self.region.size == 0 or self.region.clipped(Box.of_shape(self.extent)) != self.region:
            raise UnetcliError(f"region {self.region} is empty or not inside the volume {self.extent}")
        for axis, block, chunk in zip(self.axes, self.block_shape, self.write_chunks, strict=True):
            if block % chunk:
                raise UnetcliError(
                    f"block of {block} along {axis} is no multiple of the output chunk {chunk}; "
                    f"{math.ceil(block / chunk) * chunk} would be"
                )

    def _require_storable(self) -> None:
        if self.zarr_format not in (2, 3):
            raise UnetcliError(f"--zarr-format {self.zarr_format}: expected 3 (OME-Zarr 0.5) or 2 (OME-Zarr 0.4)")
        if self.sharded and self.zarr_format == 2:
            raise UnetcliError("Zarr 2 has no shards; --zarr-format 3 has, a higher --max-files does without")
        if any(shard % chunk for shard, chunk in zip(self.write_chunks, self.chunks, strict=True)):
            raise UnetcliError(f"shards of {_show(self.write_chunks)} hold no whole chunks of {_show(self.chunks)}")

    @property
    def sharded(self) -> bool:
        """Whether several chunks share a file."""
        return self.write_chunks != self.chunks

    @functools.cached_property
    def grid(self) -> BlockGrid:
        """The blocks, in coordinates of the volume."""
        return BlockGrid(self.region, self.block_shape)

    @property
    def blocks(self) -> int:
        """Number of blocks at full resolution."""
        return self.grid.blocks

    def block(self, number: int) -> Block:
        """Block ``number`` of ``range(plan.blocks)``, counted in C order."""
        return Block(number, self.grid.box(number))

    def output_box(self, block: Block) -> Box:
        """The block in coordinates of the output."""
        return block.box.relative_to(self.region)

    def tiles(self, block: Block) -> Iterator[Tile]:
        """The forward passes of a block, in C order; their ``write`` boxes cover it once."""
        spans = [
            list(axis_spans(axis, side, start, stop))
            for axis, side, start, stop in zip(
                self.footprint.axes, self.tile, block.box.start, block.box.stop, strict=True
            )
        ]
        for combination in itertools.product(*spans):
            read, write = zip(*combination, strict=True)
            yield Tile(_box(read), _box(write))

    def window(self, block: Block) -> Box:
        """All that the tiles of a block read."""
        return hull([tile.read for tile in self.tiles(block)])


def axis_spans(
    axis: AxisFootprint, side: int, start: int, stop: int
) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Tiles along one axis that give ``start..stop``: pairs of (read start, stop) and (write start, stop).

    Tiles start on multiples of the alignment from the volume's origin (see :meth:`AxisFootprint.step`); the last
    is cut to the smallest side that gives what is left.
    """
    origin = start // axis.alignment * axis.alignment
    while origin < stop:
        last = stop - origin <= axis.output(side)
        used = axis.side_for(stop - origin) if last else side
        end = stop if last else origin + axis.step(side)
        yield (origin - axis.context, origin - axis.context + used), (max(origin, start), end)
        origin = end


def differences(old: Plan, new: Plan) -> list[str]:
    """What two plans do differently, a phrase each; levels and paths do not count, only what paths led to."""
    found = {name: f"{name} {_show(now)} (was {_show(before)})" for name, before, now in changed(old, new)}
    named = [
        name for name in ("extent", "region", "footprint", "zarr_format", "write_chunks", "chunks") if name in found
    ]
    if "write_chunks" in named:
        named = [name for name in named if name != "chunks"]  # else the same is said twice
    phrases = [found[name] for name in named]
    if "tile" in found:
        phrases.append(f"tile {new.tile[-1]} (was {old.tile[-1]})")
    elif not phrases and "block_shape" in found:  # of the same tile: another unetcli, or other input chunks
        phrases.append(found["block_shape"])
    phrases += [f"{name} {now} (was {before})" for name, before, now in changed(old.settings, new.settings)]
    for source in ("volume", "model"):
        if not same_data(*(getattr(plan.sources, f"{source}_fingerprint") for plan in (old, new))):
            path, before = (getattr(plan.sources, source) for plan in (new, old))
            phrases.append(f"{source} {path} (was {before}, or other data)")
    return phrases


def _box(sides: Sequence[tuple[int, int]]) -> Box:
    return Box(tuple(a for a, _ in sides), tuple(b for _, b in sides))


def _show(value: Any) -> str:
    if isinstance(value, Box):
        return ",".join(f"{a}:{b}" for a, b in zip(value.start, value.stop, strict=True))
    if isinstance(value, Footprint):
        return f"of context {value.context}"
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
