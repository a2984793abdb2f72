"""Turned copies of a tile: the eight turns and mirrors of the square, and the mean over them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from unetcli.planning.plan import ROTATIONS


@dataclass(frozen=True, slots=True)
class Turn:
    """Turn of a plane, possibly of its mirror image. A quarter turn exchanges the sides of a plane that is no square.

    >>> Turn(1, mirrored=False).apply(torch.tensor([[1, 2, 3], [4, 5, 6]])).tolist()
    [[3, 6], [2, 5], [1, 4]]
    """

    quarters: int
    """Counter-clockwise quarter turns, with y downwards as images are shown."""
    mirrored: bool
    """Whether left and right are exchanged before the turn."""

    def apply(self, planes: Tensor) -> Tensor:
        """Turn planes (.., y, x)."""
        if not self.mirrored and self.quarters == 0:
            return planes
        return torch.rot90(planes.flip(-1) if self.mirrored else planes, self.quarters, (-2, -1))

    def undo(self, planes: Tensor) -> Tensor:
        """Turn planes (.., y, x) that were turned by :meth:`apply` back."""
        if not self.mirrored and self.quarters == 0:
            return planes
        back = torch.rot90(planes, -self.quarters, (-2, -1))
        return back.flip(-1) if self.mirrored else back


TURNS = tuple(Turn(quarters, mirrored) for mirrored in (False, True) for quarters in range(4))
"""All turns and mirrors of the square: as it is, then turned by 90, 180 and 270 degrees, then the same mirrored."""


def turns(rotations: int) -> tuple[Turn, ...]:
    """The turns of ``--rotations``: the first 1, 4, 7 or 8 of :data:`TURNS`.

    The paper averages over 7 turned copies and does not say which; here the last of the eight is left out, the mirror
    image turned by 270 degrees.

    >>> [(turn.quarters, turn.mirrored) for turn in turns(7)][3:]
    [(3, False), (0, True), (1, True), (2, True)]
    """
    assert rotations in ROTATIONS
    return TURNS[:rotations]


def mean_of(arrays: Iterator[Tensor]) -> Tensor:
    """The mean of arrays of one shape, which are computed and added one after the other; a single one is returned.

    The first array is overwritten.
    """
    total, count = next(arrays), 1
    for array in arrays:
        total += array
        count += 1
    return total if count == 1 else total / count
