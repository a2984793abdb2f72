"""The annotated volumes of a training: their sections, statistics, and the endless stream of samples drawn from them.

A sample depends on the seed and its number alone, not on the batch, the process or the order of drawing, so that
training can stop anywhere and be shared by any number of processes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unetcli.core.arrays import Moments, PerChannel
from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Box, hull
from unetcli.train.augment import Draw, draw
from unetcli.train.settings import IGNORED, TRUTHS, Augmentation, Ranges, TruthRules, require_one_of
from unetcli.train.targets import TargetCache, class_weights
from unetcli.volumes.opening import cached
from unetcli.volumes.volume import Volume, describe

IN_MEMORY_BYTES = 2**30
"""Memory for images, the same for labels, and the same for what is made of labels; all pairs share it. Volumes up to
their part of it are read once, the chunks of larger ones when needed."""
LARGEST_GREY = 1e30
"""The network computes in float32."""
LARGEST_LOOKED_THROUGH = 2**27
"""Pixels of the largest section that is searched for anything drawn in it."""
PIXELS = 2**28
"""Number of pixels that statistics are measured on, about; of larger datasets, evenly spread sections or pieces."""
ENOUGH = 1000
"""Number of different labels after which no more are counted."""
PIECE = 2048
"""Side of a piece of a section that is too large to be measured whole."""
ROUND = 64
"""Samples that share ``ROUND_PLACES`` chunks of a volume that is read from disk: each is decoded once a round."""
ROUND_PLACES = 16
TRIES = 10_000
"""Places tried for a sample with any truth in it."""
PATIENCE = 16
"""Tries after which a sample without truth is looked for in other chunks than those of its round."""
PLACE, SAMPLE, DROPOUT = 0, 1, 2
"""Keys of random streams, beside seed and number."""


@dataclass(frozen=True, slots=True)
class Part:
    """Sections of one pair, to draw samples from or to validate on."""

    pair: int
    region: Box


@dataclass(frozen=True, eq=False)
class AnnotatedVolume:
    """Images and labels of the same voxels."""

    raw: Volume
    labels: Volume
    rules: TruthRules
    channel: int | None = None
    pairs: int = 1
    """Number of pairs that share the memory."""
    _empty: dict[tuple[int, ...], bool] = field(default_factory=dict)

    @classmethod
    def buffered(
        cls, raw: Volume, labels: Volume, rules: TruthRules, channel: int | None, pairs: int = 1
    ) -> AnnotatedVolume:
        """One of ``pairs``: each volume is read into memory if it fits there, else its chunks are cached."""
        budget = IN_MEMORY_BYTES // pairs

        def near(volume: Volume) -> Volume:
            fits = volume.array.size * volume.dtype.itemsize <= budget
            return volume.in_memory() if fits else cached(volume, budget)

        return cls(near(raw), near(labels), rules, channel, pairs)

    @cached_property
    def targets(self) -> TargetCache:
        """Classes and border weights, by window."""
        return TargetCache(self.labels, self.rules, IN_MEMORY_BYTES // self.pairs)

    def image(self, box: Box) -> NDArray[Any]:
        """Grey values of one section's window, (c, y, x); refused where they are not finite."""
        voxels = self.raw.read(box, self.channel)
        if voxels.dtype.kind == "f" and not (np.abs(voxels) <= LARGEST_GREY).all():  # true for NaN too
            raise UnetcliError(
                f"{self.raw.path}: NaN, infinity or a number beyond {LARGEST_GREY:g} at "
                f"{describe(box, self.raw.axes)}; --sections A:B leaves it out"
            )
        return voxels.reshape(voxels.shape[0], *voxels.shape[-2:])

    def instances(self, box: Box) -> NDArray[Any]:
        """Objects of a window of one section, (y, x) integers: as labelled, else the connected foreground."""
        if self.rules.truth != "instances":
            classes = self.targets.classes(box)
            return np.asarray(ndimage.label(classes * (classes != IGNORED))[0])
        labels = self.labels.read(box).reshape(box.shape[-2:])
        return labels if self.rules.ignore is None else np.where(labels == self.rules.ignore, 0, labels)

    def is_empty(self, plane: Box) -> bool:
        """Whether nothing is drawn in the section that a plane is part of; huge sections count as drawn in."""
        lead = plane.start[:-2]
        if lead not in self._empty:
            whole = Box((*lead, 0, 0), tuple(n + 1 for n in lead) + self.labels.extent[-2:])
            self._empty[lead] = whole.size <= LARGEST_LOOKED_THROUGH and self.targets.is_empty(whole)
        return self._empty[lead]


@dataclass(frozen=True, eq=False)
class Dataset:
    """All pairs of a training, with the sections to train on and those held out."""

    pairs: tuple[AnnotatedVolume, ...]
    train: tuple[Part, ...]
    held_out: tuple[Part, ...]
    keep_empty: bool

    @classmethod
    def of_sections(
        cls, pairs: Sequence[AnnotatedVolume], sections: Ranges, validation: Ranges, *, keep_empty: bool
    ) -> Dataset:
        """The sections named for each pair; pairs without any have no part."""

        def parts(ranges: Ranges) -> tuple[Part, ...]:
            both = enumerate(zip(pairs, ranges, strict=True))
            return tuple(Part(n, pair.raw.sections(*ends)) for n, (pair, ends) in both if ends[0] < ends[1])

        return cls(tuple(pairs), parts(sections), parts(validation), keep_empty)

    def planes(self, parts: Sequence[Part]) -> Iterator[tuple[AnnotatedVolume, Box]]:
        """Every section of parts that has truth, with its pair."""
        for part in parts:
            pair = self.pairs[part.pair]
            yield from ((pair, box) for box in part.region.planes() if self.is_used(pair, box))

    def runs(self, part: Part) -> Iterator[Part]:
        """The part cut where sections without truth lie between others; the part itself where there are none."""
        pair, planes = self.pairs[part.pair], list(part.region.planes())
        used = [self.is_used(pair, plane) for plane in planes]
        if all(used):
            yield part
            return
        for key, group in itertools.groupby(zip(planes, used, strict=True), lambda item: (item[1], item[0].start[:-3])):
            if key[0]:
                yield Part(part.pair, hull([plane for plane, _ in group]))

    def is_used(self, pair: AnnotatedVolume, plane: Box) -> bool:
        """Whether a section has truth to train or validate on."""
        return self.keep_empty or not pair.is_empty(plane)


@dataclass(frozen=True, slots=True)
class DatasetStatistics:
    """Grey values and classes of the training sections."""

    mean: PerChannel
    std: PerChannel
    class_counts: NDArray[np.int64]
    """Pixels of each class."""
    sections: int
    """Sections with truth."""
    left_out: int
    """Sections in which nothing is drawn."""
    share: float
    """Share of the pixels that was measured; statistics are estimates below 1."""

    def class_weights(self, *, balance: bool) -> NDArray[np.float32]:
        """w_c of eq. 2: with ``balance`` every class weighs the same in all, else every pixel."""
        return class_weights(self.class_counts) if balance else np.ones(len(self.class_counts), np.float32)


def dataset_statistics(dataset: Dataset) -> DatasetStatistics:
    """Measure the training sections, one after another.

    Raises
    ------
    UnetcliError
        No truth anywhere, or a class that does not occur.
    """
    planes = list(dataset.planes(dataset.train))
    every = sum(1 for part in dataset.train for _ in part.region.planes())
    if not planes:
        raise UnetcliError(
            f"{dataset.pairs[0].labels.path}: nothing is drawn in any training section; --sections A:B names others"
        )
    share = min(1.0, PIXELS / sum(box.size for _, box in planes))
    grey, classes = Moments(), np.zeros(IGNORED + 1, np.int64)
    for pair, box in planes if share == 1.0 else _spread(planes, share):
        grey.add(pair.image(box))
        classes += np.bincount(pair.targets.classes(box).ravel(), minlength=IGNORED + 1)
    counts = _occurring(dataset, classes)
    return DatasetStatistics(grey.mean, grey.std, counts, len(planes), every - len(planes), share)


def _occurring(dataset: Dataset, counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Counts of classes 0 to the highest that occurs; refused where one between is missing.

    Class 0 may be missing where label 0 is ignored: scribbles show all classes in a few places only.
    """
    highest = max(1, int(np.flatnonzero(counts[:IGNORED]).max(initial=0)))
    found = counts[: highest + 1]
    missing = found == 0
    missing[0] &= any(pair.rules.ignore != 0 for pair in dataset.pairs)
    if missing.any():
        raise UnetcliError(
            f"{dataset.pairs[0].labels.path}: no pixel of class {int(np.argmax(missing))} in the training sections; "
            f"all of 0 to {highest} are needed, --sections A:B names others"
        )
    return found


def _spread(planes: Sequence[tuple[AnnotatedVolume, Box]], share: float) -> Iterator[tuple[AnnotatedVolume, Box]]:
    """Evenly spread pieces that make up about a share of the planes' pixels."""
    pieces = [(pair, box) for pair, plane in planes for box in _pieces_of(plane)]
    count = max(1, int(len(pieces) * share))
    yield from (pieces[int(n)] for n in np.linspace(0, len(pieces) - 1, count))


def _pieces_of(plane: Box) -> Iterable[Box]:
    """Squares of ``PIECE`` pixels, smaller ones at the end."""
    (y0, x0), (y1, x1) = plane.start[-2:], plane.stop[-2:]
    for y, x in itertools.product(range(y0, y1, PIECE), range(x0, x1, PIECE)):
        yield Box((*plane.start[:-2], y, x), (*plane.stop[:-2], min(y + PIECE, y1), min(x + PIECE, x1)))


def require_usable(dataset: Dataset, statistics: DatasetStatistics) -> None:
    """Refuse held-out sections that cannot be read, or with a class that does not occur in training."""
    for pair, box in dataset.planes(dataset.held_out):
        pair.image(box)
        classes = pair.targets.classes(box)
        highest = int(classes[classes != IGNORED].max(initial=0))
        if highest >= len(statistics.class_counts):
            raise UnetcliError(
                f"{pair.labels.path}: class {highest} in the held-out sections only; "
                "--validation A:B or --sections for another split"
            )


def resolve_truth(truth: str, labels: Sequence[tuple[Volume, Box]], ignore: int | None = None) -> str:
    """The meaning of the labels of some regions; ``auto`` is binary for at most two values, else an error."""
    if truth in TRUTHS:
        return truth
    require_one_of("truth", truth, ("auto", *TRUTHS))
    for volume in {id(volume): volume for volume, _ in labels}.values():
        regions = [region for other, region in labels if other is volume]
        values = sorted({value for region in regions for value in label_values(volume, region)} - {ignore})
        if len(values) > 2:
            shown = ", ".join(map(str, values[:4])) + (f", .. {values[-1]}" if len(values) > 4 else "")
            raise UnetcliError(
                f"{volume.path}: {len(values)} different values ({shown}); say what they are: --truth instances "
                "(one number per object), --truth classes (one per class) or --truth binary (all but 0 is foreground)"
            )
    return "binary"


def label_values(labels: Volume, region: Box) -> list[int]:
    """The different labels of a region, sorted; reading stops after the section with which they are ``ENOUGH``."""
    values: set[int] = set()
    for box in region.planes():
        values.update(np.unique(labels.read(box)).tolist())
        if len(values) > ENOUGH:
            break
    return sorted(values)


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One training tile and its random choices."""

    image: NDArray[Any]
    """(c, side, side), the volume's dtype; the window that the draw needs of the tile."""
    classes: NDArray[np.uint8]
    """(side, side); the window that it needs of the output."""
    border_weight: NDArray[np.float32]
    """(side, side), the same window: what the border adds to the class weight."""
    draw: Draw


@dataclass(frozen=True, eq=False)
class Sampler:
    """The endless stream of samples of a training."""

    dataset: Dataset
    tile: int
    output: int
    augmentation: Augmentation
    seed: int
    classes: int = IGNORED
    """Classes of the network. Statistics of a huge volume are of a part of it, and may have missed one."""

    def sample(self, number: int) -> Sample:
        """Sample ``number``.

        The centre is anywhere in the training sections, so the edge of an image is seen as often as its middle; what
        lies outside is mirrored, labels too. Places without any truth are passed over.
        """
        for attempt in range(TRIES):
            random = np.random.default_rng([self.seed, SAMPLE, number, attempt])
            part = self._round(number // ROUND, attempt // PATIENCE)[int(random.integers(ROUND_PLACES))]
            pair, centre = self.dataset.pairs[part.pair], _random_voxel(part.region, random)
            drawn = draw(self.augmentation, random, self.tile)
            seen = _window(centre, drawn.deformation.window_side(self.output))
            if (pair.targets.classes(seen) != IGNORED).any():
                image = pair.image(_window(centre, drawn.deformation.window_side(self.tile)))
                classes, border_weight = pair.targets.window(seen)
                highest = int(classes[classes != IGNORED].max())
                if highest >= self.classes:
                    raise UnetcliError(
                        f"{pair.labels.path}: class {highest}, but the part that was surveyed has {self.classes} "
                        "classes; --sections with all of them, or --ignore that label"
                    )
                return Sample(image, classes, border_weight, drawn)
        raise UnetcliError(f"{pair.labels.path}: {TRIES} places tried, none with any truth; --sections, --keep-empty")

    def keep(self, number: int, channels: int, probability: float) -> NDArray[np.float32]:
        """Dropout of a sample: (channels,), 0 or 1 / (1 - p)."""
        random = np.random.default_rng([self.seed, DROPOUT, number])
        return (random.random(channels) >= probability).astype(np.float32) / np.float32(1 - probability)

    @cached_property
    def _runs(self) -> tuple[Part, ...]:
        """The training sections that have truth."""
        return tuple(run for part in self.dataset.train for run in self.dataset.runs(part))

    @lru_cache(maxsize=4)  # noqa: B019 - a sampler lives as long as its training
    def _round(self, number: int, further: int) -> list[Part]:
        """The parts that samples of a round are drawn from."""
        random = np.random.default_rng([self.seed, PLACE, number, further])
        return [self._place(random) for _ in range(ROUND_PLACES)]

    def _place(self, random: np.random.Generator) -> Part:
        """A random part of the training sections, each of their voxels as likely as any other.

        It is the stored chunk of the voxel, clipped to the sections; all of them where they are held in memory.
        """
        ends = np.cumsum([part.region.size for part in self._runs])
        part = self._runs[int(np.searchsorted(ends, random.integers(ends[-1]), side="right"))]
        voxel, raw = _random_voxel(part.region, random), self.dataset.pairs[part.pair].raw
        if isinstance(raw.array, np.ndarray):
            return part
        corner = tuple(v // c * c for v, c in zip(voxel, raw.chunks, strict=True))
        chunk = Box(corner, tuple(a + c for a, c in zip(corner, raw.chunks, strict=True)))
        return Part(part.pair, chunk.clipped(part.region))


def _random_voxel(box: Box, random: np.random.Generator) -> tuple[int, ...]:
    """A voxel of a box, each as likely as any other."""
    return tuple(int(random.integers(a, b)) for a, b in zip(box.start, box.stop, strict=True))


def _window(centre: tuple[int, ...], side: int) -> Box:
    """The square of one section around a pixel; it may reach outside."""
    lead, corner = centre[:-2], tuple(c - side // 2 for c in centre[-2:])
    return Box(lead + corner, tuple(n + 1 for n in lead) + tuple(c + side for c in corner))
