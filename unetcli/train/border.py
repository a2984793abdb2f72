"""Borders between cells: a line of background between touching cells, and the border weight between close ones.

The border weight is the second term of eq. 2 of the U-Net paper (Ronneberger et al. 2015):
w(x) = w_c(x) + w0 exp(-(d1(x) + d2(x))^2 / (2 sigma^2)), where d1 and d2 are the distances to the nearest and the
second nearest cell. Both are found in two passes, for any number and shape of cells. The first pass finds, along the
column of each pixel, the nearest cell and the nearest other cell; these two suffice, because a third cell of the column
is farther than both from every pixel of the row. The second pass goes along the row: d1^2 is the minimum of dx^2 + dy^2
over the columns, and d2^2 the minimum over the pixels of other cells. Columns where the exponential is below
``NEGLIGIBLE`` are skipped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unetcli.core.arrays import distinct
from unetcli.train.settings import IGNORED, TruthRules

Slices = tuple[slice, slice]
FAR = 2**14
"""Distance, in pixels, that stands for "no cell"; its square plus that of the largest ``max_distance`` fits int32."""
STRIP_ROWS, SLAB_BYTES = 256, 2**18
"""Rows per strip of the first pass, and bytes per slab of the second; both fit a processor's cache."""


def touching(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Labelled pixels with another object among their eight neighbours; (y, x), bool."""
    found = np.zeros(labels.shape, np.bool_)
    for one, other, touch in _contacts(labels):
        found[one] |= touch
        found[other] |= touch
    return found


def dividing_line(cells: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Pixels to turn into background so that no two objects stay eight-connected.

    Where two objects touch, both lose the pixels that touch, which makes a line of two pixels. An object that would
    vanish or fall apart keeps its pixels, and only its neighbours lose pixels. The line takes only pixels that touch,
    and never leaves two objects connected.

    Parameters
    ----------
    cells : (y, x), int32
        Number of the object of each pixel; 0 is background.

    Returns
    -------
    (y, x), bool
    """
    line = touching(cells)
    if not line.any():
        return line
    ranks = _ranks(cells, line)
    if not ranks.any():
        return line
    rank = ranks[cells]
    line[:] = False
    for one, other, touch in _contacts(cells):
        line[one] |= touch & (rank[one] <= rank[other])
        line[other] |= touch & (rank[other] <= rank[one])
    return line


def renumbered(labels: NDArray[Any]) -> NDArray[np.int32]:
    """Renumber the objects from 1 without gaps; 0 stays 0.

    Parameters
    ----------
    labels : (y, x), integer or bool

    Returns
    -------
    (y, x), int32

    >>> renumbered(np.array([[7, 0], [2**63, 7]], np.uint64)).tolist()
    [[1, 0], [2, 1]]
    """
    values, indices = distinct(labels)
    return (indices + int(values.size > 0 and values[0] != 0)).astype(np.int32)


def _contacts(labels: NDArray[Any]) -> Iterator[tuple[Slices, Slices, NDArray[np.bool_]]]:
    """Yield pairs of views, shifted by one pixel, and a mask of the pixels that belong to two different objects.

    Four pairs cover the eight directions, because each pair is used in both orders.
    """
    height, width = labels.shape
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        one = slice(0, height - dy), slice(max(0, -dx), width - max(0, dx))
        other = slice(dy, height), slice(max(0, dx), width + min(0, dx))
        yield one, other, (labels[one] != labels[other]) & (labels[one] != 0) & (labels[other] != 0)


def _ranks(cells: NDArray[np.int32], line: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Rank of each object: 0, or above 0 if the line would destroy it; of two objects, the higher one keeps its pixels.

    Objects that would vanish rank above those that would fall apart, and small ones above large ones. Ties are broken
    by position, so that the result does not depend on the numbers of objects.
    """
    areas = np.bincount(cells.ravel())
    left = np.bincount(cells[~line], minlength=len(areas))
    left[0] = areas[0]
    ranks = np.zeros(len(areas), np.int32)
    vanished, split = np.flatnonzero((areas > 0) & (left == 0)), _split_objects(cells, line)
    spared = np.concatenate([vanished, split])
    if len(spared):
        is_spared = np.zeros(len(areas), np.bool_)
        is_spared[spared] = True
        positions = np.flatnonzero(is_spared[cells].ravel())
        first = np.full(len(areas), cells.size)
        np.minimum.at(first, cells.ravel()[positions], positions)
        is_split = np.arange(len(spared)) >= len(vanished)
        order = np.lexsort((first[spared], areas[spared], is_split))
        ranks[spared[order]] = np.arange(len(spared), 0, -1)
    return ranks


def _split_objects(cells: NDArray[np.int32], line: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Numbers of the objects that have more four-connected components without the line than before."""
    apart = np.where(line, 0, cells)
    components, count = ndimage.label(apart)
    owner = np.zeros(count + 1, np.int32)
    owner[components.ravel()] = apart.ravel()
    pieces = np.bincount(owner[1:])
    boxes = ndimage.find_objects(cells)
    return np.array(
        [n for n in np.flatnonzero(pieces > 1) if pieces[n] > ndimage.label(cells[boxes[n - 1]] == n)[1]], np.intp
    )


class Nearest(NamedTuple):
    """Nearest cells along the column of each pixel; arrays (y, x)."""

    cell: NDArray[np.int32]
    """Number of the nearest cell; 0 if the column has none."""
    distance: NDArray[np.int32]
    """Distance to the nearest cell, in pixels; at most ``FAR``."""
    other: NDArray[np.int32]
    """Distance to the nearest of all other cells, in pixels; at most ``FAR``."""


def border_weights(cells: NDArray[np.int32], classes: NDArray[np.uint8], rules: TruthRules) -> NDArray[np.float32]:
    """Loss weight that is added between nearby cells: the second term of eq. 2 of the U-Net paper (2015).

    w0 exp(-(d1 + d2)^2 / (2 sigma^2)), where d1 and d2 are the exact Euclidean distances, between pixel centres, to the
    nearest and the second nearest cell; d1 is 0 inside a cell. A pixel depends only on pixels within
    ``rules.max_distance`` of it.

    Parameters
    ----------
    cells : (y, x), int32
        Number of the cell of each pixel, as returned by :func:`cells_of`.
    classes : (y, x), uint8
        Class of each pixel, as returned by :func:`unetcli.train.targets.classes_of`.
    rules : TruthRules
        ``w0`` (dimensionless), ``sigma`` (pixels) and whether the weight applies ``everywhere`` or to background only.

    Returns
    -------
    (y, x), float32
        0 without ground truth, with fewer than two cells nearby, and where the exponential is below ``NEGLIGIBLE``.
    """
    weights = np.zeros(classes.shape, np.float32)
    wanted = classes != IGNORED if rules.everywhere else classes == 0
    if not rules.w0 or not cells.any() or not wanted.any():
        return weights
    height, margin = len(cells), math.floor(rules.max_distance)
    rows = max(STRIP_ROWS, 2 * margin)
    for top in range(0, height, rows):
        stop, first = min(top + rows, height), max(top - margin, 0)
        near = nearest_in_column(cells[first : stop + margin])
        inner = Nearest(*(values[top - first : stop - first] for values in near))
        _fill_rows(inner, wanted[top:stop], rules, weights[top:stop])
    return weights


def cells_of(labels: NDArray[Any], classes: NDArray[np.uint8], rules: TruthRules) -> NDArray[np.int32]:
    """Number of the cell of each pixel.

    With ``instances`` a cell is an object without the dividing line, otherwise a four-connected component of one class.

    Parameters
    ----------
    labels : (y, x), integer or bool
    classes : (y, x), uint8
        Classes of the same pixels, as returned by :func:`unetcli.train.targets.classes_of`.
    rules : TruthRules
        Only ``truth`` is used.

    Returns
    -------
    (y, x), int32
        Numbers from 1; 0 is no cell.
    """
    if rules.truth == "instances":
        return renumbered(np.where(classes == 1, labels, np.zeros((), labels.dtype)))
    cells, count = np.zeros(classes.shape, np.int32), 0
    for number, box in enumerate(ndimage.find_objects(np.where(classes == IGNORED, 0, classes)), start=1):
        if box is not None:
            pieces, found = ndimage.label(classes[box] == number)
            cells[box] += pieces + count * (pieces > 0)
            count += found
    return cells


def nearest_in_column(cells: NDArray[np.int32]) -> Nearest:
    """Find the nearest cell of each pixel along its column, in both directions, and the distance to the next other."""
    above, below = _above(cells), Nearest(*(values[::-1] for values in _above(cells[::-1])))
    up = above.distance <= below.distance
    cell = np.where(up, above.cell, below.cell)
    opposite = np.where(up, below.cell, above.cell)  # the nearest cell in the other direction
    farther = np.where(opposite == cell, FAR, np.maximum(above.distance, below.distance))
    others = np.minimum(above.other, below.other)
    return Nearest(cell, np.minimum(above.distance, below.distance), np.minimum(farther, others))


def _above(cells: NDArray[np.int32]) -> Nearest:
    """Find the nearest cell at or above each pixel, and the distance up to the next other one."""
    rows = np.arange(len(cells), dtype=np.int32)[:, None]
    last = np.maximum.accumulate(np.where(cells > 0, rows, -FAR), axis=0)  # row of the nearest cell pixel
    cell = np.take_along_axis(cells, np.maximum(last, 0), axis=0)
    changed = (cell[1:] != cell[:-1]) & (cell[:-1] > 0)  # a new cell begins below another one
    before = np.full_like(last, -FAR)
    before[1:] = np.maximum.accumulate(np.where(changed, last[:-1], -FAR), axis=0)
    return Nearest(cell, np.minimum(rows - last, FAR), np.minimum(rows - before, FAR))


def _fill_rows(near: Nearest, wanted: NDArray[np.bool_], rules: TruthRules, weights: NDArray[np.float32]) -> None:
    """Write the border weights of some rows, computed from the nearest cells along their columns."""
    width, max_distance = weights.shape[1], rules.max_distance
    step = max(1, SLAB_BYTES // (4 * width))
    for top in range(0, len(weights), step):
        rows = slice(top, top + step)
        total = np.sqrt(_squared_distances(Nearest(*(values[rows] for values in near)), max_distance)).sum(0)  # d1 + d2
        close = wanted[rows] & (total <= max_distance)
        weights[rows][close] = rules.w0 * np.exp(-(total[close] ** 2) / (2 * rules.sigma**2))


def _squared_distances(near: Nearest, max_distance: float) -> NDArray[np.int32]:
    """d1^2 and d2^2, (2, y, x), in pixels; distances beyond ``max_distance`` may come out too large.

    They matter only where d1 + d2 <= ``max_distance``, so d1 is searched up to ``max_distance / 2``.
    """
    height, width = near.cell.shape
    margin = min(math.floor(max_distance), width - 1)
    beside = ((0, 0), (margin, margin))
    cells = np.pad(near.cell, beside)
    first, second = (np.pad(d, beside, constant_values=FAR) ** 2 for d in (near.distance, near.other))
    found = np.full((2, height, width), 2 * FAR**2, np.int32)
    nearest = np.zeros((height, width), np.int32)
    half = min(margin, math.floor(max_distance / 2))
    for dx in range(-half, half + 1):
        columns = slice(margin + dx, margin + dx + width)
        square = first[:, columns] + dx * dx
        closer = square < found[0]
        np.copyto(found[0], square, where=closer)
        np.copyto(nearest, cells[:, columns], where=closer)
    for dx in range(-margin, margin + 1):
        columns = slice(margin + dx, margin + dx + width)
        others = np.where(cells[:, columns] == nearest, second[:, columns], first[:, columns])
        others += dx * dx
        np.minimum(found[1], others, out=found[1])
    return found
