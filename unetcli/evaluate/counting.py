"""What one block adds to the scores: both volumes are read once, whatever is asked for."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Box
from unetcli.evaluate.counts import Counts
from unetcli.evaluate.pairing import Pair, Piece
from unetcli.evaluate.plan import EvaluationPlan
from unetcli.evaluate.request import CLASSES, PROBABILITY
from unetcli.metrics.cells import CellSums
from unetcli.metrics.contingency import Contingency
from unetcli.metrics.em_counts import above, section_counts
from unetcli.metrics.partitions import components
from unetcli.metrics.pixels import Confusion, require_classes
from unetcli.metrics.probabilities import ProbabilitySums
from unetcli.metrics.sums import MOST_UNITS
from unetcli.metrics.voi import VoiSums

ORIGIN = MappingProxyType({"y": 0, "x": 0})


def count_block(plan: EvaluationPlan, pair: Pair, number: int) -> Counts:
    """Counts of one block.

    Raises
    ------
    UnetcliError
        The prediction holds no probabilities, or no labels; a class it does not have is in the truth.
    """
    box = plan.box(number)
    piece = pair.read(box)
    planes = zip(box.planes(), piece.planes(), strict=True)
    return Counts.total(count_section(plan, pair, plane, part) for plane, part in planes)


def count_section(plan: EvaluationPlan, pair: Pair, plane: Box, piece: Piece) -> Counts:
    """Counts of one section, or of the part of it that lies in a block; arrays (c, y, x) and (y, x)."""
    settings, section, values = plan.settings, plan.section_number(plane.start), piece.stored
    if settings.kind == PROBABILITY:
        values = probabilities(values, pair.prediction.path, dict(zip(plan.axes, plane.start, strict=True)))
    parts = []
    if "pixels" in settings.metrics:
        parts.append(count_pixels(plan, pair, section, values, piece))
    if "em" in settings.metrics:
        counts = section_counts(values[0], piece.reference != 0, piece.judged)
        parts.append(Counts(em={section: counts}))
    if settings.has_objects:
        parts.append(count_objects(plan, pair, section, labels_of(values, settings.threshold), piece))
        if settings.kind == PROBABILITY and "pixels" not in settings.metrics:
            parts.append(Counts(confusions={section: confusion_of(values, piece, settings.threshold)}))
    if settings.kind == PROBABILITY:
        parts.append(Counts(highest=float(values.max(initial=0))))
    return Counts.total(parts)


def count_pixels(plan: EvaluationPlan, pair: Pair, section: int, values: NDArray[Any], piece: Piece) -> Counts:
    """Confusion at the threshold, and how often each probability is right."""
    reference = judged_of(piece.reference, piece.judged)
    if plan.settings.kind == CLASSES:
        return Counts(tables={section: table_of(pair, reference, judged_of(values[0], piece.judged))})
    chosen = judged_of(values, piece.judged)
    if len(values) > 1:
        with naming(pair.truth.path):
            require_classes(reference, len(values))
    confusion = confusion_of(values, piece, plan.settings.threshold)
    if plan.settings.kind != PROBABILITY:
        return Counts(confusions={section: confusion})
    sums = ProbabilitySums.of(chosen, reference)
    return Counts(confusions={section: confusion}, histograms={section: sums.in_grey_values()}, probabilities=sums)


def confusion_of(values: NDArray[Any], piece: Piece, threshold: float) -> Confusion:
    """True against predicted class: foreground against the rest, or the likeliest of several."""
    chosen, reference = judged_of(values, piece.judged), judged_of(piece.reference, piece.judged)
    if len(values) > 1:
        return Confusion.of(reference, chosen.argmax(axis=0), len(values))
    found = above(chosen[0], threshold) if values.dtype.kind == "f" else chosen[0] != 0
    return Confusion.of((reference != 0).astype(np.int8), found.astype(np.int8), 2)


def count_objects(plan: EvaluationPlan, pair: Pair, section: int, labels: NDArray[Any], piece: Piece) -> Counts:
    """The table of one section, or what follows from it where it is all there is of its unit."""
    reference = reference_of(piece.reference, pieces=plan.settings.pieces)
    table = table_of(pair, judged_of(reference, piece.judged), judged_of(labels, piece.judged))
    if not plan.settings.three_d:
        return judge_unit(table, section, plan) if plan.sees_sections else Counts(tables={section: table})
    counts = Counts(tables={plan.unit_of(section): table})
    if not plan.sees_sections:
        return counts
    alone = Counts(cut_cells={section: CellSums.of(table)}, cut_voi={section: VoiSums.of(table)})
    return Counts.total([counts, alone])


def table_of(pair: Pair, reference: NDArray[Any], labels: NDArray[Any]) -> Contingency:
    """Pixels of each pair of labels."""
    with naming(f"{pair.prediction.path} against {pair.truth.path}"):
        return Contingency.of(reference, labels)


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Within, errors of values say where they are."""
    try:
        yield
    except UnetcliError as error:
        raise UnetcliError(f"{place}: {error}") from error


def judge_unit(table: Contingency, unit: int, plan: EvaluationPlan) -> Counts:
    """What the whole table of a unit adds."""
    return judge(table, unit, plan.settings.metrics, by_object=plan.by_object)


def judge(table: Contingency, unit: int, metrics: Collection[str], *, by_object: bool) -> Counts:
    """The same, by what is asked for."""
    counts = Counts()
    if "cells" in metrics:
        counts.cells[unit] = CellSums.of(table)
    if by_object:
        counts.objects[unit] = CellSums.of_objects(table, most=MOST_UNITS)
    if "voi" in metrics:
        counts.voi[unit] = VoiSums.of(table)
    return counts


def probabilities(stored: NDArray[Any], path: str, start: Mapping[str, int] = ORIGIN) -> NDArray[np.float32]:
    """Stored values (.., y, x) as probabilities: uint8 / 255, booleans as 0 and 1, floats as they are.

    ``start`` says where the plane begins, for people.
    """
    if stored.dtype == np.uint8:
        return stored.astype(np.float32) / np.float32(255)
    if stored.dtype.kind not in "bf":
        raise UnetcliError(f"{path}: {stored.dtype}; expected probabilities as uint8 (value / 255), float or boolean")
    values = stored.astype(np.float32)
    if (missing := np.argwhere(np.isnan(values))).size:
        inside = dict(zip("yx", missing[0, -2:].tolist(), strict=True))
        place = ", ".join(f"{axis} {first + inside.get(axis, 0)}" for axis, first in start.items())
        raise UnetcliError(f"{path}: NaN at {place}; expected probabilities 0 to 1 everywhere")
    if not ((values >= 0) & (values <= 1)).all():
        raise UnetcliError(f"{path}: values from {values.min()} to {values.max()}; expected probabilities 0 to 1")
    return values


def labels_of(values: NDArray[Any], threshold: float) -> NDArray[Any]:
    """Objects of a section, (y, x): the labels themselves, or 4-connected components above a threshold."""
    return components(above(values[0], threshold)) if values.dtype.kind == "f" else values[0]


def reference_of(reference: NDArray[Any], *, pieces: bool) -> NDArray[Any]:
    """True objects of a section, (y, x): the truth itself, or the 4-connected pieces of a mask."""
    return components(reference != 0) if pieces else reference


def judged_of(values: NDArray[Any], judged: NDArray[np.bool_] | None) -> NDArray[Any]:
    """The values that count, by the last two axes: (.., pixels)."""
    return values.reshape(*values.shape[:-2], -1) if judged is None else values[..., judged]
