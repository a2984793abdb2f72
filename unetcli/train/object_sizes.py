"""Sizes of the objects in the training truth, from which ``label`` knows what is too small to be one."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unetcli.core.arrays import distinct
from unetcli.train.dataset import Dataset
from unetcli.train.settings import IGNORED

SMALLER = 0.01
"""Fraction of the objects that may be smaller than the smallest one, so that stray pixels in the truth do not count."""
FEWEST = 20
"""Number of complete objects below which the smallest one is unknown."""


@lru_cache(maxsize=1)  # a training asks at each model that it saves
def smallest_objects(dataset: Dataset, classes: int) -> tuple[int, ...]:
    """Size of the smallest object in a training section, in pixels, for each stored probability.

    That is the foreground, or each class if there are more than two. 99 % of the complete objects in up to 64 sections,
    or in parts of larger ones, are at least as large; see :func:`smallest`.

    Returns
    -------
    (1,) or (classes,)
        0 where it is unknown, since fewer than ``FEWEST`` objects are complete.
    """
    found: list[list[NDArray[np.intp]]] = [[] for _ in range(classes if classes > 2 else 1)]
    for pair, box in dataset.windows():
        truth = pair.classes(box)
        kinds = [pair.instances(box)] if len(found) == 1 else [ndimage.label(truth == k)[0] for k in range(classes)]
        for sizes, objects in zip(found, kinds, strict=True):
            sizes.append(complete_sizes(objects, truth == IGNORED))
    return tuple(smallest(np.concatenate(sizes)) for sizes in found)


def complete_sizes(objects: NDArray[np.integer], ignored: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Pixels of the objects that neither the edge of the window nor ignored pixels cut off.

    Parameters
    ----------
    objects : (y, x), integer
        Numbers of the objects; 0 is none.
    ignored : (y, x), bool
        Pixels without ground truth.

    Returns
    -------
    (n,), intp

    Examples
    --------
    >>> objects = np.array([[1, 0, 0, 0, 0], [1, 0, 2, 2, 0], [0, 0, 0, 0, 0]])
    >>> complete_sizes(objects, np.zeros((3, 5), bool)).tolist()
    [2]
    """
    numbers, places = distinct(objects)
    beside = ndimage.binary_dilation(ignored, border_value=1)
    complete = numbers != 0
    complete[places[beside]] = False
    pixels: NDArray[np.intp] = np.bincount(places.ravel(), minlength=len(numbers))[complete]
    return pixels


def smallest(sizes: NDArray[np.intp]) -> int:
    """The size that 99 % of the objects have at least; 0 if there are fewer than ``FEWEST``.

    >>> smallest(np.array([1] + [50] * 40)), smallest(np.array([50] * 3))
    (50, 0)
    """
    return 0 if len(sizes) < FEWEST else int(np.quantile(sizes, SMALLER, method="higher"))
