"""Grey values as another exposure, display and detector would have given them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from unetcli.train.deformation import to_device

BLUR_REACH = 3
"""Standard deviations after which a blur is cut off."""
SMALLEST_RANGE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class GreyChange:
    """One sample's changes, in standard deviations of the normalised image; the same for all its channels."""

    gamma: float = 1.0
    """Exponent of the tone curve; above 1 is darker."""
    contrast: float = 1.0
    """Factor about the mean of all images, which is 0."""
    brightness: float = 0.0
    """Added."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise."""
    blur: float = 0.0
    """Standard deviation of a Gaussian blur, pixels."""
    seed: int = 0
    """Of the noise."""


def change_grey(images: Tensor, changes: Sequence[GreyChange]) -> Tensor:
    """Images (b, c, y, x) after blur (optics), tone, contrast, brightness, noise (detector); may change them in place.

    What is neutral for a sample leaves it bit for bit as it was, whatever else the batch holds.
    """
    if any(change.blur for change in changes):
        images = blurred(images, [change.blur for change in changes])
    if any(change.gamma != 1 for change in changes):
        apply_tone(images, [change.gamma for change in changes])
    if any(change.contrast != 1 or change.brightness for change in changes):
        factors = [[change.contrast for change in changes], [change.brightness for change in changes]]
        contrast, brightness = per_sample(factors, images.device)
        images.mul_(contrast).add_(brightness)
    for image, change in zip(images, changes, strict=True):
        if change.noise:
            image += noise(image, change.seed).mul_(change.noise)
    return images


def apply_tone(images: Tensor, gammas: Sequence[float]) -> None:
    """Bend grey values within the range of each image and channel, about as (t -> t ** gamma) does; in place.

    Schlick's rational form t / (k (1 - t) + 1), k = 2^gamma - 2, meets the power at 0, 1/2 and 1 and is exactly t for
    gamma = 1. Its slope at black is finite, so dark noise is not blown up, and every device rounds it alike.
    """
    (bends,) = per_sample([[2**gamma - 2 for gamma in gammas]], images.device)
    low, high = (bound[..., None, None] for bound in images.flatten(2).aminmax(dim=-1))  # (b, c, 1, 1)
    span = (high - low).clamp_(min=SMALLEST_RANGE)
    tone = (images - low).div_(span)
    bent = tone / (1 - tone).mul_(bends).add_(1)
    images += bent.sub_(tone).mul_(span)


def noise(image: Tensor, seed: int) -> Tensor:
    """Standard normal values, (c, y, x), from a stream of their own; the same for any number of threads.

    A GPU draws others than a CPU.
    """
    generator = torch.Generator(image.device).manual_seed(seed)
    return torch.randn(image.shape, generator=generator, device=image.device)


def blurred(images: Tensor, sigmas: Sequence[float]) -> Tensor:
    """A Gaussian blur of each image along y and x, mirrored at the edges."""
    kernels = np.stack([half_kernel(sigma, max(map(reach, sigmas))) for sigma in sigmas])
    weights = per_sample(kernels.T, images.device)
    return _blurred(_blurred(images, weights, -2), weights, -1)


def half_kernel(sigma: float, extent: int) -> NDArray[np.float64]:
    """Weights at distances 0 to ``extent``, zero beyond three standard deviations; their mirrored sum is 1.

    >>> half_kernel(0.0, 2).tolist()
    [1.0, 0.0, 0.0]
    """
    distances = np.arange(extent + 1)
    weights = np.exp(-0.5 * (distances / max(sigma, 1e-6)) ** 2) * (distances <= reach(sigma))
    kernel: NDArray[np.float64] = weights / (2 * weights.sum() - weights[0])
    return kernel


def reach(sigma: float) -> int:
    """Pixels to either side that a blur reads."""
    return math.ceil(BLUR_REACH * sigma)


def _blurred(images: Tensor, weights: Sequence[Tensor], axis: int) -> Tensor:
    """Sums of shifted images along one axis; ``weights`` (b, 1, 1, 1) by distance."""
    margin, extent = len(weights) - 1, images.shape[axis]
    pad = [0, 0, margin, margin] if axis == -2 else [margin, margin, 0, 0]
    wide = functional.pad(images, pad, mode="reflect")
    total = images * weights[0]
    for distance, weight in enumerate(weights[1:], start=1):
        pair = wide.narrow(axis, margin - distance, extent) + wide.narrow(axis, margin + distance, extent)
        total += pair.mul_(weight)
    return total


def per_sample(values: Sequence[Sequence[float]] | NDArray[np.float64], device: torch.device) -> list[Tensor]:
    """One tensor (b, 1, 1, 1) for each row of numbers (rows, b)."""
    return list(to_device(np.asarray(values), device)[..., None, None, None])
