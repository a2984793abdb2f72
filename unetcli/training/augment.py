"""Random changes of a training tile that leave it a possible image of the same kind."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def dihedral(array: NDArray[Any], number: int) -> NDArray[Any]:
    """One of the eight rotations and flips of the last two axes; a view.

    >>> [dihedral(np.array([[0, 1], [2, 3]]), n).ravel().tolist() for n in (0, 1, 4)]
    [[0, 1, 2, 3], [1, 3, 0, 2], [1, 0, 3, 2]]
    """
    turned = np.rot90(array, number % 4, axes=(-2, -1))
    return turned[..., ::-1] if number >= 4 else turned
