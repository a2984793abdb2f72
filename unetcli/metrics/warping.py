"""Warping error: pixels that still differ after the reference was deformed towards the proposal, topology preserved.

Defined by Jain et al. 2010, section 3, and computed as by the official program of the ISBI 2012 EM challenge: interior
is 4-connected, membrane is 8-connected, and everything outside a section is membrane.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from enum import IntEnum
from functools import cache

import numpy as np
from numpy.typing import NDArray

WINDOW_RADIUS = 20
"""Half side of the window in which the challenge checks whether an error splits a cell, in pixels."""


class ErrorKind(IntEnum):
    """Kind of topological error that a remaining pixel stands for."""

    SPLIT = 0
    MERGE = 1
    OBJECT_ADDITION = 2
    OBJECT_DELETION = 3
    HOLE_ADDITION = 4
    HOLE_DELETION = 5


@dataclass(frozen=True, slots=True)
class ErrorCounts:
    """Number of remaining pixels by kind; fields in the order of ``ErrorKind``."""

    split: int
    merge: int
    object_addition: int
    object_deletion: int
    hole_addition: int
    hole_deletion: int

    @property
    def total(self) -> int:
        """All remaining pixels: the error of Jain et al. 2010, in pixels."""
        # ``astuple`` copies deeply, which takes ten times as long.
        return sum(getattr(self, name) for name in self.__slots__)


@dataclass(frozen=True, slots=True, eq=False)
class WarpingErrors:
    """Pixels of a section that remain after warping, with their kinds."""

    positions: NDArray[np.int64]
    """(errors, 2): y and x."""
    kinds: NDArray[np.uint8]
    """(errors,): values of ``ErrorKind``."""

    def of(self, kind: ErrorKind) -> NDArray[np.int64]:
        """Positions y, x of the errors of one kind, (errors, 2)."""
        return np.compress(self.kinds == kind, self.positions, axis=0)

    @property
    def counts(self) -> ErrorCounts:
        return ErrorCounts(*np.bincount(self.kinds, minlength=len(ErrorKind)).tolist())


@dataclass(frozen=True, slots=True, eq=False)
class Warped:
    """Reference after warping."""

    interior: NDArray[np.bool_]
    """(y, x): the deformed reference."""
    indices: NDArray[np.int64]
    """(errors,): flat indices of the pixels where it still differs from the proposal."""


def warping_errors(
    probability: NDArray[np.float32],
    interior: NDArray[np.bool_],
    proposal: NDArray[np.bool_],
    level: float,
    valid: NDArray[np.bool_] | None = None,
) -> WarpingErrors:
    """Warp the reference and classify the remaining pixels; parameters as in :func:`warp`."""
    warped = warp(probability, interior, proposal, level, valid)
    positions = np.stack(np.unravel_index(warped.indices, interior.shape), axis=1)
    return WarpingErrors(positions.astype(np.int64), classify(warped))


def warp(
    probability: NDArray[np.float32],
    interior: NDArray[np.bool_],
    proposal: NDArray[np.bool_],
    level: float,
    valid: NDArray[np.bool_] | None = None,
) -> Warped:
    """Flip simple points of the reference that differ from the proposal until none is left (Jain et al. 2010).

    Pixels with the largest distance between probability and level are flipped first, ties column by column from left
    to right, as in the official program. The result depends on this order.

    Parameters
    ----------
    probability : (y, x), float32
        Probability of interior, 0 to 1.
    interior : (y, x), bool
        The reference: True inside cells, False on membrane.
    proposal : (y, x), bool
        ``probability`` above ``level``.
    level : 0 to 1
        Threshold of the proposal.
    valid : (y, x), bool, optional
        Pixels that may be flipped and are counted. Default: all.
    """
    from unetcli.metrics import kernels

    width = interior.shape[1]
    differ = interior != proposal
    if valid is not None:
        differ &= valid
    x, y = np.nonzero(differ.T)
    distance = np.abs(probability[y, x].astype(np.float64) - level).astype(np.float32)  # as the official program rounds
    descending = np.argsort(-distance, kind="stable")
    framed = np.pad(interior.astype(np.uint8, order="C"), 1)
    order = ((y + 1) * (width + 2) + x + 1)[descending]
    remaining = kernels.flip_simple_points(framed, order, simple_point_table())
    rows, columns = np.divmod(order[:remaining], width + 2)
    return Warped(framed[1:-1, 1:-1] > 0, (rows - 1) * width + columns - 1)


def classify(warped: Warped, radius: int = WINDOW_RADIUS) -> NDArray[np.uint8]:
    """Classify each remaining pixel by the cells around it, as the official program does.

    ==================  =================  =======================================
    neighbours          pixel is membrane  pixel is interior
    ==================  =================  =======================================
    only membrane       object addition    object deletion
    only one cell       hole deletion      hole addition
    two regions         hole addition      split if removing it disconnects a cell
                                           within the window, else hole deletion
    more regions        merge              split
    ==================  =================  =======================================

    Regions are cells and the membrane: a pixel between two cells is a merge only if it touches membrane as well.

    Parameters
    ----------
    warped
        Result of :func:`warp`.
    radius : pixels
        Half side of the window.

    Returns
    -------
    (errors,), uint8
        Values of ``ErrorKind``.
    """
    from unetcli.metrics import kernels
    from unetcli.metrics.contingency import components

    indices, shape = warped.indices, warped.interior.shape
    cells, background = np.zeros(indices.size, np.int64), np.zeros(indices.size, bool)
    kernels.count_neighbours(components(warped.interior), indices, cells, background)
    inside, parts = warped.interior.ravel()[indices], cells + background
    cut, doubtful = np.zeros(indices.size, bool), np.flatnonzero(inside & (cells > 0) & (parts == 2))
    found = np.zeros(doubtful.size, bool)
    seen = radius if radius <= min(shape) else max(shape)  # the window covers a smaller section completely
    kernels.find_cuts(warped.interior.astype(np.uint8, order="C"), indices[doubtful], seen, found)
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
def simple_point_table() -> NDArray[np.bool_]:
    """Whether a pixel can flip without changing the number of cells or holes, by its eight neighbours.

    A pixel is simple if exactly one 4-connected group of its interior neighbours touches one of its sides, and at least
    one neighbour is membrane.

    Returns
    -------
    (256,), bool
        Indexed by the neighbours as bits (1 is interior), clockwise from the upper left, which is the lowest bit.
    """
    table = np.array([is_simple(around) for around in itertools.product((False, True), repeat=8)])
    return table.reshape((2,) * 8).transpose(range(7, -1, -1)).ravel()  # makes the first neighbour the lowest bit


def is_simple(around: tuple[bool, ...]) -> bool:
    """Whether a pixel with these neighbours, clockwise from the upper left, is simple.

    >>> right_half, opposite_corners = (0, 0, 1, 1, 1, 0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0)
    >>> is_simple(right_half), is_simple(opposite_corners)
    (True, False)
    """
    groups = 0
    for n in range(1, 8, 2):  # side neighbours; a group is counted at its last side, clockwise
        corner, side = around[(n + 1) % 8], around[(n + 2) % 8]
        groups += around[n] and not (corner and side)
    return groups == 1
