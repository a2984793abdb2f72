"""Values as colours: the contrast of grey values, the palette of labels, outlines; thinner and larger pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.arrays import distinct

PERCENTILES = (0.5, 99.5)
"""Percentiles of the grey values that become black and white."""


def means(values: NDArray[Any], step: int) -> NDArray[np.float32]:
    """Means of ``step`` x ``step`` pixels of (.., y, x); blocks at the far edges average the fewer pixels they have."""
    if step == 1:
        return values.astype(np.float32)
    rows, columns = (np.arange(0, n, step) for n in values.shape[-2:])
    sums = np.add.reduceat(np.add.reduceat(values.astype(np.float64), rows, axis=-2), columns, axis=-1)
    counts = [np.diff([*starts, n]) for starts, n in zip((rows, columns), values.shape[-2:], strict=True)]
    return np.divide(sums, np.outer(*counts), dtype=np.float64).astype(np.float32)


def samples(values: NDArray[Any], step: int) -> NDArray[Any]:
    """Every ``step``-th pixel of (y, x), the middle one of each block where it exists."""
    picks = [np.minimum(np.arange(0, n, step) + step // 2, n - 1) for n in values.shape]
    return values[np.ix_(*picks)]


def enlarged(values: NDArray[Any], zoom: int) -> NDArray[Any]:
    """Each pixel of (y, x, ..) as a square of ``zoom`` x ``zoom``."""
    return values.repeat(zoom, axis=0).repeat(zoom, axis=1)


def stretched(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Grey values of one channel as 0 (black) to 1 (white) between their percentiles; NaN and infinity are black."""
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros(values.shape, np.float32)
    low, high = np.percentile(values[finite], PERCENTILES)
    if high <= low:  # nearly all the same: a few bright spots on nothing
        low, high = values[finite].min(), values[finite].max()
    scaled: NDArray[Any] = (np.where(finite, values, low) - low) / (high - low if high > low else 1)
    return scaled.clip(0, 1).astype(np.float32)


def rgb(channels: NDArray[np.float32]) -> NDArray[np.float32]:
    """(y, x, 3) of one to three channels (c, y, x): one is grey, of two there is no blue."""
    if len(channels) == 1:
        channels = channels.repeat(3, axis=0)
    return np.pad(channels, [(0, 3 - len(channels)), (0, 0), (0, 0)]).transpose(1, 2, 0)


def label_colours(labels: NDArray[Any]) -> NDArray[np.float32]:
    """Bright colours (.., 3) in 0..1 by number, so that an object keeps its own in every picture; 0 is black."""
    from matplotlib.colors import hsv_to_rgb

    values, places = distinct(labels)
    hue = (values.astype(np.uint64) * np.uint64(40503) % np.uint64(65536)).astype(np.float64) / 65536
    light = 0.8 + 0.2 * (values.astype(np.uint64) % np.uint64(2)).astype(np.float64)
    table = hsv_to_rgb(np.stack([hue, np.full(len(values), 0.8), light], axis=-1)).astype(np.float32)
    table[values == 0] = 0
    colours: NDArray[np.float32] = table[places]
    return colours


def outlines(labels: NDArray[Any], dots: int = 1) -> NDArray[np.bool_]:
    """Mask of the pixels of objects (y, x) less than ``dots`` away from another number, across or down.

    >>> outlines(np.array([[0, 7, 7, 7, 4]])).astype(int).tolist()
    [[0, 1, 0, 1, 1]]
    """
    edge = np.zeros(labels.shape, np.bool_)
    for shift in range(1, dots + 1):
        for values, mask in ((labels, edge), (labels.T, edge.T)):
            differ = values[shift:] != values[:-shift]
            mask[shift:] |= differ
            mask[:-shift] |= differ
    return edge & labels.astype(np.bool_)
