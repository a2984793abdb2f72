"""Endless stream of training samples, drawn from the training sections of a dataset.

A sample depends only on the seed and its number, not on the batch, the process or the order of drawing. Training can
therefore stop after any step, and any number of processes can share it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Box
from unetcli.train.augment import SIDE_STEP, Draw, draw
from unetcli.train.dataset import AnnotatedVolume, Dataset, Part
from unetcli.train.settings import IGNORED, Augmentation
from unetcli.train.truth_map import Boxes, has_truth, squares_near_truth

ROUND = 64
"""Number of samples that are drawn from the same ``ROUND_CHUNKS`` chunks of a volume on disk, so that each chunk is
decoded once per round."""
ROUND_CHUNKS = 16
MAX_TRIES = 10_000
"""Positions tried to find a sample with ground truth."""
TRIES_PER_ROUND = 16
"""Tries after which a sample is drawn from other chunks than those of its round, and from places near ground truth."""
SQUARES = (8, 64)
"""Least and largest side, in pixels, of the squares in which ground truth is looked for."""
RARE = 5
"""Displacement, in standard deviations, that is not exceeded by a deformation as a rule."""
CHUNK_STREAM, SAMPLE_STREAM, DROPOUT_STREAM = 0, 1, 2
"""Keys of the random streams, in addition to seed and number."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One training tile and the random choices of its augmentation."""

    image: NDArray[Any]
    """(c, side, side), the volume's data type: the window that the deformation reads for the tile."""
    classes: NDArray[np.uint8]
    """(side, side): the window that the deformation reads for the network's output."""
    border_weight: NDArray[np.float32]
    """(side, side), the same window: border weight, which is added to the class weight."""
    draw: Draw


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Boxes of one pair that samples are drawn from."""

    pair: int
    """Index of the pair."""
    boxes: Boxes


@dataclass(frozen=True, eq=False)
class Sampler:
    """Endless stream of training samples, each of which depends only on the seed and its number."""

    dataset: Dataset
    tile: int
    """Side of the network's input, pixels."""
    output: int
    """Side of the network's output, pixels."""
    augmentation: Augmentation
    seed: int
    classes: int = IGNORED
    """Classes of the network; the statistics of a huge volume cover a part of it and may have missed one."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    """Several threads draw samples; one of them looks for ground truth."""

    def sample(self, number: int) -> Sample:
        """Draw sample ``number``, counted from 0.

        Its centre is uniformly distributed over the training sections, so that the edge of an image is seen as often
        as its middle; images and labels are mirrored beyond the edge. Positions without ground truth are skipped; after
        ``TRIES_PER_ROUND`` of them, only positions near ground truth are drawn.

        Raises
        ------
        UnetcliError
            No position with ground truth is found, or a class is beyond those of the network.
        """
        for attempt in range(MAX_TRIES):
            random = np.random.default_rng([self.seed, SAMPLE_STREAM, number, attempt])
            places = self._round(number // ROUND, attempt // TRIES_PER_ROUND)[int(random.integers(ROUND_CHUNKS))]
            pair, centre = self.dataset.pairs[places.pair], places.boxes.random_voxel(random)
            drawn = draw(self.augmentation, random, self.tile)
            seen = _window(centre, drawn.deformation.window_side(self.output))
            if not has_truth(pair.targets.labels, pair.targets.rules, seen):
                continue
            classes, border_weight = pair.window(seen)
            known = classes[classes != IGNORED]
            if not known.size:  # all its grey values are NaN or infinite
                continue
            if int(known.max()) >= self.classes:
                raise UnetcliError(
                    f"{pair.labels.path}: class {int(known.max())}, but the sampled part of the labels has "
                    f"{self.classes} classes; give --sections with all classes, or --ignore this label"
                )
            image = pair.image(_window(centre, drawn.deformation.window_side(self.tile)))
            return Sample(image, classes, border_weight, drawn)
        raise UnetcliError(
            f"{pair.labels.path}: no ground truth at {MAX_TRIES} random positions; choose other --sections"
        )

    def dropout_mask(self, number: int, channels: int, probability: float) -> NDArray[np.float32]:
        """Factors by which dropout multiplies the channels of a sample.

        Parameters
        ----------
        number : int
            Number of the sample.
        channels : int
        probability : float
            Probability p that a channel is set to 0; 0 <= p < 1.

        Returns
        -------
        (channels,), float32
            0 or 1 / (1 - p).
        """
        random = np.random.default_rng([self.seed, DROPOUT_STREAM, number])
        return (random.random(channels) >= probability).astype(np.float32) / np.float32(1 - probability)

    @cached_property
    def _runs(self) -> tuple[Part, ...]:
        """Runs of training sections that are used."""
        return tuple(run for part in self.dataset.train for run in self.dataset.runs(part))

    @cached_property
    def _everywhere(self) -> tuple[Places, ...]:
        return tuple(Places(run.pair, Boxes.of(run.region)) for run in self._runs)

    @cached_property
    def _near_truth(self) -> tuple[Places, ...]:
        """Squares of each run from whose pixels a sample may see ground truth; all labels are read to find them."""
        found = []
        for run in self._runs:
            pair = self.dataset.pairs[run.pair]
            squares = [self._squares(pair, plane).clipped(plane) for plane in run.region.planes()]
            found.append(Places(run.pair, Boxes.joined(squares)))
        if not any(places.boxes.size for places in found):
            raise UnetcliError(f"{pair.labels.path}: no ground truth in the training sections; choose other --sections")
        return tuple(found)

    def _squares(self, pair: AnnotatedVolume, plane: Box) -> Boxes:
        """Squares of the section of a plane, from whose pixels a sample may see ground truth."""
        section, side = pair.section_of(plane), 1 << (min(max(self.output, SQUARES[0]), SQUARES[1]).bit_length() - 1)
        pieces = pair.targets.pieces(section)
        return squares_near_truth(
            pair.targets.labels, pair.targets.rules, section, pieces, side=side, reach=self._reach
        )

    @property
    def _reach(self) -> int:
        """Distance from its centre, in pixels along y and x, up to which a sample shows labels; rarely exceeded."""
        a, turned = self.augmentation, math.sqrt(2) if self.augmentation.rotation else 1.0
        return math.ceil(self.output / 2 * turned * (1 + a.scale) + RARE * a.displacement(self.tile)) + SIDE_STEP

    @lru_cache(maxsize=4)  # noqa: B019 - a sampler lives as long as its training
    def _round(self, number: int, retry: int) -> list[Places]:
        """Parts of chunks that the samples of a round are drawn from."""
        random = np.random.default_rng([self.seed, CHUNK_STREAM, number, retry])
        with self._lock:
            runs = self._near_truth if retry else self._everywhere
        return [self._random_chunk(random, runs) for _ in range(ROUND_CHUNKS)]

    def _random_chunk(self, random: np.random.Generator, runs: Sequence[Places]) -> Places:
        """Places in the stored chunk of a random one of them; all those of its run if the run is held in memory."""
        ends = np.cumsum([places.boxes.size for places in runs])
        places = runs[int(np.searchsorted(ends, random.integers(ends[-1]), side="right"))]
        voxel, raw = places.boxes.random_voxel(random), self.dataset.pairs[places.pair].raw
        if isinstance(raw.array, np.ndarray):
            return places
        corner = tuple(v // c * c for v, c in zip(voxel, raw.chunks, strict=True))
        chunk = Box(corner, tuple(a + c for a, c in zip(corner, raw.chunks, strict=True)))
        return Places(places.pair, places.boxes.clipped(chunk))


def _window(centre: tuple[int, ...], side: int) -> Box:
    """Square window of one section around a pixel; it may extend beyond the section."""
    lead, corner = centre[:-2], tuple(c - side // 2 for c in centre[-2:])
    return Box(lead + corner, tuple(n + 1 for n in lead) + tuple(c + side for c in corner))
