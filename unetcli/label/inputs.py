"""What labels are made of: probabilities by box, and other volumes of the same place laid beside them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError, UnreadableBlock
from unetcli.core.files import Place
from unetcli.core.geometry import Box
from unetcli.volumes.image import marker_around
from unetcli.volumes.volume import Volume, describe


@dataclass
class Probabilities:
    """One channel of a prediction; a box inside the last one is not read again."""

    volume: Volume
    channel: int
    highest: float = 0.0
    """Of all that was read so far, as stored."""
    _last: tuple[Box, NDArray[Any]] | None = field(default=None, repr=False)

    def __call__(self, box: Box) -> NDArray[Any]:
        """Stored probabilities of a box inside the volume.

        Raises
        ------
        UnreadableBlock
            They are damaged, or no probabilities.
        """
        if self._last is None or box.clipped(self._last[0]) != box:
            self._last = box, self._checked(box, self.volume.read(box, self.channel)[0])
        return self._last[1][box.relative_to(self._last[0]).slices]

    def _checked(self, box: Box, values: NDArray[Any]) -> NDArray[Any]:
        if values.dtype.kind == "f" and not ((values >= 0) & (values <= 1)).all():  # NaN fails too
            place = describe(box, self.volume.axes)
            raise UnreadableBlock(f"{self.volume.path}: in {place} there are values that are no probabilities 0 to 1")
        self.highest = max(self.highest, float(values.max()))
        return values


def require_probabilities(volume: Volume, channel: int | None) -> int:
    """The channel to be labelled.

    Raises
    ------
    UnetcliError
        There is no such channel, or one has to be named, or these cannot be probabilities.
    """
    if volume.dtype != np.uint8 and volume.dtype.kind not in "bf":
        raise UnetcliError(
            f"{volume.path}: {volume.dtype}; expected probabilities as uint8 (value / 255), float or boolean"
        )
    last = volume.channels - 1
    if channel is None and last:
        raise UnetcliError(f"{volume.path}: channels 0 to {last}, one per class; --channel N names the one to label")
    if channel is not None and not 0 <= channel <= last:
        raise UnetcliError(f"--channel {channel}: {volume.path} has channels 0 to {last}")
    return channel or 0


def offset_in(other: Volume, prediction: Volume, place: Place) -> tuple[int, ...]:
    """Where a prediction starts in another volume: they have one shape, or it is a region of a volume of that shape."""
    if other.channels != 1:
        raise UnetcliError(f"{other.path}: {other.channels} channels; expected one")
    if other.extent == prediction.extent:
        return (0,) * len(other.extent)
    ours = marker_around(place) or {}
    if tuple(ours.get("extent", ())) == other.extent:
        return tuple(first for first, _ in ours["region"])
    raise UnetcliError(f"{other.path} is {_shape(other)}, but {prediction.path} is {_shape(prediction)}: not the same")


def _shape(volume: Volume) -> str:
    return ", ".join(f"{axis} {n}" for axis, n in zip(volume.axes, volume.extent, strict=True))


def require_complete(prediction: str) -> None:
    """Refuse a prediction of unetcli that is not finished."""
    if is_incomplete(prediction):
        raise UnetcliError(f"{prediction}: not complete; run its predict command again, or --allow-incomplete")


def is_incomplete(prediction: str) -> bool:
    """Whether a prediction is ours and not finished."""
    ours = marker_around(prediction)
    return ours is not None and not ours.get("complete")
