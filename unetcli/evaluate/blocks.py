"""Counts of blocks; sections of which nothing is stored are counted once, whatever their number."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from unetcli.core.geometry import Box
from unetcli.evaluate.counting import Counts, count_section, foreground_of, probabilities
from unetcli.evaluate.plan import EvaluationPlan, Pair, PairData
from unetcli.evaluate.request import PROBABILITY

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class BlockCounter:
    """Counts blocks of a plan, in any order and in any number of threads."""

    plan: EvaluationPlan
    pair: Pair
    _background: dict[tuple[int, ...], Counts] = field(default_factory=dict)
    """Counts of sections, or of parts of sections, that are background, by shape."""

    def __call__(self, number: int) -> Counts:
        """Counts of one block.

        Raises
        ------
        UnetcliError
            Values are not probabilities or labels, or the truth has a class that the prediction lacks.
        """
        box = self.plan.box(number)
        voxel = self._absent_background(box)
        return Counts.total(self._sections(box) if voxel is None else self._without_reading(box, voxel))

    def _sections(self, box: Box) -> Iterator[Counts]:
        for plane, part in zip(box.planes(), self.pair.read(box).planes(), strict=True):
            yield count_section(self.plan, self.pair, plane, part)

    def _without_reading(self, box: Box, voxel: PairData) -> Iterator[Counts]:
        """Counts of each section of a block of background, all voxels of which are equal to ``voxel``."""
        sides = box.shape[-2:]
        for plane in box.planes():
            if sides not in self._background:
                self._background[sides] = count_section(self.plan, self.pair, plane, enlarged(voxel, sides))
            yield renumbered(replace(self._background[sides], probabilities=None), self.plan, plane)
        histogram = self._background[sides].probabilities
        if histogram is not None:  # by far the largest part of the counts, which is added once for all sections
            yield Counts(probabilities=histogram.times(math.prod(box.shape[:-2])))

    def _absent_background(self, box: Box) -> PairData | None:
        """First voxel of a block of which nothing is stored and which is background; None for other blocks.

        Background has no objects, so that its counts do not depend on where it lies.
        """
        if not self.pair.is_absent(box):
            return None
        voxel = self.pair.read(Box(box.start, tuple(a + 1 for a in box.start)))
        values, settings = voxel.prediction, self.plan.settings
        if settings.kind == PROBABILITY:
            place = dict(zip(self.plan.axes, box.start, strict=True))
            values = probabilities(values, self.pair.prediction.path, place)
        has_objects = settings.has_objects and foreground_of(values, settings.threshold).any()
        return None if has_objects or voxel.reference.any() else voxel


def enlarged(voxel: PairData, sides: tuple[int, ...]) -> PairData:
    """Arrays of a section, ``sides`` in pixels, all of whose pixels are those of a single voxel."""
    prediction = np.empty((len(voxel.prediction), *sides), voxel.prediction.dtype)
    prediction[:] = voxel.prediction.reshape(-1, 1, 1)
    valid = None if voxel.valid is None else np.full(sides, voxel.valid.item())
    return PairData(prediction, np.full(sides, voxel.reference.item(), voxel.reference.dtype), valid)


def renumbered(counts: Counts, plan: EvaluationPlan, plane: Box) -> Counts:
    """Counts of one section, or of its part, as those of an equal one at another place."""
    section = plan.section_number(plane.start)
    part = plan.part_number(plane.start) if counts.parts else 0
    return replace(
        counts,
        sums={name: at(section, found) for name, found in counts.sums.items()},
        em=at(section, counts.em),
        tables=at(plan.unit_of(section), counts.tables),
        parts=at(part, counts.parts),
        objects=at(section, counts.objects),
    )


def at(number: int, found: Mapping[int, T]) -> dict[int, T]:
    """The one value that was found, if any, under another number."""
    return dict(zip((number,), found.values(), strict=False))
