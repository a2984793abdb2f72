"""Masks with a fringe: others than their two values at edges, as JPEG and resizing leave them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import warn
from unetcli.volumes.labels import sampled
from unetcli.volumes.volume import Volume

LEAST_VALUES, LEAST_RANGE = 8, 100
"""Least number of different values, and least difference between the highest and the lowest one."""
MOST_BETWEEN = 0.5
"""Largest share of pixels that have neither of the two values: up to 0.47 in structures of 3 pixels in poor JPEG."""
MOST_FLAT = 0.5
"""Largest share of these that are equal to the next one: 0.9 in labels, and up to 0.3 in fringes."""


def fringe_text(labels: Volume) -> str:
    """Phrase on labels that are a mask with a fringe, with the option that removes it; empty for other labels."""
    planes = [plane[0] for plane in sampled(labels)]
    if labels.dtype.kind not in "ui" or not planes or not all(_are_grey(plane) for plane in planes):
        return ""
    counts = np.sum([np.bincount(plane.ravel(), minlength=256) for plane in planes], axis=0)
    values = np.flatnonzero(counts)
    low, high = int(values[0]), int(values[-1])
    if len(values) < LEAST_VALUES or high - low < LEAST_RANGE:
        return ""
    middle = (low + high + 1) // 2
    two = (int(np.argmax(counts[:middle])), middle + int(np.argmax(counts[middle:])))
    between = 1 - (counts[two[0]] + counts[two[1]]) / counts.sum()
    if between > MOST_BETWEEN or _flatness(planes, two) > MOST_FLAT:
        return ""
    return (
        f"looks like a mask of {low} and {high} with {len(values) - 2} values between in {100 * between:.1f} % of its "
        f"pixels, as JPEG and resizing leave them at edges; --label-threshold {middle} removes them"
    )


def warn_about_fringe(labels: Volume) -> None:
    """Warn if labels are a mask with a fringe, of which all values but 0 count as foreground."""
    if text := fringe_text(labels):
        warn(f"{labels.path}: {text}")


def _are_grey(plane: NDArray[np.integer]) -> bool:
    return bool(plane.size and plane.min() >= 0 and plane.max() < 256)


def _flatness(planes: list[NDArray[np.integer]], two: tuple[int, int]) -> float:
    """Share of the pixels with other than two values that are equal to the next pixel in their row."""
    equal = others = 0
    for plane in planes:
        other = ~np.isin(plane[:, :-1], two)
        equal += int(np.count_nonzero(other & (plane[:, :-1] == plane[:, 1:])))
        others += int(np.count_nonzero(other))
    return equal / max(others, 1)
