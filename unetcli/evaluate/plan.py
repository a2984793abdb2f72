"""The plan of an evaluation: which blocks are counted, and how. Integers and frozen choices."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from unetcli.core.geometry import Box
from unetcli.evaluate.request import PROBABILITY
from unetcli.planning.grid import BlockGrid

FORMAT = 2
"""Version of a plan's JSON."""
BLOCK_VOXELS = 2**23
"""About the most in a block: half a gigabyte of memory where every voxel is another label, mostly a tenth of that."""
SEVERAL = 16
"""So many blocks there are at least where they do not become small, so that several workers have something to do."""
READ_VOXELS = 2**25
"""The most that is read at once where chunks are larger than a block."""
EM_BLOCK_VOXELS = 2**20
"""The same with em, which works a hundred times as long on a voxel; whole sections nevertheless."""
FEW = 10
"""With fewer sections (or volumes), confidence in scores of cells comes from their objects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All that shows in the scores."""

    metrics: tuple[str, ...]
    kind: str
    """What the prediction's values mean: see ``request.KINDS``."""
    threshold: float
    three_d: bool
    pieces: bool
    """Whether the truth is a mask, whose objects are what is 4-connected in a section."""
    ignore: int | None
    level: int

    @property
    def has_objects(self) -> bool:
        """Whether objects are judged."""
        return bool({"cells", "voi"} & set(self.metrics))

    @property
    def needs_sections(self) -> bool:
        """Whether sections have to be seen whole: to find what is connected in them."""
        return "em" in self.metrics or (self.has_objects and (self.pieces or self.kind == PROBABILITY))


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """Blocks that cover a region once. Sizes in voxels, axes in array order, without the channel axis."""

    axes: str
    start: tuple[int, ...]
    """Of the region, in the truth."""
    stop: tuple[int, ...]
    offset: tuple[int, ...]
    """Where the prediction starts in the truth."""
    block_shape: tuple[int, ...]
    settings: Settings
    prediction: str
    """Fingerprint."""
    truth: str
    """Fingerprint."""
    mask: str | None
    """Fingerprint."""

    @property
    def region(self) -> Box:
        return Box(self.start, self.stop)

    @functools.cached_property
    def grid(self) -> BlockGrid:
        """The blocks, in voxels of the truth; edges lie on multiples of the sides, from the prediction's start."""
        return BlockGrid(self.region, self.block_shape, self.offset)

    @property
    def blocks(self) -> int:
        return self.grid.blocks

    def box(self, number: int) -> Box:
        """The voxels of a block, in the truth; blocks are counted in C order."""
        return self.grid.box(number)

    def slabs(self) -> Iterator[range]:
        """Blocks that together cover whole sections, slab by slab."""
        each = math.prod(self.grid.shape[-2:])
        return (range(first, first + each) for first in range(0, self.blocks, each))

    @property
    def sees_sections(self) -> bool:
        """Whether each block covers whole sections of the region."""
        return math.prod(self.grid.shape[-2:]) == 1

    @property
    def sections(self) -> int:
        """Planes of the last two axes."""
        return math.prod(self.region.shape[:-2])

    def section_number(self, place: Sequence[int]) -> int:
        """The number of a section, from 0, by its coordinates in the truth."""
        shape = self.region.shape[:-2]
        inside = [p - a for p, a in zip(place[: len(shape)], self.start, strict=False)]
        return int(np.ravel_multi_index(inside, shape)) if shape else 0

    def section_box(self, number: int) -> Box:
        """The voxels of a section, in the truth."""
        shape = self.region.shape[:-2]
        inside = np.unravel_index(number, shape) if shape else ()
        lead = tuple(a + int(i) for a, i in zip(self.start, inside, strict=False))
        return Box(lead + self.start[-2:], tuple(p + 1 for p in lead) + self.stop[-2:])

    @property
    def units(self) -> int:
        """Sections, or volumes of z, y, x, whose objects are other ones than those of the next."""
        return self.sections // (self.region.shape[-3] if self.settings.three_d else 1)

    def unit_of(self, section: int) -> int:
        """The unit that a section belongs to."""
        return section // (self.region.shape[-3] if self.settings.three_d else 1)

    @property
    def by_object(self) -> bool:
        """Whether there are too few units to draw from, so that objects are drawn."""
        return "cells" in self.settings.metrics and self.units < FEW


def choose_block(region: Box, chunks: tuple[int, ...], settings: Settings, limit: int | None = None) -> tuple[int, ...]:
    """Whole chunks, in the plane first, as many as the limit of voxels allows; whole sections where they are needed.

    >>> seen = Settings(
    ...     metrics=("voi",), kind="labels", threshold=0.5, three_d=True, pieces=False, ignore=None, level=0
    ... )
    >>> choose_block(Box((0, 0, 0), (90, 9000, 2000)), (1, 512, 512), seen)
    (1, 4096, 2000)
    """
    shape = region.shape
    most, least = (EM_BLOCK_VOXELS, EM_BLOCK_VOXELS // 4) if "em" in settings.metrics else (BLOCK_VOXELS, 2**20)
    most = limit or min(most, max(least, region.size // SEVERAL))
    block = [min(side, n) for side, n in zip(chunks, shape, strict=True)]
    if settings.needs_sections:
        block[-2:] = shape[-2:]
    _grow(block, (len(block) - 1, len(block) - 2), shape, most)
    while math.prod(block) > (limit or READ_VOXELS) and max(block[:-2], default=1) > 1:
        place = max(range(len(block) - 2), key=lambda p: block[p])
        block[place] = -(-block[place] // 2)
    _grow(block, tuple(reversed(range(len(block) - 2))), shape, most)
    return tuple(block)


def _grow(block: list[int], places: Sequence[int], shape: tuple[int, ...], limit: int) -> None:
    """Double the shortest of some sides as long as the limit allows."""
    while growing := [p for p in places if block[p] < shape[p] and _grown(block, p, shape) <= limit]:
        place = min(growing, key=lambda p: block[p])
        block[place] = min(2 * block[place], shape[place])


def _grown(block: list[int], place: int, shape: tuple[int, ...]) -> int:
    """Voxels of a block with one side doubled."""
    return math.prod(block) // block[place] * min(2 * block[place], shape[place])
