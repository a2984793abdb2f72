"""The warping error: the reference bent towards the proposal as far as its topology allows; what remains is an error.

Jain et al. 2010, section 3, as the official program of the ISBI 2012 EM challenge computes it: interior is
4-connected, membrane 8-connected, the outside of a section is membrane.
"""

from __future__ import annotations

import itertools
from dataclasses import astuple, dataclass
from enum import IntEnum
from functools import cache

import numpy as np
from numpy.typing import NDArray

WINDOW_RADIUS = 20
"""Pixels around an error in which the challenge looks whether it splits a cell."""


class ErrorKind(IntEnum):
    """What a pixel that cannot be bent away means."""

    SPLIT = 0
    MERGE = 1
    OBJECT_ADDITION = 2
    OBJECT_DELETION = 3
    HOLE_ADDITION = 4
    HOLE_DELETION = 5


@dataclass(frozen=True, slots=True)
class ErrorCounts:
    """Pixels that remain after warping, by kind; fields in the order of ``ErrorKind``."""

    split: int
    merge: int
    object_addition: int
    object_deletion: int
    hole_addition: int
    hole_deletion: int

    @property
    def total(self) -> int:
        """All of them: the classic error of Jain et al., in pixels."""
        return sum(astuple(self))


@dataclass(frozen=True, slots=True, eq=False)
class WarpingErrors:
    """The pixels of a section that remain after warping."""

    places: NDArray[np.int64]
    """(errors, 2): y and x."""
    kinds: NDArray[np.uint8]
    """(errors,): values of ``ErrorKind``."""

    def of(self, kind: ErrorKind) -> NDArray[np.int64]:
        """(errors, 2): y and x of the errors of one kind."""
        return np.compress(self.kinds == kind, self.places, axis=0)

    @property
    def counts(self) -> ErrorCounts:
        return ErrorCounts(*np.bincount(self.kinds, minlength=len(ErrorKind)).tolist())


@dataclass(frozen=True, slots=True, eq=False)
class Warped:
    """The reference after warping."""

    interior: NDArray[np.bool_]
    """(y, x)"""
    places: NDArray[np.int64]
    """Flat indices of the pixels where it still differs from the proposal."""


def warping_errors(
    probability: NDArray[np.float32],
    interior: NDArray[np.bool_],
    proposal: NDArray[np.bool_],
    level: float,
    judged: NDArray[np.bool_] | None = None,
) -> WarpingErrors:
    """Errors of ``proposal`` = probability above ``level`` against ``interior``, all (y, x); see :func:`warp`."""
    warped = warp(probability, interior, proposal, level, judged)
    places = np.stack(np.unravel_index(warped.places, interior.shape), axis=1)
    return WarpingErrors(places.astype(np.int64), classify(warped))


def warp(
    probability: NDArray[np.float32],
    interior: NDArray[np.bool_],
    proposal: NDArray[np.bool_],
    level: float,
    judged: NDArray[np.bool_] | None = None,
) -> Warped:
    """``interior`` (y, x) with simple points flipped towards ``proposal``, the surest first, while any can be.

    The surest: with the largest distance of probability and level; ties from left to right, column by column. The
    order decides the result. Only ``judged`` pixels are flipped, and counted, if given.
    """
    from unetcli.metrics import kernels

    width = interior.shape[1]
    differ = interior != proposal
    if judged is not None:
        differ &= judged
    x, y = np.nonzero(differ.T)
    distance = np.abs(probability[y, x].astype(np.float64) - level).astype(np.float32)  # rounded as the official one
    surest = np.argsort(-distance, kind="stable")
    framed = np.pad(interior.astype(np.uint8, order="C"), 1)
    order = ((y + 1) * (width + 2) + x + 1)[surest]
    remaining = kernels.flip_simple_points(framed, order, simple_points())
    rows, columns = np.divmod(order[:remaining], width + 2)
    return Warped(framed[1:-1, 1:-1] > 0, (rows - 1) * width + columns - 1)


def classify(warped: Warped, radius: int = WINDOW_RADIUS) -> NDArray[np.uint8]:
    """The kind of each remaining pixel, from the cells around it.

    ==================  =================  =======================================
    around the pixel    it is membrane     it is interior
    ==================  =================  =======================================
    no cell             object addition    object deletion
    one cell alone      hole deletion      hole addition
    two parts           hole addition      split if it holds a cell together within
                                           the window, else hole deletion
    more                merge              split
    ==================  =================  =======================================

    Parts are cells and membrane: a pixel between two cells is a merge only where it touches membrane as well.
    """
    from unetcli.metrics import kernels
    from unetcli.metrics.contingency import components

    places, shape = warped.places, warped.interior.shape
    cells, background = np.zeros(places.size, np.int64), np.zeros(places.size, bool)
    kernels.look_around(components(warped.interior), places, cells, background)
    inside, parts = warped.interior.ravel()[places], cells + background
    cut, doubtful = np.zeros(places.size, bool), np.flatnonzero(inside & (cells > 0) & (parts == 2))
    found = np.zeros(doubtful.size, bool)
    seen = radius if radius <= min(shape) else max(shape)  # a section smaller than that is seen as a whole
    kernels.find_cuts(warped.interior.astype(np.uint8, order="C"), places[doubtful], seen, found)
    cut[doubtful] = found
    return np.select(
        [cells == 0, parts == 1, parts == 2],
        [
            np.where(inside, ErrorKind.OBJECT_DELETION, ErrorKind.OBJECT_ADDITION),
            np.where(inside, ErrorKind.HOLE_ADDITION, ErrorKind.HOLE_DELETION),
            np.where(~inside, ErrorKind.HOLE_ADDITION, np.where(cut, ErrorKind.SPLIT, ErrorKind.HOLE_DELETION)),
        ],
        np.where(inside, ErrorKind.SPLIT, ErrorKind.MERGE),
    ).astype(np.uint8)


@cache
def simple_points() -> NDArray[np.bool_]:
    """(256,): may a pixel with these neighbours flip without changing the number of cells or of holes?

    The neighbours are bits, clockwise from the upper left. A pixel is simple if its interior neighbours, 4-connected
    among themselves, are one group that touches it at a side, and one neighbour at least is membrane.
    """
    table = np.array([is_simple(around) for around in itertools.product((False, True), repeat=8)])
    return table.reshape((2,) * 8).transpose(range(7, -1, -1)).ravel()  # the first neighbour is the lowest bit


def is_simple(around: tuple[bool, ...]) -> bool:
    """The rule for one pixel; neighbours that follow one another clockwise touch at a side, others do not.

    >>> right_half, opposite_corners = (0, 0, 1, 1, 1, 0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0)
    >>> is_simple(right_half), is_simple(opposite_corners)
    (True, False)
    """
    groups = 0
    for n in range(1, 8, 2):  # at the sides; groups that touch a side, counted at their last side clockwise
        corner, side = around[(n + 1) % 8], around[(n + 2) % 8]
        groups += around[n] and not (corner and side)
    return groups == 1
