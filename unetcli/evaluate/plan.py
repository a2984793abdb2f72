"""The pair of prediction and truth, and the plan of blocks in which they are compared."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.core.files import Place, parse_place
from unetcli.core.geometry import Box
from unetcli.core.label_values import LabelValues
from unetcli.evaluate.request import CLASSES, LABELS, METRICS, PROBABILITY, EvaluateRequest, scores_objects
from unetcli.planning.plan import BlockGrid, require_few, require_sides
from unetcli.predict.skipping import Mask, factor
from unetcli.volumes.image import class_names, find_marker, find_region_marker, require_marked_shape
from unetcli.volumes.label_values import trained_values, with_numbers
from unetcli.volumes.labels import as_labels, as_prediction, open_labels
from unetcli.volumes.opening import open_volume
from unetcli.volumes.places import require_same_place, require_same_voxels, stated_sizes
from unetcli.volumes.volume import Volume, describe, resolve_region, shape

FORMAT = 3
"""Version of the JSON of a plan."""
BLOCK_VOXELS = 2**23
"""Largest block: about 0.5 GB of memory if every voxel has its own label, usually a tenth of that."""
MIN_BLOCKS = 16
"""Smallest number of blocks, unless they become too small, so that several workers are busy."""
READ_VOXELS = 2**25
"""Largest region to read at once if the chunks are larger than a block."""
EM_BLOCK_VOXELS = 2**20
"""Largest block with em, which takes a hundred times as long per voxel; a whole section may exceed it."""
OTHER_REGION = "not the same region"
OTHER_PLACE = f"{OTHER_REGION}; if it is, --same-place says so"
MIN_UNITS = 10
"""Smallest number of sections (or volumes) to resample; with fewer, objects are resampled for scores of cells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings that affect the scores."""

    metrics: tuple[str, ...]
    kind: str
    """Kind of the prediction, one of ``request.KINDS``."""
    threshold: float
    """Probabilities above it are foreground."""
    three_d: bool
    """Whether objects extend over sections along z."""
    pieces: bool
    """Whether the truth is a mask, whose objects are its 4-connected components in each section."""
    result_pieces: bool
    """Whether the prediction is one: above ``threshold`` for probabilities, where it is not 0 for labels."""
    ignore: int | None
    """Value of the truth whose voxels are not scored."""
    level: int
    """Resolution level; 0 is full resolution."""
    values: LabelValues = field(default_factory=LabelValues)
    """Meaning of the values of the truth."""

    @property
    def has_objects(self) -> bool:
        """Whether objects are scored."""
        return scores_objects(self.metrics)

    @property
    def needs_sections(self) -> bool:
        """Whether blocks must contain whole sections."""
        return any(METRICS[name].whole_sections for name in self.metrics)

    @property
    def finds_components(self) -> bool:
        """Whether objects of the truth or of the prediction are connected components of a section."""
        return self.has_objects and (self.pieces or self.result_pieces)


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """Blocks that cover a region once. All sizes in voxels, axes in array order without the channel axis."""

    axes: str
    start: tuple[int, ...]
    """Start of the region, in coordinates of the truth."""
    stop: tuple[int, ...]
    """End of the region, in coordinates of the truth."""
    offset: tuple[int, ...]
    """Origin of the prediction, in coordinates of the truth."""
    block_shape: tuple[int, ...]
    settings: Settings
    prediction: str
    """Fingerprint of the prediction."""
    truth: str
    """Fingerprint of the truth."""
    mask: str | None
    """Fingerprint of the mask."""

    def __post_init__(self) -> None:
        require_sides(self.axes, stop=self.stop, block_shape=self.block_shape)
        if any(not 0 <= a < b for a, b in zip(self.start, self.stop, strict=True)) or len(self.offset) != len(
            self.axes
        ):
            raise UnetcliError(f"region {self.start} to {self.stop}, offset {self.offset}: expected 0 <= start < stop")
        require_few(self.blocks)

    @property
    def region(self) -> Box:
        return Box(self.start, self.stop)

    @functools.cached_property
    def grid(self) -> BlockGrid:
        """Blocks in coordinates of the truth; their edges are multiples of its shape from the prediction's origin."""
        return BlockGrid(self.region, self.block_shape, self.offset)

    @property
    def blocks(self) -> int:
        return self.grid.blocks

    def box(self, number: int) -> Box:
        """Box of a block, in coordinates of the truth; blocks are numbered in C order."""
        return self.grid.box(number)

    def slabs(self) -> Iterator[range]:
        """Ranges of blocks that together cover whole sections."""
        each = math.prod(self.grid.shape[-2:])
        return (range(first, first + each) for first in range(0, self.blocks, each))

    @property
    def sees_sections(self) -> bool:
        """Whether each block covers whole sections of the region."""
        return math.prod(self.grid.shape[-2:]) == 1

    @property
    def sections(self) -> int:
        """Number of sections (planes of the last two axes)."""
        return math.prod(self.region.shape[:-2])

    def part_number(self, place: Sequence[int]) -> int:
        """Key of the part of a section that starts at some coordinates; see :func:`.pieces.join_sections`."""
        row, column = (axis.index(a) for axis, a in zip(self.grid.axes[-2:], place[-2:], strict=True))
        rows, columns = self.grid.shape[-2:]
        return (self.section_number(place) * rows + row) * columns + column

    def section_number(self, place: Sequence[int]) -> int:
        """Number of a section, from 0, given its coordinates in the truth."""
        shape = self.region.shape[:-2]
        inside = [p - a for p, a in zip(place[: len(shape)], self.start, strict=False)]
        return int(np.ravel_multi_index(inside, shape)) if shape else 0

    def section_box(self, number: int) -> Box:
        """Box of a section, in coordinates of the truth."""
        shape = self.region.shape[:-2]
        inside = np.unravel_index(number, shape) if shape else ()
        lead = tuple(a + int(i) for a, i in zip(self.start, inside, strict=False))
        return Box(lead + self.start[-2:], tuple(p + 1 for p in lead) + self.stop[-2:])

    @property
    def units(self) -> int:
        """Number of units: sections, or z, y, x volumes if objects extend over sections. No object spans two units."""
        return self.sections // (self.region.shape[-3] if self.settings.three_d else 1)

    def unit_of(self, section: int) -> int:
        """The unit that a section belongs to."""
        return section // (self.region.shape[-3] if self.settings.three_d else 1)

    @property
    def by_object(self) -> bool:
        """Whether intervals are computed from objects, because there are too few units to resample."""
        return "cells" in self.settings.metrics and self.units < MIN_UNITS


def choose_block(region: Box, chunks: tuple[int, ...], settings: Settings, limit: int | None = None) -> tuple[int, ...]:
    """Block shape: as many whole chunks as the limit of voxels allows, first in the plane; whole sections if needed.

    >>> seen = Settings(
    ...     metrics=("voi",),
    ...     kind="labels",
    ...     threshold=0.5,
    ...     three_d=True,
    ...     pieces=False,
    ...     result_pieces=False,
    ...     ignore=None,
    ...     level=0,
    ... )
    >>> choose_block(Box((0, 0, 0), (90, 9000, 2000)), (1, 512, 512), seen)
    (1, 4096, 2000)
    """
    shape = region.shape
    most, least = (EM_BLOCK_VOXELS, EM_BLOCK_VOXELS // 4) if "em" in settings.metrics else (BLOCK_VOXELS, 2**20)
    most = limit or min(most, max(least, region.size // MIN_BLOCKS))
    block = [min(side, n) for side, n in zip(chunks, shape, strict=True)]
    if settings.needs_sections:
        block[-2:] = shape[-2:]
    _grow(block, (len(block) - 1, len(block) - 2), shape, most)
    while math.prod(block) > (limit or READ_VOXELS) and max(block[:-2], default=1) > 1:
        place = max(range(len(block) - 2), key=lambda p: block[p])
        block[place] = -(-block[place] // 2)
    _grow(block, tuple(reversed(range(len(block) - 2))), shape, most)
    return tuple(block)


def grown_block(shape: tuple[int, ...], chunks: tuple[int, ...], limit: int) -> tuple[int, ...]:
    """Block of whole chunks with at most ``limit`` voxels, or one chunk.

    >>> grown_block((90, 3000, 2000), (1, 512, 512), 2**23)
    (1, 3000, 2000)
    """
    block = [min(side, n) for side, n in zip(chunks, shape, strict=True)]
    _grow(block, (len(block) - 1, len(block) - 2), shape, limit)
    _grow(block, tuple(reversed(range(len(block) - 2))), shape, limit)
    return tuple(block)


def _grow(block: list[int], places: Sequence[int], shape: tuple[int, ...], limit: int) -> None:
    """Repeatedly double the shortest of the given sides while the block stays within the limit."""
    while growing := [p for p in places if block[p] < shape[p] and _grown(block, p, shape) <= limit]:
        place = min(growing, key=lambda p: block[p])
        block[place] = min(2 * block[place], shape[place])


def _grown(block: list[int], place: int, shape: tuple[int, ...]) -> int:
    """Number of voxels of a block with one side doubled."""
    return math.prod(block) // block[place] * min(2 * block[place], shape[place])


@dataclass(frozen=True, slots=True, eq=False)
class PairData:
    """Arrays of prediction and truth in one region."""

    prediction: NDArray[Any]
    """(c, *shape): the prediction as stored."""
    reference: NDArray[Any]
    """(*shape), integer: the truth."""
    valid: NDArray[np.bool_] | None
    """(*shape): voxels that are scored; None: all."""

    def planes(self) -> Iterator[PairData]:
        """Arrays of each section in C order, (c, y, x) and (y, x)."""
        plane = self.reference.shape[-2:]
        prediction = self.prediction.reshape(len(self.prediction), -1, *plane)
        reference = self.reference.reshape(-1, *plane)
        valid = None if self.valid is None else self.valid.reshape(-1, *plane)
        for number, part in enumerate(reference):
            yield PairData(prediction[:, number], part, None if valid is None else valid[number])


@dataclass(frozen=True, slots=True)
class Pair:
    """Prediction and truth, aligned."""

    prediction: Volume
    truth: Volume
    offset: tuple[int, ...]
    """Origin of the prediction, in coordinates of the truth; zero if they have the same shape."""
    full_truth: Volume | None = None
    """The truth with its axes of extent 1, if these were dropped from ``truth``."""
    mask: Mask | None = None
    """Mask over the truth; voxels where it is 0 are not scored."""
    ignore: int | None = None
    """Value of ``truth`` whose voxels are not scored."""
    values: LabelValues = field(default_factory=LabelValues)
    """Meaning of the values that were replaced by numbers in ``truth``."""
    note: str = ""
    """Note for the user on how the two were paired."""

    @classmethod
    def open(cls, request: EvaluateRequest) -> Pair:
        """Open prediction, truth and mask of a request, and align them.

        Raises
        ------
        UnetcliError
            A volume cannot be read, the prediction is incomplete, or the volumes do not cover the same region.
        """
        require_complete(request.prediction, allowed=request.allow_incomplete)
        values = values_of(request)
        truth, ignore = with_numbers(open_labels(request.truth, request.level), values, request.ignore)
        prediction, store = open_prediction(request), parse_place(request.prediction)
        require_marked_shape(prediction, store, request.level)
        pair = pair_up(prediction, truth, store)
        if not request.same_place:
            require_same_place(pair.truth, pair.prediction, OTHER_PLACE, offset=pair.offset)
        mask = None
        if request.mask is not None:
            found = open_volume(request.mask).channels_as_sections()
            fitted = found if pair.full_truth is None else found.without_single_axes()
            mask = Mask.over(fitted, pair.truth.with_axes_of(fitted), (1,) * len(pair.axes))
            if not request.same_place:
                require_same_voxels(pair.truth, mask.volume, OTHER_PLACE, factors=mask.factors)
                require_same_place(pair.truth, mask.volume, OTHER_PLACE, factors=mask.factors)
        return replace(pair, mask=mask, ignore=ignore, values=values)

    @property
    def axes(self) -> str:
        """Axes of the truth; if it does not name them, those of the prediction."""
        return self.prediction.axes if self.truth.assumed else self.truth.axes

    @property
    def voxel_size(self) -> dict[str, float]:
        """Voxel size by axis, of the truth, else of the prediction; empty if neither states it."""
        return next((v.voxel_size for v in (self.truth, self.prediction) if stated_sizes(v)), {})

    @property
    def units(self) -> dict[str, str]:
        return self.truth.units or self.prediction.units

    @property
    def region(self) -> Box:
        """Region that both cover, in coordinates of the truth."""
        return self.prediction.whole().shifted(self.offset)

    def select(self, request: EvaluateRequest) -> Box:
        """Region to score, in coordinates of the truth; raises ``UnetcliError`` if the prediction does not cover it."""
        if request.roi is None and request.sections == (None, None):
            return self.region
        truth = self.full_truth or self.truth
        asked = restrict(self.truth.axes, resolve_region(request.sections, request.roi, truth), truth.axes)
        if request.roi is None:
            return self._sections(asked)
        if asked.clipped(self.region) != asked:
            raise UnetcliError(
                f"--roi {describe(asked, self.axes)}: {self.prediction.path} covers {describe(self.region, self.axes)}"
            )
        return asked

    def read(self, box: Box) -> PairData:
        """Read a region, given its box in coordinates of the truth."""
        prediction = self.prediction.read(box.shifted(tuple(-o for o in self.offset)))
        reference = self.truth.read(box)[0]
        valid = None if self.ignore is None else reference != self.ignore
        if self.mask is not None:
            inside = self.mask.active_cells(box).cells
            valid = inside if valid is None else valid & inside
        return PairData(prediction, reference, valid)

    def is_absent(self, box: Box) -> bool:
        """Whether nothing is stored of a region, in coordinates of the truth, and no mask is to be read."""
        shifted = box.shifted(tuple(-o for o in self.offset))
        return self.mask is None and self.truth.is_absent(box) and self.prediction.is_absent(shifted)

    def _sections(self, asked: Box) -> Box:
        """The requested sections, clipped in the plane to the extent of the prediction."""
        axis = self.truth.section_axis
        if axis is None:  # a single image
            return asked.clipped(self.region)
        covered, wanted = (self.region.start[axis], self.region.stop[axis]), (asked.start[axis], asked.stop[axis])
        if not covered[0] <= wanted[0] < wanted[1] <= covered[1]:
            raise UnetcliError(
                f"--sections {wanted[0]}:{wanted[1]}: {self.prediction.path} covers sections {covered[0]}:{covered[1]}"
            )
        return asked.clipped(self.region)


def open_prediction(request: EvaluateRequest) -> Volume:
    """Open the prediction of a request; labels of other programs may be stored as float or as a picture."""
    volume, own = open_volume(request.prediction, request.level), find_marker(parse_place(request.prediction))
    if request.kind == CLASSES and own is None:
        return with_numbers(as_labels(volume), LabelValues(classes=values_of(request).classes))[0]
    if len(class_names(parse_place(request.prediction))) == 2:
        return volume.of_class(1)  # as the probability of the foreground that predict writes
    if request.kind in (LABELS, CLASSES):
        return as_labels(volume)
    probability = request.kind == PROBABILITY or "em" in (request.metrics or ())
    return volume if own else as_prediction(volume, probability=probability)


def values_of(request: EvaluateRequest) -> LabelValues:
    """Meaning of the values of the truth: that of the model's training, except for what options state."""
    trained = trained_values(parse_place(request.prediction))
    if request.classes is not None:
        background, threshold = request.background or 0, request.label_threshold
        return LabelValues(classes=request.classes or None, background=background, threshold=threshold)
    background = trained.background if request.background is None else request.background
    threshold = trained.threshold if request.label_threshold is None else request.label_threshold
    classes = None if request.states_values else trained.classes
    return LabelValues(classes=classes, background=background, threshold=threshold)


def require_complete(prediction: str, *, allowed: bool) -> None:
    """Raise ``UnetcliError`` if unetcli wrote the prediction, or its input, and did not finish, unless allowed."""
    marker = find_marker(parse_place(prediction))
    if marker is None or allowed:
        return
    if marker.get("of_incomplete"):
        raise UnetcliError(
            f"{prediction}: labels of an incomplete prediction; complete it and run label with --overwrite, or use "
            "--allow-incomplete"
        )
    if not marker.get("complete"):
        command = "label" if marker.get("kind") == "instances" else "predict"
        raise UnetcliError(f"{prediction}: not complete; run its {command} command again, or use --allow-incomplete")


def pair_up(prediction: Volume, truth: Volume, store: Place) -> Pair:
    """Align a prediction with its truth: same shape, or a region of a volume of the truth's shape.

    Parameters
    ----------
    prediction, truth
        Volumes with any axes; the truth as :mod:`unetcli.volumes.labels` reads it.
    store
        Path of the prediction; its marker states which region of its input was predicted.

    Raises
    ------
    UnetcliError
        Shapes, axes or voxel sizes differ.
    """
    prediction = prediction.fitted_to(truth)
    offset, full_truth = offset_in(truth, prediction, store), None
    if offset is None:
        full_truth = truth
        prediction, truth = prediction.without_single_axes(), truth.without_single_axes()
        offset = offset_in(truth, prediction, store)
    if offset is None:
        raise UnetcliError(
            f"{prediction.path} is {shape(prediction)}, but {truth.path} is {shape(truth)}: not the same region"
        )
    prediction, note = named_alike(prediction, truth)
    require_same_axes(prediction, truth)
    require_same_voxels(prediction, truth, OTHER_REGION)
    return Pair(prediction, truth, offset, full_truth=full_truth, note=note)


def named_alike(prediction: Volume, truth: Volume) -> tuple[Volume, str]:
    """The prediction with the truth's name of the sections' axis, t or z, and a note for the user if it differed."""
    renamed = prediction.with_sections_of(truth)
    if prediction.assumed or truth.assumed or renamed.axes == prediction.axes:
        return prediction, ""
    runs = {"z": "can extend over sections", "t": "do not extend over sections"}[truth.axes[0]]
    return renamed, (
        f"sections of {prediction.path} along {prediction.axes[0]} were paired with those of {truth.path} along "
        f"{truth.axes[0]}; as in the truth, objects {runs}"
    )


def restrict(kept: str, box: Box, axes: str) -> Box:
    """Restrict a box to some of its axes.

    >>> restrict("yx", Box((0, 3, 5), (1, 9, 7)), "zyx")
    Box(start=(3, 5), stop=(9, 7))
    """
    places = [axes.index(axis) for axis in kept]
    return Box(tuple(box.start[p] for p in places), tuple(box.stop[p] for p in places))


def offset_in(truth: Volume, prediction: Volume, store: Place) -> tuple[int, ...] | None:
    """Origin of a prediction in coordinates of its truth; None if they do not fit."""
    if prediction.extent == truth.extent:
        return (0,) * len(truth.extent)
    recorded = find_region_marker(store)
    whole, sides = (tuple(recorded.get(name, ())) for name in ("extent", "region"))
    if len(whole) != len(truth.extent):  # axes of extent 1, which a 2-D truth does not have
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
    """Raise ``UnetcliError`` if axes differ; an axis whose name was assumed matches any other."""
    assumed = set(prediction.assumed) | set(truth.assumed)
    if any(a != b and not {a, b} & assumed for a, b in zip(prediction.axes, truth.axes, strict=True)):
        raise UnetcliError(
            f"{prediction.path} has axes {', '.join(prediction.axes)}, but {truth.path} has {', '.join(truth.axes)}: "
            "not the same region"
        )
