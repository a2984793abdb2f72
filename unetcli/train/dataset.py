"""What is learned from: pairs of images and labels, and the sections of each that serve training or judging."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Box, hull
from unetcli.core.intensity import Moments, PerChannel
from unetcli.train.augment import Draw, draw
from unetcli.train.recipes import IGNORED, TRUTHS, Augmentation, TruthRules
from unetcli.train.settings import Ranges
from unetcli.train.targets import Lessons, class_weights, is_empty, require_labels
from unetcli.volumes.cached import cached
from unetcli.volumes.volume import Volume, describe
from unetcli.volumes.voxels import require_same_voxels

IN_MEMORY_BYTES = 2**30
"""Of images, of labels, and of what is made of labels, that is held in memory while they are sampled; every pair has
its part of it. Volumes up to that size are read once, chunks of larger ones when needed."""
RESAMPLE = "one must be resampled to the other's"
LARGEST_GREY = 1e30
"""The network computes in float32."""
LARGEST_LOOKED_THROUGH = 2**27
"""Sections of more pixels than this are not looked through for whether anything is drawn in them."""
PIXELS = 2**28
"""About as many pixels are looked at; of larger corpora, sections or pieces of them spread evenly."""
ENOUGH = 1000
"""Different labels, after which it is clear that they are many."""
PIECE = 2048
"""Side of a piece of a section that is too large to be looked at whole."""
ROUND = 64
"""Samples that share ``ROUND_PLACES`` chunks of a volume that is read from disk: each is decoded once a round."""
ROUND_PLACES = 16
TRIES = 10_000
"""Places looked at for a sample with any truth in it."""
PATIENCE = 16
"""Tries without any, after which a sample looks for it in other chunks than those of its round."""
PLACE, SAMPLE, DROPOUT = 0, 1, 2
"""Keys of random streams, beside seed and number."""


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


@dataclass(frozen=True, slots=True)
class Survey:
    """What the training sections hold."""

    mean: PerChannel
    std: PerChannel
    class_counts: NDArray[np.int64]
    """Pixels of each class."""
    sections: int
    """Sections with truth."""
    left_out: int
    """Sections in which nothing is drawn."""
    share: float
    """Of the pixels, how many were looked at; statistics are estimates below 1."""

    def class_weights(self, *, balance: bool) -> NDArray[np.float32]:
        """w_c of eq. 2: classes weigh the same in all, or pixels do."""
        return class_weights(self.class_counts) if balance else np.ones(len(self.class_counts), np.float32)


def survey(corpus: Corpus) -> Survey:
    """Statistics over the training sections, section by section.

    Raises
    ------
    UnetcliError
        No truth anywhere, or a class that does not occur.
    """
    planes = list(corpus.planes(corpus.train))
    every = sum(1 for part in corpus.train for _ in part.region.planes())
    if not planes:
        raise UnetcliError(
            f"{corpus.pairs[0].labels.path}: nothing is drawn in any training section; --sections A:B names others"
        )
    share = min(1.0, PIXELS / sum(box.size for _, box in planes))
    grey, classes = Moments(), np.zeros(IGNORED + 1, np.int64)
    for pair, box in spread(planes, share):
        grey.add(pair.image(box))
        classes += np.bincount(pair.classes(box).ravel(), minlength=IGNORED + 1)
    return Survey(grey.mean, grey.std, occurring(corpus, classes), len(planes), every - len(planes), share)


def occurring(corpus: Corpus, counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Counts of classes 0 to the highest that occurs; refused where one between is missing.

    Class 0 may be missing where label 0 is ignored: scribbles say what is what in a few places only.
    """
    highest = max(1, int(np.flatnonzero(counts[:IGNORED]).max(initial=0)))
    found = counts[: highest + 1]
    missing = found == 0
    missing[0] &= any(pair.rules.ignore != 0 for pair in corpus.pairs)
    if missing.any():
        raise UnetcliError(
            f"{corpus.pairs[0].labels.path}: no pixel of class {int(np.argmax(missing))} in the training sections; "
            f"all of 0 to {highest} are needed, --sections A:B names others"
        )
    return found


def spread(planes: Sequence[tuple[Annotated, Box]], share: float) -> Iterator[tuple[Annotated, Box]]:
    """The planes, or evenly spread pieces that make up about a share of their pixels."""
    if share == 1.0:
        yield from planes
        return
    pieces = [(pair, box) for pair, plane in planes for box in pieces_of(plane)]
    count = max(1, int(len(pieces) * share))
    yield from (pieces[int(n)] for n in np.linspace(0, len(pieces) - 1, count))


def pieces_of(plane: Box) -> Iterable[Box]:
    """Squares of ``PIECE`` pixels, smaller ones at the end."""
    (y0, x0), (y1, x1) = plane.start[-2:], plane.stop[-2:]
    for y in range(y0, y1, PIECE):
        for x in range(x0, x1, PIECE):
            corner, end = (y, x), (min(y + PIECE, y1), min(x + PIECE, x1))
            yield Box(plane.start[:-2] + corner, plane.stop[:-2] + end)


def require_usable(corpus: Corpus, found: Survey) -> None:
    """Refuse held-out sections that cannot be read, or with a class that training does not meet."""
    for pair, box in corpus.planes(corpus.held_out):
        pair.image(box)
        classes = pair.classes(box)
        highest = int(classes[classes != IGNORED].max(initial=0))
        if highest >= len(found.class_counts):
            raise UnetcliError(
                f"{pair.labels.path}: class {highest} in the held-out sections only; "
                "--validation A:B or --sections for another split"
            )


def resolve_truth(truth: str, labels: Sequence[tuple[Volume, Box]], ignore: int | None = None) -> str:
    """What the labels of some regions mean; ``auto`` is binary for at most two values and asks otherwise."""
    if truth in TRUTHS:
        return truth
    if truth != "auto":
        raise UnetcliError(f"--truth {truth}: expected auto, {', '.join(TRUTHS[:-1])} or {TRUTHS[-1]}")
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
    """The different labels of a region, sorted; the first few sections that hold more than two are enough."""
    values: set[int] = set()
    for box in region.planes():
        values.update(np.unique(labels.read(box)).tolist())
        if len(values) > ENOUGH:
            break
    return sorted(values)


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One training tile and the random choices that go with it."""

    number: int
    image: NDArray[Any]
    """(c, side, side), the volume's dtype; the window that the draw needs of the tile."""
    classes: NDArray[np.uint8]
    """(side, side); the window that it needs of the output."""
    raised: NDArray[np.float32]
    """The same place: what the border raises the weight by."""
    draw: Draw


@dataclass(frozen=True, eq=False)
class Sampler:
    """The endless stream of samples of a training."""

    corpus: Corpus
    tile: int
    output: int
    augmentation: Augmentation
    seed: int
    classes: int = IGNORED
    """Of the network. The survey of a huge volume is of a part of it, and may have missed one."""

    def sample(self, number: int) -> Sample:
        """Sample ``number``.

        The centre is anywhere in the training sections, so the edge of an image is seen as often as its middle; what
        lies outside is mirrored, labels too. Places without any truth are passed over.
        """
        for attempt in range(TRIES):
            random = np.random.default_rng([self.seed, SAMPLE, number, attempt])
            pair, centre = self._centre(random, number, attempt)
            drawn = draw(self.augmentation, random, self.tile)
            if (pair.classes(seen := window(centre, drawn.side(self.output))) != IGNORED).any():
                image = pair.image(window(centre, drawn.side(self.tile)))
                classes, raised = pair.lesson(seen)
                self._require_known(pair, classes)
                return Sample(number, image, classes, raised, drawn)
        raise UnetcliError(f"{pair.labels.path}: {TRIES} places tried, none with any truth; --sections, --keep-empty")

    def _require_known(self, pair: Annotated, classes: NDArray[np.uint8]) -> None:
        highest = int(classes[classes != IGNORED].max())
        if highest >= self.classes:
            raise UnetcliError(
                f"{pair.labels.path}: class {highest}, but the part that was surveyed has {self.classes} classes; "
                "--sections with all of them, or --ignore that label"
            )

    def keep(self, number: int, channels: int, probability: float) -> NDArray[np.float32]:
        """Dropout of a sample: (channels,), 0 or 1 / (1 - p)."""
        random = np.random.default_rng([self.seed, DROPOUT, number])
        return (random.random(channels) >= probability).astype(np.float32) / np.float32(1 - probability)

    @cached_property
    def _parts(self) -> tuple[Part, ...]:
        """Sections with truth, of those to train on."""
        return tuple(run for part in self.corpus.train for run in self.corpus.runs(part))

    def _centre(self, random: np.random.Generator, number: int, attempt: int) -> tuple[Annotated, tuple[int, ...]]:
        """A pixel, every one of the training sections with truth as likely as any other."""
        places = self._places(number // ROUND, attempt // PATIENCE)
        part = places[int(random.integers(len(places)))]
        box = part.region
        centre = tuple(int(random.integers(a, b)) for a, b in zip(box.start, box.stop, strict=True))
        return self.corpus.pairs[part.pair], centre

    @lru_cache(maxsize=4)  # noqa: B019 - a sampler lives as long as its training
    def _places(self, number: int, further: int) -> list[Part]:
        """Where the samples of a round lie: chunks of volumes read from disk, all of what is held in memory."""
        random = np.random.default_rng([self.seed, PLACE, number, further])
        return [surrounding(self.corpus, place(self._parts, random)) for _ in range(ROUND_PLACES)]


def place(parts: Sequence[Part], random: np.random.Generator) -> tuple[Part, tuple[int, ...]]:
    """A voxel of the parts, every one as likely as any other."""
    ends = np.cumsum([part.region.size for part in parts])
    part = parts[int(np.searchsorted(ends, random.integers(ends[-1]), side="right"))]
    box = part.region
    return part, tuple(int(random.integers(a, b)) for a, b in zip(box.start, box.stop, strict=True))


def surrounding(corpus: Corpus, found: tuple[Part, tuple[int, ...]]) -> Part:
    """The stored chunk that a voxel lies in, as far as it belongs to the part; the part itself if it is in memory."""
    part, voxel = found
    raw = corpus.pairs[part.pair].raw
    if isinstance(raw.array, np.ndarray):
        return part
    corner = tuple(v // c * c for v, c in zip(voxel, raw.chunks, strict=True))
    chunk = Box(corner, tuple(a + c for a, c in zip(corner, raw.chunks, strict=True)))
    return Part(part.pair, chunk.clipped(part.region))


def window(centre: tuple[int, ...], side: int) -> Box:
    """The square of one section around a pixel; it may reach outside."""
    lead, corner = centre[:-2], tuple(c - side // 2 for c in centre[-2:])
    return Box(lead + corner, tuple(n + 1 for n in lead) + tuple(c + side for c in corner))
