"""Ground truth of a label volume: whether a window has any, and the squares near it, in which samples are drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unetcli.core.geometry import Box
from unetcli.train.settings import TruthRules
from unetcli.volumes.volume import Volume


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes of one volume, from which voxels are drawn uniformly."""

    start: NDArray[np.int64]
    """(n, axes): first voxel of each box."""
    stop: NDArray[np.int64]

    @classmethod
    def of(cls, box: Box) -> Boxes:
        return cls(np.array([box.start]), np.array([box.stop]))

    @classmethod
    def joined(cls, parts: Sequence[Boxes]) -> Boxes:
        return cls(np.concatenate([part.start for part in parts]), np.concatenate([part.stop for part in parts]))

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """(n,): voxels of each box and of all before it."""
        return np.cumsum((self.stop - self.start).prod(axis=1))

    @property
    def size(self) -> int:
        """Number of voxels."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def clipped(self, box: Box) -> Boxes:
        """The parts of the boxes inside another box."""
        start, stop = np.maximum(self.start, box.start), np.minimum(self.stop, box.stop)
        kept = (start < stop).all(axis=1)
        return Boxes(start[kept], stop[kept])

    def random_voxel(self, random: np.random.Generator) -> tuple[int, ...]:
        """Draw a voxel, uniformly; for a single box, only its place along each axis is drawn."""
        single = len(self.ends) == 1
        n = 0 if single else int(np.searchsorted(self.ends, random.integers(self.size), side="right"))
        sides = zip(self.start[n].tolist(), self.stop[n].tolist(), strict=True)
        return tuple(int(random.integers(a, b)) for a, b in sides)


def truth_is_everywhere(rules: TruthRules) -> bool:
    """Whether every pixel has ground truth, whatever its label."""
    return rules.ignore is None and rules.partial is None


def has_truth(labels: Volume, rules: TruthRules, window: Box) -> bool:
    """Whether a pixel of a window has ground truth, which is to say a class other than ``IGNORED``.

    Classes and cells, which take longer to compute, are not needed for it.

    Parameters
    ----------
    labels : Volume
    rules : TruthRules
    window : Box, voxels
        Part of one section; may extend beyond it, where it is mirrored.
    """
    if truth_is_everywhere(rules):
        return True
    margin = rules.partial or 0
    around = window.grown((*(0,) * len(window.shape[:-2]), margin, margin))
    values = labels.read(around).reshape(around.shape[-2:])
    inside = (slice(margin, -margin or None),) * 2
    drawn = _is_drawn(values, rules)
    objects = drawn & (values != 0)
    if rules.partial is None or objects[inside].any() or not objects.any():
        return bool((drawn if rules.partial is None else objects)[inside].any())
    near = ndimage.distance_transform_edt(~objects)[inside] <= rules.partial
    return bool((near & drawn[inside]).any())


def _is_drawn(values: NDArray[Any], rules: TruthRules) -> NDArray[np.bool_]:
    """Whether each label is another than the ignored one."""
    return np.ones(values.shape, bool) if rules.ignore is None else values != rules.ignore


def squares_near_truth(
    labels: Volume, rules: TruthRules, section: Box, pieces: Iterable[Box], *, side: int, reach: int
) -> Boxes:
    """Squares of a section that contain all pixels up to ``reach`` pixels away from ground truth.

    Parameters
    ----------
    labels : Volume
    rules : TruthRules
    section : Box, voxels
        The whole section.
    pieces : iterable of Box
        Parts that cover the section, beginning at multiples of ``side``; each is read once, unless it is not stored.
    side : pixels
        Side of the squares, which are smaller at the end of each axis.
    reach : pixels
        Distance along each axis.
    """
    found = np.zeros([-(-n // side) for n in section.shape[-2:]], bool)
    for piece in pieces:
        place = tuple(slice(a // side, -(-b // side)) for a, b in zip(piece.start[-2:], piece.stop[-2:], strict=True))
        found[place] = _marked_squares(labels, rules, piece, side)
    squares = 2 * -(-(reach + (rules.partial or 0)) // side) + 1
    places = np.argwhere(ndimage.maximum_filter(found, squares, mode="constant")) * side
    lead = np.broadcast_to(section.start[:-2], (len(places), len(section.start) - 2))
    start = np.concatenate([lead, places], axis=1)
    stop = np.concatenate([lead + 1, np.minimum(places + side, section.stop[-2:])], axis=1)
    return Boxes(start, stop)


def _marked_squares(labels: Volume, rules: TruthRules, piece: Box, side: int) -> NDArray[np.bool_]:
    """(rows, columns): squares of a piece with truth or, with ``partial``, with an object; (1, 1) if all are equal."""
    first = Box(piece.start, tuple(a + 1 for a in piece.start))
    box = first if labels.is_absent(piece) else piece
    values = labels.read(box).reshape(box.shape[-2:])
    marked = _is_drawn(values, rules)
    if rules.partial is not None:
        marked &= values != 0
    for axis, n in enumerate(marked.shape):
        marked = np.logical_or.reduceat(marked, np.arange(0, n, side), axis=axis)
    return marked
