"""Connected components of what is above a threshold, in arrays that fit in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unetcli.core.arrays import distinct
from unetcli.core.errors import UnetcliError

RANKS = {False: {4: 1, 8: 2}, True: {6: 1, 18: 2, 26: 3}}
"""By dimensions (2, 3) and number of neighbours: along how many axes at once a neighbour may lie."""


def neighbourhood(axes: str, connectivity: int | None = None, *, three_d: bool = False) -> NDArray[np.bool_]:
    """Which voxels around one touch it, (3,) * len(axes): within a section, or along z as well; never along t.

    >>> neighbourhood("zyx", 4)[0].any(), int(neighbourhood("zyx", 18, three_d=True).sum())
    (np.False_, 19)
    """
    ranks = RANKS[three_d]
    if three_d and "z" not in axes:
        raise UnetcliError(f"--three-d: there is no axis z, only {', '.join(axes)}")
    if connectivity is not None and connectivity not in ranks:
        known = ", ".join(map(str, ranks))
        other = "with" if not three_d else "without"
        raise UnetcliError(f"--connectivity {connectivity}: expected {known}; others go {other} --three-d")
    rank = ranks[connectivity] if connectivity else 1
    steps = np.abs(np.indices((3,) * len(axes)) - 1)
    joined = np.array([axis in ("zyx" if three_d else "yx") for axis in axes])
    reach = steps.sum(axis=0)
    apart = steps[~joined].any(axis=0)
    found: NDArray[np.bool_] = (reach <= rank) & ~apart
    return found


def is_foreground(stored: NDArray[Any], threshold: float) -> NDArray[np.bool_]:
    """Where the probability is strictly greater than the threshold; uint8 stands for value / 255.

    >>> is_foreground(np.array([127, 128], np.uint8), 0.5).tolist()
    [False, True]
    """
    if stored.dtype == np.uint8:
        levels = np.arange(256, dtype=np.float32) / np.float32(255)
        return stored >= int(np.count_nonzero(levels <= threshold))
    found: NDArray[np.bool_] = stored > threshold
    return found


def connected(foreground: NDArray[np.bool_], touching: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """Components of a mask by a :func:`neighbourhood`, 1.. in no order that anyone may rely on, and their number."""
    labels = np.empty(foreground.shape, np.int32)
    count = ndimage.label(foreground, touching, output=labels)
    return labels, int(count)


def label_section(
    probability: NDArray[Any],
    threshold: float = 0.5,
    *,
    connectivity: int = 4,
    min_size: int = 0,
) -> NDArray[np.int32]:
    """Instances of one section: components of what is above the threshold.

    Parameters
    ----------
    probability : (y, x), float or bool; or uint8 for value / 255
        Of foreground.
    connectivity : 4 or 8
        Whether voxels that meet at a corner belong together.
    min_size : voxels
        Smaller objects become background.

    Returns
    -------
    (y, x), int32
        0 is background; objects are numbered 1, 2 .. by their first voxel in C order.
    """
    labels, _ = connected(is_foreground(probability, threshold), neighbourhood("yx", connectivity))
    return in_order(labels, min_size)


def in_order(labels: NDArray[Any], min_size: int = 0) -> NDArray[np.int32]:
    """Labels renumbered 1, 2 .. by each object's first voxel in C order, without those of fewer than ``min_size``.

    >>> in_order(np.array([[0, 7, 7], [3, 0, 7], [3, 9, 0]]), min_size=2).tolist()
    [[0, 1, 1], [2, 0, 1], [2, 0, 0]]
    """
    found, places = distinct(labels)
    flat = places.ravel()
    first = np.empty(len(found), np.intp)
    first[flat[::-1]] = np.arange(flat.size - 1, -1, -1)  # of several, the last assigned stays: the first voxel
    kept = (found != 0) & (np.bincount(flat, minlength=len(found)) >= min_size)
    numbers = np.zeros(len(found), np.int32)
    numbers[kept] = np.argsort(np.argsort(first[kept])) + 1
    return numbers[places]


def first_voxels(labels: NDArray[np.int32], count: int) -> NDArray[np.int64]:
    """Flat index of the first voxel of each label 1 .. ``count``."""
    places = np.flatnonzero(labels)
    found = np.zeros(count + 1, np.int64)
    found[labels.ravel()[places[::-1]]] = places[::-1]  # of several, the last assigned stays: the first voxel
    return found[1:]


def smallest_dtype(count: int) -> str:
    """The smallest unsigned integer that holds that many labels.

    >>> smallest_dtype(255), smallest_dtype(65536)
    ('uint8', 'uint32')
    """
    return str(np.min_scalar_type(count))


def neighbours(touching: NDArray[np.bool_]) -> Sequence[tuple[int, ...]]:
    """Steps to half of the neighbours, each pair of voxels once: those that come later in C order."""
    steps = [tuple(int(v) - 1 for v in place) for place in np.argwhere(touching)]
    return [step for step in steps if step > (0,) * touching.ndim]
