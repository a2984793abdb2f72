"""What is learned from: pairs of images and labels, and the sections of each that serve training or judging."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Box, hull
from unetcli.train.lessons import Lessons, require_labels
from unetcli.train.settings import Ranges
from unetcli.train.targets import IGNORED, TruthRules, is_empty
from unetcli.volumes.opening import cached
from unetcli.volumes.volume import Volume, describe, require_same_voxels

IN_MEMORY_BYTES = 2**30
"""Of images, of labels, and of what is made of labels, that is held in memory while they are sampled; every pair has
its part of it. Volumes up to that size are read once, chunks of larger ones when needed."""
RESAMPLE = "one must be resampled to the other's"
LARGEST_GREY = 1e30
"""The network computes in float32."""
LARGEST_LOOKED_THROUGH = 2**27
"""Sections of more pixels than this are not looked through for whether anything is drawn in them."""


@dataclass(frozen=True, slots=True)
class Part:
    """Sections of one pair: a place to draw samples from, or to judge by."""

    pair: int
    region: Box


@dataclass(frozen=True, eq=False)
class Annotated:
    """Images and labels of the same place."""

    raw: Volume
    labels: Volume
    rules: TruthRules
    channel: int | None = None
    pairs: int = 1
    """That share the memory."""
    _empty: dict[tuple[int, ...], bool] = field(default_factory=dict)

    @classmethod
    def lay(cls, raw: Volume, labels: Volume, rules: TruthRules, channel: int | None, pairs: int = 1) -> Annotated:
        """Both together, one of ``pairs``; small ones are read into memory, larger ones by chunk."""
        budget = IN_MEMORY_BYTES // pairs
        return cls(near(raw, budget), near(labels, budget), rules, channel, pairs)

    @cached_property
    def lessons(self) -> Lessons:
        return Lessons(self.labels, self.rules, IN_MEMORY_BYTES // self.pairs)

    def image(self, box: Box) -> NDArray[Any]:
        """Grey values of one section's window, (c, y, x); refused where they are not finite."""
        voxels = self.raw.read(box, self.channel)
        if voxels.dtype.kind == "f" and not (np.abs(voxels) <= LARGEST_GREY).all():  # of NaN neither
            raise UnetcliError(
                f"{self.raw.path}: NaN, infinity or a number beyond {LARGEST_GREY:g} at "
                f"{describe(box, self.raw.axes)}; --sections A:B leaves it out"
            )
        return voxels.reshape(voxels.shape[0], *voxels.shape[-2:])

    def classes(self, box: Box) -> NDArray[np.uint8]:
        """Class of each pixel of one section's window, (y, x)."""
        return self.lessons.classes(box)

    def lesson(self, box: Box) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Class and raised weight of each pixel of one section's window, (y, x) each."""
        return self.lessons.window(box)

    def instances(self, box: Box) -> NDArray[Any]:
        """Objects of a part of one section, (y, x) integers: as labelled, or the connected parts of the foreground."""
        if self.rules.truth != "instances":
            return np.asarray(ndimage.label((classes := self.classes(box)) * (classes != IGNORED))[0])
        labels = self.labels.read(box).reshape(box.shape[-2:])
        return labels if self.rules.ignore is None else np.where(labels == self.rules.ignore, 0, labels)

    def is_empty(self, plane: Box) -> bool:
        """Whether nothing is drawn in the section that a plane is of; huge sections are taken not to be."""
        lead = plane.start[:-2]
        if lead not in self._empty:
            whole = Box((*lead, 0, 0), tuple(n + 1 for n in lead) + self.labels.extent[-2:])
            small = whole.size <= LARGEST_LOOKED_THROUGH
            self._empty[lead] = small and is_empty(self.labels.read(whole).reshape(whole.shape[-2:]), self.rules)
        return self._empty[lead]


@dataclass(frozen=True, eq=False)
class Corpus:
    """All pairs of a training, and what is drawn from them."""

    pairs: tuple[Annotated, ...]
    train: tuple[Part, ...]
    held_out: tuple[Part, ...]
    keep_empty: bool

    @classmethod
    def lay(cls, pairs: Sequence[Annotated], sections: Ranges, validation: Ranges, *, keep_empty: bool) -> Corpus:
        return cls(tuple(pairs), parts_of(pairs, sections), parts_of(pairs, validation), keep_empty)

    def planes(self, parts: Sequence[Part]) -> Iterator[tuple[Annotated, Box]]:
        """Every section of parts in which there is truth, with its pair."""
        for part in parts:
            pair = self.pairs[part.pair]
            yield from ((pair, box) for box in part.region.planes() if self.is_used(pair, box))

    def runs(self, part: Part) -> Iterator[Part]:
        """A part cut where sections without truth lie between others; itself where there are none."""
        pair, planes = self.pairs[part.pair], list(part.region.planes())
        used = [self.is_used(pair, plane) for plane in planes]
        if all(used):
            yield part
            return
        for place, group in itertools.groupby(
            zip(planes, used, strict=True), lambda item: (item[1], item[0].start[:-3])
        ):
            if place[0]:
                yield Part(part.pair, hull([plane for plane, _ in group]))

    def is_used(self, pair: Annotated, plane: Box) -> bool:
        """Whether a section has truth to learn from or to judge by."""
        return self.keep_empty or not pair.is_empty(plane)

    @property
    def raw(self) -> Volume:
        """The first pair's images: all have the same kind of values and channels."""
        return self.pairs[0].raw

    @property
    def channels(self) -> int:
        """Channels that the network sees."""
        return self.raw.channels if self.pairs[0].channel is None else 1


def near(volume: Volume, budget_bytes: int) -> Volume:
    """The volume in memory, or the chunks of it used last where it is too large."""
    small = volume.array.size * volume.dtype.itemsize <= budget_bytes
    return volume.in_memory() if small else cached(volume, budget_bytes)


def parts_of(pairs: Sequence[Annotated], ranges: Ranges) -> tuple[Part, ...]:
    """The sections named, of the pairs that have any."""
    both = enumerate(zip(pairs, ranges, strict=True))
    return tuple(Part(n, pair.raw.sections(*ends)) for n, (pair, ends) in both if ends[0] < ends[1])


def require_pair(raw: Volume, labels: Volume, channel: int | None) -> None:
    """Refuse labels that are not of the images' voxels, or are no labels."""
    require_same_voxels(raw, labels, RESAMPLE)  # before the extents, which another size of voxel explains
    if raw.extent != labels.extent:
        raise UnetcliError(
            f"{raw.path} is {'x'.join(map(str, raw.extent))}, "
            f"but {labels.path} is {'x'.join(map(str, labels.extent))}: labels must cover the same voxels"
        )
    require_labels(labels)
    if channel is not None and not 0 <= channel < raw.channels:
        raise UnetcliError(f"--channel {channel}: {raw.path} has channels 0 to {raw.channels - 1}")


def require_alike(pairs: Sequence[Volume]) -> None:
    """Refuse images of several pairs that one network cannot read alike."""
    first = pairs[0]
    for other in pairs[1:]:
        if (other.channels, other.dtype) != (first.channels, first.dtype):
            raise UnetcliError(
                f"{first.path} has {first.channels} channels of {first.dtype}, but {other.path} has {other.channels} "
                f"of {other.dtype}: pairs must be alike"
            )
        require_same_voxels(first, other, RESAMPLE)
