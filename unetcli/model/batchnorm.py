"""Batch normalisation over all processes that train together, and without a trace in the network that is kept."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class BatchNorm(nn.BatchNorm2d):
    """Statistics of the whole batch, shared out or not (torch's own shared one exists for GPUs only)."""

    processes = 1
    """That hold a part of each batch; torch is not asked, as one of many may train a network of its own, as a probe."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.processes == 1:
            return super().forward(x)
        values, pixels = x.float(), x.numel() // x.shape[1] * self.processes
        mean = _total(values.sum((0, 2, 3))) / pixels  # (c,)
        centred = values - mean[:, None, None]
        variance = _total(centred.square().sum((0, 2, 3))) / pixels
        self._remember(mean.detach(), variance.detach() * pixels / max(pixels - 1, 1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """What inference will use; as torch's own."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked.add_(1)


class _Total(torch.autograd.Function):
    """Sum over the processes; each one's share has an effect on all sums, so gradients are added up as well."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def _total(values: Tensor) -> Tensor:
    return _Total.apply(values)  # type: ignore[no-any-return,no-untyped-call]


@torch.no_grad()
def fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one convolution that does what both do at inference."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)  # (c,)
    shift = norm.running_mean if convolution.bias is None else norm.running_mean - convolution.bias
    bias = norm.bias - shift * scale
    return convolution.weight * scale[:, None, None, None], bias
