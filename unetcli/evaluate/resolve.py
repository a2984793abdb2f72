"""Resolve a request to a plan: kind of prediction, metrics, objects and region."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError, UnreadableBlock, warn
from unetcli.core.files import is_remote, parse_place
from unetcli.core.geometry import Box
from unetcli.core.label_values import LabelValues
from unetcli.core.process import cpu_threads
from unetcli.core.ranges import spread_order
from unetcli.core.streams import ordered_map
from unetcli.evaluate.counting import (
    Counts,
    labels_of,
    probabilities,
    reference_of,
    require_probability_dtype,
)
from unetcli.evaluate.plan import EvaluationPlan, Pair, Settings, choose_block, grown_block
from unetcli.evaluate.request import CLASSES, LABELS, METRICS, PROBABILITY, EvaluateRequest, scores_objects
from unetcli.evaluate.result import Section, SectionImages
from unetcli.planning.plan import BlockGrid
from unetcli.volumes import ngff
from unetcli.volumes.image import find_marker, group_file
from unetcli.volumes.label_fringe import warn_about_fringe
from unetcli.volumes.samples import fingerprint, sampled_voxels
from unetcli.volumes.store import store_at
from unetcli.volumes.volume import Volume, describe

MAX_CHANGES = 0.05
"""Share of neighbouring foreground pixels that differ; real labels: at most 0.04, probabilities: over 0.2."""
MIN_HIGHEST, MAX_SATURATED = 128, 0.3
"""Probability maps have values of 128 or more; nearly binary ones are 255 in more than this share of foreground."""
MIN_HIGHEST_16, MIN_CHANGES_16 = 2**15, 0.5
"""The same for uint16, whose probability maps have values of 2^15 or more. Labels as high as this are common, but not
such that more than half of the neighbouring foreground pixels differ."""
SEARCHED_VOXELS = 2**21
"""Voxels that each thread holds while it searches for the values of a mask, unless a chunk has more."""
PAIRS, WINDOW = 8, 2048
"""Number of pairs of neighbouring sections to compare, and the side of the compared window in pixels."""
MIN_CONTINUITY, UNCERTAIN = 0.5, (0.25, 0.75)
"""Lowest continuity of labels (see :func:`label_continuity`) for objects that extend over sections, and the range that
is reported as uncertain. Such objects have 0.95 to 1; sections that were labelled separately have 0.03 (objects at
random positions) to 0.4 (at the same positions)."""


@dataclass(frozen=True, slots=True)
class ValueKind:
    """Kind of a prediction, one of ``request.KINDS``, and how it was recognised."""

    name: str
    reason: str = ""
    """Reported if the kind was guessed; empty if it was stated."""


def resolve_kind(request: EvaluateRequest, prediction: Volume) -> ValueKind:
    """Kind of a prediction.

    Raises
    ------
    UnetcliError
        The data type or the channels do not fit the kind.
    """
    found = declared_kind(request, prediction)
    if found.name == PROBABILITY:
        require_probability_dtype(prediction.dtype, prediction.path)
    if found.name != PROBABILITY and (prediction.dtype.kind == "f" or prediction.channels > 1):
        raise UnetcliError(
            f"{prediction.path}: {prediction.channels} channels of {prediction.dtype}; expected one channel of "
            f"integers for {found.name}"
        )
    return found


def declared_kind(request: EvaluateRequest, prediction: Volume) -> ValueKind:
    """Kind by option, metadata, data type or metrics, in this order; else guessed from the values."""
    if request.kind is not None:
        return ValueKind(request.kind)
    recorded = (find_marker(parse_place(request.prediction)) or {}).get("kind")
    if recorded is not None:
        several = prediction.dtype != np.bool_  # of two classes, the pair has the foreground alone
        found = {"instances": LABELS, "classes": CLASSES if several else PROBABILITY}
        return ValueKind(found.get(recorded, PROBABILITY))
    if prediction.dtype.kind in "bf" or prediction.channels > 1 or "em" in (request.metrics or ()):
        return ValueKind(PROBABILITY)
    if prediction.dtype not in (np.uint8, np.uint16) or has_label_metadata(request.prediction):
        return ValueKind(LABELS)
    if prediction.dtype == np.uint16:
        return guess_wide_kind(prediction)
    if "pixels" in (request.metrics or ()):
        return ValueKind(PROBABILITY)
    return guess_kind(prediction, objects_asked=request.metrics is not None)


def has_label_metadata(path: str) -> bool:
    """Whether an image has the metadata of OME-Zarr labels."""
    place = parse_place(path)
    found = group_file(store_at(place)) if is_remote(place) or Path(place).is_dir() else None
    with ngff.explain(place):
        return found is not None and ngff.is_labels(found[1])


def guess_kind(prediction: Volume, *, objects_asked: bool) -> ValueKind:
    """Labels or probabilities, guessed from sampled values of a uint8 array."""
    changes, pairs, found = 0.0, 0.0, np.zeros(256, np.int64)
    for values in sampled_voxels(prediction):
        if values is not None:
            same, both = count_same_labels(values[..., :-1], values[..., 1:])
            changes, pairs = changes + both - same, pairs + both
            found += np.bincount(values.ravel(), minlength=256)
    highest = int(np.flatnonzero(found).max(initial=0))
    if highest <= 1 and not objects_asked:
        return ValueKind(PROBABILITY)  # refused by require_probabilities, which says what would work
    steady = changes <= MAX_CHANGES * pairs and found[255] <= MAX_SATURATED * found[1:].sum()
    if highest < MIN_HIGHEST or steady:
        why = f"highest value {highest}" if highest < MIN_HIGHEST else "neighbouring pixels mostly have the same value"
        return ValueKind(LABELS, f"uint8, {why}; otherwise use --kind probability")
    return ValueKind(PROBABILITY, "uint8, value / 255; otherwise use --kind labels" if objects_asked else "")


def guess_wide_kind(prediction: Volume) -> ValueKind:
    """Labels or probabilities, guessed from sampled values of a uint16 array."""
    changes, pairs, highest = 0.0, 0.0, 0
    for values in sampled_voxels(prediction):
        if values is not None:
            same, both = count_same_labels(values[..., :-1], values[..., 1:])
            changes, pairs, highest = changes + both - same, pairs + both, max(highest, int(values.max()))
    if highest < MIN_HIGHEST_16:
        return ValueKind(LABELS)
    if changes > MIN_CHANGES_16 * pairs:
        return ValueKind(PROBABILITY, "uint16, value / 65535; otherwise use --kind labels")
    return ValueKind(LABELS, f"uint16, highest value {highest}; otherwise use --kind probability")


def mask_values(volume: Volume, region: Box, ignore: int | None = None) -> tuple[int, ...] | None:
    """Values of the foreground of a mask: none or one, whatever it is; None if the region holds labels.

    Every stored voxel is searched, in boxes far apart and up to the first that shows that this is no mask, because a
    sample of labels may hold a single one. So labels are recognised at once; a mask is read once, in threads.
    """
    if volume.dtype == np.bool_:
        return (1,)
    grid = BlockGrid(region, grown_block(region.shape, volume.chunks, SEARCHED_VOXELS), (0,) * len(region.shape))
    search = functools.partial(foreground_values, volume, ignore)
    found, boxes = set[int](), map(grid.box, spread_order(grid.blocks))
    for _, future in ordered_map(search, boxes, cpu_threads()):
        with suppress(UnreadableBlock):  # reported when that block is counted
            found |= future.result()
        if len(found) > 1:
            return None
    return tuple(found)


def foreground_values(volume: Volume, ignore: int | None, box: Box) -> set[int]:
    """Up to two different values of the foreground in a box, of which one voxel is read if nothing is stored there."""
    if volume.is_absent(box):
        box = Box(box.start, tuple(p + 1 for p in box.start))
    values = volume.read(box)
    values = values[values != 0]
    if ignore is not None:
        values = values[values != ignore]
    different = values[values != values[:1]]
    return {*values[:1].tolist(), *different[:1].tolist()}


def is_mask_prediction(request: EvaluateRequest, pair: Pair, region: Box, kind: ValueKind) -> bool:
    """Whether objects of a prediction are its connected components: that of probabilities, and of guessed labels 0, 1.

    Labels that the user or the file's metadata state are taken as they are.
    """
    if kind.name == PROBABILITY:
        return True
    stated = request.kind is not None or request.three_d or has_label_metadata(request.prediction)
    if kind.name != LABELS or stated or find_marker(parse_place(request.prediction)) is not None:
        return False
    values = mask_values(pair.prediction, region.shifted(tuple(-o for o in pair.offset)))
    return values is not None and len(values) == 1


def resolve_metrics(request: EvaluateRequest, kind: str, prediction: Volume) -> tuple[str, ...]:
    """Requested metrics, else the default ones of the kind, in the order of ``METRICS``.

    Raises
    ------
    UnetcliError
        A requested metric cannot score this prediction.
    """
    outputs = prediction.channels
    defaults = tuple(name for name, metric in METRICS.items() if kind in metric.default_for)
    asked = defaults if request.metrics is None else request.metrics
    if outputs > 1:
        asked = ("pixels",) if request.metrics is None else asked
        if beyond := [name for name in asked if name != "pixels"]:
            raise UnetcliError(
                f"{prediction.path}: {outputs} classes, one channel each; --metrics {beyond[0]} needs one channel, the "
                "probability of foreground; --metrics pixels scores several"
            )
    possible = [name for name, metric in METRICS.items() if kind in metric.kinds]
    if impossible := [name for name in asked if name not in possible]:
        raise UnetcliError(
            f"--metrics {impossible[0]}: {prediction.path} contains {kind}; expected one or more of "
            f"{', '.join(possible)}"
        )
    return tuple(name for name in METRICS if name in asked)


def objects_span_sections(pair: Pair, region: Box) -> tuple[bool, str]:
    """Whether objects of the truth extend over sections along z, and a note for the user.

    The decision follows from :func:`label_continuity`.
    """
    if "z" not in pair.axes or region.shape[pair.axes.index("z")] < 2:
        return False, ""
    axis = pair.axes.index("z")
    share = label_continuity(pair.truth, region, axis)
    predicted = region.shifted(tuple(-o for o in pair.offset))
    through = share >= MIN_CONTINUITY
    note = (
        "objects extend over sections (to score each section separately: --per-section)"
        if through
        else "each section is labelled independently and scored separately (to combine sections: --three-d)"
    )
    if UNCERTAIN[0] < share < UNCERTAIN[1]:
        note += f"; uncertain: labels continue to the next section at {100 * share:.0f} % of the rate in the plane"
    if through and label_continuity(pair.prediction, predicted, axis) < MIN_CONTINUITY:
        note += "; objects of the prediction do not: they may have been labelled section by section"
    return through, note


def label_continuity(labels: Volume, region: Box, axis: int) -> float:
    """Continuity of labels from section to section.

    The share of pixels that keep their label in the next section, divided by the share that keep it one pixel further.

    Pixels that are background in either are not counted; 1 without any labelled pixels.
    """
    through, within = np.zeros(2), np.zeros(2)
    firsts = np.unique(np.linspace(region.start[axis], region.stop[axis] - 2, PAIRS, dtype=np.int64))
    for first in firsts.tolist():
        with suppress(UnreadableBlock):  # reported when that block is counted
            values = np.moveaxis(labels.read(section_pair(region, axis, first))[0], axis, 0)
            through += count_same_labels(values[0], values[1])
            within += count_same_labels(values[..., :-1], values[..., 1:])
    return float(through[0] * within[1] / (through[1] * within[0])) if through[1] and within[0] else 1.0


def section_pair(region: Box, axis: int, first: int) -> Box:
    """Box of the central window of a section and the next one, at the first time point."""
    start, stop = list(region.start), list(region.stop)
    start[axis], stop[axis] = first, first + 2
    for place in range(axis):
        stop[place] = start[place] + 1
    for place in (-2, -1):
        start[place] += max(0, stop[place] - start[place] - WINDOW) // 2
        stop[place] = min(stop[place], start[place] + WINDOW)
    return Box(tuple(start), tuple(stop))


def count_same_labels(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    """Number of pixels with the same label in both arrays, and number of pixels that are labelled in both."""
    labelled = (one != 0) & (other != 0)
    return np.array([np.count_nonzero(labelled & (one == other)), np.count_nonzero(labelled)], np.float64)


OBJECTS = {True: "through all sections", False: "each section alone"}
"""Extent of objects, by ``three_d``. Baselines store these texts, and must match."""
COMPONENTS = "objects are 4-connected components of a section above {:g}; `unetcli label` separates touching objects"
MASK_NOTE = "the {} is a mask ({}); its objects are the 4-connected components of each section{}"
NO_BACKGROUND = (
    "has the values {} and no 0, which is background (membrane): all of it counts as foreground; --background V states "
    "the value of background"
)


def note_on_mask(name: str, values: Sequence[int], axes: str) -> str:
    """Note on objects that are components of a mask.

    >>> note_on_mask("truth", (1,), "yx")
    'the truth is a mask (0 and 1); its objects are the 4-connected components of each section'
    """
    shown = f"0 and {values[0]}" if values else "all 0"
    return MASK_NOTE.format(name, shown, "; with --three-d, each value is one object" if "z" in axes else "")


def note_on_values(request: EvaluateRequest, values: LabelValues) -> str:
    """Note on the values of classes; empty if they are the numbers."""
    if not values.table:
        return ""
    source = (
        "" if request.states_values else ", as in training (--classes, --background, --label-threshold change this)"
    )
    return f"values of the truth{source}: {values.table}"


def warn_without_background(truth: Volume) -> None:
    """Warn if a truth has two values and none is 0, as the masks of some programs do: all of it is foreground."""
    values = [np.unique(found) for found in sampled_voxels(truth) if found is not None]
    different = np.unique(np.concatenate(values)).tolist() if values else []
    if len(different) == 2 and 0 not in different:
        warn(f"{truth.path}: {NO_BACKGROUND.format(' and '.join(map(str, different)))}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedRequest:
    """Request with its volumes, its plan and notes for the user."""

    request: EvaluateRequest
    pair: Pair
    plan: EvaluationPlan
    notes: tuple[str, ...]

    @classmethod
    def of(cls, request: EvaluateRequest) -> ResolvedRequest:
        """Resolve a request; nothing is written.

        Raises
        ------
        UnetcliError
            Anything about the request that the user can correct.
        """
        pair = Pair.open(request)
        region, kind = pair.select(request), resolve_kind(request, pair.prediction)
        metrics = resolve_metrics(request, kind.name, pair.prediction)
        warn_without_background(pair.truth)
        if not pair.values.table:
            warn_about_fringe(pair.truth)
        pieces, result_pieces, notes = resolve_pieces(request, pair, region, kind, metrics)
        three_d, note = (
            (False, "")
            if pieces or (result_pieces and kind.name == LABELS)
            else resolve_three_d(request, pair, region, kind, metrics)
        )
        settings = Settings(
            metrics=metrics,
            kind=kind.name,
            threshold=request.threshold,
            three_d=three_d,
            pieces=pieces,
            result_pieces=result_pieces,
            ignore=request.ignore,
            level=request.level,
            values=pair.values,
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
        finds_components = settings.has_objects and kind.name == PROBABILITY
        components = COMPONENTS.format(request.threshold) if finds_components else ""
        notes = [*kind_notes(kind), components, *notes, note, pair.note, note_on_values(request, pair.values)]
        return cls(request=request, pair=pair, plan=plan, notes=tuple(filter(None, notes)))

    def places(self) -> list[tuple[tuple[int, ...], str]]:
        """Coordinates and name of each section."""
        axes = self.plan.axes[:-2]
        starts = (self.plan.section_box(number).start[:-2] for number in range(self.plan.sections))
        return [(lead, " ".join(map("{} {}".format, axes, lead)) or "image") for lead in starts]

    def images(self, section: Section) -> SectionImages:
        """Images of one section."""
        settings = self.plan.settings
        data = next(self.pair.read(self.plan.section_box(section.number)).planes())
        found = probabilities(data.prediction, self.pair.prediction.path) if settings.kind == PROBABILITY else None
        values = data.prediction if found is None else found
        integers = settings.has_objects or settings.kind != PROBABILITY
        labels = labels_of(values, settings.threshold, pieces=settings.result_pieces) if integers else None
        true = reference_of(data.reference, pieces=settings.pieces) if settings.has_objects else None
        return SectionImages(
            reference=data.reference, true_objects=true, probability=found, labels=labels, valid=data.valid
        )

    def thresholds(self) -> dict[str, float]:
        """Thresholds of ``foreground`` (pixel by pixel) and ``objects`` (components), if they apply."""
        settings = self.plan.settings
        if settings.kind != PROBABILITY:
            return {}
        foreground = any(METRICS[name].foreground for name in settings.metrics)
        asked = {"foreground": foreground, "objects": settings.has_objects}
        return {name: settings.threshold for name, applies in asked.items() if applies}

    def scope(self) -> dict[str, Any]:
        """Truth, region and settings, which must be the same for two predictions that are compared."""
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
            **({"values": settings.values.table} if settings.values.table else {}),
        }

    def require_probabilities(self, counts: Counts) -> None:
        """Raise ``UnetcliError`` if values are too low for the data type, such as a mask of 0 and 1 as uint8."""
        low = np.float32(255) / np.float32(65535)
        is_uint16 = self.plan.settings.kind == PROBABILITY and self.pair.prediction.dtype == np.uint16
        if is_uint16 and 0 < counts.highest <= low:
            raise UnetcliError(
                f"{self.pair.prediction.path}: uint16 with values up to {round(counts.highest * 65535)}; probabilities "
                "are value / 65535; store values up to 255 as uint8, or use --kind labels"
            )
        is_uint8 = self.plan.settings.kind == PROBABILITY and self.pair.prediction.dtype == np.uint8
        if is_uint8 and self.request.kind is None and 0 < counts.highest <= np.float32(1) / np.float32(255):
            raise UnetcliError(
                f"{self.pair.prediction.path}: the values 0 and 1 of uint8 mean probabilities 0 and 1/255; "
                "store a mask as bool or as 0 and 255, or use --kind labels"
            )


def resolve_pieces(
    request: EvaluateRequest, pair: Pair, region: Box, kind: ValueKind, metrics: Sequence[str]
) -> tuple[bool, bool, list[str]]:
    """Whether objects of the truth, and of the prediction, are components of a mask, and notes for the user."""
    if not scores_objects(metrics):
        return False, False, []
    values = None if request.three_d else mask_values(pair.truth, region, pair.ignore)
    found = is_mask_prediction(request, pair, region, kind)
    notes = [] if values is None else [note_on_mask("truth", values, pair.axes)]
    if found and kind.name != PROBABILITY:
        notes.append("the prediction is a mask, too: so are its objects; with --kind labels, each value is one object")
    return values is not None, found, notes


def resolve_three_d(
    request: EvaluateRequest, pair: Pair, region: Box, kind: ValueKind, metrics: Sequence[str]
) -> tuple[bool, str]:
    """Whether objects extend over sections, and a note for the user; not for a mask as truth."""
    if not scores_objects(metrics):
        return False, ""
    if request.three_d and "z" not in pair.axes:
        raise UnetcliError(f"--three-d: {pair.truth.path} has axes {', '.join(pair.axes)}; expected an axis z")
    if kind.name == PROBABILITY:
        if request.three_d:
            raise UnetcliError(
                f"--three-d: {pair.prediction.path} contains probabilities, whose components are found section by "
                "section; make objects with `unetcli label --three-d` first"
            )
        return False, ""
    return objects_span_sections(pair, region) if request.three_d is None else (request.three_d, "")


def kind_notes(kind: ValueKind) -> list[str]:
    """Note on a kind that was guessed."""
    return [f"the prediction was interpreted as {kind.name} ({kind.reason})"] if kind.reason else []
