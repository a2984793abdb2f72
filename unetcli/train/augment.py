"""Random changes of training samples that leave them possible images of the same kind (paper, section 3.1).

``draw`` makes one sample's random choices, from a generator that the caller keys; ``augment`` carries out a batch's, as
tensor operations where the tensors are, and without waiting for a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unetcli.train.augmentation import Augmentation as Augmentation
from unetcli.train.augmentation import spread
from unetcli.train.deformation import (
    UNMOVED,
    Deformation,
    centre,
    interpolated,
    nearest,
    picked,
    sampling_grids,
    turned,
)
from unetcli.train.greyvalues import GreyChange, change_grey

RARE = 0.25
"""Share of the samples that get noise, and of those that get a blur: both only take from what an image shows."""

Batch = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Draw:
    """One sample's random choices."""

    deformation: Deformation
    grey: GreyChange

    def side(self, extent: int) -> int:
        """Side of the concentric square window that the tile's central ``extent`` pixels are read from."""
        return self.deformation.side(extent)


def draw(settings: Augmentation, random: np.random.Generator, tile: int) -> Draw:
    """Random choices for a tile. The numbers drawn are the same whatever the settings: they only scale them.

    So a change that is switched off leaves the others as they were.
    """
    displacements = random.standard_normal(len(UNMOVED)) * settings.displacement(tile)
    turn, scale, gamma, contrast, brightness = random.uniform(-1, 1, 5)
    noise, blur, noisy, soft, down, right = random.uniform(0, 1, 6)
    deformation = Deformation.of(
        tile,
        degrees=settings.rotation * turn,
        flips=(settings.flip and bool(down < 0.5), settings.flip and bool(right < 0.5)),
        scale=spread(settings.scale, scale),
        displacements=displacements.tolist(),
    )
    grey = GreyChange(
        gamma=spread(settings.gamma, gamma),
        contrast=spread(settings.contrast, contrast),
        brightness=float(settings.brightness * brightness),
        noise=float(settings.noise * noise) if noisy < RARE else 0.0,
        blur=float(settings.blur * blur) if soft < RARE else 0.0,
        seed=int(random.integers(2**63)),
    )
    return Draw(deformation, grey)


@torch.no_grad()
def augment(
    images: Sequence[Tensor],
    classes: Sequence[Tensor],
    raised: Sequence[Tensor],
    draws: Sequence[Draw],
    *,
    tile: int,
    output: int,
    mean: Tensor | float = 0.0,
    std: Tensor | float = 1.0,
) -> Batch:
    """A batch as the network is to see it. Each sample depends on its windows and its draw alone.

    Parameters
    ----------
    images : (c, side, side) each, any real dtype
        Windows of ``draw.side(tile)`` pixels around the sample's centre, mirrored where they reach beyond the image.
        Larger concentric ones give the same to rounding.
    classes : (side, side) each, uint8
        The same place; 255 is ignored. A window of ``draw.side(output)`` is enough, and less to read.
    raised : (side, side) each, float32
        What is added to the weights of the classes; as large as ``classes``.
    tile, output
        Sides of the network's input and of what it says something about, its centre.
    mean, std
        Of the images' grey values, numbers or (c, 1, 1) beside the images: (v - mean) / std is what is changed and
        returned. The defaults take the images as normalised already.

    Returns
    -------
    images (b, c, tile, tile), float32, channels last; classes (b, output, output), int64; raised (b, output, output),
    float32. Classes and raised weights come from one and the same pixel, the nearest.
    """
    samples = [_Sample(*parts).checked(tile, output) for parts in zip(images, classes, raised, draws, strict=True)]
    bent = iter(_interpolate([one for one in samples if not one.deformation.whole], tile, output))
    moved = [_turn(one, tile, output) if one.deformation.whole else next(bent) for one in samples]
    tiles, targets, weights = zip(*moved, strict=True)
    changed = change_grey(torch.stack(tiles).sub_(mean).div_(std), [one.draw.grey for one in samples])
    return (
        changed.contiguous(memory_format=torch.channels_last),
        torch.stack(targets).to(torch.int64),
        torch.stack(weights),
    )


class _Sample(NamedTuple):
    image: Tensor
    classes: Tensor
    raised: Tensor
    draw: Draw

    @property
    def deformation(self) -> Deformation:
        return self.draw.deformation

    def checked(self, tile: int, output: int) -> _Sample:
        """Itself; refused where it was drawn for another tile, or a window is too small or not concentric with it."""
        if self.deformation.tile != tile or self.raised.shape != self.classes.shape:
            raise ValueError(
                f"drawn for a tile of {self.deformation.tile}, not {tile}; or weights {tuple(self.raised.shape)} "
                f"of other pixels than the classes {tuple(self.classes.shape)}"
            )
        for window, extent in ((self.image, tile), (self.classes, output)):
            height, width = window.shape[-2:]
            if width < extent or (width - extent) % 2 or height != width:
                raise ValueError(f"window of {height} x {width} for {extent} x {extent} pixels: see Draw.side")
        return self


def _turn(one: _Sample, tile: int, output: int) -> Batch:
    """Image, classes and raised weights of a sample whose pixels only change places."""
    image = turned(centre(one.image, tile), one.deformation).to(torch.float32)
    classes, raised = (turned(centre(window, output), one.deformation) for window in (one.classes, one.raised))
    return image, classes, raised


def _interpolate(samples: Sequence[_Sample], tile: int, output: int) -> Iterator[Batch]:
    """The same of samples that are turned by any angle, scaled or deformed."""
    if not samples:
        return
    sides, windows = ([tensor.shape[-1] for tensor in column] for column in list(zip(*samples, strict=True))[:2])
    grids = sampling_grids([one.deformation for one in samples], sides, samples[0].image.device)
    pixels = nearest(centre(grids, output), sides, windows)  # (b, output, output)
    for one, grid, pixel in zip(samples, grids, pixels, strict=True):
        yield interpolated(one.image, grid), picked(one.classes, pixel), picked(one.raised, pixel)


def dihedral(array: NDArray[Any], number: int) -> NDArray[Any]:
    """One of the eight rotations and flips of the last two axes; a view.

    >>> [dihedral(np.array([[0, 1], [2, 3]]), n).ravel().tolist() for n in (0, 1, 4)]
    [[0, 1, 2, 3], [1, 3, 0, 2], [1, 0, 3, 2]]
    """
    turned = np.rot90(array, number % 4, axes=(-2, -1))
    return turned[..., ::-1] if number >= 4 else turned
