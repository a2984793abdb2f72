"""Training samples: random windows of the annotated volume, read and mirrored as prediction reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.errors import UnetcliError
from unetcli.geometry import Box
from unetcli.training.augment import dihedral
from unetcli.training.targets import MARGIN, target
from unetcli.volumes.volume import Volume, describe

IN_MEMORY_BYTES = 2**30
"""Volumes up to this size are held in memory while they are sampled."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One training tile."""

    image: NDArray[Any]
    """(c, tile, tile), the volume's dtype."""
    target: NDArray[np.int64]
    """(tile - 2*context, tile - 2*context), class of each pixel."""


@dataclass(frozen=True, slots=True)
class Annotated:
    """Images and labels of the same place."""

    raw: Volume
    labels: Volume
    truth: str
    channel: int | None = None

    @classmethod
    def lay(cls, raw: Volume, labels: Volume, truth: str, channel: int | None) -> Annotated:
        """Both together; small ones are read into memory."""
        require_pair(raw, labels, channel)
        held = [v.in_memory() if v.array.size * v.dtype.itemsize <= IN_MEMORY_BYTES else v for v in (raw, labels)]
        return cls(held[0], held[1], truth, channel)

    def image(self, box: Box) -> NDArray[Any]:
        """Grey values of one section's window, (c, y, x); refused where they are not finite."""
        voxels = self.raw.read(box, self.channel)
        if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
            raise UnetcliError(f"{self.raw.path}: NaN or infinity at {describe(box, self.raw.axes)}; --sections A:B")
        return voxels.reshape(voxels.shape[0], *voxels.shape[-2:])

    def target(self, box: Box) -> NDArray[np.int64]:
        """Class of each pixel of one section's window, (y, x)."""
        margin = (0,) * (len(box.shape) - 2) + (MARGIN, MARGIN)
        labels = self.labels.read(box.grown(margin))
        return target(labels.reshape(labels.shape[-2:]), self.truth)


def require_pair(raw: Volume, labels: Volume, channel: int | None) -> None:
    """Refuse labels that are not of the images' voxels, or are no labels."""
    if raw.extent != labels.extent:
        raise UnetcliError(
            f"{raw.path} is {'x'.join(map(str, raw.extent))}, "
            f"but {labels.path} is {'x'.join(map(str, labels.extent))}: labels must cover the same voxels"
        )
    if labels.channels != 1 or labels.dtype.kind not in "bui":
        raise UnetcliError(f"{labels.path}: {labels.channels} channels of {labels.dtype}; expected one of integers")
    if channel is not None and not 0 <= channel < raw.channels:
        raise UnetcliError(f"--channel {channel}: {raw.path} has channels 0 to {raw.channels - 1}")


def sample(data: Annotated, region: Box, tile: int, context: int, seed: int, number: int) -> Sample:
    """Sample ``number`` of a stream: it depends on nothing but the seed and its number.

    The centre is anywhere in the region, so the edge of an image is seen as often as its middle; what lies outside
    is mirrored, labels too.
    """
    random = np.random.default_rng([seed, number])
    output = tile - 2 * context
    centre = [int(random.integers(a, b)) for a, b in zip(region.start, region.stop, strict=True)]
    corner = tuple(c - output // 2 for c in centre[-2:])
    lead = tuple(centre[:-2])
    box = Box(lead + corner, tuple(n + 1 for n in lead) + tuple(c + output for c in corner))
    turn = int(random.integers(8))
    image = data.image(box.grown((0,) * len(lead) + (context, context)))
    return Sample(dihedral(image, turn), dihedral(data.target(box), turn))
