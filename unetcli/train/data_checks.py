"""Warnings about training data that cannot teach anything: images and labels exchanged, or a constant image."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import warn
from unetcli.train.dataset import Dataset, DatasetStatistics
from unetcli.volumes.samples import sampled_planes
from unetcli.volumes.volume import Volume

PLANES = 4
"""Number of chunks of each volume that are looked at."""
LABELS_ARE_FLAT, IMAGES_ARE_NOT = 0.94, 0.85
"""Fraction of neighbouring pixels with equal values: labels have at least 0.95, images of five kinds at most 0.71."""


def warn_about_pairs(volumes: Sequence[tuple[Volume, Volume]]) -> None:
    """Warn if images look like labels and labels like images, or if both have the same values."""
    for raw, labels in volumes:
        if flatness(raw) >= LABELS_ARE_FLAT and flatness(labels) <= IMAGES_ARE_NOT:
            warn(f"{raw.path} looks like labels, and {labels.path} like an image; the order is RAW LABELS")
        elif _same_values(raw, labels):
            warn(f"{raw.path} and {labels.path} have the same values; RAW is the image, LABELS its annotation")


def flatness(volume: Volume) -> float:
    """Fraction of horizontally neighbouring pixels with equal values, 0 to 1, in a few chunks; 0 without pixels."""
    equal = [float(np.mean(plane[..., 1:] == plane[..., :-1])) for plane in _planes(volume) if plane.shape[-1] > 1]
    return float(np.mean(equal)) if equal else 0.0


def _same_values(raw: Volume, labels: Volume) -> bool:
    pairs = list(zip(_planes(raw), _planes(labels), strict=False))
    return bool(pairs) and all(one.shape == other.shape and np.array_equal(one, other) for one, other in pairs)


def _planes(volume: Volume) -> Iterator[NDArray[Any]]:
    return itertools.islice(sampled_planes(volume, volume.whole(), None), PLANES)


def warn_about_images(dataset: Dataset, statistics: DatasetStatistics) -> None:
    """Warn about channels that have the same value everywhere in the training sections."""
    path = ", ".join(dict.fromkeys(dataset.pairs[part.pair].raw.path for part in dataset.train))
    for channel, (low, high) in enumerate(statistics.extremes):
        if low == high:
            name = f"{path}, channel {channel}" if len(statistics.extremes) > 1 else path
            warn(f"{name}: a constant image, all values of the training sections are {low:g}; is it the right file?")
