"""Values of a section as colours, and colours as a PNG, one dot per pixel or a whole number of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.arrays import distinct
from unetcli.core.files import replacing
from unetcli.viz.pictures import DOTS_PER_INCH

PERCENTILES = (0.5, 99.5)
"""Of the grey values: what is black and what is white."""


def means_of(values: NDArray[Any], step: int) -> NDArray[np.float32]:
    """Means of ``step`` x ``step`` pixels (c, y, x); of fewer at the far edges."""
    rows, columns = (np.arange(0, n, step) for n in values.shape[1:])
    sums = np.add.reduceat(np.add.reduceat(values.astype(np.float64), rows, axis=1), columns, axis=2)
    counts = [np.diff([*starts, n]) for starts, n in zip((rows, columns), values.shape[1:], strict=True)]
    means: NDArray[np.float32] = (sums / np.outer(*counts)).astype(np.float32)
    return means


def stretched(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Grey values between black and white at their percentiles; what is not finite is black."""
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros_like(values)
    low, high = np.percentile(values[finite], PERCENTILES)
    if high <= low:  # nearly all the same: a few bright spots on nothing
        low, high = values[finite].min(), values[finite].max()
    scaled = (np.where(finite, values, low) - low) / (high - low if high > low else 1)
    clipped: NDArray[np.float32] = np.clip(scaled, 0, 1).astype(np.float32)
    return clipped


def label_colours(labels: NDArray[Any]) -> NDArray[np.float32]:
    """Bright colours (.., 3) by number, so that an object keeps its own from section to section; 0 is black."""
    from matplotlib.colors import hsv_to_rgb

    values, places = distinct(labels)
    turns = (values.astype(np.uint64) * np.uint64(40503) % np.uint64(65536)).astype(np.float64) / 65536
    light = 0.8 + 0.2 * (values.astype(np.uint64) % np.uint64(2)).astype(np.float64)
    table = hsv_to_rgb(np.stack([turns, np.full(len(values), 0.8), light], axis=-1)).astype(np.float32)
    table[values == 0] = 0
    colours: NDArray[np.float32] = table[places]
    return colours


def outlines(labels: NDArray[Any], dots: int = 1) -> NDArray[np.bool_]:
    """Pixels of objects (y, x) less than ``dots`` away from another number, across or down.

    >>> outlines(np.array([[0, 7, 7, 7, 4]])).astype(int).tolist()
    [[0, 1, 0, 1, 1]]
    """
    edge = np.zeros(labels.shape, np.bool_)
    for shift in range(1, dots + 1):
        down = labels[shift:] != labels[:-shift]
        across = labels[:, shift:] != labels[:, :-shift]
        edge[shift:] |= down
        edge[:-shift] |= down
        edge[:, shift:] |= across
        edge[:, :-shift] |= across
    inner: NDArray[np.bool_] = edge & (labels != 0)
    return inner


def enlarged(values: NDArray[Any], zoom: int) -> NDArray[Any]:
    return values.repeat(zoom, axis=0).repeat(zoom, axis=1)


def round_length(most: float) -> float:
    """The largest of 1, 2, 5, 10, 20, .. (and 0.5, 0.2, ..) that is not above ``most``.

    >>> round_length(437.0), round_length(0.7)
    (200.0, 0.5)
    """
    power = 10.0 ** math.floor(math.log10(most))
    return next(float(f"{factor * power:.6g}") for factor in (5, 2, 1) if factor * power <= most * (1 + 1e-9))


def save_dots(colours: NDArray[np.float32], bar: tuple[float, str] | None, file: Path, software: str) -> None:
    """One dot per value, so that nothing is smoothed, and the scale bar (dots, text) at the lower right."""
    from matplotlib.image import imsave

    if bar is not None:
        drawn = _drawn_bar(bar[0], bar[1], colours.shape[1], colours.shape[0])
        opacity = drawn[..., 3:]
        colours = colours * (1 - opacity) + drawn[..., :3] * opacity
    dots = np.rint(np.clip(colours, 0, 1) * 255).astype(np.uint8)
    with replacing(file) as draft:
        imsave(draft, dots, format="png", metadata={"Software": software})


def _drawn_bar(length: float, text: str, width: int, height: int) -> NDArray[np.float32]:
    """A white bar with its length above it, dark around, on nothing: (height, width, 4) in 0..1."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    figure = Figure(figsize=((width + 0.5) / DOTS_PER_INCH, (height + 0.5) / DOTS_PER_INCH), dpi=DOTS_PER_INCH)
    figure.patch.set_alpha(0)
    thick, margin = max(3, width // 200), max(4, width // 40)
    left, around = width - margin - length, [withStroke(linewidth=2, foreground="black")]
    figure.add_artist(
        Rectangle((left, margin), length, thick, transform=None, color="white", linewidth=0, path_effects=around)
    )
    middle, above, size = (left + length / 2) / width, (margin + 1.6 * thick) / height, max(7, width / 72)
    figure.text(middle, above, text, color="white", ha="center", va="bottom", size=size, path_effects=around)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    drawn: NDArray[np.float32] = (np.asarray(canvas.buffer_rgba()) / 255).astype(np.float32)
    return drawn
