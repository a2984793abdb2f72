"""Labels as programs store them: whole numbers as float, masks in several equal channels, one colour per class.

Every command reads labels through :func:`open_labels`, which gives whole numbers in one channel. A grey pixel of a
picture with colours has its grey value, so that black is 0, and any other colour a number of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import LabelError, UnetcliError, note
from unetcli.core.label_values import COLOURED
from unetcli.volumes.opening import open_volume
from unetcli.volumes.samples import sampled_planes
from unetcli.volumes.views import Converted, Merged, Rearranged
from unetcli.volumes.volume import Volume

PLANES = 4
"""Number of chunks whose values show how labels are stored."""
RGB = 3


def open_labels(path: str | Path, level: int = 0) -> Volume:
    """Open a volume of labels: whole numbers in one channel; see :func:`as_labels`."""
    return as_labels(open_volume(path, level))


def as_labels(volume: Volume) -> Volume:
    """The labels of a volume, as integers or booleans in one channel.

    Whole numbers stored as float become integers. Of channels that are equal, as in a mask saved as RGB, one is taken.
    Colours with 8 bits each become numbers, one per colour. A last channel that is opaque everywhere is left out.

    Raises
    ------
    UnetcliError
        Values are no whole numbers, or there are several channels other than colours.
    """
    volume = _one_channel(volume.channels_as_sections())
    if volume.dtype.kind != "f":
        return volume
    for plane in sampled(volume):
        if (other := fractions(plane)).size:
            raise UnetcliError(
                f"{volume.path}: {volume.dtype} with values such as {other[0]:g}; expected labels, whole numbers"
            )
    return _as_integers(volume)


def as_prediction(volume: Volume, *, probability: bool) -> Volume:
    """A prediction of any program: labels stored as float become integers, and equal channels of a picture one.

    Floats are labels if all are whole numbers and some are above 1, unless it is known to be a ``probability``.
    """
    volume = _without_opacity(volume)
    if volume.channels == RGB and volume.dtype == np.uint8 and _are_equal(volume, distinct=2):
        volume = _merged(volume, equal_planes, volume.dtype)
    if probability or volume.channels > 1 or volume.dtype.kind != "f":
        return volume
    planes = list(sampled(volume))
    if any(fractions(plane).size for plane in planes) or not any((plane > 1).any() for plane in planes):
        return volume
    note(f"{volume.path}: its values, whole numbers above 1 as {volume.dtype}, are read as labels")
    return _as_integers(volume)


def fractions(values: NDArray[Any]) -> NDArray[Any]:
    """The values that are no whole numbers, or too large to be exact; none for integers."""
    if values.dtype.kind != "f":
        return values[:0].ravel()
    found: NDArray[Any] = values[(values != np.trunc(values)) | ~(np.abs(values) < limit(values.dtype))]
    return found


def limit(dtype: np.dtype[Any]) -> float:
    """Bound of the whole numbers that are converted from a type of floats to integers."""
    return float(2**53 if dtype == np.float64 else 2**31)


def whole_numbers(values: NDArray[Any]) -> NDArray[Any]:
    """Floats as integers of 32 bits, or of 64 for float64; integers and booleans unchanged.

    Raises
    ------
    LabelError
        A value is no whole number.
    """
    if (other := fractions(values)).size:
        raise LabelError(f"{other[0]:g} is no whole number; expected labels")
    return values.astype(integers_for(values.dtype)) if values.dtype.kind == "f" else values


def integers_for(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Type of integers for labels that are stored as float."""
    return np.dtype(np.int64 if dtype == np.float64 else np.int32)


def colour_numbers(planes: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Number of each colour: the grey value where the planes red, green and blue are equal, else ``COLOURED`` or more.

    >>> colour_numbers(np.array([[0, 128, 255], [0, 128, 0], [0, 128, 0]], np.uint8)).tolist()
    [0, 128, 33488896]
    """
    red, green, blue = planes.astype(np.uint32)
    coloured = COLOURED + (red << 16) + (green << 8) + blue
    numbers: NDArray[np.uint32] = np.where((red == green) & (green == blue), red, coloured)
    return numbers


def equal_planes(planes: NDArray[Any]) -> NDArray[Any]:
    """The first of several planes; raises LabelError if another one differs."""
    if (planes != planes[:1]).any():
        raise LabelError("its channels differ; expected labels in one channel")
    first: NDArray[Any] = planes[0]
    return first


def _as_integers(volume: Volume) -> Volume:
    return replace(volume, array=Converted(volume.array, whole_numbers, integers_for(volume.dtype)))


def _one_channel(volume: Volume) -> Volume:
    """Labels of a volume with any number of channels, in one."""
    if volume.channels == 1:
        return volume
    volume = _without_opacity(volume)
    if volume.channels == 1:
        return volume
    equal = volume.channels <= RGB + 1 and _are_equal(volume)
    if volume.channels == RGB and volume.dtype == np.uint8:
        what = "equal colour planes are read as one" if equal else "colours are read as labels, a number for each"
        note(f"{volume.path}: its {what}")
        return _merged(volume, colour_numbers, np.uint32)
    if equal:
        note(f"{volume.path}: its {volume.channels} equal channels are read as one")
        return _merged(volume, equal_planes, volume.dtype)
    colours = " that differ (colours are read from 8 bits each)" if volume.channels == RGB else ""
    raise UnetcliError(
        f"{volume.path}: {volume.channels} channels of {volume.dtype}{colours}; expected labels in one "
        f"channel, such as {volume.path}:channel=0"
    )


def _without_opacity(volume: Volume) -> Volume:
    """Leave out a second or fourth channel that is opaque everywhere: 1 as float, else the largest value."""
    if volume.channels not in (2, RGB + 1) or volume.dtype.kind not in "uf":
        return volume
    opaque = 1 if volume.dtype.kind == "f" else np.iinfo(volume.dtype).max
    last = [plane[-1] for plane in sampled(volume)]
    if not last or any((plane != opaque).any() for plane in last):
        return volume
    note(f"{volume.path}: its last channel, which is {opaque} everywhere, is left out as that of opacity")
    kept = [slice(volume.channels - 1) if axis == "c" else slice(None) for axis in volume.stored_axes]
    if volume.channels == RGB + 1:
        return replace(volume, array=Rearranged(volume.array, kept), channel_names=volume.channel_names[:RGB])
    first = [0 if axis == "c" else slice(None) for axis in volume.stored_axes]
    return replace(volume, array=Rearranged(volume.array, first), **_without_channels(volume))


def _are_equal(volume: Volume, distinct: int = 1) -> bool:
    """Whether the sampled parts of all channels are equal, and have at least some number of different values."""
    planes = list(sampled(volume))
    values = {value for plane in planes for value in np.unique(plane[0])[:distinct].tolist()}
    return len(values) >= distinct and not any((plane != plane[:1]).any() for plane in planes)


def _merged(volume: Volume, merge: Any, dtype: Any) -> Volume:
    array = Merged(volume.array, volume.stored_axes.index("c"), merge, dtype)
    return replace(volume, array=array, **_without_channels(volume))


def _without_channels(volume: Volume) -> dict[str, Any]:
    return {"stored_axes": volume.stored_axes.replace("c", ""), "channel_names": ()}


def sampled(volume: Volume) -> Iterator[NDArray[Any]]:
    """Parts of a few sections, (c, y, x), that show how labels are stored."""
    return itertools.islice(sampled_planes(volume, volume.whole(), None), PLANES)
