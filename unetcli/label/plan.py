"""Plan of a labelling: the blocks that find, merge and number objects and build coarser levels, and all settings."""

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
from unetcli.core.records import changed
from unetcli.planning.plan import BlockGrid, Stage, require_few, require_sides, stage_of
from unetcli.planning.pyramid_plan import PyramidPlan
from unetcli.volumes.samples import same_data

FORMAT = 4
"""Version of a plan's JSON."""
METHODS = ("components", "watershed")
LANDSCAPES = ("distance", "probability")
BLOCK_VOXELS = {"components": 2**24, "watershed": 2**22}
"""Approximate limit for a block; :func:`unetcli.label.finding.working_bytes` gives the memory it needs."""
LONGEST_REACH = 1000
"""Limit of ``reach`` in voxels: squared distances in steps of 1/16 voxel fit in int32."""
FIND, MERGE, NUMBER, LEVEL = "find", "merge", "number", "level"
"""Names of the stages, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Options that affect the labels."""

    method: str = "components"
    threshold: float = 0.5
    """Probabilities strictly above it are foreground."""
    three_d: bool = False
    connectivity: int = 4
    min_size: int = 0
    """Voxels; smaller objects are removed."""
    channel: int = 0
    landscape: str = "distance"
    """Map that the watershed floods: the distance to the background, or the probability."""
    depth: float = 1.5
    """Two objects are separate if their pass lies at least this far below both peaks: voxels, or probability."""
    reach: int = 64
    """Voxels; longer distances are cut off at this one."""
    smoothing: float = 2.0
    """Voxels; standard deviation of the Gaussian that smooths the probability."""

    def __post_init__(self) -> None:
        self._one_of("method", METHODS)
        self._one_of("landscape", LANDSCAPES)
        if not 0 <= self.threshold < 1:
            raise UnetcliError(f"--threshold {self.threshold}: expected 0 <= threshold < 1")
        for name, low in (("min_size", 0), ("depth", 0), ("reach", 1), ("smoothing", 0)):
            if not (math.isfinite(value := getattr(self, name)) and value >= low):
                raise UnetcliError(f"--{name.replace('_', '-')} {value}: expected {low} or more")
        if self.reach > LONGEST_REACH:
            raise UnetcliError(f"--reach {self.reach}: expected at most {LONGEST_REACH}")

    def _one_of(self, name: str, known: tuple[str, ...]) -> None:
        if getattr(self, name) not in known:
            raise UnetcliError(f"--{name} {getattr(self, name)}: expected {' or '.join(known)}")


@dataclass(frozen=True, kw_only=True)
class LabelPlan:
    """Blocks of a labelling; their edges lie on chunk edges of the labels, which have the prediction's chunks.

    Sizes are in voxels, axes in array order, without the channel axis. The volume is divided into pieces. Blocks are
    numbered across the stages: one per piece finds objects, a single one merges them, one per piece writes the final
    labels, and those of the coarser levels follow.
    """

    axes: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    write_chunks: tuple[int, ...]
    block_shape: tuple[int, ...]
    zarr_format: int
    levels: int
    voxel_size: tuple[float, ...]
    settings: Settings
    automatic: bool
    """Whether the threshold was chosen with ``--auto-threshold-from``."""
    prediction: str
    """Fingerprint of the prediction."""
    intensity: str | None
    """Fingerprint of the volume that is averaged over each object; None if that is the prediction."""
    of_incomplete: bool = False
    """Whether the prediction was incomplete when it was labelled."""

    def __post_init__(self) -> None:
        require_sides(
            self.axes,
            shape=self.shape,
            chunks=self.chunks,
            write_chunks=self.write_chunks,
            block_shape=self.block_shape,
        )
        for axis, block, chunk in zip(self.axes, self.block_shape, self.write_chunks, strict=True):
            if block % chunk:
                raise UnetcliError(f"block of {block} along {axis}: expected a multiple of the labels' chunk {chunk}")
        if len(self.voxel_size) != len(self.axes) or self.zarr_format not in (2, 3):
            raise UnetcliError(
                f"voxel size {self.voxel_size}, Zarr {self.zarr_format}: expected one size for each axis, and 2 or 3"
            )
        require_few(self.blocks)

    @property
    def joined(self) -> str:
        """Axes along which voxels can be neighbours."""
        return "".join(axis for axis in self.axes if axis in ("zyx" if self.settings.three_d else "yx"))

    @functools.cached_property
    def grid(self) -> BlockGrid:
        """Grid of the pieces."""
        return BlockGrid(Box.of_shape(self.shape), self.block_shape)

    @property
    def pieces(self) -> int:
        """Number of pieces that the volume is divided into."""
        return self.grid.blocks

    @functools.cached_property
    def pyramid(self) -> PyramidPlan:
        return PyramidPlan(
            axes=self.axes,
            shape=self.shape,
            chunks=self.chunks,
            write_chunks=self.write_chunks,
            outputs=1,
            levels=self.levels,
        )

    @functools.cached_property
    def stages(self) -> tuple[Stage, ...]:
        """Stages in the order of execution; the blocks of one stage may run in any order and on any worker."""
        n = self.pieces
        coarser = [
            Stage(LEVEL, range(self.before_levels + stage.blocks.start, self.before_levels + stage.blocks.stop))
            for stage in self.pyramid.stages
        ]
        return (Stage(FIND, range(n)), Stage(MERGE, range(n, n + 1)), Stage(NUMBER, range(n + 1, 2 * n + 1)), *coarser)

    @property
    def before_levels(self) -> int:
        """Number of blocks before those of the coarser levels."""
        return 2 * self.pieces + 1

    @property
    def blocks(self) -> int:
        """Number of blocks of all stages."""
        return self.stages[-1].blocks.stop

    def stage(self, number: int) -> Stage:
        """Stage of a block."""
        return stage_of(self.stages, number)

    def box(self, piece: int) -> Box:
        """Voxels of a piece; pieces are numbered in C order."""
        return self.grid.box(piece)

    def neighbours(self, piece: int, side: int) -> Iterator[tuple[tuple[int, ...], int]]:
        """Steps to, and numbers of, the later (side 1) or earlier (side -1) pieces that may share objects."""
        place = self.grid.place(piece)
        choices = [(0, side) if axis in self.joined else (0,) for axis in self.axes]
        for step in itertools.product(*choices):
            other = self.grid.number([i + d for i, d in zip(place, step, strict=True)])
            if any(step) and other is not None:
                yield step, other

    def extended(self, piece: int) -> Box:
        """A piece, extended by one layer of voxels after it along each axis of :attr:`joined`."""
        box = self.box(piece)
        stop = tuple(b + 1 if axis in self.joined else b for axis, b in zip(self.axes, box.stop, strict=True))
        return Box(box.start, stop).clipped(Box.of_shape(self.shape))

    def voxels(self, blocks: NDArray[np.bool_]) -> int:
        """Number of voxels that the blocks of a mask over ``range(self.blocks)`` process."""
        n, last = self.pieces, self.before_levels
        once = self.grid.voxels(blocks[:n]) + self.grid.voxels(blocks[n + 1 : last])
        return once + self.pyramid.voxels(blocks[last:])

    def in_folder(self, stage: Stage) -> bool:
        """Whether a stage writes to the run folder, and not to the labels."""
        return stage.name in (FIND, MERGE)


def differences(old: LabelPlan, new: LabelPlan) -> list[str]:
    """Differences between two plans, one phrase each."""
    phrases = [
        f"{name.replace('_', '-')} {now} (was {before})" for name, before, now in changed(old.settings, new.settings)
    ]
    for name, before, now in changed(old, new):
        if name in ("shape", "levels", "zarr_format", "write_chunks", "block_shape"):
            phrases.append(f"{name.replace('_', ' ')} {now} (was {before})")
        elif name in ("prediction", "intensity") and not same_data(before or "", now or ""):
            phrases.append(f"the {name} has changed")
    if old.of_incomplete and not new.of_incomplete:
        phrases.append("the prediction was incomplete and is complete now")
    return phrases


def choose_block(
    shape: tuple[int, ...], axes: str, write_chunks: tuple[int, ...], limit: int, *, three_d: bool
) -> tuple[int, ...]:
    """Block of whole chunks (shards) with at most ``limit`` voxels: planes first, or cubes in three dimensions.

    >>> choose_block((90, 3000, 2000), "zyx", (1, 512, 512), 2**24, three_d=False)
    (2, 3072, 2048)
    >>> choose_block((900, 3000, 2000), "zyx", (1, 512, 512), 2**24, three_d=True)
    (64, 512, 512)
    """
    block = [min(side, ceil_to(n, side)) for n, side in zip(shape, write_chunks, strict=True)]
    groups = [("zyx" if three_d else "yx"), ("t" if three_d else "z"), "t"]
    for group in groups:
        while growing := [
            place
            for place, axis in enumerate(axes)
            if axis in group and block[place] < shape[place] and _doubled(block, place, shape, write_chunks) <= limit
        ]:
            place = min(growing, key=lambda p: (block[p], -p))
            block[place] = min(2 * block[place], ceil_to(shape[place], write_chunks[place]))
    return tuple(block)


def _doubled(block: list[int], place: int, shape: tuple[int, ...], chunks: tuple[int, ...]) -> int:
    grown = min(2 * block[place], ceil_to(shape[place], chunks[place]))
    return math.prod(block) // block[place] * grown
