"""What is compared: prediction and truth laid beside each other, and the blocks that are counted."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.core.files import Place, place_of
from unetcli.core.geometry import Box
from unetcli.evaluate.request import PROBABILITY, EvaluateRequest
from unetcli.planning.plan import BlockGrid
from unetcli.predict.skipping import Mask, factor
from unetcli.volumes.image import marker_around, region_around
from unetcli.volumes.opening import open_volume
from unetcli.volumes.volume import Volume, describe, require_same_voxels, resolve_region, shape, stated_sizes

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


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A part of both."""

    stored: NDArray[Any]
    """(c, *shape): the prediction as stored."""
    reference: NDArray[Any]
    """Shape of the part, integer."""
    judged: NDArray[np.bool_] | None
    """Shape of the part: what counts; None: everything."""

    def planes(self) -> Iterator[Piece]:
        """Its planes of the last two axes, in C order: (c, y, x) and (y, x)."""
        plane = self.reference.shape[-2:]
        stored = self.stored.reshape(len(self.stored), -1, *plane)
        reference = self.reference.reshape(-1, *plane)
        judged = None if self.judged is None else self.judged.reshape(-1, *plane)
        for number, part in enumerate(reference):
            yield Piece(stored[:, number], part, None if judged is None else judged[number])


@dataclass(frozen=True, slots=True)
class Pair:
    """Prediction and truth laid over each other."""

    prediction: Volume
    truth: Volume
    offset: tuple[int, ...]
    """Where the prediction starts in the truth; zero where they have the same shape."""
    stored: Volume | None = None
    """The truth with the axes of extent 1 that are left out here; None: with its axes."""
    mask: Mask | None = None
    """Over the truth; what it is 0 for is not judged."""
    ignore: int | None = None
    """Value of the truth that is not judged."""

    @classmethod
    def open(cls, request: EvaluateRequest) -> Pair:
        """Both volumes of a request.

        Raises
        ------
        UnetcliError
            One cannot be read, the prediction is not complete, or they are not the same place.
        """
        require_complete(request.prediction, allowed=request.allow_incomplete)
        truth = open_volume(request.truth, request.level)
        pair = pair_up(open_volume(request.prediction, request.level), truth, place_of(request.prediction))
        mask = None
        if request.mask is not None:
            found = open_volume(request.mask).channels_as_sections()
            fitted = found if pair.stored is None else found.without_single_axes()
            mask = Mask.over(fitted, pair.truth.with_axes_of(fitted), (1,) * len(pair.axes))
        return replace(pair, mask=mask, ignore=request.ignore)

    @property
    def axes(self) -> str:
        """Those of the truth, by the letters of whichever says what they are."""
        return self.prediction.axes if self.truth.assumed else self.truth.axes

    @property
    def voxel_size(self) -> dict[str, float]:
        """Of whichever states it, the truth first."""
        return next((v.voxel_size for v in (self.truth, self.prediction) if stated_sizes(v)), {})

    @property
    def units(self) -> dict[str, str]:
        return self.truth.units or self.prediction.units

    @property
    def region(self) -> Box:
        """What both cover, in coordinates of the truth."""
        return self.prediction.whole().shifted(self.offset)

    def select(self, request: EvaluateRequest) -> Box:
        """What is judged, in coordinates of the truth."""
        if request.roi is None and request.sections == (None, None):
            return self.region
        truth = self.stored or self.truth
        asked = along(self.truth.axes, resolve_region(request.sections, request.roi, truth), truth.axes)
        if request.roi is None:
            return self._sections(asked)
        if asked.clipped(self.region) != asked:
            raise UnetcliError(
                f"--roi {describe(asked, self.axes)}: {self.prediction.path} covers {describe(self.region, self.axes)}"
            )
        return asked

    def read(self, box: Box) -> Piece:
        """A part, by its box in the truth."""
        stored = self.prediction.read(box.shifted(tuple(-o for o in self.offset)))
        reference = self.truth.read(box)[0]
        judged = None if self.ignore is None else reference != self.ignore
        if self.mask is not None:
            inside = self.mask.active_cells(box).cells
            judged = inside if judged is None else judged & inside
        return Piece(stored, reference, judged)

    def _sections(self, asked: Box) -> Box:
        """The sections asked for, as far as the prediction goes in the plane."""
        axis = self.truth.section_axis
        if axis is None:  # of a stack of one, the one
            return asked.clipped(self.region)
        covered, wanted = (self.region.start[axis], self.region.stop[axis]), (asked.start[axis], asked.stop[axis])
        if not covered[0] <= wanted[0] < wanted[1] <= covered[1]:
            raise UnetcliError(
                f"--sections {wanted[0]}:{wanted[1]}: {self.prediction.path} covers sections {covered[0]}:{covered[1]}"
            )
        return asked.clipped(self.region)


def require_complete(prediction: str, *, allowed: bool) -> None:
    """Refuse a prediction, or labels, of ours that are not finished, or labels of such a prediction."""
    ours = marker_around(place_of(prediction))
    if ours is None or allowed:
        return
    if ours.get("of_incomplete"):
        raise UnetcliError(
            f"{prediction}: made of a prediction that was not complete; label it with --overwrite once it is, or "
            "--allow-incomplete"
        )
    if not ours.get("complete"):
        command = "label" if ours.get("kind") == "instances" else "predict"
        raise UnetcliError(f"{prediction}: not complete; run its {command} command again, or --allow-incomplete")


def pair_up(prediction: Volume, truth: Volume, store: Place) -> Pair:
    """Lay a prediction over its truth: same shape, or a part of a volume of the truth's shape.

    Raises
    ------
    UnetcliError
        Shapes, axes or voxel sizes differ; both are named. Or the truth is no integers.
    """
    truth = truth.channels_as_sections()
    prediction = prediction.fitted_to(truth)
    if truth.channels != 1 or truth.dtype.kind not in "bui":
        raise UnetcliError(
            f"{truth.path}: {truth.channels} channels of {truth.dtype}; truth is one channel of integers"
        )
    offset, stored = offset_in(truth, prediction, store), None
    if offset is None:
        stored = truth
        prediction, truth = prediction.without_single_axes(), truth.without_single_axes()
        offset = offset_in(truth, prediction, store)
    if offset is None:
        raise UnetcliError(
            f"{prediction.path} is {shape(prediction)}, but {truth.path} is {shape(truth)}: not the same place"
        )
    require_same_axes(prediction, truth)
    require_same_voxels(prediction, truth, "not the same place")
    return Pair(prediction, truth, offset, stored=stored)


def along(kept: str, box: Box, axes: str) -> Box:
    """A box along some of its axes.

    >>> along("yx", Box((0, 3, 5), (1, 9, 7)), "zyx")
    Box(start=(3, 5), stop=(9, 7))
    """
    places = [axes.index(axis) for axis in kept]
    return Box(tuple(box.start[p] for p in places), tuple(box.stop[p] for p in places))


def offset_in(truth: Volume, prediction: Volume, store: Place) -> tuple[int, ...] | None:
    """Where a prediction starts in its truth; None where they do not fit."""
    if prediction.extent == truth.extent:
        return (0,) * len(truth.extent)
    ours = region_around(store)
    whole, sides = (tuple(ours.get(name, ())) for name in ("extent", "region"))
    if len(whole) != len(truth.extent):  # of single sections, which a flat truth does not have
        sides = tuple(side for side, n in zip(sides, whole, strict=True) if n > 1)
        whole = tuple(n for n in whole if n > 1)
    if not len(whole) == len(truth.extent) == len(prediction.extent):
        return None
    factors = [factor(n, m) for n, m in zip(whole, truth.extent, strict=True)]
    starts = [first for first, _ in sides]
    if 0 in factors or any(a % by for a, by in zip(starts, factors, strict=True)):
        return None
    offset = tuple(a // by for a, by in zip(starts, factors, strict=True))
    part = prediction.whole().shifted(offset)
    sizes = [b - a for a, b in sides]
    fits = all(factor(n, m) in (by, n) for n, m, by in zip(sizes, prediction.extent, factors, strict=True))
    return offset if fits and part.clipped(truth.whole()) == part else None


def require_same_axes(prediction: Volume, truth: Volume) -> None:
    """Refuse sections of another kind; an axis whose meaning nobody stored may be any."""
    unsaid = set(prediction.assumed) | set(truth.assumed)
    if any(a != b and not {a, b} & unsaid for a, b in zip(prediction.axes, truth.axes, strict=True)):
        raise UnetcliError(
            f"{prediction.path} has axes {', '.join(prediction.axes)}, but {truth.path} has {', '.join(truth.axes)}: "
            "not the same place"
        )
