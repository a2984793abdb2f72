"""Grids of blocks, stages of blocks, and the plan of a prediction with its tiles."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.arrays import PerChannel, as_per_channel
from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import AxisFootprint, Box, Footprint, ceil_to, hull
from unetcli.core.records import changed, shown
from unetcli.core.rescaling import MOST, Rescaling
from unetcli.volumes.samples import same_data


@dataclass(frozen=True, slots=True)
class AxisBlocks:
    """Blocks along one axis; the first and the last may be cut. Nothing is stored per block, as there may be 10^7."""

    start: int
    stop: int
    side: int
    second: int
    """Start of the second block, if there is one."""
    count: int

    @classmethod
    def of(cls, start: int, stop: int, side: int, origin: int) -> AxisBlocks:
        """Place block edges on multiples of ``side`` from ``origin``; a range that fits one block is not divided.

        >>> [AxisBlocks.of(3, 22, 8, 1).edge(i) for i in range(4)], AxisBlocks.of(3, 8, 8, 1).count
        ([3, 9, 17, 22], 1)
        """
        second = stop if side >= stop - start else origin + ceil_to(start - origin + 1, side)
        return cls(start, stop, side, second, 1 + max(0, -(-(stop - second) // side)))

    def edge(self, index: int) -> int:
        """Start of block ``index``; for ``index == count``, the end of the last block."""
        return self.start if index == 0 else min(self.stop, self.second + (index - 1) * self.side)

    def index(self, place: int) -> int:
        """Index of the block that contains a voxel."""
        return 0 if place < self.second else 1 + (place - self.second) // self.side

    def equal_parts(self) -> list[tuple[slice, int]]:
        """Ranges of blocks with equal sides, and that side: the first block, those in between, and the last."""
        last = self.edge(self.count) - self.edge(self.count - 1)
        parts = [(slice(0, 1), self.edge(1) - self.start), (slice(1, -1), self.side), (slice(-1, None), last)]
        return parts[: self.count] if self.count < 2 else [parts[0], *parts[1:][self.count == 2 :]]


@dataclass(frozen=True)
class BlockGrid:
    """Blocks of equal sides that cover a region once, numbered in C order; blocks at the edges are cut.

    All sizes are in voxels, all axes in array order.
    """

    region: Box
    block_shape: tuple[int, ...]
    origin: tuple[int, ...] | None = None
    """Block edges lie on multiples of the block's sides from this voxel. Default: the start of the region."""

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
            The number is not in ``range(blocks)``.
        """
        if not 0 <= number < self.blocks:
            raise IndexError(f"block {number} of {self.blocks}")
        place, rest = [], number
        for n in reversed(self.shape):
            rest, index = divmod(rest, n)
            place.append(index)
        return tuple(reversed(place))

    def number(self, place: Sequence[int]) -> int | None:
        """Number of the block at a position of the grid; None outside the grid."""
        if not all(0 <= i < n for i, n in zip(place, self.shape, strict=True)):
            return None
        return int(np.ravel_multi_index(tuple(place), self.shape)) if place else 0

    def box(self, number: int) -> Box:
        """The voxels of a block."""
        places = list(zip(self.place(number), self.axes, strict=True))
        return Box(tuple(axis.edge(i) for i, axis in places), tuple(axis.edge(i + 1) for i, axis in places))

    def voxels(self, blocks: NDArray[np.bool_]) -> int:
        """Number of voxels of selected blocks.

        Only the first and the last block along an axis can be cut. At most 3 parts per axis are counted, instead of a
        size for each of 10^7 blocks.

        Parameters
        ----------
        blocks : (blocks,), bool
            True for each selected block.
        """
        picked, total = blocks.reshape(self.shape), 0
        for part in itertools.product(*(axis.equal_parts() for axis in self.axes)):
            slices, sides = zip(*part, strict=True) if part else ((), ())
            total += int(np.count_nonzero(picked[slices])) * math.prod(sides)
        return total

    def touching(self, box: Box) -> NDArray[np.intp]:
        """Numbers of the blocks that overlap a box, (n,), in ascending order."""
        ranges = [
            range(axis.index(a), axis.index(b - 1) + 1)
            for axis, a, b in zip(self.axes, box.start, box.stop, strict=True)
        ]
        places = np.array(list(itertools.product(*ranges)), np.intp)
        numbers = np.ravel_multi_index(tuple(places.reshape(-1, len(self.shape)).T), self.shape)
        return np.asarray(numbers, np.intp)


@dataclass(frozen=True, slots=True)
class Stage:
    """A range of blocks that depend on earlier stages, but not on each other."""

    name: str
    blocks: range


def stage_of(stages: Sequence[Stage], number: int) -> Stage:
    """The stage of a block.

    Raises
    ------
    IndexError
        No stage has a block of that number.
    """
    for stage in stages:
        if number in stage.blocks:
            return stage
    raise IndexError(f"block {number} of {stages[-1].blocks.stop}")


def in_range(numbers: NDArray[np.intp], blocks: range) -> NDArray[np.intp]:
    """The numbers, of an ascending array, that are in a range.

    >>> in_range(np.array([0, 3, 4, 9]), range(3, 9)).tolist()
    [3, 4]
    """
    start, stop = np.searchsorted(numbers, [blocks.start, blocks.stop])
    return numbers[start:stop]


def pending(stages: Sequence[Stage], missing: NDArray[np.intp]) -> NDArray[np.intp]:
    """Blocks that can be computed now: the missing ones of the first stage that is not finished.

    Parameters
    ----------
    stages : stages in the order in which they run
    missing : (n,), intp
        Numbers of the blocks that are not done, ascending.

    Returns
    -------
    (m,), intp
        Empty once nothing is missing.

    Examples
    --------
    >>> pending([Stage("find", range(3)), Stage("merge", range(3, 4))], np.array([1, 2, 3])).tolist()
    [1, 2]
    """
    parts = (in_range(missing, stage.blocks) for stage in stages)
    return next((part for part in parts if len(part)), missing[:0])


FORMAT = 3
"""Version of a plan's JSON format."""
LONGEST_SIDE = 2**40
"""Upper limit of the sides of volumes, tiles, chunks and blocks, in voxels."""
MOST_BLOCKS = 2**31
"""Upper limit of the blocks of a plan; the state of each takes 25 bytes of memory."""


def require_sides(axes: str, **shapes: tuple[int, ...]) -> None:
    """Raise :class:`UnetcliError` unless the axes are those of volumes and each shape has one side for each of them.

    Only a plan from a damaged file has others.
    """
    if not axes or len(set(axes)) < len(axes) or not set(axes) <= set("tzyx"):
        raise UnetcliError(f"axes are {shown(axes)}; expected some of t, z, y, x, each at most once")
    for name, shape in shapes.items():
        if len(shape) != len(axes) or not all(0 < side <= LONGEST_SIDE for side in shape):
            raise UnetcliError(f"{name} is {shown(shape)}; expected one positive side for each of the axes {axes}")


def require_few(blocks: int) -> None:
    """Raise :class:`UnetcliError` if a plan has too many blocks."""
    if blocks > MOST_BLOCKS:
        raise UnetcliError(
            f"{blocks} blocks; expected at most {MOST_BLOCKS}: larger blocks or shards, or smaller regions"
        )


@dataclass(frozen=True, slots=True)
class Tile:
    """One forward pass. Both boxes are in coordinates of the volume, or of the resampled volume if there is one."""

    read: Box
    """Input window; it is mirrored where it reaches outside the volume."""
    write: Box
    """Output voxels that this tile provides."""

    def crop(self, context: Sequence[int]) -> tuple[slice, ...]:
        """Slices of ``write`` in the network's output, which starts ``context`` voxels inside ``read``."""
        origin = tuple(start + c for start, c in zip(self.read.start, context, strict=True))
        return self.write.shifted(tuple(-o for o in origin)).slices


@dataclass(frozen=True, slots=True)
class Block:
    """Unit of writing, retry and resume; owns whole output chunks. Its box is in coordinates of the volume."""

    number: int
    box: Box


DTYPES = ("uint8", "float16", "float32")
ROTATIONS = (1, 4, 7, 8)
"""Numbers of turned copies of a tile that can be averaged; :mod:`unetcli.predict.turns` names them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Mean and standard deviation by which grey values are normalised for a model."""

    mean: PerChannel
    std: PerChannel

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, as_per_channel(getattr(self, name)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings other than geometry that affect the bytes of the result; frozen when a run is planned."""

    dtype: str
    """Data type of the output: uint8, float16 or float32."""
    outputs: int
    """Values stored per voxel: see :func:`stored_values`."""
    channel: int | None
    """The only input channel used, or None for all channels."""
    normalise: str
    """Source of ``mean`` and ``std``: model or volume."""
    mean: PerChannel
    std: PerChannel
    nonfinite: float | None
    """Replacement of NaN and infinity, or None: their block is set aside."""
    device: str
    """Kind of device: cpu, cuda, mps."""
    precision: str
    """Precision of the network: float32 or bfloat16."""
    threads: int
    """CPU threads of the network."""
    mask: str | None = None
    """Fingerprint of the cells that a mask selects, or None: there is no mask."""
    skip_below: float | None = None
    """Cells whose grey values are all below this are not computed. None: no cell is skipped."""
    invert: bool = False
    """Whether grey values x are replaced by s - x: ``mean`` is s minus the mean, and ``std`` is negative."""
    rotations: int = 1
    """Turned copies of each tile whose probabilities are averaged, one of ``ROTATIONS``; 1: the tile alone."""
    others: tuple[Statistics, ...] = ()
    """Statistics of further models whose probabilities are averaged with those of the first; ``mean`` and ``std`` are
    those of the first."""
    output_classes: bool = False
    """Whether the number of the most probable class is stored, as uint8, instead of probabilities."""
    rescale: tuple[float, ...] | None = None
    """Side of the voxels that the network sees along each axis, in voxels of the volume; None: it sees the volume."""

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, as_per_channel(getattr(self, name)))
        if self.dtype not in DTYPES or self.outputs < 1:
            raise UnetcliError(f"{self.outputs} outputs of {shown(self.dtype)}; expected 1 or more of {DTYPES}")
        if self.rotations not in ROTATIONS:
            raise UnetcliError(f"{shown(self.rotations)} rotations; expected one of {ROTATIONS}")
        if self.output_classes and (self.dtype, self.outputs) != ("uint8", 1):
            raise UnetcliError(f"{self.outputs} outputs of {self.dtype} with --output-classes; expected one of uint8")
        if not all(1 / MOST <= size <= MOST for size in self.rescale or ()):
            raise UnetcliError(f"voxels rescaled by {shown(self.rescale)}; expected factors from 1/{MOST} to {MOST}")

    @property
    def passes(self) -> int:
        """Forward passes of each tile."""
        return self.rotations * self.models

    @property
    def models(self) -> int:
        """Number of models whose probabilities are averaged."""
        return 1 + len(self.others)

    @property
    def statistics(self) -> tuple[Statistics, ...]:
        """Statistics of each model."""
        return (Statistics(mean=self.mean, std=self.std), *self.others)

    @property
    def averaged(self) -> str:
        """Describe what is averaged; empty if each tile has a single pass."""
        copies = f"{self.rotations} turned copies" if self.rotations > 1 else ""
        models = f"{self.models} models" if self.models > 1 else ""
        return f"mean of {' by '.join(filter(None, (copies, models)))}" if copies or models else ""


def stored_values(classes: int, *, output_classes: bool = False) -> int:
    """Values stored per voxel: the foreground's probability if there are two classes, else one per class.

    >>> stored_values(2), stored_values(3), stored_values(3, output_classes=True)
    (1, 3, 1)
    """
    return 1 if output_classes or classes == 2 else classes


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """Path and SHA-256 of a model file at the time of planning."""

    path: str
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Paths and fingerprints of volume and model at the time of planning."""

    volume: str
    volume_fingerprint: str
    model: str
    model_fingerprint: str
    others: tuple[ModelSource, ...] = ()
    """Further models, in the order of ``Settings.others``."""

    @property
    def models(self) -> tuple[ModelSource, ...]:
        """All models."""
        return (ModelSource(path=self.model, fingerprint=self.model_fingerprint), *self.others)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Blocks that cover a region of a volume once; block edges lie on edges of output chunks.

    Sizes are in voxels, axes in array order, without the channel axis. The output starts where the region starts. With
    ``settings.rescale`` the network sees a resampled volume, whose grid is fixed to the volume: tiles are boxes of that
    grid, and blocks are boxes of the volume, to which the probabilities are mapped back.

    Raises
    ------
    UnetcliError
        The tile is not usable, the region is empty or outside the volume, or blocks, shards and chunks do not fit.
    """

    axes: str
    extent: tuple[int, ...]
    """Shape of the volume; reads are mirrored at its edges."""
    region: Box
    """The part that is predicted."""
    footprint: Footprint
    tile: tuple[int, ...]
    """Input shape of the largest forward pass; the last tiles of a block may be smaller."""
    chunks: tuple[int, ...]
    """Chunk shape of the output, also inside shards."""
    write_chunks: tuple[int, ...]
    """Smallest region of the output that is written as a unit: a shard if the output has shards, else a chunk."""
    block_shape: tuple[int, ...]
    zarr_format: int
    """3 (OME-Zarr 0.5) or 2 (OME-Zarr 0.4, without shards)."""
    levels: int = 1
    """Resolution levels of the output, including full resolution."""
    settings: Settings
    sources: Sources

    def __post_init__(self) -> None:
        require_sides(
            self.axes,
            extent=self.extent,
            tile=self.tile,
            chunks=self.chunks,
            write_chunks=self.write_chunks,
            block_shape=self.block_shape,
        )
        self.footprint.require_usable(self.tile)
        self._require_storable()
        if len(self.settings.rescale or self.axes) != len(self.axes):
            raise UnetcliError(f"{len(self.settings.rescale or ())} factors of the voxels; expected one for each axis")
        if self.region.size == 0 or self.region.clipped(Box.of_shape(self.extent)) != self.region:
            raise UnetcliError(f"region {_show(self.region)} is empty or not inside the volume {_show(self.extent)}")
        for axis, block, chunk in zip(self.axes, self.block_shape, self.write_chunks, strict=True):
            if block % chunk:
                raise UnetcliError(
                    f"block of {block} along {axis} is not a multiple of the output chunk {chunk}; "
                    f"{math.ceil(block / chunk) * chunk} would work"
                )
        require_few(self.blocks)

    def _require_storable(self) -> None:
        if self.zarr_format not in (2, 3):
            raise UnetcliError(f"--zarr-format {self.zarr_format}: expected 3 (OME-Zarr 0.5) or 2 (OME-Zarr 0.4)")
        if self.sharded and self.zarr_format == 2:
            raise UnetcliError("Zarr 2 has no shards; use --zarr-format 3, or raise --max-files")
        if any(shard % chunk for shard, chunk in zip(self.write_chunks, self.chunks, strict=True)):
            raise UnetcliError(f"shards {_show(self.write_chunks)} are not multiples of chunks {_show(self.chunks)}")

    @property
    def sharded(self) -> bool:
        """Whether several chunks share a file."""
        return self.write_chunks != self.chunks

    @functools.cached_property
    def grid(self) -> BlockGrid:
        """Grid of the blocks, in coordinates of the volume."""
        return BlockGrid(self.region, self.block_shape)

    @property
    def blocks(self) -> int:
        """Number of blocks at full resolution."""
        return self.grid.blocks

    def block(self, number: int) -> Block:
        """Block ``number`` of ``range(plan.blocks)``, in C order."""
        return Block(number, self.grid.box(number))

    def output_box(self, block: Block) -> Box:
        """Box of a block in coordinates of the output."""
        return block.box.relative_to(self.region)

    @functools.cached_property
    def rescaling(self) -> Rescaling:
        """The grids of the volume and of what the network sees, which are the same without ``settings.rescale``."""
        return Rescaling(self.extent, self.settings.rescale or (1.0,) * len(self.axes))

    @property
    def resampled_text(self) -> str:
        """Extent of what the network sees of the volume, for the user."""
        seen = zip(self.axes, self.rescaling.resampled, strict=True)
        return ", ".join(f"{axis} {n}" for axis, n in seen if axis in "yx")

    def tiles(self, block: Block) -> Iterator[Tile]:
        """The forward passes of a block, in C order; their ``write`` boxes cover once what the block needs."""
        seen = self.rescaling.needed(block.box)
        spans = [
            list(axis_spans(axis, side, start, stop))
            for axis, side, start, stop in zip(self.footprint.axes, self.tile, seen.start, seen.stop, strict=True)
        ]
        for combination in itertools.product(*spans):
            read, write = zip(*combination, strict=True)
            yield Tile(_box(read), _box(write))

    def window(self, block: Block) -> Box:
        """Bounding box of the input of all tiles of a block; may reach outside the volume."""
        return hull([tile.read for tile in self.tiles(block)])


def axis_spans(
    axis: AxisFootprint, side: int, start: int, stop: int
) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Tiles along one axis whose outputs cover ``start..stop`` once.

    Output origins are multiples of the alignment, counted from the volume's origin, because max-pooling is
    shift-equivariant only by its stride (see :meth:`AxisFootprint.step`). The last tile has the smallest valid side
    that covers the rest.

    Parameters
    ----------
    axis : AxisFootprint
    side : voxels
        Input side of a full tile.
    start, stop : voxels
        Half-open range of output voxels.

    Yields
    ------
    (read start, read stop), (write start, write stop) : voxels
        In coordinates of the volume; reads may reach outside it.
    """
    origin = start // axis.alignment * axis.alignment
    while origin < stop:
        last = stop - origin <= axis.output(side)
        used = axis.side_for(stop - origin) if last else side
        end = stop if last else origin + axis.step(side)
        yield (origin - axis.context, origin - axis.context + used), (max(origin, start), end)
        origin = end


def differences(old: Plan, new: Plan) -> list[str]:
    """Phrases that name what two plans do differently.

    Levels are ignored, and of volume and model only the contents are compared, not the paths.
    """
    found = {name: f"{name} {_show(now)} (was {_show(before)})" for name, before, now in changed(old, new)}
    named = [
        name for name in ("extent", "region", "footprint", "zarr_format", "write_chunks", "chunks") if name in found
    ]
    if "write_chunks" in named:
        named = [name for name in named if name != "chunks"]  # follows from write_chunks
    phrases = [found[name] for name in named]
    if "tile" in found:
        phrases.append(f"tile {new.tile[-1]} (was {old.tile[-1]})")
    elif not phrases and "block_shape" in found:  # same tile: another version, or other input chunks
        phrases.append(found["block_shape"])
    settings = replace(new.settings, others=old.settings.others)  # these follow from the models
    phrases += [f"{name} {now} (was {before})" for name, before, now in changed(old.settings, settings)]
    if not same_data(old.sources.volume_fingerprint, new.sources.volume_fingerprint):
        phrases.append(f"volume {new.sources.volume} (was {old.sources.volume}, or other data)")
    return phrases + _model_differences(old, new)


def _model_differences(old: Plan, new: Plan) -> list[str]:
    """Phrases about models whose number, order or content differs."""
    if old.settings.models != new.settings.models:
        return [f"{new.settings.models} models (was {old.settings.models})"]
    pairs = [*zip(old.sources.models, new.sources.models, strict=False)]
    phrases = [
        f"model {now.path} (was {before.path}, or other data)"
        for before, now in pairs
        if not same_data(before.fingerprint, now.fingerprint)
    ]
    if not phrases and old.settings.others != new.settings.others:
        phrases.append("other statistics of the models")
    return phrases


def _box(sides: Sequence[tuple[int, int]]) -> Box:
    return Box(tuple(a for a, _ in sides), tuple(b for _, b in sides))


def _show(value: Any) -> str:
    if isinstance(value, Box):
        return ",".join(f"{a}:{b}" for a, b in zip(value.start, value.stop, strict=True))
    if isinstance(value, Footprint):
        return f"with context {value.context}"
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
