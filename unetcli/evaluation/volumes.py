"""evaluate: a prediction against the truth, section by section, so that memory does not grow with the volume."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.config import Sections, resolve_sections
from unetcli.errors import UnetcliError
from unetcli.files import Place, place_of
from unetcli.geometry import Box
from unetcli.metrics import em
from unetcli.metrics.pixels import Confusion
from unetcli.volumes.opening import open_volume
from unetcli.volumes.output import marker_around
from unetcli.volumes.volume import Volume

log = logging.getLogger(__name__)
METRICS = ("pixels", "em")
THRESHOLD = 0.5


@dataclass(frozen=True, slots=True)
class Pair:
    """Prediction and truth laid over each other."""

    prediction: Volume
    truth: Volume
    offset: tuple[int, ...]
    """Where the prediction starts in the truth; zero where they have the same shape."""

    @property
    def region(self) -> Box:
        """What both cover, in coordinates of the truth."""
        return self.prediction.whole().shifted(self.offset)

    def planes(self, region: Box) -> Iterator[tuple[NDArray[np.float32], NDArray[Any]]]:
        """Each section of a region: probabilities (c, y, x) and truth (y, x)."""
        for box in region.planes():
            stored = self.prediction.read(box.shifted(tuple(-o for o in self.offset)))
            truth = self.truth.read(box)
            yield probabilities(plane(stored), self.prediction.path), plane(truth)[0]


def evaluate_volume(
    prediction: str,
    truth: str,
    metrics: Sequence[str] | None = None,
    sections: Sections = (None, None),
    *,
    allow_incomplete: bool = False,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, dict[str, Any]]:
    """Scores by metric and name; see :mod:`unetcli.metrics`. ``None``: all metrics that apply.

    Raises
    ------
    UnetcliError
        The two do not fit, the prediction is incomplete or holds no probabilities.
    """
    require_known(metrics)
    require_complete(prediction, allow_incomplete)
    pair = pair_up(open_volume(prediction), open_volume(truth), place_of(prediction))
    region = select(pair, sections)
    chosen = choose_metrics(metrics, pair)
    confusions, counts, count, highest = [], [], int(np.prod(region.shape[:-2])), 0.0
    for number, (probability, reference) in enumerate(pair.planes(region), start=1):
        highest = max(highest, float(probability.max()))
        if "pixels" in chosen:
            confusions.append(confusion(probability, reference, truth))
        if "em" in chosen:
            counts.append(em.section_counts(probability[0], reference != 0))
        report(number, count)
    require_probabilities(pair.prediction, highest)
    results = {"pixels": lambda: sum_up(confusions).scores(), "em": lambda: em_scores(counts, prediction)}
    return {name: results[name]() for name in METRICS if name in chosen}


def em_scores(sections: Sequence[em.SectionCounts], path: str) -> dict[str, Any]:
    """Scores of em, and whether membrane seems to be given as interior; that is said, and nothing turned round."""
    inverted = em.looks_inverted(sections)
    if inverted:
        log.warning("%s: looks like the probability of membrane; em takes it for that of interior", path)
    return em.scores(sections) | {"looks_inverted": inverted}


def choose_metrics(metrics: Sequence[str] | None, pair: Pair) -> Sequence[str]:
    """The metrics asked for, else all that apply: em is defined for two classes."""
    outputs = pair.prediction.channels
    if metrics is None:
        return METRICS if outputs == 1 else ("pixels",)
    if outputs > 1 and "em" in metrics:
        raise UnetcliError(f"{pair.prediction.path}: {outputs} classes; em is defined for two, use --metrics pixels")
    return metrics


def require_probabilities(prediction: Volume, highest: float) -> None:
    """Refuse a mask of 0 and 1 stored as uint8, which would read as probabilities of 0 and 1/255."""
    if prediction.dtype == np.uint8 and 0 < highest <= np.float32(1) / np.float32(255):
        raise UnetcliError(
            f"{prediction.path}: 0 and 1 as uint8 mean 0 and 1/255; store a mask as bool or as 0 and 255"
        )


def require_known(metrics: Sequence[str] | None) -> None:
    """Refuse metrics that do not exist, or none at all."""
    unknown = sorted(set(metrics or ()) - set(METRICS))
    if unknown or (metrics is not None and not metrics):
        raise UnetcliError(f"--metrics {','.join(unknown)}: expected {' or '.join(METRICS)}, a comma between both")


def require_complete(prediction: str, allow_incomplete: bool) -> None:
    """Refuse a prediction of ours that is not finished."""
    ours = marker_around(prediction)
    if ours and not ours.get("complete") and not allow_incomplete:
        raise UnetcliError(f"{prediction}: not complete; run its predict command again, or --allow-incomplete")


def pair_up(prediction: Volume, truth: Volume, store: Place) -> Pair:
    """Lay a prediction over its truth: same shape, or a part of a volume of the truth's shape."""
    if truth.channels != 1 or truth.dtype.kind not in "bui":
        raise UnetcliError(
            f"{truth.path}: {truth.channels} channels of {truth.dtype}; truth is one channel of integers"
        )
    if prediction.extent == truth.extent:
        return Pair(prediction, truth, (0,) * len(truth.extent))
    ours = marker_around(store) or {}
    if tuple(ours.get("extent", ())) == truth.extent:
        return Pair(prediction, truth, tuple(first for first, _ in ours["region"]))
    flat, flat_truth = prediction.without_single_axes(), truth.without_single_axes()
    if flat.extent == flat_truth.extent:
        return Pair(flat, flat_truth, (0,) * len(flat.extent))
    raise UnetcliError(
        f"{prediction.path} is {shape(prediction)}, but {truth.path} is {shape(truth)}: not the same place"
    )


def select(pair: Pair, sections: Sections) -> Box:
    """The sections asked for, counted in the truth, as far as the prediction goes."""
    if sections == (None, None):
        return pair.region
    axis = pair.truth.section_axis
    if axis is None:
        raise UnetcliError(f"--sections: {pair.truth.path} is a single image")
    first, stop = resolve_sections(sections, pair.truth.extent[axis], pair.truth.path)
    covered = pair.region.start[axis], pair.region.stop[axis]
    if not covered[0] <= first < stop <= covered[1]:
        raise UnetcliError(
            f"--sections {first}:{stop}: {pair.prediction.path} covers sections {covered[0]}:{covered[1]}"
        )
    return pair.truth.sections(first, stop).clipped(pair.region)


def plane(voxels: NDArray[Any]) -> NDArray[Any]:
    """(c, 1, .., y, x) as (c, y, x)."""
    return voxels.reshape(voxels.shape[0], *voxels.shape[-2:])


def probabilities(stored: NDArray[Any], path: str) -> NDArray[np.float32]:
    """Stored values as probabilities: uint8 / 255, booleans as 0 and 1, floats as they are."""
    if stored.dtype == np.uint8:
        return stored.astype(np.float32) / np.float32(255)
    if stored.dtype.kind not in "bf":
        raise UnetcliError(f"{path}: {stored.dtype}; expected probabilities as uint8 (value / 255), float or boolean")
    values = stored.astype(np.float32)
    if not ((values >= 0) & (values <= 1)).all():  # NaN fails too
        raise UnetcliError(f"{path}: values from {values.min()} to {values.max()}; expected probabilities 0 to 1")
    return values


def confusion(probability: NDArray[np.float32], reference: NDArray[Any], path: str) -> Confusion:
    """Confusion of one section: foreground against the rest at 0.5, or the likeliest of K classes."""
    if len(probability) == 1:
        return Confusion.of((reference != 0).astype(np.int64), (probability[0] > THRESHOLD).astype(np.int64), 2)
    classes = len(probability)
    foreign = reference[(reference < 0) | (reference >= classes)]
    if foreign.size:
        raise UnetcliError(f"{path}: class {foreign[0]} found, the prediction has classes 0 to {classes - 1}")
    return Confusion.of(reference, probability.argmax(0), classes)


def sum_up(confusions: Sequence[Confusion]) -> Confusion:
    """Counts over all sections."""
    return Confusion(np.sum([c.counts for c in confusions], axis=0))


def shape(volume: Volume) -> str:
    """Axes and extent for people."""
    return ", ".join(f"{axis} {n}" for axis, n in zip(volume.axes, volume.extent, strict=True))
