"""Annotated volumes of a training: their sections and statistics."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unetcli.core.arrays import Moments, PerChannel
from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Box, hull
from unetcli.model.training_data import GreyValues, grey_values
from unetcli.train.sections import training_runs
from unetcli.train.settings import IGNORED, Ranges, TruthRules
from unetcli.train.targets import TargetCache, class_weights
from unetcli.volumes.chunk_cache import cached
from unetcli.volumes.samples import PLANE_SIDE
from unetcli.volumes.volume import Volume, describe

IN_MEMORY_BYTES = 2**30
"""Memory for the images of all pairs, and as much each for their labels and their targets. Volumes that fit into their
pair's part are read into memory once; chunks of larger ones are cached."""
MAX_GREY = 1e30
"""Largest absolute grey value; float32, in which the network computes, must not overflow."""
MAX_SEARCHED = 2**27
"""Pixels of the largest section that is searched for labels."""
STATISTICS_PIXELS = 2**28
"""Approximate number of pixels that statistics are measured on, evenly spread over larger datasets."""
MAX_WINDOWS = 64
"""Number of sections, or parts of large ones, whose grey values and sizes of objects the model keeps."""
PIECE = 2048
"""Side, in pixels, of the pieces of a section of which only a part is measured."""


@dataclass(frozen=True, slots=True)
class Part:
    """Sections of one pair, for training or validation."""

    pair: int
    """Index of the pair."""
    region: Box


@dataclass(frozen=True, eq=False)
class AnnotatedVolume:
    """Pair of images and labels of the same voxels."""

    raw: Volume
    labels: Volume
    rules: TruthRules
    channel: int | None = None
    """Channel of the images that is used; None: all."""
    pairs: int = 1
    """Number of pairs that share ``IN_MEMORY_BYTES``."""
    nonfinite: float | None = None
    """Value that replaces NaN and infinity in the images; None: such pixels have no ground truth."""
    _empty: dict[tuple[int, ...], bool] = field(default_factory=dict)

    @classmethod
    def buffered(
        cls,
        raw: Volume,
        labels: Volume,
        rules: TruthRules,
        channel: int | None,
        pairs: int = 1,
        nonfinite: float | None = None,
    ) -> AnnotatedVolume:
        """Create one of ``pairs`` pairs; a volume is read into memory if it fits, otherwise its chunks are cached."""
        budget = IN_MEMORY_BYTES // pairs

        def buffer(volume: Volume) -> Volume:
            fits = math.prod(volume.array.shape) * volume.dtype.itemsize <= budget
            return volume.in_memory() if fits else cached(volume, budget)

        return cls(buffer(raw), buffer(labels), rules, channel, pairs, nonfinite)

    @cached_property
    def targets(self) -> TargetCache:
        """Classes and border weights of the labels, by window, whatever the images are."""
        return TargetCache(self.labels, self.rules, IN_MEMORY_BYTES // self.pairs)

    def measured(self, box: Box) -> NDArray[Any]:
        """Grey values of a window of one section as they are stored.

        Returns
        -------
        (c, y, x), the volume's data type

        Raises
        ------
        UnetcliError
            A number is above ``MAX_GREY``.
        """
        voxels = self.raw.read(box, self.channel)
        if voxels.dtype.kind == "f" and ((np.abs(voxels) > MAX_GREY) & np.isfinite(voxels)).any():
            raise UnetcliError(
                f"{self.raw.path}: a number beyond {MAX_GREY:g} at {describe(box, self.raw.axes)}; "
                "--sections A:B leaves it out"
            )
        return voxels.reshape(voxels.shape[0], *voxels.shape[-2:])

    def image(self, box: Box) -> NDArray[Any]:
        """Grey values of a window that are trained on, like :meth:`measured`, with NaN and infinity replaced."""
        image = self.measured(box)
        if self.nonfinite is None or image.dtype.kind != "f":
            return image
        return np.where(np.isfinite(image), image, image.dtype.type(self.nonfinite))

    def classes(self, box: Box) -> NDArray[np.uint8]:
        """Classes of a window, (y, x); ``IGNORED`` also where a grey value is NaN or infinite and not replaced."""
        return self._where_finite(box, self.targets.classes(box), IGNORED)

    def window(self, box: Box) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Classes and border weights of a window, each (y, x)."""
        classes, border_weights = self.targets.window(box)
        return self._where_finite(box, classes, IGNORED), self._where_finite(box, border_weights, 0)

    def _where_finite(self, box: Box, values: NDArray[Any], otherwise: int) -> NDArray[Any]:
        """Values (y, x) of the pixels whose grey values are finite, and another one for the others."""
        if self.nonfinite is not None or self.raw.dtype.kind != "f":
            return values
        finite = np.isfinite(self.measured(box)).all(axis=0)
        return values if finite.all() else np.where(finite, values, values.dtype.type(otherwise))

    def instances(self, box: Box) -> NDArray[Any]:
        """Numbers of the objects in a window of one section, (y, x), integer; 0 is none.

        They are the labels with ``truth="instances"``, otherwise the connected components of the foreground.
        """
        if self.rules.truth != "instances":
            classes = self.classes(box)
            return np.asarray(ndimage.label(classes * (classes != IGNORED))[0])
        labels, ignore = self.targets.labels.read(box).reshape(box.shape[-2:]), self.targets.rules.ignore
        return labels if ignore is None else np.where(labels == ignore, 0, labels)

    def is_empty(self, plane: Box) -> bool:
        """Whether the whole section of a plane has no labels; sections above ``MAX_SEARCHED`` count as labelled."""
        lead, whole = plane.start[:-2], self.section_of(plane)
        if lead not in self._empty:
            self._empty[lead] = whole.size <= MAX_SEARCHED and self.targets.is_empty(whole)
        return self._empty[lead]

    def section_of(self, plane: Box) -> Box:
        """The whole section that a plane is a part of."""
        return Box((*plane.start[:-2], 0, 0), (*plane.stop[:-2], *self.labels.extent[-2:]))


@dataclass(frozen=True, eq=False)
class Dataset:
    """All pairs of a training, with their training sections and held-out sections."""

    pairs: tuple[AnnotatedVolume, ...]
    train: tuple[Part, ...]
    held_out: tuple[Part, ...]
    keep_empty: bool

    @classmethod
    def of_sections(
        cls, pairs: Sequence[AnnotatedVolume], sections: Ranges, validation: Ranges, *, keep_empty: bool
    ) -> Dataset:
        """Create a dataset from the ranges of sections of each pair; those held out are not trained on."""
        runs = [training_runs(*both) for both in zip(sections, validation, strict=True)]
        return cls(tuple(pairs), parts_of(pairs, runs), parts_of(pairs, [[ends] for ends in validation]), keep_empty)

    def planes(self, parts: Sequence[Part]) -> Iterator[tuple[AnnotatedVolume, Box]]:
        """Yield each section of some parts that is used, with its pair."""
        for part in parts:
            pair = self.pairs[part.pair]
            yield from ((pair, box) for box in part.region.planes() if self.is_used(pair, box))

    def windows(self, most: int = MAX_WINDOWS) -> Iterator[tuple[AnnotatedVolume, Box]]:
        """Yield up to ``most`` training sections, or parts of large ones, evenly spread over all of them."""
        planes = self.planes(self.train)
        pieces = [(pair, box) for pair, plane in planes for box in _pieces_of(plane, PLANE_SIDE)]
        for n in np.unique(np.linspace(0, len(pieces) - 1, min(most, len(pieces)), dtype=np.intp)):
            yield pieces[int(n)]

    def runs(self, part: Part) -> Iterator[Part]:
        """Yield the runs of consecutive sections of a part that are used; the part itself if all are."""
        pair, planes = self.pairs[part.pair], list(part.region.planes())
        used = [self.is_used(pair, plane) for plane in planes]
        if all(used):
            yield part
            return
        for key, group in itertools.groupby(zip(planes, used, strict=True), lambda item: (item[1], item[0].start[:-3])):
            if key[0]:
                yield Part(part.pair, hull([plane for plane, _ in group]))

    def is_used(self, pair: AnnotatedVolume, plane: Box) -> bool:
        """Whether a section is trained or validated on: it has labels, or empty sections count as background."""
        return self.keep_empty or not pair.is_empty(plane)


def parts_of(pairs: Sequence[AnnotatedVolume], runs: Sequence[Sequence[tuple[int, int]]]) -> tuple[Part, ...]:
    """Parts of the runs of sections of each pair; an empty run gives no part."""
    both = enumerate(zip(pairs, runs, strict=True))
    return tuple(Part(n, pair.raw.sections(a, b)) for n, (pair, own) in both for a, b in own if a < b)


@dataclass(frozen=True, slots=True)
class DatasetStatistics:
    """Grey value statistics and class counts of the training sections."""

    mean: PerChannel
    """Mean grey value."""
    std: PerChannel
    """Standard deviation of the grey values."""
    class_counts: NDArray[np.int64]
    """(classes,): pixels of each class."""
    sections: int
    """Number of sections with labels."""
    left_out: int
    """Number of sections without labels, which are not used."""
    fraction: float
    """Fraction of the pixels that was measured; below 1, the statistics are estimates."""
    grey: tuple[GreyValues, ...] = ()
    """Percentiles of each channel and their spread over the sections."""
    extremes: tuple[tuple[float, float], ...] = ()
    """Least and largest grey value of each channel."""
    nonfinite: float = 0.0
    """Fraction of the measured pixels that are NaN or infinite, in any channel."""

    def normalised_by(self, intensity: tuple[PerChannel, PerChannel] | None) -> DatasetStatistics:
        """The same with another mean and standard deviation to normalise by, unless they are None."""
        return self if intensity is None else replace(self, mean=intensity[0], std=intensity[1])

    def class_weights(self, *, balance: bool) -> NDArray[np.float32]:
        """Class weights w_c of eq. 2, (classes,): equal totals per class with ``balance``, otherwise 1."""
        return class_weights(self.class_counts) if balance else np.ones(len(self.class_counts), np.float32)


def dataset_statistics(dataset: Dataset) -> DatasetStatistics:
    """Measure grey values and classes of the training sections.

    Raises
    ------
    UnetcliError
        No section has labels, a class does not occur, or a grey value is not finite.
    """
    planes = list(dataset.planes(dataset.train))
    every = sum(1 for part in dataset.train for _ in part.region.planes())
    if not planes:
        raise UnetcliError(
            f"{dataset.pairs[0].labels.path}: no label in any training section; choose other --sections, or "
            "--keep-empty uses sections without labels as background"
        )
    fraction = min(1.0, STATISTICS_PIXELS / sum(box.size for _, box in planes))
    grey, classes = Moments(), np.zeros(IGNORED + 1, np.int64)
    extremes: tuple[tuple[float, float], ...] = ()
    nonfinite = pixels = 0
    for pair, box in planes if fraction == 1.0 else _spread(planes, fraction):
        image = pair.measured(box)
        grey.add(image)
        extremes = _widened(extremes, image)
        classes += np.bincount(pair.classes(box).ravel(), minlength=IGNORED + 1)
        nonfinite, pixels = nonfinite + _nonfinite_pixels(image), pixels + box.size
    return DatasetStatistics(
        grey.mean,
        grey.std,
        _complete_counts(dataset, classes),
        sections=len(planes),
        left_out=every - len(planes),
        fraction=fraction,
        grey=grey_values(pair.measured(box) for pair, box in dataset.windows()),
        extremes=extremes,
        nonfinite=nonfinite / pixels,
    )


def _nonfinite_pixels(image: NDArray[Any]) -> int:
    """Number of pixels of an image (c, y, x) that are NaN or infinite in any channel."""
    return 0 if image.dtype.kind != "f" else int((~np.isfinite(image)).any(axis=0).sum())


def _widened(extremes: tuple[tuple[float, float], ...], image: NDArray[Any]) -> tuple[tuple[float, float], ...]:
    """Least and largest finite value of each channel, also over the image (c, y, x)."""
    channels = [channel if channel.dtype.kind != "f" else channel[np.isfinite(channel)] for channel in image]
    if not all(channel.size for channel in channels):
        return extremes
    found = [(float(channel.min()), float(channel.max())) for channel in channels]
    return tuple((min(a, c), max(b, d)) for (a, b), (c, d) in zip(extremes or found, found, strict=True))


def _complete_counts(dataset: Dataset, counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Counts of the classes from 0 to the highest that occurs; raise UnetcliError if one of them does not occur.

    Class 0 may be missing if label 0 is ignored: scribbles mark every class, background included, in a few places.
    """
    highest = max(1, int(np.flatnonzero(counts[:IGNORED]).max(initial=0)))
    found = counts[: highest + 1]
    missing = found == 0
    missing[0] &= any(pair.rules.ignore != 0 for pair in dataset.pairs)
    if missing.any():
        lost = dataset.pairs[0].rules.values.class_text(int(np.argmax(missing)))
        hint = f"classes 0 to {highest} must all occur, --sections A:B selects other sections"
        if missing[0] and dataset.pairs[0].rules.label_threshold is None:
            hint = f"--background V states the value of background, {hint.partition(', ')[2]}"
        raise UnetcliError(f"{dataset.pairs[0].labels.path}: no pixel of {lost} in the training sections; {hint}")
    return found


def _spread(planes: Sequence[tuple[AnnotatedVolume, Box]], fraction: float) -> Iterator[tuple[AnnotatedVolume, Box]]:
    """Yield evenly spread pieces with about the given fraction of the planes' pixels."""
    pieces = [(pair, box) for pair, plane in planes for box in _pieces_of(plane)]
    count = max(1, int(len(pieces) * fraction))
    yield from (pieces[int(n)] for n in np.linspace(0, len(pieces) - 1, count))


def _pieces_of(plane: Box, side: int = PIECE) -> Iterable[Box]:
    """Yield squares of ``side`` pixels that cover a plane, smaller at the end of each axis."""
    (y0, x0), (y1, x1) = plane.start[-2:], plane.stop[-2:]
    for y, x in itertools.product(range(y0, y1, side), range(x0, x1, side)):
        yield Box((*plane.start[:-2], y, x), (*plane.stop[:-2], min(y + side, y1), min(x + side, x1)))


def require_usable(dataset: Dataset, statistics: DatasetStatistics) -> None:
    """Raise UnetcliError if a held-out section cannot be read, or has a class that does not occur in training."""
    for pair, box in dataset.planes(dataset.held_out):
        pair.measured(box)
        classes = pair.classes(box)
        highest = int(classes[classes != IGNORED].max(initial=0))
        if highest >= len(statistics.class_counts):
            raise UnetcliError(
                f"{pair.labels.path}: {pair.rules.values.class_text(highest)} occurs only in held-out sections; "
                "choose other sections with --validation, --folds or --sections"
            )


def require_labelled(dataset: Dataset, folds: Sequence[Ranges]) -> None:
    """Raise UnetcliError if a fold has no section that is used."""
    for number, ranges in enumerate(folds, 1):
        parts = parts_of(dataset.pairs, [[ends] for ends in ranges])
        if not any(True for _ in dataset.planes(parts)):
            first, last = dataset.pairs[parts[0].pair], ranges[parts[0].pair]
            raise UnetcliError(
                f"{first.labels.path}: no label in sections {last[0]}:{last[1]}, fold {number} of {len(folds)}; give "
                "fewer --folds, or --sections with labels"
            )
