"""Compiled loops over pixels for the EM measures. Importing this module imports numba: import it inside functions.

Images are (y, x) and contiguous; indices are flat indices into them. Callers ensure that shapes and indices fit:
nothing is checked here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unetcli.core.process import compiled

DAM, UNTOUCHED, QUEUED, FRAME = 0, -1, -2, -3
"""States of a pixel that belongs to no basin."""


@compiled("int64(uint8[:, ::1], int64[::1], boolean[::1])")
def flip_simple_points(interior: NDArray[np.uint8], order: NDArray[np.int64], simple: NDArray[np.bool_]) -> int:
    """Flip simple pixels one after the other, in rounds, until none is left.

    Parameters
    ----------
    interior : (y + 2, x + 2), uint8
        The image with a frame of one pixel; modified.
    order : (pixels,), int64
        Pixels to flip, in this order; modified: the pixels that could not be flipped come first.
    simple : (256,), bool
        Whether a pixel is simple, by its eight neighbours as bits, clockwise from the upper left.

    Returns
    -------
    int
        Number of pixels that could not be flipped.
    """
    flat, width = interior.reshape(-1), interior.shape[1]
    remaining = order.size
    while True:
        kept = 0
        for n in range(remaining):
            index = order[n]
            above, below = index - width, index + width
            around = (
                flat[above - 1]
                | (flat[above] << 1)
                | (flat[above + 1] << 2)
                | (flat[index + 1] << 3)
                | (flat[below + 1] << 4)
                | (flat[below] << 5)
                | (flat[below - 1] << 6)
                | (flat[index - 1] << 7)
            )
            if simple[around]:
                flat[index] = 1 - flat[index]
            else:
                order[kept] = index
                kept += 1
        if kept == remaining:
            return kept
        remaining = kept


@compiled("void(int32[:, ::1], int64[::1], int64[::1], boolean[::1])")
def count_neighbours(
    cells: NDArray[np.int32], indices: NDArray[np.int64], touched: NDArray[np.int64], background: NDArray[np.bool_]
) -> None:
    """Count the different cells among the eight neighbours of each pixel; neighbours outside the image do not count.

    Parameters
    ----------
    cells : (y, x), int32
        Labels; 0 is background.
    indices : (pixels,), int64
    touched : (pixels,), int64
        Receives the number of cells.
    background : (pixels,), bool
        Receives whether a neighbour is background; all False before.
    """
    height, width = cells.shape
    seen = np.empty(8, np.int32)
    for n in range(indices.size):
        y, x = indices[n] // width, indices[n] % width
        count = 0
        for v in range(max(y - 1, 0), min(y + 2, height)):
            for u in range(max(x - 1, 0), min(x + 2, width)):
                cell = cells[v, u]
                if v == y and u == x:
                    continue
                if cell == 0:
                    background[n] = True
                    continue
                known = False
                for k in range(count):
                    known |= seen[k] == cell
                if not known:
                    seen[count] = cell
                    count += 1
        touched[n] = count


@compiled("void(uint8[:, ::1], int64[::1], int64, boolean[::1])")
def find_cuts(interior: NDArray[np.uint8], indices: NDArray[np.int64], radius: int, cut: NDArray[np.bool_]) -> None:
    """Find pixels whose removal disconnects their interior neighbours within a window (4-connected).

    Parameters
    ----------
    interior : (y, x), uint8
    indices : (pixels,), int64
    radius : pixels
        Half side of the window around each pixel; connections outside it do not count.
    cut : (pixels,), bool
        Receives whether the neighbours are in several pieces.
    """
    height, width = interior.shape
    side = 2 * radius + 1
    stack = np.empty(min(side, height) * min(side, width), np.int64)
    for n in range(indices.size):
        y, x = indices[n] // width, indices[n] % width
        top, bottom = max(y - radius, 0), min(y + radius + 1, height)
        left, right = max(x - radius, 0), min(x + radius + 1, width)
        reached = np.zeros((bottom - top, right - left), np.bool_)
        reached[y - top, x - left] = True  # the pixel itself is removed
        pieces = 0
        for v in range(max(y - 1, 0), min(y + 2, height)):
            for u in range(max(x - 1, 0), min(x + 2, width)):
                if interior[v, u] == 0 or reached[v - top, u - left]:
                    continue
                pieces += 1
                reached[v - top, u - left] = True
                stack[0], waiting = v * width + u, 1
                while waiting and pieces < 2:
                    waiting -= 1
                    b, a = stack[waiting] // width, stack[waiting] % width
                    for q, p in ((b, a - 1), (b - 1, a), (b, a + 1), (b + 1, a)):
                        if q < top or q >= bottom or p < left or p >= right:
                            continue
                        if interior[q, p] and not reached[q - top, p - left]:
                            reached[q - top, p - left] = True
                            stack[waiting] = q * width + p
                            waiting += 1
        cut[n] = pieces > 1


@compiled("int64(int32[:, ::1], int64[::1])")
def queue_basin_borders(basins: NDArray[np.int32], queue: NDArray[np.int64]) -> int:
    """Queue the untouched pixels next to a basin, column by column.

    Parameters
    ----------
    basins : (y + 2, x + 2), int32
        Labels of basins from 1, ``UNTOUCHED`` elsewhere, with a frame of ``FRAME``; modified.
    queue : (pixels,), int64
        Receives the pixels.

    Returns
    -------
    int
        Number of queued pixels.
    """
    flat, (height, width) = basins.reshape(-1), basins.shape
    count = 0
    for x in range(1, width - 1):
        for index in range(width + x, (height - 1) * width + x, width):
            if flat[index] == UNTOUCHED and (
                flat[index - 1] > 0 or flat[index - width] > 0 or flat[index + 1] > 0 or flat[index + width] > 0
            ):
                flat[index] = QUEUED
                queue[count] = index
                count += 1
    return count


@compiled("void(int32[:, ::1], int64[::1], int64)")
def flood(basins: NDArray[np.int32], queue: NDArray[np.int64], queued: int) -> None:
    """Grow basins (4-connected) over the untouched pixels between them; a dam remains where two basins meet.

    Pixels are visited in the order of the queue, neighbours in the order left, up, right, down. ``rejoin`` is not reset
    for each pixel: the official program resolves ties in this way, and its scores depend on it.

    Parameters
    ----------
    basins : (y + 2, x + 2), int32
        As left by :func:`queue_basin_borders`; modified.
    queue : (pixels,), int64
        Has room for every untouched pixel; modified.
    queued
        Number of pixels in the queue.
    """
    flat, width = basins.reshape(-1), basins.shape[1]
    rejoin, first = False, 0
    while first < queued:
        index = queue[first]
        first += 1
        for neighbour in (index - 1, index - width, index + 1, index + width):
            own, other = flat[index], flat[neighbour]
            if other > 0:
                if own == QUEUED or (own == DAM and rejoin):
                    flat[index] = other
                elif own != DAM and own != other:
                    flat[index] = DAM
                    rejoin = False
            elif other == DAM and own == QUEUED:
                flat[index] = DAM
                rejoin = True
            elif other == UNTOUCHED:
                flat[neighbour] = QUEUED
                queue[queued] = neighbour
                queued += 1


@compiled("int64(int64[::1], int64[::1], int32[::1], int64[::1], int64[::1])")
def count_overlaps(
    indices: NDArray[np.int64],
    stops: NDArray[np.int64],
    segments: NDArray[np.int32],
    sizes: NDArray[np.int64],
    shared: NDArray[np.int64],
) -> int:
    """Count the pixels that cells share with segments.

    Parameters
    ----------
    indices : (pixels,), int64
        Pixels of the cells, sorted by cell.
    stops : (cells,), int64
        End of each cell in ``indices``.
    segments : (y * x,), int32
        Labels; 0 is no segment.
    sizes : (segments + 1,), int64
        Receives the pixels of each segment, segment 0 included, that lie in cells; all 0 before.
    shared : (pixels,), int64
        Receives the pixels of each pair of a cell and a segment that occurs, except segment 0.

    Returns
    -------
    int
        Number of pairs.
    """
    in_cell = np.zeros(sizes.size, np.int64)
    touched = np.empty(sizes.size, np.int32)
    pairs = start = 0
    for stop in stops:
        count = 0
        for n in range(start, stop):
            segment = segments[indices[n]]
            if in_cell[segment] == 0:
                touched[count] = segment
                count += 1
            in_cell[segment] += 1
        for k in range(count):
            segment = touched[k]
            sizes[segment] += in_cell[segment]
            if segment:
                shared[pairs] = in_cell[segment]
                pairs += 1
            in_cell[segment] = 0
        start = stop
    return pairs
