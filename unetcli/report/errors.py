"""Errors of a section: places to mark in its picture, the largest first, and what became of each object."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unetcli.core.arrays import distinct
from unetcli.evaluate.result import Section, SectionImages
from unetcli.metrics.contingency import ReferenceObjects, ResultObjects
from unetcli.metrics.em_counts import errors_at
from unetcli.metrics.warping import ErrorKind

SPLIT, MERGE, MISSED, EXTRA, WRONG = "split", "merge", "missed", "extra", "wrong"
NAMES = {
    SPLIT: ("S", "split: one cell cut into several"),
    MERGE: ("M", "merge: several cells joined into one"),
    MISSED: ("-", "missed: a true cell that was not found"),
    EXTRA: ("+", "extra: a found cell that the truth does not have"),
    WRONG: ("!", "wrong: a patch of wrong pixels"),
}
"""By kind of error: the letter of its sign, and its name."""
NEAR = 2
"""Dilations by which pixels of a split or merge grow together to one mark."""
LEAST_PATCH = 12
"""Pixels of the smallest patch of wrong pixels that is marked."""
SQUARE = np.ones((3, 3), bool)
"""Neighbourhood of a pixel: corners count."""
Places = dict[int, tuple[float, float, float]]
"""By label: y and x of the middle of its bounding box, and half its longer side, in pixels."""


@dataclass(frozen=True, slots=True)
class Mark:
    """An error and where it is; y, x and radius in pixels of the section."""

    kind: str
    y: float
    x: float
    radius: float
    size: int
    """Pixels that it is about."""
    text: str

    def scaled(self, factor: int) -> dict[str, Any]:
        """For a picture that is thinner by ``factor``."""
        shrunk = {name: round(getattr(self, name) / factor, 1) for name in ("y", "x", "radius")}
        return asdict(self) | shrunk


@dataclass(frozen=True, slots=True)
class ObjectRow:
    """One true object, or one found object without a counterpart."""

    section: Section
    label: int
    """The true object; 0: none."""
    fate: str
    overlap: float
    size: int
    result: int
    """The found object in its place; 0: none."""
    place: tuple[float, float, float]
    """y, x and radius, in pixels of the section."""


def splits_and_merges(images: SectionImages, level: float) -> list[Mark]:
    """Splits and merges of the warping error at a threshold; pixels that lie together are one mark."""
    assert images.probability is not None
    interior = images.reference != 0
    found = errors_at(images.probability[0], interior, level, images.judged)
    marks = []
    for kind, name, what in ((ErrorKind.SPLIT, SPLIT, "too much"), (ErrorKind.MERGE, MERGE, "missing")):
        pixels = np.zeros(interior.shape, bool)
        pixels[tuple(found.of(kind).T)] = True
        reach = ndimage.binary_dilation(pixels, SQUARE, iterations=NEAR)
        marks += [Mark(name, *at, size, f"{size} px of membrane {what}") for at, size in _patches(pixels, reach)]
    return largest_first(marks)


def wrong_patches(wrong: NDArray[np.bool_]) -> list[Mark]:
    """The connected patches of wrong pixels that are worth looking at."""
    found = [(at, size) for at, size in _patches(wrong, wrong) if size >= LEAST_PATCH]
    return largest_first([Mark(WRONG, *at, size, f"{size} wrong pixels") for at, size in found])


def _patches(pixels: NDArray[np.bool_], reach: NDArray[np.bool_]) -> Iterator[tuple[tuple[float, float, float], int]]:
    """Place and number of pixels of each group that is connected within ``reach``."""
    groups, count = ndimage.label(reach, SQUARE)
    groups[~pixels] = 0
    sizes = np.bincount(groups.ravel(), minlength=count + 1)
    for label, place in places_of(groups).items():
        yield place, int(sizes[label])


def object_errors(objects: tuple[ReferenceObjects, ResultObjects], places: tuple[Places, Places]) -> list[Mark]:
    """What went wrong with objects: of the reference and of the result."""
    reference, result = objects
    marks = []
    for label, pieces, found, size in zip(*_lists(reference, "labels", "pieces", "result", "sizes"), strict=True):
        if pieces > 1:
            marks.append(Mark(SPLIT, *places[0][label], size, f"true cell {label} lies in {pieces} pieces"))
        elif not found:
            marks.append(Mark(MISSED, *places[0][label], size, f"true cell {label}, {size} px"))
    for label, covers, inside, size in zip(*_lists(result, "labels", "covers", "inside", "sizes"), strict=True):
        if covers > 1:
            joined = reference.labels[reference.result == label].tolist()
            named = ", ".join(map(str, joined[:4])) + (" .." if len(joined) > 4 else "")
            marks.append(Mark(MERGE, *places[1][label], size, f"found cell {label} joins true cells {named}"))
        elif not covers and not inside:
            marks.append(Mark(EXTRA, *places[1][label], size, f"found cell {label}, {size} px"))
    return largest_first(marks)


def fates(reference: ReferenceObjects) -> list[str]:
    """What became of each reference object: found, merge, split or missed; merge goes before split."""
    conditions = [reference.shared_with > 0, reference.pieces > 1, reference.result == 0]
    found: list[str] = np.select(conditions, [MERGE, SPLIT, MISSED], "found").tolist()
    return found


def object_rows(
    section: Section, objects: tuple[ReferenceObjects, ResultObjects], places: tuple[Places, Places]
) -> Iterator[ObjectRow]:
    """Every true object of a section, and every found one without a counterpart, for the table."""
    reference, result = objects
    columns = _lists(reference, "labels", "jaccard", "sizes", "result")
    for fate, label, overlap, size, found in zip(fates(reference), *columns, strict=True):
        yield ObjectRow(section, label, fate, overlap, size, found, places[0][label])
    for label, covers, inside, size in zip(*_lists(result, "labels", "covers", "inside", "sizes"), strict=True):
        if not covers and not inside:
            yield ObjectRow(section, 0, EXTRA, 0.0, size, label, places[1][label])


def _lists(objects: ReferenceObjects | ResultObjects, *names: str) -> list[list[Any]]:
    """Columns of a table of objects as plain values."""
    return [getattr(objects, name).tolist() for name in names]


def largest_first(marks: list[Mark]) -> list[Mark]:
    return sorted(marks, key=lambda mark: -mark.size)


def places_of(labels: NDArray[Any]) -> Places:
    """The place of each label (y, x) that is not 0."""
    names, compact = distinct(labels)
    boxes = ndimage.find_objects(compact.astype(np.int32) + 1)
    return {int(name): _middle(box) for name, box in zip(names, boxes, strict=True) if name}


def _middle(box: tuple[slice, ...]) -> tuple[float, float, float]:
    y, x = ((side.start + side.stop - 1) / 2 for side in box)
    return y, x, max(side.stop - side.start for side in box) / 2
