"""What a prediction's values mean, which metrics apply to it, and whether objects go through sections.

Said by metadata or dtype where they say it. A plain uint8 array may hold probabilities (value / 255) or labels; then
its values are looked at: labels stay the same from pixel to pixel, probabilities change.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError, UnreadableBlock
from unetcli.core.files import is_remote, place_of
from unetcli.core.geometry import Box
from unetcli.evaluate.pairing import Pair
from unetcli.evaluate.request import CLASSES, LABELS, METRICS, PROBABILITY, EvaluateRequest
from unetcli.volumes.fingerprint import sampled_voxels
from unetcli.volumes.image import group_file, marker_around
from unetcli.volumes.store import store_at
from unetcli.volumes.volume import Volume

OF_KIND = {PROBABILITY: ("pixels", "em"), LABELS: ("cells", "voi"), CLASSES: ("pixels",)}
"""Metrics that are scored where none are named."""
POSSIBLE = {PROBABILITY: METRICS, LABELS: ("pixels", "cells", "voi"), CLASSES: ("pixels",)}
CHANGES = 0.05
"""Share of neighbouring foreground pixels that differ: on real labels at most 0.04, on probabilities over 0.2."""
DIM, FULL = 128, 0.3
"""A map of probabilities somewhere reaches a half; one that hardly changes is 255 in such a share of its foreground."""
PAIRS, WINDOW = 8, 2048
"""Pairs of neighbouring sections that are looked at, and the side of what is seen of them."""
STAYS, DOUBTFUL = 0.5, (0.25, 0.75)
"""How often a label stays the same to the next section, against to the next pixel: of objects through sections 0.95 to
1, of sections labelled by themselves 0.03 (their objects at random places) to 0.4 (at the same)."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a prediction was taken for, and why."""

    name: str
    because: str = ""
    """Where it was not said: for people, in a few words."""


def kind_of(request: EvaluateRequest, prediction: Volume) -> Kind:
    """What the prediction's values mean.

    Raises
    ------
    UnetcliError
        It cannot be that.
    """
    found = stated_kind(request, prediction)
    if found.name == PROBABILITY and prediction.dtype.kind in "ui" and prediction.dtype != np.uint8:
        raise UnetcliError(
            f"{prediction.path}: {prediction.dtype}; expected probabilities as uint8 (value / 255), float or boolean"
        )
    if found.name != PROBABILITY and (prediction.dtype.kind == "f" or prediction.channels > 1):
        raise UnetcliError(
            f"{prediction.path}: {prediction.channels} channels of {prediction.dtype}; {found.name} are one channel "
            "of integers"
        )
    return found


def stated_kind(request: EvaluateRequest, prediction: Volume) -> Kind:
    """By option, metadata, dtype or metrics, in this order; else by the values."""
    if request.kind is not None:
        return Kind(request.kind)
    ours = (marker_around(place_of(request.prediction)) or {}).get("kind")
    if ours is not None:
        return Kind(LABELS if ours == "instances" else PROBABILITY)
    if prediction.dtype.kind in "bf" or prediction.channels > 1 or "em" in (request.metrics or ()):
        return Kind(PROBABILITY)
    if prediction.dtype != np.uint8 or says_labels(request.prediction):
        return Kind(LABELS)
    if "pixels" in (request.metrics or ()):
        return Kind(PROBABILITY)
    return guessed_kind(prediction, objects_asked=request.metrics is not None)


def says_labels(path: str) -> bool:
    """Whether the metadata of an image are those of OME-Zarr labels."""
    place = place_of(path)
    found = group_file(store_at(place)) if is_remote(place) or Path(place).is_dir() else None
    attributes = found[1] if found else {}
    return "image-label" in attributes or "image-label" in attributes.get("ome", {})


def guessed_kind(prediction: Volume, *, objects_asked: bool) -> Kind:
    """Labels or probabilities, by sampled values of a uint8 array."""
    changes, pairs, found = 0.0, 0.0, np.zeros(256, np.int64)
    for values in sampled_voxels(prediction):
        if values is not None:
            same, both = same_and_all(values[..., :-1], values[..., 1:])
            changes, pairs = changes + both - same, pairs + both
            found += np.bincount(values.ravel(), minlength=256)
    highest = int(np.flatnonzero(found).max(initial=0))
    if highest <= 1 and not objects_asked:
        return Kind(PROBABILITY)  # refused later, with what would work
    steady = changes <= CHANGES * pairs and found[255] <= FULL * found[1:].sum()
    if highest < DIM or steady:
        why = f"highest value {highest}" if highest < DIM else "values stay the same from pixel to pixel"
        return Kind(LABELS, f"uint8, {why}; --kind probability if that is wrong")
    return Kind(PROBABILITY, "uint8, value / 255; --kind labels if that is wrong" if objects_asked else "")


def is_mask(truth: Volume) -> bool:
    """Whether a truth says where foreground is, and not which object: booleans, or 0 and 255."""
    if truth.dtype == np.bool_:
        return True
    values = [np.unique(found) for found in sampled_voxels(truth) if found is not None]
    return bool(values) and set(np.unique(np.concatenate(values)).tolist()) <= {0, 255}


def metrics_of(request: EvaluateRequest, kind: str, prediction: Volume) -> tuple[str, ...]:
    """The metrics asked for, else all that apply, in the order of ``METRICS``.

    Raises
    ------
    UnetcliError
        One that is asked for does not apply.
    """
    outputs = prediction.channels
    asked = OF_KIND[kind] if request.metrics is None else request.metrics
    if outputs > 1:
        asked = ("pixels",) if request.metrics is None else asked
        if beyond := [name for name in asked if name != "pixels"]:
            raise UnetcliError(
                f"{prediction.path}: {outputs} classes, a channel each; {beyond[0]} takes one channel, the probability "
                "of foreground; --metrics pixels takes several"
            )
    if impossible := [name for name in asked if name not in POSSIBLE[kind]]:
        raise UnetcliError(
            f"--metrics {impossible[0]}: {prediction.path} holds {kind}; {', '.join(POSSIBLE[kind])} can be scored"
        )
    return tuple(name for name in METRICS if name in asked)


def objects_go_through(pair: Pair, region: Box) -> tuple[bool, str]:
    """Whether the truth's objects go through sections along z, and what to say about it.

    By how often a label stays the same from section to section, against from pixel to pixel.
    """
    if "z" not in pair.axes or region.shape[pair.axes.index("z")] < 2:
        return False, ""
    axis = pair.axes.index("z")
    share = staying(pair.truth, region, axis)
    through = share >= STAYS
    said = (
        "objects go through the sections (--per-section: each alone)"
        if through
        else ("labels start anew in each section, which are judged alone (--three-d: together)")
    )
    if DOUBTFUL[0] < share < DOUBTFUL[1]:
        said += (
            f"; in doubt: to the next section {100 * share:.0f} % as many pixels keep their label as to the next pixel"
        )
    if through and staying(pair.prediction, region.shifted(tuple(-o for o in pair.offset)), axis) < STAYS:
        said += "; those of the prediction do not: were they made section by section?"
    return through, said


def staying(labels: Volume, region: Box, axis: int) -> float:
    """Share of labelled pixels with the same label one section on, against one pixel on; 1 without any."""
    through, within = np.zeros(2), np.zeros(2)
    firsts = np.unique(np.linspace(region.start[axis], region.stop[axis] - 2, PAIRS, dtype=np.int64))
    for first in firsts.tolist():
        with suppress(UnreadableBlock):  # is told when that block is counted
            values = np.moveaxis(labels.read(two_sections(region, axis, first))[0], axis, 0)
            through += same_and_all(values[0], values[1])
            within += same_and_all(values[..., :-1], values[..., 1:])
    return float(through[0] * within[1] / (through[1] * within[0])) if through[1] and within[0] else 1.0


def two_sections(region: Box, axis: int, first: int) -> Box:
    """The middle of a section and of the next one; of several times, of the first."""
    start, stop = list(region.start), list(region.stop)
    start[axis], stop[axis] = first, first + 2
    for place in range(axis):
        stop[place] = start[place] + 1
    for place in (-2, -1):
        start[place] += max(0, stop[place] - start[place] - WINDOW) // 2
        stop[place] = min(stop[place], start[place] + WINDOW)
    return Box(tuple(start), tuple(stop))


def same_and_all(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    """Pixels that are labelled in both: those with the same label, and all."""
    labelled = (one != 0) & (other != 0)
    return np.array([np.count_nonzero(labelled & (one == other)), np.count_nonzero(labelled)], np.float64)
