"""The loops over pixels of the EM measures, compiled. Importing this module imports numba: do it inside functions.

Images are (y, x) and contiguous; a place is a flat index into one. Callers make sure that shapes and places fit:
nothing is checked here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unetcli.core.process import compiled

DAM, UNTOUCHED, QUEUED, FRAME = 0, -1, -2, -3
"""What a pixel is that belongs to no basin."""


@compiled("int64(uint8[:, ::1], int64[::1], boolean[::1])")
def flip_simple_points(interior: NDArray[np.uint8], order: NDArray[np.int64], simple: NDArray[np.bool_]) -> int:
    """Flip places of ``order`` that are simple, one after the other, round after round until none is.

    ``interior`` has a frame of one pixel. ``simple`` is indexed by the eight neighbours as bits, clockwise from the
    upper left. The places that could not be flipped are left in front of ``order``; their number comes back.
    """
    flat, width = interior.reshape(-1), interior.shape[1]
    remaining = order.size
    while True:
        kept = 0
        for n in range(remaining):
            place = order[n]
            above, below = place - width, place + width
            around = (
                flat[above - 1]
                | (flat[above] << 1)
                | (flat[above + 1] << 2)
                | (flat[place + 1] << 3)
                | (flat[below + 1] << 4)
                | (flat[below] << 5)
                | (flat[below - 1] << 6)
                | (flat[place - 1] << 7)
            )
            if simple[around]:
                flat[place] = 1 - flat[place]
            else:
                order[kept] = place
                kept += 1
        if kept == remaining:
            return kept
        remaining = kept


@compiled("void(int32[:, ::1], int64[::1], int64[::1], boolean[::1])")
def look_around(
    cells: NDArray[np.int32], places: NDArray[np.int64], touched: NDArray[np.int64], background: NDArray[np.bool_]
) -> None:
    """For each place: how many different cells its eight neighbours belong to, and whether one belongs to none.

    Neighbours outside the image do not count.
    """
    height, width = cells.shape
    seen = np.empty(8, np.int32)
    for n in range(places.size):
        y, x = places[n] // width, places[n] % width
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
def find_cuts(interior: NDArray[np.uint8], places: NDArray[np.int64], radius: int, cut: NDArray[np.bool_]) -> None:
    """For each place: are its interior neighbours in several 4-connected pieces once the place itself is taken out?

    Seen is the window of ``radius`` around the place; nothing outside it joins the pieces.
    """
    height, width = interior.shape
    side = 2 * radius + 1
    stack = np.empty(min(side, height) * min(side, width), np.int64)
    for n in range(places.size):
        y, x = places[n] // width, places[n] % width
        top, bottom = max(y - radius, 0), min(y + radius + 1, height)
        left, right = max(x - radius, 0), min(x + radius + 1, width)
        reached = np.zeros((bottom - top, right - left), np.bool_)
        reached[y - top, x - left] = True  # taken out
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
def find_shores(basins: NDArray[np.int32], queue: NDArray[np.int64]) -> int:
    """Queue the untouched pixels beside a basin, column by column; their number comes back. Framed by ``FRAME``."""
    flat, (height, width) = basins.reshape(-1), basins.shape
    count = 0
    for x in range(1, width - 1):
        for place in range(width + x, (height - 1) * width + x, width):
            if flat[place] == UNTOUCHED and (
                flat[place - 1] > 0 or flat[place - width] > 0 or flat[place + 1] > 0 or flat[place + width] > 0
            ):
                flat[place] = QUEUED
                queue[count] = place
                count += 1
    return count


@compiled("void(int32[:, ::1], int64[::1], int64)")
def flood(basins: NDArray[np.int32], queue: NDArray[np.int64], queued: int) -> None:
    """Grow basins, 4-connected, over the untouched pixels between them; where two meet a dam stays.

    First come, first served; neighbours left, up, right, down. ``rejoin`` outlives the pixel that set it: the official
    program decides ties this way, and its numbers depend on it. ``queue`` has room for every untouched pixel.
    """
    flat, width = basins.reshape(-1), basins.shape[1]
    rejoin, first = False, 0
    while first < queued:
        place = queue[first]
        first += 1
        for neighbour in (place - 1, place - width, place + 1, place + width):
            own, other = flat[place], flat[neighbour]
            if other > 0:
                if own == QUEUED or (own == DAM and rejoin):
                    flat[place] = other
                elif own != DAM and own != other:
                    flat[place] = DAM
                    rejoin = False
            elif other == DAM and own == QUEUED:
                flat[place] = DAM
                rejoin = True
            elif other == UNTOUCHED:
                flat[neighbour] = QUEUED
                queue[queued] = neighbour
                queued += 1


@compiled("int64(int64[::1], int64[::1], int32[::1], int64[::1], int64[::1])")
def count_overlaps(
    places: NDArray[np.int64],
    stops: NDArray[np.int64],
    segments: NDArray[np.int32],
    sizes: NDArray[np.int64],
    shared: NDArray[np.int64],
) -> int:
    """Pixels that cells share with segments, one entry of ``shared`` for each pair that occurs, and their number.

    ``places`` lists the pixels cell after cell, cell n up to ``stops[n]``. Segment 0 is left out of ``shared``.
    ``sizes`` receives the pixels of each segment, 0 too, that lie in cells.
    """
    here = np.zeros(sizes.size, np.int64)
    touched = np.empty(sizes.size, np.int32)
    pairs = start = 0
    for stop in stops:
        count = 0
        for n in range(start, stop):
            segment = segments[places[n]]
            if here[segment] == 0:
                touched[count] = segment
                count += 1
            here[segment] += 1
        for k in range(count):
            segment = touched[k]
            sizes[segment] += here[segment]
            if segment:
                shared[pairs] = here[segment]
                pairs += 1
            here[segment] = 0
        start = stop
    return pairs
