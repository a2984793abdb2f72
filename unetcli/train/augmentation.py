"""How training samples are varied, as numbers: what a configuration holds, without torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from unetcli.core.errors import UnetcliError

FULL_TURN = 180.0
LARGEST_PART = 1 / 24
"""Standard deviation of the displacements as part of the tile's side, at most."""

HIGHEST = {
    "elastic": (100.0, "pixels"),
    "rotation": (FULL_TURN, "degrees to either side"),
    "scale": (1.0, "a factor of up to 1 + scale"),
    "gamma": (4.0, "an exponent of up to 1 + gamma"),
    "contrast": (4.0, "a factor of up to 1 + contrast"),
    "brightness": (5.0, "standard deviations of the image"),
    "noise": (5.0, "standard deviations of the image"),
    "blur": (5.0, "pixels"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """Ranges that each sample draws its changes from; 0 (or False) switches a change off.

    The paper (section 3.1) states the displacements: N(0, 10 px) on a 3 x 3 grid. Of rotations, shifts and grey values
    it says that they are needed, not how strong; shifts come from the random centre of each sample. Grey values are in
    standard deviations of the normalised image.
    """

    elastic: float = 10.0
    """Standard deviation of the displacements, pixels; held to a 24th of the tile (see ``displacement``)."""
    rotation: float = FULL_TURN
    """Degrees; uniform to either side."""
    flip: bool = True
    """Mirrored along y and along x, each in half of the samples."""
    scale: float = 0.1
    """Magnification, log-uniform from 1 / (1 + scale) to 1 + scale."""
    gamma: float = 0.3
    """Exponent of the tone curve, log-uniform from 1 / (1 + gamma) to 1 + gamma."""
    contrast: float = 0.25
    """Factor, log-uniform from 1 / (1 + contrast) to 1 + contrast."""
    brightness: float = 0.25
    """Added value, uniform to either side."""
    noise: float = 0.2
    """Standard deviation of Gaussian noise, uniform from 0; in one sample of four."""
    blur: float = 1.0
    """Standard deviation of a Gaussian blur, pixels, uniform from 0; in one sample of four."""

    def __post_init__(self) -> None:
        for name, (highest, meaning) in HIGHEST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= highest:
                raise UnetcliError(
                    f"{name} = {value!r}: expected a number from 0 (off) to {highest:g}; it means {meaning}"
                )
            object.__setattr__(self, name, float(value))
        if not isinstance(self.flip, bool):
            raise UnetcliError(f"flip = {self.flip!r}: expected true or false")

    @classmethod
    def none(cls) -> Augmentation:
        """Everything off: samples are plain crops.

        >>> Augmentation.none() == Augmentation.from_dict({name: 0 for name in HIGHEST} | {"flip": False})
        True
        """
        return cls(flip=False, **dict.fromkeys(HIGHEST, 0.0))

    def displacement(self, tile: int) -> float:
        """Standard deviation of the displacements for a tile, pixels: the paper's 10 from a side of 240 on.

        The grid spans the tile, so the same pixels deform a smaller tile more. At a 10th of its side 13 % of all maps
        fold over themselves, at a 16th 0.2 %: one place is seen twice. At a 24th it is 2 in a million, the limit here.

        >>> [round(Augmentation().displacement(tile), 2) for tile in (572, 316, 188)]
        [10.0, 10.0, 7.83]
        """
        return min(self.elastic, tile * LARGEST_PART)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Augmentation:
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise UnetcliError(f"augmentation: no setting {unknown[0]!r}; there are {', '.join(known)}")
        return cls(**values)


def spread(strength: float, uniform: float) -> float:
    """A factor from 1 / (1 + strength) to 1 + strength, log-uniform for ``uniform`` in -1..1.

    >>> [round(spread(0.25, u), 3) for u in (-1, 0, 1)]
    [0.8, 1.0, 1.25]
    """
    return math.exp(uniform * math.log1p(strength))
