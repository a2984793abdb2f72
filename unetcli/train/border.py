"""Borders between cells: a line of background where two touch, and a raised loss weight where two nearly touch.

The weight is the second term of eq. 2 of the paper: w(x) = w_c(x) + w0 exp(-(d1(x) + d2(x))^2 / (2 sigma^2)); d1 and d2
are the distances to the nearest and the second nearest cell. Both come from one pass over the image, whatever the
number and shape of the cells. Along a column, each pixel gets the nearest cell and the nearest one of another number;
these two suffice, as a third one of the column is farther than both from any pixel of the row. Then, along the row,
d1^2 is the least of dx^2 + dy^2 over the columns, and d2^2 the least over what belongs to another cell. Columns where
the exponential has faded to ``FAINTEST`` are skipped.
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
"""Distance, in pixels, where there is no cell; its square plus that of the largest fade fits int32."""
STRIP_ROWS, SLAB_BYTES = 256, 2**18
"""Rows searched together along columns, and memory used at once along rows: both fit a processor's cache."""


def touching(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Labelled pixels that have another object among their eight neighbours."""
    found = np.zeros(labels.shape, np.bool_)
    for here, there, touch in _contacts(labels):
        found[here] |= touch
        found[there] |= touch
    return found


def dividing_line(cells: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Pixels to give to the background, so that no two objects are eight-connected any more.

    Of two objects that touch both give their pixels there, which makes a line of two. An object that would vanish or
    fall apart that way keeps its pixels, and its neighbours alone give theirs: the line is never more than all the
    pixels that touch, and never leaves two objects connected.

    Parameters
    ----------
    cells : (y, x), integer
        Objects by number, 0 none.

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
    for here, there, touch in _contacts(cells):
        line[here] |= touch & (rank[here] <= rank[there])
        line[there] |= touch & (rank[there] <= rank[here])
    return line


def numbered(labels: NDArray[Any]) -> NDArray[np.int32]:
    """The same objects numbered from 1 without gaps, whatever integers named them; 0 stays 0.

    >>> numbered(np.array([[7, 0], [2**63, 7]], np.uint64)).tolist()
    [[1, 0], [2, 1]]
    """
    values, places = distinct(labels)
    return (places + int(values.size > 0 and values[0] != 0)).astype(np.int32)


def _contacts(labels: NDArray[Any]) -> Iterator[tuple[Slices, Slices, NDArray[np.bool_]]]:
    """Two views of the image that lay pixels upon their neighbours, and where those are of two objects.

    Four pairs of views show each of the eight directions once, from one side or the other.
    """
    height, width = labels.shape
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        here = slice(0, height - dy), slice(max(0, -dx), width - max(0, dx))
        there = slice(dy, height), slice(max(0, dx), width + min(0, dx))
        yield here, there, (labels[here] != labels[there]) & (labels[here] != 0) & (labels[there] != 0)


def _ranks(cells: NDArray[np.int32], line: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Per object 0, or its place among those that a line would destroy: what vanishes before what breaks, small first.

    The higher one keeps its pixels. Ties go by place, so numbers do not matter.
    """
    areas = np.bincount(cells.ravel())
    left = np.bincount(cells[~line], minlength=len(areas))
    left[0] = areas[0]
    ranks = np.zeros(len(areas), np.int32)
    vanished, broken = np.flatnonzero((areas > 0) & (left == 0)), _broken(cells, line)
    spared = np.concatenate([vanished, broken])
    if len(spared):
        wanted = np.zeros(len(areas), np.bool_)
        wanted[spared] = True
        places = np.flatnonzero(wanted[cells].ravel())
        first = np.full(len(areas), cells.size)
        np.minimum.at(first, cells.ravel()[places], places)
        broke = np.arange(len(spared)) >= len(vanished)
        order = np.lexsort((first[spared], areas[spared], broke))
        ranks[spared[order]] = np.arange(len(spared), 0, -1)
    return ranks


def _broken(cells: NDArray[np.int32], line: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Objects that the line, taken away, would leave in more four-connected pieces than they are drawn in."""
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
    """Along the columns: the nearest cell of each pixel; (y, x) each."""

    cell: NDArray[np.int32]
    """Its number, 0 where the column has none."""
    distance: NDArray[np.int32]
    """To it, in pixels, at most ``FAR``."""
    other: NDArray[np.int32]
    """To the nearest of all other cells."""


def border_weights(cells: NDArray[np.int32], classes: NDArray[np.uint8], rules: TruthRules) -> NDArray[np.float32]:
    """w0 exp(-(d1 + d2)^2 / (2 sigma^2)) on background, or everywhere; 0 where fewer than two cells are near.

    Distances are exact (Euclidean, between pixel centres, 0 inside a cell); where the exponential is below ``FAINTEST``
    the result is 0. A pixel depends on no other beyond ``rules.fade``.

    Parameters
    ----------
    cells : (y, x), int32
        Number of the cell of each pixel, as found by :func:`cells_of`.
    classes : (y, x), uint8
        Class of each pixel, as found by :func:`unetcli.train.targets.classes_of`.

    Returns
    -------
    (y, x), float32
        0 on pixels without truth.
    """
    weights = np.zeros(classes.shape, np.float32)
    wanted = classes != IGNORED if rules.everywhere else classes == 0
    if not rules.w0 or not cells.any() or not wanted.any():
        return weights
    height, margin = len(cells), math.floor(rules.fade)
    rows = max(STRIP_ROWS, 2 * margin)
    for top in range(0, height, rows):
        stop, first = min(top + rows, height), max(top - margin, 0)
        near = nearest_in_column(cells[first : stop + margin])
        inner = Nearest(*(values[top - first : stop - first] for values in near))
        _fill_rows(inner, wanted[top:stop], rules, weights[top:stop])
    return weights


def cells_of(labels: NDArray[Any], classes: NDArray[np.uint8], rules: TruthRules) -> NDArray[np.int32]:
    """Number of the cell of each pixel, from 1; 0 for none.

    With ``instances`` a cell is an object without its part of the line, else a four-connected piece of one class.
    """
    if rules.truth == "instances":
        return numbered(np.where(classes == 1, labels, np.zeros((), labels.dtype)))
    cells, count = np.zeros(classes.shape, np.int32), 0
    for number, box in enumerate(ndimage.find_objects(np.where(classes == IGNORED, 0, classes)), start=1):
        if box is not None:
            pieces, found = ndimage.label(classes[box] == number)
            cells[box] += pieces + count * (pieces > 0)
            count += found
    return cells


def nearest_in_column(cells: NDArray[np.int32]) -> Nearest:
    """The nearest cell of each pixel along its column, up and down, and how far another one is."""
    above, below = _above(cells), Nearest(*(values[::-1] for values in _above(cells[::-1])))
    up = above.distance <= below.distance
    cell = np.where(up, above.cell, below.cell)
    opposite = np.where(up, below.cell, above.cell)  # the nearest on the other side
    farther = np.where(opposite == cell, FAR, np.maximum(above.distance, below.distance))
    others = np.minimum(above.other, below.other)
    return Nearest(cell, np.minimum(above.distance, below.distance), np.minimum(farther, others))


def _above(cells: NDArray[np.int32]) -> Nearest:
    """The nearest cell at or above each pixel, and how far up another one is."""
    rows = np.arange(len(cells), dtype=np.int32)[:, None]
    last = np.maximum.accumulate(np.where(cells > 0, rows, -FAR), axis=0)  # row of the nearest pixel of a cell
    cell = np.take_along_axis(cells, np.maximum(last, 0), axis=0)
    changed = (cell[1:] != cell[:-1]) & (cell[:-1] > 0)  # here a cell begins below another one
    before = np.full_like(last, -FAR)
    before[1:] = np.maximum.accumulate(np.where(changed, last[:-1], -FAR), axis=0)
    return Nearest(cell, np.minimum(rows - last, FAR), np.minimum(rows - before, FAR))


def _fill_rows(near: Nearest, wanted: NDArray[np.bool_], rules: TruthRules, weights: NDArray[np.float32]) -> None:
    """Write the border weights of some rows, computed from what is nearest along their columns."""
    width, fade = weights.shape[1], rules.fade
    step = max(1, SLAB_BYTES // (4 * width))
    for top in range(0, len(weights), step):
        rows = slice(top, top + step)
        both = np.sqrt(_squares(Nearest(*(values[rows] for values in near)), fade)).sum(0)  # d1 + d2
        here = wanted[rows] & (both <= fade)
        weights[rows][here] = rules.w0 * np.exp(-(both[here] ** 2) / (2 * rules.sigma**2))


def _squares(near: Nearest, fade: float) -> NDArray[np.int32]:
    """d1^2 and d2^2, (2, y, x); what is farther than needed may come out larger than it is.

    Only where d1 + d2 <= ``fade`` it matters, so d1 <= ``fade`` / 2.
    """
    height, width = near.cell.shape
    margin = min(math.floor(fade), width - 1)
    beside = ((0, 0), (margin, margin))
    cells = np.pad(near.cell, beside)
    first, second = (np.pad(d, beside, constant_values=FAR) ** 2 for d in (near.distance, near.other))
    found = np.full((2, height, width), 2 * FAR**2, np.int32)
    nearest = np.zeros((height, width), np.int32)
    for dx in range(-min(margin, math.floor(fade / 2)), min(margin, math.floor(fade / 2)) + 1):
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
