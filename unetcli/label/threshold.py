"""The threshold whose objects agree best with a truth.

By SEG, the mean overlap of true objects (Ulman et al. 2017), not by pixels: labels are judged by their objects, and a
threshold that is right for pixels leaves touching objects in one piece. README says what the difference was.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Box
from unetcli.label.components import connected, in_order, is_foreground, neighbourhood
from unetcli.label.inputs import Probabilities
from unetcli.label.landscape import Landscape
from unetcli.label.plan import Settings
from unetcli.metrics.cells import seg_sums
from unetcli.volumes.volume import Volume

log = logging.getLogger(__name__)

CANDIDATES = tuple(round(0.05 * k, 2) for k in range(1, 20))


def choose_threshold(
    prediction: Volume, truth: Volume, offset: tuple[int, ...], settings: Settings
) -> tuple[float, float]:
    """The candidate with the best SEG over all sections (volumes, in three dimensions) and that SEG.

    Of equals the one nearest to 0.5. One section is held in memory, or one volume.

    Raises
    ------
    UnetcliError
        The truth holds no object.
    """
    if truth.dtype.kind not in "bui":
        raise UnetcliError(f"--auto-threshold-from {truth.path}: {truth.dtype}; expected integers, one per object")
    scene = Landscape(axes=prediction.axes, voxel_size=_sizes(prediction), settings=settings)
    read = Probabilities(prediction, settings.channel)
    overlap, objects = np.zeros(len(CANDIDATES)), 0
    single = _holds_one_value(truth)
    for box in _parts(prediction, settings):
        reference = truth.read(box.shifted(offset))[0]
        if single:
            reference = connected(reference != 0, scene.touching)[0]
        if not reference.any():
            continue
        for number, threshold in enumerate(CANDIDATES):
            labels = instances(read(box), replace(scene, settings=replace(settings, threshold=threshold)))
            found, count = seg_sums(reference, labels)
            overlap[number] += found
        objects += count
    if not objects:
        raise UnetcliError(f"--auto-threshold-from {truth.path}: holds no object, all is 0")
    best = max(range(len(CANDIDATES)), key=lambda number: (overlap[number], -abs(CANDIDATES[number] - 0.5)))
    seg = float(overlap[best]) / objects
    log.info("threshold %.2f: SEG %.3f on %s (%d objects)", CANDIDATES[best], seg, truth.path, objects)
    return CANDIDATES[best], seg


def instances(probability: NDArray[Any], scene: Landscape) -> NDArray[np.int32]:
    """Labels of an array in memory, as all of label would give them."""
    settings = scene.settings
    if settings.method == "watershed":
        from unetcli.label.watershed import separate

        return in_order(separate(probability, scene), settings.min_size)
    touching = neighbourhood(scene.axes, settings.connectivity, three_d=settings.three_d)
    return in_order(connected(is_foreground(probability, settings.threshold), touching)[0], settings.min_size)


def _parts(volume: Volume, settings: Settings) -> Iterator[Box]:
    """The sections of a volume, or its volumes along t."""
    if not settings.three_d:
        yield from volume.whole().planes()
    elif "t" not in volume.axes:
        yield volume.whole()
    else:
        for time in range(volume.extent[0]):
            yield Box((time, 0, 0, 0), (time + 1, *volume.extent[1:]))


def _holds_one_value(truth: Volume) -> bool:
    """Whether all objects have one number: then they are what is connected."""
    values: set[int] = set()
    for box in truth.whole().planes():
        values |= set(np.unique(truth.read(box)).tolist())
        if len(values - {0}) > 1:
            return False
    return True


def _sizes(volume: Volume) -> tuple[float, ...]:
    return tuple(volume.voxel_size.get(axis, 1.0) for axis in volume.axes)
