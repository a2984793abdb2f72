"""From a request to a plan: what the values mean, which metrics apply, which region is scored."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError, UnreadableBlock
from unetcli.core.files import is_remote, parse_place
from unetcli.core.geometry import Box
from unetcli.evaluate.counting import Counts, count_block, labels_of, probabilities, reference_of
from unetcli.evaluate.plan import EvaluationPlan, Pair, Settings, choose_block
from unetcli.evaluate.request import CLASSES, LABELS, METRICS, PROBABILITY, EvaluateRequest
from unetcli.evaluate.result import Section, SectionImages
from unetcli.volumes.image import find_marker, group_file
from unetcli.volumes.store import store_at
from unetcli.volumes.volume import Volume, describe, fingerprint, sampled_voxels

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
    ours = (find_marker(parse_place(request.prediction)) or {}).get("kind")
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
    place = parse_place(path)
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


OBJECTS = {True: "through all sections", False: "each section alone"}
"""What is an object, in words."""
PIECES = "the truth is a mask; its objects are what is 4-connected in a section"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """A request with all that it means."""

    request: EvaluateRequest
    pair: Pair
    plan: EvaluationPlan
    notes: tuple[str, ...]

    @classmethod
    def of(cls, request: EvaluateRequest) -> Evaluated:
        """Resolve a request; nothing is written.

        Raises
        ------
        UnetcliError
            Anything about the request that the user can put right.
        """
        pair = Pair.open(request)
        region, kind = pair.select(request), kind_of(request, pair.prediction)
        metrics = metrics_of(request, kind.name, pair.prediction)
        pieces = bool({"cells", "voi"} & set(metrics)) and not request.three_d and is_mask(pair.truth)
        three_d, said = resolve_three_d(request, pair, region, kind, metrics) if not pieces else (False, PIECES)
        settings = Settings(
            metrics=metrics,
            kind=kind.name,
            threshold=request.threshold,
            three_d=three_d,
            pieces=pieces,
            ignore=request.ignore,
            level=request.level,
        )
        plan = EvaluationPlan(
            axes=pair.axes,
            start=region.start,
            stop=region.stop,
            offset=pair.offset,
            block_shape=choose_block(region, pair.prediction.chunks, settings, request.block_voxels),
            settings=settings,
            prediction=fingerprint(pair.prediction),
            truth=fingerprint(pair.truth),
            mask=pair.mask.fingerprint(region) if pair.mask else None,
        )
        return cls(request=request, pair=pair, plan=plan, notes=tuple(filter(None, [*notes_on(kind, plan), said])))

    def count(self, number: int) -> Counts:
        """Counts of one block."""
        return count_block(self.plan, self.pair, number)

    def places(self) -> list[tuple[tuple[int, ...], str]]:
        """Coordinates and name of each section."""
        axes = self.plan.axes[:-2]
        starts = (self.plan.section_box(number).start[:-2] for number in range(self.plan.sections))
        return [(lead, " ".join(map("{} {}".format, axes, lead)) or "image") for lead in starts]

    def images(self, section: Section) -> SectionImages:
        """What one section was judged by."""
        settings = self.plan.settings
        piece = next(self.pair.read(self.plan.section_box(section.number)).planes())
        found = probabilities(piece.stored, self.pair.prediction.path) if settings.kind == PROBABILITY else None
        values = piece.stored if found is None else found
        integers = settings.has_objects or settings.kind != PROBABILITY
        labels = labels_of(values, settings.threshold) if integers else None
        true = reference_of(piece.reference, pieces=settings.pieces) if settings.has_objects else None
        return SectionImages(
            reference=piece.reference, true_objects=true, probability=found, labels=labels, judged=piece.judged
        )

    def thresholds(self) -> dict[str, float]:
        """Of foreground, and of the components that are objects, where there are such."""
        settings = self.plan.settings
        if settings.kind != PROBABILITY:
            return {}
        asked = {"foreground": "pixels" in settings.metrics, "objects": settings.has_objects}
        return {name: settings.threshold for name, applies in asked.items() if applies}

    def judged(self) -> dict[str, Any]:
        """What was judged: has to be the same for two predictions that are compared."""
        settings = self.plan.settings
        return {
            "truth": self.pair.truth.path,
            "truth_fingerprint": self.plan.truth,
            "region": describe(self.plan.region, self.plan.axes),
            "sections": self.plan.sections,
            "ignore": settings.ignore,
            "mask": self.plan.mask,
            "level": settings.level,
            "objects": OBJECTS[settings.three_d] if settings.has_objects else None,
        }

    def require_probabilities(self, counts: Counts) -> None:
        """Refuse a mask of 0 and 1 stored as uint8, which would read as probabilities of 0 and 1/255."""
        is_uint8 = self.plan.settings.kind == PROBABILITY and self.pair.prediction.dtype == np.uint8
        if is_uint8 and self.request.kind is None and 0 < counts.highest <= np.float32(1) / np.float32(255):
            raise UnetcliError(
                f"{self.pair.prediction.path}: 0 and 1 as uint8 mean 0 and 1/255; "
                "store a mask as bool or as 0 and 255, or --kind labels"
            )


def resolve_three_d(
    request: EvaluateRequest, pair: Pair, region: Box, kind: Kind, metrics: Sequence[str]
) -> tuple[bool, str]:
    """Whether objects go through sections, and what to say about it."""
    if not {"cells", "voi"} & set(metrics):
        return False, ""
    if request.three_d and "z" not in pair.axes:
        raise UnetcliError(f"--three-d: {pair.truth.path} has axes {', '.join(pair.axes)}, no z")
    if kind.name == PROBABILITY:
        if request.three_d:
            raise UnetcliError(
                f"--three-d: {pair.prediction.path} holds probabilities, whose components are found section by "
                "section; `unetcli label --three-d` makes objects first"
            )
        return False, ""
    return objects_go_through(pair, region) if request.three_d is None else (request.three_d, "")


def notes_on(kind: Kind, plan: EvaluationPlan) -> list[str]:
    """How the prediction was taken."""
    found = [f"the prediction is taken for {kind.name} ({kind.because})"] if kind.because else []
    if plan.settings.kind == PROBABILITY and plan.settings.has_objects:
        found.append(
            f"objects are what is 4-connected in a section above {plan.settings.threshold:g}; "
            "`unetcli label` makes better ones where they touch"
        )
    return found
