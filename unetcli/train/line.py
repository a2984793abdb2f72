"""The line of background between objects that touch, so that they stay two in what the network is to say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.arrays import distinct

Slices = tuple[slice, slice]


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
    from scipy import ndimage

    pieces = _pieces(np.where(line, 0, cells), len(np.bincount(cells.ravel())))
    boxes = ndimage.find_objects(cells)
    return np.array(
        [n for n in np.flatnonzero(pieces > 1) if pieces[n] > ndimage.label(cells[boxes[n - 1]] == n)[1]], np.intp
    )


def _pieces(apart: NDArray[np.int32], numbers: int) -> NDArray[np.intp]:
    """How many four-connected pieces each object is in, where no two objects are connected."""
    from scipy import ndimage

    components, count = ndimage.label(apart)
    owner = np.zeros(count + 1, np.int32)
    owner[components.ravel()] = apart.ravel()
    return np.bincount(owner[1:], minlength=numbers)
