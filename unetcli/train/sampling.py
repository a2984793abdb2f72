"""Training samples: random windows of the annotated volumes, read and mirrored as prediction reads them.

A sample depends on the seed and its number alone: not on the batch, the process or the order it is drawn in, so that
training can stop anywhere, and be shared by any number of processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Box
from unetcli.train.augment import Draw, draw
from unetcli.train.augmentation import Augmentation
from unetcli.train.corpus import Annotated, Corpus, Part
from unetcli.train.targets import IGNORED

ROUND = 64
"""Samples that share ``ROUND_PLACES`` chunks of a volume that is read from disk: each is decoded once a round."""
ROUND_PLACES = 16
TRIES = 10_000
"""Places looked at for a sample with any truth in it."""
PATIENCE = 16
"""Tries without any, after which a sample looks for it in other chunks than those of its round."""
PLACE, SAMPLE, DROPOUT = 0, 1, 2
"""Keys of random streams, beside seed and number."""


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
