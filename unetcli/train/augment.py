"""Data augmentation: random deformations and grey value changes of training samples (paper, section 3.1).

:func:`draw` makes the random choices of one sample, from a generator that the caller seeds. :func:`augment` applies the
choices of a batch as tensor operations on the tensors' device, without waiting for a GPU. A :class:`Deformation` is a
smooth map from the pixels of a tile to positions in the image; a :class:`GreyChange` simulates another exposure,
display and detector.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from unetcli.train.settings import Augmentation, log_uniform

DEGRADED = 0.25
"""Probability of noise, and of blur: both remove information, so most samples go without."""
Batch = tuple[Tensor, Tensor, Tensor]
"""Images, classes and border weights."""
GRID_POINTS = 3
"""Points of the displacement grid per axis (paper, section 3.1)."""
INTERPOLATION_MARGIN = 2
"""Largest distance, in pixels, between a position and the pixels that bicubic interpolation reads for it."""
SIDE_STEP = 32
"""Sides of source windows exceed the tile's side by a multiple of this, so that few sizes occur."""
NO_DISPLACEMENT = (0.0,) * (2 * GRID_POINTS**2)
BLUR_TRUNCATE = 3
"""Radius of the blur kernel, in standard deviations."""
MIN_RANGE = 1e-6
"""Smallest grey value range that is divided by; an image may be constant."""


@dataclass(frozen=True, slots=True)
class Draw:
    """Random choices of one sample."""

    deformation: Deformation
    grey: GreyChange


def draw(settings: Augmentation, random: np.random.Generator, tile: int) -> Draw:
    """Draw the random choices of one sample, for a tile of ``tile`` pixels.

    The settings only scale the random numbers, so switching one change off leaves the others as they were.
    """
    displacements = random.standard_normal(len(NO_DISPLACEMENT)) * settings.displacement(tile)
    turn, scale, gamma, contrast, brightness = random.uniform(-1, 1, 5)
    noise, blur, has_noise, has_blur, down, right = random.uniform(0, 1, 6)
    deformation = Deformation.of(
        tile,
        degrees=settings.rotation * turn,
        flips=(settings.flip and bool(down < 0.5), settings.flip and bool(right < 0.5)),
        scale=log_uniform(settings.scale, scale),
        displacements=displacements.tolist(),
    )
    grey = GreyChange(
        gamma=log_uniform(settings.gamma, gamma),
        contrast=log_uniform(settings.contrast, contrast),
        brightness=float(settings.brightness * brightness),
        noise=float(settings.noise * noise) if has_noise < DEGRADED else 0.0,
        blur=float(settings.blur * blur) if has_blur < DEGRADED else 0.0,
        seed=int(random.integers(2**63)),
    )
    return Draw(deformation, grey)


@torch.no_grad()
def augment(
    images: Sequence[Tensor],
    classes: Sequence[Tensor],
    border_weights: Sequence[Tensor],
    draws: Sequence[Draw],
    *,
    tile: int,
    output: int,
    mean: Tensor | float = 0.0,
    std: Tensor | float = 1.0,
) -> Batch:
    """Normalise and augment a batch of samples. Each sample depends only on its windows and its draw.

    Parameters
    ----------
    images : sequence of (c, side, side), any real dtype
        Windows of ``deformation.window_side(tile)`` pixels around each sample's centre, mirrored beyond the image.
        Larger concentric windows give the same result up to rounding.
    classes : sequence of (side, side), uint8
        Classes around the same centres; 255 is ignored. Windows of ``deformation.window_side(output)`` pixels are
        enough.
    border_weights : sequence of (side, side), float32
        Border weights of the same pixels as ``classes``.
    draws : sequence of Draw
        Random choices of each sample, made for ``tile``.
    tile, output : pixels
        Sides of the network's input and of its output, which is the centre of the input.
    mean, std : float or (c, 1, 1), float32
        Mean and standard deviation of the grey values; grey changes apply to (v - mean) / std. By default the images
        are taken as normalised.

    Returns
    -------
    images : (b, c, tile, tile), float32, channels last
    classes : (b, output, output), int64
    border_weights : (b, output, output), float32
        Each taken, like its class, from the nearest pixel.

    Raises
    ------
    ValueError
        A draw was made for another tile, or a window is too small or not concentric with the tile.
    """
    windows = zip(images, classes, border_weights, [draw.deformation for draw in draws], strict=True)
    samples = [_Sample(*parts).checked(tile, output) for parts in windows]
    interpolated = iter(_interpolate([one for one in samples if not one.deformation.is_exact], output))
    moved = [_move(one, tile, output) if one.deformation.is_exact else next(interpolated) for one in samples]
    tiles, targets, weights = zip(*moved, strict=True)
    changed = change_grey(torch.stack(tiles).sub_(mean).div_(std), [draw.grey for draw in draws])
    return (
        changed.contiguous(memory_format=torch.channels_last),
        torch.stack(targets).to(torch.int64),
        torch.stack(weights),
    )


class _Sample(NamedTuple):
    image: Tensor
    classes: Tensor
    border_weight: Tensor
    deformation: Deformation

    def checked(self, tile: int, output: int) -> _Sample:
        """Return the sample; raise ValueError if it does not fit the tile."""
        if self.deformation.tile != tile or self.border_weight.shape != self.classes.shape:
            raise ValueError(
                f"drawn for a tile of {self.deformation.tile}, expected {tile}; border weights of shape "
                f"{tuple(self.border_weight.shape)}, expected {tuple(self.classes.shape)} as the classes"
            )
        for window, extent in ((self.image, tile), (self.classes, output)):
            height, width = window.shape[-2:]
            if width < extent or (width - extent) % 2 or height != width:
                raise ValueError(f"window of {height} x {width} for {extent} x {extent}: see Deformation.window_side")
        return self


def _move(one: _Sample, tile: int, output: int) -> Batch:
    """Image, classes and border weights of a sample under an exact deformation."""
    parts = (centre(one.image, tile), centre(one.classes, output), centre(one.border_weight, output))
    image, classes, weights = (move_pixels(part, one.deformation) for part in parts)
    return image.to(torch.float32), classes, weights


def _interpolate(samples: Sequence[_Sample], output: int) -> Iterator[Batch]:
    """Image, classes and border weights of samples that are rotated by any angle, scaled or deformed."""
    if not samples:
        return
    sides, windows = ([tensor.shape[-1] for tensor in column] for column in list(zip(*samples, strict=True))[:2])
    grids = sampling_grids([one.deformation for one in samples], sides, samples[0].image.device)
    pixels = nearest_pixels(centre(grids, output), sides, windows)  # (b, output, output)
    for one, grid, pixel in zip(samples, grids, pixels, strict=True):
        yield interpolate(one.image, grid), take_pixels(one.classes, pixel), take_pixels(one.border_weight, pixel)


@dataclass(frozen=True, slots=True)
class Deformation:
    """Map from the pixels of a square tile to their source positions.

    Positions are (y, x), in pixels from the tile's centre. The source of a pixel at p is ``matrix @ p + d(p)``, where d
    are the displacements of a 3 x 3 grid (paper, section 3.1), interpolated by :func:`spline_weights`.
    """

    tile: int
    """Side of the tile, pixels; the grid spans it from the centre of the first pixel to that of the last."""
    matrix: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 1.0)
    """2 x 2 matrix, flattened: row y, then row x."""
    displacements: tuple[float, ...] = NO_DISPLACEMENT
    """(2, 3, 3), flattened, in pixels: y of all grid points, then x."""

    @classmethod
    def of(
        cls,
        tile: int,
        *,
        degrees: float = 0.0,
        flips: tuple[bool, bool] = (False, False),
        scale: float = 1.0,
        displacements: Sequence[float] = NO_DISPLACEMENT,
    ) -> Deformation:
        """Create a deformation that mirrors along (y, x), rotates, magnifies and then displaces.

        Positive angles are counterclockwise, as in ``np.rot90``; above a ``scale`` of 1, objects become larger.
        """
        cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        down, right = (-1 / scale if flip else 1 / scale for flip in flips)
        rows = (down * cosine, down * sine, -right * sine, right * cosine)
        matrix = tuple(round(value, 12) for value in rows)  # whole numbers at multiples of 90 degrees
        return cls(tile, (matrix[0], matrix[1], matrix[2], matrix[3]), tuple(displacements))

    @property
    def is_exact(self) -> bool:
        """Whether the map only moves pixels (quarter turns and flips), so that nothing is interpolated."""
        yy, yx, xy, xx = map(abs, self.matrix)
        return (yy, yx) in ((1, 0), (0, 1)) and (xx, xy) == (yy, yx) and not any(self.displacements)

    def grid_sources(self) -> NDArray[np.float64]:
        """Source positions of the grid points, (2, 3, 3): y, then x.

        The spline reproduces straight lines, so these nine points define the whole map, rotation and scale included.
        """
        line = np.linspace(-1, 1, GRID_POINTS) * (self.tile - 1) / 2
        grid = np.stack(np.meshgrid(line, line, indexing="ij"))
        moved = np.asarray(self.displacements).reshape(2, GRID_POINTS, GRID_POINTS)
        return np.asarray(np.tensordot(np.reshape(self.matrix, (2, 2)), grid, axes=1) + moved)

    def source_positions(self, rows: slice = slice(None), columns: slice = slice(None)) -> NDArray[np.float64]:
        """Source positions of a tile's pixels, (2, y, x)."""
        weights = spline_weights(self.tile)
        return np.asarray(weights[rows] @ self.grid_sources() @ weights[columns].T)

    def window_side(self, extent: int) -> int:
        """Side, in pixels, of the source window that interpolation reads for the central ``extent`` pixels of the tile.

        It is ``extent`` plus a multiple of 32, so that both squares have the same centre: the window begins
        ``(side - extent) // 2`` pixels before the extent.
        """
        if self.is_exact:
            return extent
        first = (self.tile - extent) // 2
        inside, ends = slice(first, first + extent), slice(first, first + extent, max(extent - 1, 1))
        # the map does not fold, so the farthest source belongs to a pixel on the edge of the square
        edges = (self.source_positions(ends, inside), self.source_positions(inside, ends))
        needed = 2 * (max(float(np.abs(edge).max()) for edge in edges) + INTERPOLATION_MARGIN) + 1
        return extent + SIDE_STEP * max(math.ceil((needed - extent) / SIDE_STEP), 0)


@lru_cache(maxsize=64)
def spline_weights(extent: int) -> NDArray[np.float64]:
    """Weights of the three grid points at each of ``extent`` pixels, (extent, 3): a natural cubic spline.

    The spline passes through the points, so displacements keep their standard deviation (cubic B-splines would halve
    it). Its second derivative is continuous, unlike that of cubic convolution. It needs no points beyond the edge and
    reproduces straight lines.

    >>> spline_weights(5).tolist()[1]
    [0.40625, 0.6875, -0.09375]
    """
    at = np.linspace(0, GRID_POINTS - 1, extent)
    inward = 1 - np.abs(at - 1)  # 0 at the edges, 1 at the middle point
    bend = (inward**3 - inward) / 4
    weights = np.stack([np.maximum(1 - at, 0) + bend, inward - 2 * bend, np.maximum(at - 1, 0) + bend], axis=1)
    weights.setflags(write=False)
    return weights


def sampling_grids(deformations: Sequence[Deformation], sides: Sequence[int], device: torch.device) -> Tensor:
    """Source positions of tiles, (b, 2, tile, tile), x first, in windows of given sides; -1 and 1 are a window's edges.

    Products and sums are separate operations that each round on their own, so the values depend on neither the batch
    nor the number of threads.
    """
    points = np.stack([d.grid_sources()[::-1] * (2 / side) for d, side in zip(deformations, sides, strict=True)])
    grid = to_device(points, device)  # (b, 2, 3, 3)
    weights, axis = to_device(spline_weights(deformations[0].tile), device), range(GRID_POINTS)  # (tile, 3)
    rows = _weighted_sum([weights[:, j, None] for j in axis], [grid[:, :, j, None] for j in axis])
    return _weighted_sum([weights[:, k] for k in axis], [rows[..., k, None] for k in axis])


def _weighted_sum(weights: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    total = weights[0] * values[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total += weight * value
    return total


def interpolate(window: Tensor, grid: Tensor) -> Tensor:
    """Interpolate a window (c, side, side) of any dtype at the positions of a grid (2, y, x); (c, y, x), float32.

    Bicubic interpolation keeps 74 % of the variance of pixel noise, bilinear 45 %; smoother images than those to be
    predicted would train the network for other data. For a tile of 316 on one core it takes 0.9 instead of 0.2 ms.
    """
    images, positions = window.to(torch.float32)[None], grid.permute(1, 2, 0)[None]
    return functional.grid_sample(images, positions, mode="bicubic", padding_mode="border", align_corners=False)[0]


def nearest_pixels(grids: Tensor, sides: Sequence[int], windows: Sequence[int]) -> Tensor:
    """Flat indices of the pixels nearest to the positions of grids, (b, y, x), int32.

    The grids refer to windows of ``sides`` pixels, the indices to concentric windows of ``windows`` pixels.
    """
    halves = to_device(np.array([sides, windows]) / 2, grids.device)[..., None, None, None]  # (2, b, 1, 1, 1)
    last = to_device(np.array(windows) - 1, grids.device)[:, None, None, None]
    pixels = (grids * halves[0] + halves[1]).clamp_(min=0).minimum(last).to(torch.int32)  # (b, 2, y, x)
    return pixels[:, 1] * (last[:, 0].to(torch.int32) + 1) + pixels[:, 0]


def take_pixels(window: Tensor, pixels: Tensor) -> Tensor:
    """Values of a window (side, side) at flat indices; the result has the shape of the indices."""
    return window.reshape(-1).index_select(0, pixels.reshape(-1)).reshape(pixels.shape)


def move_pixels(window: Tensor, deformation: Deformation) -> Tensor:
    """Apply quarter turns and flips to a window (.., side, side)."""
    yy, yx, xy, xx = deformation.matrix
    moved = window if yx == 0 else window.transpose(-1, -2)
    down, right = (yy, xx) if yx == 0 else (xy, yx)
    return moved.flip([axis for axis, sign in ((-2, down), (-1, right)) if sign < 0])


def centre(window: Tensor, extent: int) -> Tensor:
    """Central square of the last two axes, as a view."""
    top, left = ((side - extent) // 2 for side in window.shape[-2:])
    return window[..., top : top + extent, left : left + extent]


def to_device(values: NDArray[np.floating], device: torch.device) -> Tensor:
    """Copy a small array to the device as float32, without waiting for the device."""
    numbers = torch.from_numpy(np.ascontiguousarray(values, np.float32))
    return (numbers.pin_memory() if device.type == "cuda" else numbers).to(device, non_blocking=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class GreyChange:
    """Grey value changes of one sample, in standard deviations of the normalised image; the same for all channels."""

    gamma: float = 1.0
    """Exponent of the tone curve; above 1, the image becomes darker."""
    contrast: float = 1.0
    """Factor about the mean of all images, which is 0."""
    brightness: float = 0.0
    """Offset that is added."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise."""
    blur: float = 0.0
    """Standard deviation of the Gaussian blur, pixels."""
    seed: int = 0
    """Seed of the noise."""


def change_grey(images: Tensor, changes: Sequence[GreyChange]) -> Tensor:
    """Apply blur (optics), gamma, contrast, brightness and noise (detector), in this order, to images (b, c, y, x).

    The images may be changed in place. A change with its neutral value leaves a sample bit for bit as it was, whatever
    else the batch holds.
    """
    if any(change.blur for change in changes):
        images = gaussian_blur(images, [change.blur for change in changes])
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
    """Apply a gamma-like curve to the grey values, within the range of each image and channel; in place.

    Schlick's rational function t / (k (1 - t) + 1) with k = 2^gamma - 2 (Graphics Gems IV, 1994) equals t^gamma at 0,
    1/2 and 1, and is exactly t for gamma = 1. Its slope at black is finite, so dark noise is not amplified without
    limit, and every device rounds it the same way.
    """
    (bends,) = per_sample([[2**gamma - 2 for gamma in gammas]], images.device)
    low, high = (bound[..., None, None] for bound in images.flatten(2).aminmax(dim=-1))  # (b, c, 1, 1)
    span = (high - low).clamp_(min=MIN_RANGE)
    tone = (images - low).div_(span)
    bent = tone / (1 - tone).mul_(bends).add_(1)
    images += bent.sub_(tone).mul_(span)


def noise(image: Tensor, seed: int) -> Tensor:
    """Standard normal values of one seed, (c, y, x).

    They do not depend on the number of threads, but differ between CPU and GPU.
    """
    generator = torch.Generator(image.device).manual_seed(seed)
    return torch.randn(image.shape, generator=generator, device=image.device)


def gaussian_blur(images: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Blur each image (b, c, y, x) along y and x, mirrored at the edges; ``sigmas`` in pixels, one per image."""
    kernels = np.stack([half_kernel(sigma, math.ceil(BLUR_TRUNCATE * max(sigmas))) for sigma in sigmas])
    weights = per_sample(kernels.T, images.device)
    return _convolve(_convolve(images, weights, -2), weights, -1)


def half_kernel(sigma: float, extent: int) -> NDArray[np.float64]:
    """Gaussian weights at distances 0 to ``extent`` pixels, (extent + 1,), cut off after three standard deviations.

    The weights of the full symmetric kernel sum to 1.

    >>> half_kernel(0.0, 2).tolist()
    [1.0, 0.0, 0.0]
    """
    distances = np.arange(extent + 1)
    weights = np.exp(-0.5 * (distances / max(sigma, 1e-6)) ** 2) * (distances <= math.ceil(BLUR_TRUNCATE * sigma))
    return np.asarray(weights / (2 * weights.sum() - weights[0]))


def _convolve(images: Tensor, weights: Sequence[Tensor], axis: int) -> Tensor:
    """Convolve along one axis with a symmetric kernel, given as weights (b, 1, 1, 1) by distance."""
    margin, extent = len(weights) - 1, images.shape[axis]
    pad = [0, 0, margin, margin] if axis == -2 else [margin, margin, 0, 0]
    wide = functional.pad(images, pad, mode="reflect")
    total = images * weights[0]
    for distance, weight in enumerate(weights[1:], start=1):
        pair = wide.narrow(axis, margin - distance, extent) + wide.narrow(axis, margin + distance, extent)
        total += pair.mul_(weight)
    return total


def per_sample(values: Sequence[Sequence[float]] | NDArray[np.float64], device: torch.device) -> list[Tensor]:
    """One tensor (b, 1, 1, 1) for each row of an array (rows, b)."""
    return list(to_device(np.asarray(values), device)[..., None, None, None])
