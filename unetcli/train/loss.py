"""The paper's energy function: pixel-wise softmax and cross-entropy, weighted (eq. 1 and 2)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from unetcli.train.targets import IGNORED


def weight_table(class_weights: NDArray[np.float32]) -> Tensor:
    """(256,) float32: w_c by class, 0 for pixels that are ignored."""
    table = np.zeros(IGNORED + 1, np.float32)
    table[: len(class_weights)] = class_weights
    return torch.from_numpy(table)


def weighted_cross_entropy(logits: Tensor, classes: Tensor, raised: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of -w(x) log p(true class), and the sum of w: two numbers, so that processes can share one mean.

    The paper sums; the mean makes the learning rate independent of the tile's size.

    Parameters
    ----------
    logits : (batch, classes, y, x), float
    classes : (batch, y, x), int64
        ``IGNORED`` where there is no truth.
    raised : (batch, y, x), float32
        What is added to the class's weight near borders; 0 where ignored.
    table : (256,), float32
        w_c of eq. 2 by class, 0 where ignored.
    """
    losses = functional.cross_entropy(logits.float(), classes, reduction="none", ignore_index=IGNORED)  # (batch, y, x)
    weights = table[classes] + raised
    return (losses * weights).sum(), weights.sum()
