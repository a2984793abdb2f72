"""Checks of training data: images and labels must fit; warnings if they are exchanged, constant, or not annotated."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError, listed, warn
from unetcli.train.dataset import Dataset, DatasetStatistics
from unetcli.train.request import TrainRequest
from unetcli.train.sections import ranges_text
from unetcli.train.settings import IGNORED, Ranges
from unetcli.train.truth_map import truth_is_everywhere
from unetcli.volumes.label_fringe import warn_about_fringe
from unetcli.volumes.labels import open_labels
from unetcli.volumes.opening import open_volume
from unetcli.volumes.places import require_same_place, require_same_voxels
from unetcli.volumes.samples import sampled_planes
from unetcli.volumes.truth_frames import with_truth_frames
from unetcli.volumes.volume import Volume, aligned

log = logging.getLogger(__name__)
PLANES = 4
"""Number of chunks of each volume that are looked at."""
LABELS_ARE_FLAT, IMAGES_ARE_NOT = 0.94, 0.85
"""Fraction of neighbouring pixels with equal values: labels have at least 0.95, images of five kinds at most 0.71."""
SHIFTED = "not the same region; crop them to one region, or --same-place pairs their voxels as they are"
RESAMPLE = "one must be resampled to the other's"  # ends the message about different voxel sizes


def require_pairs(request: TrainRequest) -> list[tuple[Volume, Volume]]:
    """Open images and labels of all pairs; raise UnetcliError if they do not fit together."""
    volumes = [open_pair(raw, labels) for raw, labels in request.pairs]
    for raw, labels in volumes:
        require_pair(raw, labels, request.channel)
        if not request.same_place:
            require_same_place(raw, labels, SHIFTED)
        if raw.with_sections_of(labels).axes != raw.axes:
            both = f"{raw.path} along {raw.axes[0]} were paired with those of {labels.path} along {labels.axes[0]}"
            log.info("sections of %s; each is trained on its own, so objects do not extend over sections", both)
    require_compatible([raw for raw, _ in volumes])
    return volumes


def open_pair(raw: str, labels: str) -> tuple[Volume, Volume]:
    """Open images and labels, without axes of extent 1 that only one of them has, and only frames that have labels."""
    truth = open_labels(labels)
    images = with_truth_frames(open_volume(raw), labels).fitted_to(truth)
    return aligned(images, truth)


def require_pair(raw: Volume, labels: Volume, channel: int | None) -> None:
    """Raise UnetcliError if labels do not cover the voxels of the images."""
    require_same_voxels(raw, labels, RESAMPLE)  # checked first, because it explains different extents
    if raw.extent != labels.extent:
        raise UnetcliError(
            f"{raw.path} is {'x'.join(map(str, raw.extent))}, "
            f"but {labels.path} is {'x'.join(map(str, labels.extent))}: labels must cover the same voxels"
        )
    if channel is not None and not 0 <= channel < raw.channels:
        raise UnetcliError(f"--channel {channel}: {raw.path} has channels 0 to {raw.channels - 1}")


def require_compatible(images: Sequence[Volume]) -> None:
    """Raise UnetcliError if the images of several pairs differ in channels, data type or voxel size."""
    first = images[0]
    for other in images[1:]:
        if (other.channels, other.dtype) != (first.channels, first.dtype):
            raise UnetcliError(
                f"{first.path} has {first.channels} channels of {first.dtype}, but {other.path} has {other.channels} "
                f"of {other.dtype}: all pairs must have the same"
            )
        require_same_voxels(first, other, RESAMPLE)


def warn_about_pairs(volumes: Sequence[tuple[Volume, Volume]]) -> None:
    """Warn if images look like labels and labels like images, or if both have the same values."""
    for raw, labels in volumes:
        if flatness(raw) >= LABELS_ARE_FLAT and flatness(labels) <= IMAGES_ARE_NOT:
            warn(f"{raw.path} looks like labels, and {labels.path} like an image; the order is RAW LABELS")
        elif _same_values(raw, labels):
            warn(f"{raw.path} and {labels.path} have the same values; RAW is the image, LABELS its annotation")


def warn_about_labels(dataset: Dataset) -> None:
    """Warn about masks with a fringe, unless the values of the labels have a stated meaning."""
    for pair in dataset.pairs:
        if not pair.rules.values.table:
            warn_about_fringe(pair.labels)


def flatness(volume: Volume) -> float:
    """Fraction of horizontally neighbouring pixels with equal values, 0 to 1, in a few chunks; 0 without pixels."""
    equal = [float(np.mean(plane[..., 1:] == plane[..., :-1])) for plane in _planes(volume) if plane.shape[-1] > 1]
    return float(np.mean(equal)) if equal else 0.0


def _same_values(raw: Volume, labels: Volume) -> bool:
    pairs = list(zip(_planes(raw), _planes(labels), strict=False))
    return bool(pairs) and all(one.shape == other.shape and np.array_equal(one, other) for one, other in pairs)


def _planes(volume: Volume) -> Iterator[NDArray[Any]]:
    return itertools.islice(sampled_planes(volume, volume.whole(), None), PLANES)


def warn_about_images(dataset: Dataset, statistics: DatasetStatistics) -> None:
    """Warn about channels that have the same value everywhere in the training sections."""
    path = listed(list(dict.fromkeys(dataset.pairs[part.pair].raw.path for part in dataset.train)), "files")
    for channel, (low, high) in enumerate(statistics.extremes):
        if low == high:
            name = f"{path}, channel {channel}" if len(statistics.extremes) > 1 else path
            warn(f"{name}: a constant image, all values of the training sections are {low:g}; is it the right file?")


def warn_about_held_out(dataset: Dataset, held_out: Ranges) -> None:
    """Warn if sections are held out and nothing is annotated in them, so that there is nothing to validate on."""
    planes = list(dataset.planes(dataset.held_out))
    if not dataset.held_out or any((pair.classes(box) != IGNORED).any() for pair, box in planes):
        return
    pair = dataset.pairs[dataset.held_out[0].pair]
    background = "" if planes or not truth_is_everywhere(pair.rules) else ", --keep-empty counts them as background"
    warn(
        f"{pair.labels.path}: no label in the held-out sections {ranges_text(held_out)}, so that no validation selects "
        f"or calibrates the model; --validation A:B holds out others{background}"
    )
