"""From label maps to what the network is to say: a class per pixel. Arrays in, arrays out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

TRUTHS = ("binary", "instances", "classes")
MARGIN = 1
"""Labels are read this much wider than the target, to see what touches its edge."""


def target(labels: NDArray[Any], truth: str) -> NDArray[np.int64]:
    """Class of each pixel.

    Parameters
    ----------
    labels : (y + 2, x + 2), integer
        One pixel more on each side than the result.
    truth
        ``binary``: 0 is background, all else foreground. ``instances``: likewise, and where two different objects
        touch, a line of background between them (the paper's separation border). ``classes``: labels are classes.

    Returns
    -------
    (y, x), int64
    """
    inner = labels[MARGIN:-MARGIN, MARGIN:-MARGIN]
    if truth == "classes":
        return inner.astype(np.int64)
    foreground: NDArray[np.bool_] = inner != 0
    if truth == "instances":
        foreground &= ~touching(labels)[MARGIN:-MARGIN, MARGIN:-MARGIN]
    return foreground.astype(np.int64)


def touching(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Labelled pixels that have another object among their eight neighbours."""
    found = np.zeros(labels.shape, np.bool_)
    height, width = labels.shape
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):  # the other four are these, seen from the other side
        here = slice(0, height - dy), slice(max(0, -dx), width - max(0, dx))
        there = slice(dy, height), slice(max(0, dx), width + min(0, dx))
        touch = (labels[here] != 0) & (labels[there] != 0) & (labels[here] != labels[there])
        found[here] |= touch
        found[there] |= touch
    return found


def class_weights(counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """w_c(k) = n / (K n_k): every class weighs the same in the loss; 0 for a class that does not occur."""
    occurring = np.maximum(counts, 1)
    weights = counts.sum() / (len(counts) * occurring)
    return np.where(counts > 0, weights, 0).astype(np.float32)
