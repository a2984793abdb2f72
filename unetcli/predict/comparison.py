"""Comparison of a volume with the images that a model was trained on: warnings about what differs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.arrays import PerChannel
from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Box
from unetcli.model.training_data import NEIGHBOURHOOD, GreyValues, TrainingData, measure
from unetcli.volumes.places import METRES_PER_UNIT, Sizes, format_sizes, sizes_differ, stated_sizes
from unetcli.volumes.samples import SAMPLES, sampled_planes
from unetcli.volumes.volume import Volume

MAX_CHUNKS = 16
"""Largest number of chunks of a volume that are compared with the training."""
FAR = 3.0
"""Distance from the training, in units of the spread, from which grey values cause a warning.

Between parts of one data set of five kinds of microscopy it is below 2.5; for 4 times darker images it is above 3.5.
"""
NARROWEST, NARROWEST_OF_ONE = 0.15, 0.2
"""Least spread, as a fraction of the range from the 1st to the 99th percentile; larger if only one section is known."""
FEW = 4
"""Number of training windows below which the spread within the volume counts too."""
NEAREST = 0.2
"""Fraction of the chunks that may be far; a volume has empty or damaged places that say nothing about the rest."""
SURE, LEAST_SPREAD, LEAST_POLARITY = 2.5, 0.06, 0.15
"""A polarity is clear if it is this many spreads from 0; least spread of a polarity, and least clear polarity.

Of sections of dense tissue that were imaged as one volume, a few neighbours may have 0.14, and others -0.1.
"""
OPPOSITE = 0.6
"""Fraction of the chunks that must have the opposite polarity."""
QUARTER, QUARTERS = 90.0, 4
"""Degrees of a quarter turn; ``--rotations`` up to which there are no mirrored copies."""
SIZE_TOLERANCE = 0.05
"""Relative difference of voxel sizes without a warning; training varies the size by 10 % by default."""
TOTALS = (1.0, *(2.0**bits - 1 for bits in (8, 10, 12, 14, 15, 16)), -1.0)
"""Sums of a grey value and its inverse: fractions, and integers of some bits; -1 if all bits of a signed one change."""
WITHOUT_MEANING = re.compile(r"(c|ch|channel|image|series)?[\s:_#-]*\d*", re.IGNORECASE)
"""Names of channels that say nothing, such as ``Channel 1``."""


def metadata_warnings(volume: Volume, channel: int | None, data: TrainingData) -> Iterator[str]:
    """Warnings about the voxel size and the channel names of a volume; no voxel is read."""
    sizes = stated_sizes(volume)
    trained = stated_sizes(replace(volume, voxel_size=data.voxel_size, units=data.units))
    plane = [axis for axis in "yx" if axis in sizes and axis in trained]
    if any(sizes_differ(sizes[axis], trained[axis], SIZE_TOLERANCE) for axis in plane):
        now, before = (format_sizes({axis: known[axis] for axis in plane}) for known in (sizes, trained))
        yield (
            f"{volume.path}: pixels of {now}, but the model was trained on {before}; {_resampled_by(sizes, trained)}, "
            f"or train on images of {now}"
        )
    names = volume.channel_names if channel is None else volume.channel_names[channel : channel + 1]
    if len(names) == len(data.channels) and names != data.channels:
        yield from _channel_warning(volume, names, data.channels)


def _resampled_by(*sizes: Sizes) -> str:
    """Advice to resample a volume; ``--rescale`` works if all pixel sizes are stated as lengths."""
    lengths = all(axis in each and each[axis][1] in METRES_PER_UNIT for each in sizes for axis in "yx")
    before = format_sizes({axis: size for axis, size in sizes[-1].items() if axis in "yx"})
    return "--rescale resamples it" if lengths else f"resample the volume to {before}"


def turn_warnings(rotations: int, augmentation: Mapping[str, Any]) -> Iterator[str]:
    """Warnings about turned copies that are unlike the images of the training.

    Parameters
    ----------
    rotations : {1, 4, 7, 8}
    augmentation
        Settings of the training's augmentation; empty if they are not known.
    """
    if rotations == 1:
        return
    if (angle := augmentation.get("rotation", QUARTER)) < QUARTER:
        turned = f"images turned by at most {angle:g} degrees" if angle else "no turned images"
        yield (
            f"--rotations {rotations}: the model was trained on {turned}, so turned copies may make the result worse; "
            "--rotations 1 leaves them out, train --rotation 180 teaches them"
        )
    if rotations > QUARTERS and not augmentation.get("flip", True):
        yield (
            f"--rotations {rotations}: the model was trained on no mirrored images, so mirrored copies may make the "
            f"result worse; --rotations {QUARTERS} leaves them out"
        )


def _channel_warning(volume: Volume, names: tuple[str, ...], trained: tuple[str, ...]) -> Iterator[str]:
    """Warn about channels with other names, unless a name says nothing."""
    pairs = zip(names, trained, strict=True)
    if not any(_is_other_name(name, before) for name, before in pairs):
        return
    advice = "check that they show the same"
    if len(trained) == 1 and trained[0] in volume.channel_names:
        advice = f"--channel {volume.channel_names.index(trained[0])} selects {trained[0]}"
    elif sorted(names) == sorted(trained):
        advice = "store the channels in the order of training"
    yield (
        f"{volume.path}: channel {', '.join(names)}, but the model was trained on {', '.join(trained)}; {advice}"
        if len(names) == 1
        else f"{volume.path}: channels {', '.join(names)}, but the model was trained on {', '.join(trained)}; {advice}"
    )


def _is_other_name(name: str, before: str) -> bool:
    with_meaning = not (WITHOUT_MEANING.fullmatch(name.strip()) or WITHOUT_MEANING.fullmatch(before.strip()))
    return with_meaning and name.strip().casefold() != before.strip().casefold()


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Grey values of some chunks of a volume."""

    measures: NDArray[np.float64]
    """(chunks, c, 6): rows of :func:`unetcli.model.training_data.measure` for chunks that are not constant."""
    constants: tuple[float, ...]
    """Values of the constant chunks, without repetition; in a tiny region the extremes of every chunk."""
    fill: bool
    """Whether chunks that were never stored may be among the constant ones."""

    @classmethod
    def of(cls, volume: Volume, region: Box, channel: int | None) -> Sample:
        """Measure up to ``MAX_CHUNKS`` chunks of a region that are not constant; unreadable ones are left out."""
        found: list[list[NDArray[np.float64]]] = []
        constants, looked_at = set[float](), 0
        tiny = min(region.shape[-2:]) < NEIGHBOURHOOD  # a few pixels are no sample of an image
        for planes in sampled_planes(volume, region, channel):
            looked_at += 1
            if tiny or (planes == planes.flat[0]).all():
                constants |= {float(planes.min()), float(planes.max())}
            else:
                found.append([measure(plane) for plane in planes])
            if len(found) == MAX_CHUNKS:
                break
        measures = np.array(found) if found else np.zeros((0, 1, 6))
        return cls(measures, tuple(constants), fill=looked_at == SAMPLES and constants == {0.0})

    def constant(self, path: str) -> str | None:
        """Warning about an image whose sampled values are all the same."""
        if len(self.measures) or len(self.constants) != 1 or self.fill:
            return None
        return f"{path}: a constant image, all sampled values are {self.constants[0]:g}; is it the right file?"


def total_for_inversion(dtype: np.dtype[Any], sample: Sample, grey: Sequence[GreyValues]) -> PerChannel:
    """Sum ``s`` of the two values that ``--invert`` exchanges: it replaces x by s - x.

    For 8 bits it is 255. For other types it is that of 1, or of 8 to 16 bits, whose inverted image is nearest to the
    training; if none is near, that of the medians of each channel.

    Raises
    ------
    UnetcliError
        The model does not know the grey values of its training.
    """
    if dtype == np.uint8:
        return 255.0
    if not grey or not len(sample.measures):
        raise UnetcliError(
            f"--invert: the model has no grey values of its training to compare {dtype} values with; train it again, "
            "or invert the volume"
        )
    channels = list(enumerate(grey))

    def apart(total: float) -> float:
        return max(distance(inverted(sample.measures[:, n], total), trained) for n, trained in channels)

    nearest = min(TOTALS, key=apart)
    if apart(nearest) <= FAR:
        return nearest
    middle = np.median(sample.measures[:, :, 2], axis=0)
    sums = tuple(float(middle[n]) + trained.percentiles[2] for n, trained in channels)
    return sums[0] if len(sums) == 1 else sums


def inverted(measures: NDArray[np.float64], total: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """Measures (.., 6) of the image ``total - x``; ``total`` is a number, or (c, 1)."""
    return np.concatenate([total - measures[..., 4::-1], -measures[..., 5:]], axis=-1)


def grey_warnings(
    path: str, measures: NDArray[np.float64], grey: Sequence[GreyValues], *, normalise: str, invert: bool
) -> Iterator[str]:
    """Warnings about grey values that are far from those of the training, and about inverted contrast.

    Parameters
    ----------
    path
        Name of the volume.
    measures : (chunks, c, 6), float64
        Measures of the volume, after ``--invert``.
    grey
        Grey values of the training, one per channel.
    normalise : {"model", "volume"}
        With the statistics of the volume, brightness and contrast do not matter.
    invert
        Whether ``--invert`` is given.
    """
    if not len(measures) or measures.shape[1] != len(grey):
        return
    for number, trained in enumerate(grey):
        found, name = measures[:, number], path if len(grey) == 1 else f"{path}, channel {number}"
        if looks_inverted(found, trained):
            yield f"{name}: {_inversion(found, trained, invert=invert)}"
        elif normalise == "model" and (far := distance(found, trained)) > FAR:
            yield f"{name}: {_difference(found, trained, far)}"


def distance(measures: NDArray[np.float64], trained: GreyValues) -> float:
    """Distance of a channel of a volume from the training, in units of the spread over the training sections.

    It is that of the percentile that is farthest, in one of the nearest chunks.

    Parameters
    ----------
    measures : (chunks, 6), float64
    trained : GreyValues
    """
    values, mean = measures[:, :5], np.array(trained.percentiles)
    apart = np.sort((np.abs(values - mean) / _spread(values, trained)).max(axis=1))
    return float(apart[math.ceil(NEAREST * len(apart)) - 1])


def _spread(values: NDArray[np.float64], trained: GreyValues) -> NDArray[np.float64]:
    """Spread of each percentile (5,), which few training sections underestimate."""
    n, width = trained.windows, trained.percentiles[-1] - trained.percentiles[0]
    least = (NARROWEST if n > 1 else NARROWEST_OF_ONE) * width
    spread = np.maximum(np.array(trained.spread) * (1 + 2 / max(n - 1, 1)), least)
    if n < FEW <= len(values):
        spread = np.maximum(spread, values.std(axis=0))
    return np.maximum(spread, np.finfo(np.float32).eps * max(1.0, abs(trained.percentiles[2])))


def looks_inverted(measures: NDArray[np.float64], trained: GreyValues) -> bool:
    """Whether what is bright in the training is dark in a channel of a volume, or the other way round.

    The polarity must be clear in the training, and opposite in most chunks. Images whose bright and dark details look
    alike, such as dense tissue, have no clear polarity.
    """
    before, n, now = trained.polarity, trained.windows, measures[:, 5]
    spread = max(trained.polarity_spread * (1 + 2 / (n - 1)) if n > 1 else 0.08, LEAST_SPREAD)
    middle, opposite = float(np.median(now)), float(np.mean(now * before < 0))
    clear = abs(before) > max(SURE * spread, LEAST_POLARITY) and abs(middle) > abs(before) / 2
    return clear and middle * before < 0 and opposite >= OPPOSITE


def _inversion(measures: NDArray[np.float64], trained: GreyValues, *, invert: bool) -> str:
    bright, dark = ("bright", "dark") if trained.polarity > 0 else ("dark", "bright")
    advice = "leave out --invert" if invert else "--invert undoes this, --normalise volume cannot"
    figures = f"grey values {_range(np.median(measures, axis=0))}, in training {_range(trained.percentiles)}"
    return f"inverted contrast: what stood out {bright} in training is {dark} here ({figures}); {advice}"


def _difference(measures: NDArray[np.float64], trained: GreyValues, far: float) -> str:
    values = np.median(measures, axis=0)
    return (
        f"grey values {_range(values)}, but {_range(trained.percentiles)} in training"
        f"{_factor(values, trained)}, a difference of {far:.1f} times the spread between training sections; convert "
        "the volume to the grey values of the training, or use its own mean and standard deviation with --normalise "
        "volume"
    )


def _range(percentiles: Sequence[float] | NDArray[np.float64]) -> str:
    """Format the 1st and 99th percentile."""
    return f"from {percentiles[0]:.6g} to {percentiles[4]:.6g} (1 and 99 %)"


def _factor(values: NDArray[np.float64], trained: GreyValues) -> str:
    """Format the factor between two ranges, if the median and the 99th percentile have about the same one."""
    if min(values[2], values[4], trained.percentiles[2], trained.percentiles[4]) <= 0:
        return ""
    middle, high = (values[k] / trained.percentiles[k] for k in (2, 4))
    if not 0.5 < middle / high < 2:
        return ""
    return f", {high:.3g} times as high" if high >= 1 else f", 1/{1 / high:.3g} as high"
