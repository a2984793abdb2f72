"""The paper's energy function: pixel-wise softmax and cross-entropy, weighted (eq. 1)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def weighted_cross_entropy(logits: Tensor, target: Tensor, class_weights: Tensor) -> Tensor:
    """Weighted mean of -log p(true class); the paper sums, the mean makes the learning rate independent of tile size.

    Parameters
    ----------
    logits : (batch, classes, y, x), float
    target : (batch, y, x), int64
    class_weights : (classes,), float
        w_c of eq. 2.
    """
    losses = functional.cross_entropy(logits, target, reduction="none")  # (batch, y, x)
    weights = class_weights[target]
    return (losses * weights).sum() / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)
