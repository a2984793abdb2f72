"""Blocks that build the coarser resolution levels of an output: integers that follow from shape, chunks and levels."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Box, ceil_to
from unetcli.planning.plan import BlockGrid, Plan
from unetcli.planning.planner import CHUNK

PLANE = "yx"
"""Axes that are halved from level to level."""
BLOCK_VOXELS = 2**30
"""Approximate limit of the voxels that a block reads; a killed worker loses at most the block it works on."""
BLOCK_CHUNKS = 16
"""Chunks (shards) that a block may read whatever their size, so that it builds at least two levels."""
SMALL_VOXELS = 2**27
"""Blocks with fewer voxels take several sections."""


def auto_levels(shape: tuple[int, ...], axes: str) -> int:
    """Number of levels, including full resolution, until a plane fits one chunk.

    >>> auto_levels((9, 2000, 1025), "zyx"), auto_levels((9, 512, 1), "zyx")
    (3, 1)
    """
    largest = max(n for n, axis in zip(shape, axes, strict=True) if axis in PLANE)
    return 1 + max(0, math.ceil(math.log2(largest / CHUNK)))


def max_levels(shape: tuple[int, ...], axes: str) -> int:
    """Number of levels, including full resolution, until a plane has one voxel.

    >>> max_levels((9, 5, 1), "zyx")
    4
    """
    return 1 + max(n - 1 for n, axis in zip(shape, axes, strict=True) if axis in PLANE).bit_length()


@dataclass(frozen=True, slots=True)
class PyramidBlock:
    """Whole chunks of the levels ``base + 1`` to ``top``, computed from level ``base``."""

    number: int
    base: int
    top: int
    box: Box
    """Region that is read, in voxels of level ``base``."""


@dataclass(frozen=True)
class LevelStage:
    """Blocks that compute the levels ``base + 1`` to ``top`` from level ``base``."""

    base: int
    top: int
    grid: BlockGrid
    """Grid of the blocks, in voxels of level ``base``."""
    blocks: range
    """Numbers of the blocks."""


@dataclass(frozen=True, kw_only=True)
class PyramidPlan:
    """Coarser levels of an output, each half as wide and high as the previous one; block edges lie on chunk edges.

    Sizes are in voxels, without the channel axis, in the order of ``axes``. Level 0 is the output itself.

    Raises
    ------
    UnetcliError
        The number of levels is not between 1 and :func:`max_levels`.
    """

    axes: str
    shape: tuple[int, ...]
    """Shape of level 0."""
    chunks: tuple[int, ...]
    write_chunks: tuple[int, ...]
    """Shards if the output has any, else chunks."""
    outputs: int
    """Channels of the output."""
    levels: int
    """Number of levels, including full resolution."""

    def __post_init__(self) -> None:
        most = max_levels(self.shape, self.axes)
        if not 1 <= self.levels <= most:
            raise UnetcliError(f"--levels {self.levels}: expected 1 to {most} (one voxel wide), or auto")

    @functools.cached_property
    def stages(self) -> tuple[LevelStage, ...]:
        """Stages, which run one after the other; the blocks of a stage may run in any order and in parallel."""
        stages: list[LevelStage] = []
        base, first = 0, 0
        while base < self.levels - 1:
            top = base + 1
            while top < self.levels - 1 and self._voxels(self._block_shape(base, top + 1)) <= self._limit:
                top += 1
            shape = self._thickened(base, self._block_shape(base, top))
            grid = BlockGrid(Box.of_shape(self.shape_of(base)), shape)
            stages.append(LevelStage(base, top, grid, range(first, first + grid.blocks)))
            base, first = top, stages[-1].blocks.stop
        return tuple(stages)

    @property
    def blocks(self) -> int:
        """Number of blocks of all stages; numbering continues from stage to stage."""
        return self.stages[-1].blocks.stop if self.stages else 0

    @property
    def files(self) -> int:
        """Number of chunk (shard) files of all coarser levels, if no chunk is all zero."""
        pieces = (
            math.prod(math.ceil(n / w) for n, w in zip(self.shape_of(level), self.write_chunks_of(level), strict=True))
            for level in range(1, self.levels)
        )
        return self.outputs * sum(pieces)

    def voxels(self, blocks: NDArray[np.bool_]) -> int:
        """Number of voxels that selected blocks read; ``blocks`` is a mask over ``range(self.blocks)``."""
        return sum(stage.grid.voxels(blocks[stage.blocks.start : stage.blocks.stop]) for stage in self.stages)

    def block(self, number: int) -> PyramidBlock:
        """Block ``number`` of ``range(blocks)``."""
        stage = next((stage for stage in self.stages if number in stage.blocks), None)
        if stage is None:
            raise IndexError(f"block {number} of {self.blocks}")
        return PyramidBlock(number, stage.base, stage.top, stage.grid.box(number - stage.blocks.start))

    def dependents(self, box: Box) -> Iterator[int]:
        """Numbers of the blocks that depend on any voxel of a box of level 0."""
        for stage in self.stages:
            yield from (stage.blocks.start + int(n) for n in stage.grid.touching(self.coarser(box, stage.base)))

    def pieces(self, block: PyramidBlock) -> Iterator[tuple[int, Box]]:
        """Chunks (shards) that a block writes, level by level: (level, box in voxels of that level)."""
        for level in range(block.base + 1, block.top + 1):
            region = self.coarser(block.box, level - block.base)
            for box in split(region, self.write_chunks_of(level)):
                yield level, box

    def parts(self, level: int, piece: Box) -> Iterator[tuple[Box, Box]]:
        """Parts of a piece whose input is about one chunk (shard): (part, its input in voxels of ``level - 1``)."""
        sides = tuple(
            math.ceil(side / 2) if axis in PLANE else side
            for side, axis in zip(self.write_chunks_of(level - 1), self.axes, strict=True)
        )
        whole = Box.of_shape(self.shape_of(level - 1))
        for part in split(piece, sides):
            yield part, Box(self._times(part.start, 2), self._times(part.stop, 2)).clipped(whole)

    def coarser(self, box: Box, steps: int) -> Box:
        """The box in voxels of a level that is ``steps`` coarser, rounded outwards."""
        stop = tuple(
            math.ceil(b / 2**steps) if axis in PLANE else b for b, axis in zip(box.stop, self.axes, strict=True)
        )
        start = tuple(a // 2**steps if axis in PLANE else a for a, axis in zip(box.start, self.axes, strict=True))
        return Box(start, stop)

    def shape_of(self, level: int) -> tuple[int, ...]:
        """Shape of a level."""
        return self.coarser(Box.of_shape(self.shape), level).stop

    def chunks_of(self, level: int) -> tuple[int, ...]:
        """Chunk shape of a level; never larger than the level."""
        return tuple(map(min, self.chunks, self.shape_of(level)))

    def write_chunks_of(self, level: int) -> tuple[int, ...]:
        """Shard shape of a level, or its chunk shape if there are no shards."""
        triples = zip(self.write_chunks, self.shape_of(level), self.chunks_of(level), strict=True)
        return tuple(min(side, ceil_to(n, chunk)) for side, n, chunk in triples)

    def factors(self, level: int) -> dict[str, int]:
        """Downsampling factor of a level for each axis that is halved; an axis of one voxel is not halved further."""
        return {
            axis: 2 ** min(level, (n - 1).bit_length())
            for axis, n in zip(self.axes, self.shape, strict=True)
            if axis in PLANE
        }

    @property
    def _limit(self) -> int:
        return max(BLOCK_VOXELS, BLOCK_CHUNKS * self._voxels(self.write_chunks))

    def _voxels(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape) * self.outputs

    def _block_shape(self, base: int, top: int) -> tuple[int, ...]:
        """Region of level ``base`` under one chunk (shard) of level ``top``; the whole axis if that has one chunk."""
        quads = zip(self.axes, self.shape_of(base), self.shape_of(top), self.write_chunks_of(top), strict=True)
        return tuple(
            side if axis not in PLANE else n if side >= up else side * 2 ** (top - base) for axis, n, up, side in quads
        )

    def _thickened(self, base: int, block: tuple[int, ...]) -> tuple[int, ...]:
        """The block shape with more sections, as long as the block stays below ``SMALL_VOXELS``."""
        shape, grown = self.shape_of(base), list(block)
        for index in reversed([i for i, axis in enumerate(self.axes) if axis not in PLANE]):
            while grown[index] < shape[index] and 2 * self._voxels(tuple(grown)) <= SMALL_VOXELS:
                grown[index] *= 2
        return tuple(grown)

    def _times(self, point: tuple[int, ...], factor: int) -> tuple[int, ...]:
        return tuple(v * factor if axis in PLANE else v for v, axis in zip(point, self.axes, strict=True))


def pyramid_of(plan: Plan) -> PyramidPlan:
    """Plan of the coarser levels of a prediction."""
    return PyramidPlan(
        axes=plan.axes,
        shape=plan.region.shape,
        chunks=plan.chunks,
        write_chunks=plan.write_chunks,
        outputs=plan.settings.outputs,
        levels=plan.levels,
    )


def split(box: Box, sides: tuple[int, ...]) -> Iterator[Box]:
    """Pieces of a box with at most these sides, cut from its start, in C order.

    >>> [piece.stop for piece in split(Box((0, 4), (1, 10)), (1, 4))]
    [(1, 8), (1, 10)]
    """
    starts = [range(a, b, side) for a, b, side in zip(box.start, box.stop, sides, strict=True)]
    for start in itertools.product(*starts):
        yield Box(start, tuple(a + side for a, side in zip(start, sides, strict=True))).clipped(box)
