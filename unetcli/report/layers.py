"""The images of a section as a browser takes them: thinned where they are large, and inline."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_PIXELS = 1024
"""Of a side of a picture; larger sections are thinned by a whole factor."""
QUALITY = 85
"""Of the WebP that shows the grey values; all that is measured on is stored without loss."""
PERCENTILES = (0.5, 99.5)
"""Grey values that become black and white."""


def factor_of(shape: tuple[int, ...]) -> int:
    """By what a section is thinned.

    >>> factor_of((512, 512)), factor_of((2049, 300))
    (1, 3)
    """
    return max(1, -(-max(shape) // MOST_PIXELS))


def means(values: NDArray[Any], factor: int) -> NDArray[np.float32]:
    """(..., y, x) as means of squares of ``factor``; those at the far edges repeat the last pixel."""
    if factor == 1:
        return values.astype(np.float32)
    sides = [(0, 0)] * (values.ndim - 2) + [(0, -n % factor) for n in values.shape[-2:]]
    padded = np.pad(values, sides, mode="edge").astype(np.float32)
    *lead, height, width = padded.shape
    blocks = padded.reshape(*lead, height // factor, factor, width // factor, factor)
    found: NDArray[np.float32] = blocks.mean(axis=(-3, -1))
    return found


def samples(values: NDArray[Any], factor: int) -> NDArray[Any]:
    """(y, x) labels of every ``factor``th pixel, the middle one of each square where it exists."""
    picks = [np.minimum(np.arange(0, n, factor) + factor // 2, n - 1) for n in values.shape]
    return values[np.ix_(*picks)]


def stretched(values: NDArray[np.float32], percentiles: tuple[float, float] = PERCENTILES) -> NDArray[np.uint8]:
    """Grey values between two percentiles as 0..255, each of (c, y, x) by itself; a flat image is black."""
    low, high = np.percentile(values, percentiles, axis=(-2, -1), keepdims=True)
    span = np.where(high > low, high - low, 1)
    found: NDArray[np.uint8] = np.rint(np.clip((values - low) / span, 0, 1) * 255).astype(np.uint8)
    return found


def shown(image: NDArray[Any], factor: int) -> str:
    """(c, y, x) of any type as a picture: three channels as colours, else the first."""
    grey = stretched(means(np.nan_to_num(image[:3] if len(image) == 3 else image[:1]), factor))
    colours = np.broadcast_to(np.moveaxis(grey, 0, -1), (*grey.shape[1:], 3))
    import imagecodecs

    return data_url("webp", imagecodecs.webp_encode(np.ascontiguousarray(colours), level=QUALITY, lossless=False))


def grey(probability: NDArray[Any], factor: int) -> str:
    """(y, x) of 0..1 in 255 steps."""
    return png(np.rint(means(probability, factor) * 255).astype(np.uint8))


def mask(values: NDArray[np.bool_], factor: int) -> str:
    """(y, x): 255 where it is true."""
    return png(samples(values, factor).astype(np.uint8) * np.uint8(255))


def labels(values: NDArray[Any], factor: int) -> str:
    """(y, x) integers in the red, green and blue of a pixel, red the lowest byte; beyond 2^24 they start anew."""
    thin = samples(values, factor).astype(np.uint64)
    thin = np.where(thin, (thin - 1) % (2**24 - 1) + 1, 0)
    parts = [(thin >> np.uint64(shift) & np.uint64(255)).astype(np.uint8) for shift in (0, 8, 16)]
    return png(np.stack(parts, axis=-1))


def png(values: NDArray[np.uint8]) -> str:
    """(y, x) or (y, x, 3) as it is."""
    import imagecodecs

    return data_url("png", imagecodecs.png_encode(np.ascontiguousarray(values), level=9))


def data_url(kind: str, data: bytes | bytearray) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
