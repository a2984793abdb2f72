"""Prediction and truth laid over each other: whether they are the same place, and what is judged of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.core.files import Place, place_of
from unetcli.core.geometry import Box
from unetcli.evaluate.request import EvaluateRequest
from unetcli.predict.skipping import Mask, factor
from unetcli.volumes.image import marker_around, region_around
from unetcli.volumes.opening import open_volume
from unetcli.volumes.volume import Volume, describe, require_same_voxels, resolve_region, shape, stated_sizes


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
            inside = self.mask.kept(box).cells
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
