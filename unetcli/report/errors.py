"""Where a section is wrong: places to mark in its picture, the gravest first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unetcli.core.arrays import distinct
from unetcli.evaluate.result import SectionImages
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
"""Pixels of one error lie within so many of one another."""
LEAST_PATCH = 12
"""Pixels of the smallest patch that is marked."""
FEW_LABELS = 2**22
"""A box for each number up to this is affordable, whether it occurs or not."""
Places = dict[int, tuple[float, float, float]]
"""By label: y and x of the middle of its bounding box, and half its longer side."""


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


def splits_and_merges(images: SectionImages, level: float) -> list[Mark]:
    """Splits and merges of the warping error at a threshold, pixels that lie together being one."""
    assert images.probability is not None
    interior = images.reference != 0
    found = errors_at(images.probability[0], interior, level, images.judged)
    marks = []
    for kind, name in ((ErrorKind.SPLIT, SPLIT), (ErrorKind.MERGE, MERGE)):
        pixels = np.zeros(interior.shape, bool)
        pixels[tuple(found.of(kind).T)] = True
        marks += list(together(pixels, name))
    return gravest(marks)


def together(pixels: NDArray[np.bool_], kind: str) -> Iterator[Mark]:
    """A mark for each group of pixels."""
    reach = ndimage.binary_dilation(pixels, np.ones((3, 3), bool), iterations=NEAR) if pixels.any() else pixels
    groups, count = ndimage.label(reach, np.ones((3, 3), int))
    groups[~pixels] = 0
    sizes = np.bincount(groups.ravel(), minlength=count + 1)
    for label, (y, x, radius) in places_of(groups).items():
        size = int(sizes[label])
        yield Mark(kind, y, x, radius, size, f"{size} px of membrane {'too much' if kind == SPLIT else 'missing'}")


def wrong_patches(wrong: NDArray[np.bool_]) -> list[Mark]:
    """The connected patches of wrong pixels that are worth looking at."""
    groups, count = ndimage.label(wrong, np.ones((3, 3), int))
    sizes = np.bincount(groups.ravel(), minlength=count + 1)
    large = sizes >= LEAST_PATCH
    large[0] = False
    places = places_of(np.where(large[groups], groups, 0))
    return gravest([Mark(WRONG, *at, int(sizes[n]), f"{sizes[n]} wrong pixels") for n, at in places.items()])


def object_errors(objects: tuple[ReferenceObjects, ResultObjects], places: tuple[Places, Places]) -> list[Mark]:
    """What went wrong with objects: of the reference and of the result."""
    reference, result = objects
    return gravest([*_of_reference(reference, places[0]), *_of_result(reference, result, places[1])])


def fates(reference: ReferenceObjects) -> list[str]:
    """What became of each reference object: found, or one of our kinds; merged goes before split."""
    conditions = [reference.shared_with > 0, reference.pieces > 1, reference.result == 0]
    found: list[str] = np.select(conditions, [MERGE, SPLIT, MISSED], "found").tolist()
    return found


def _of_reference(reference: ReferenceObjects, places: Places) -> Iterator[Mark]:
    for number, label in enumerate(reference.labels.tolist()):
        pieces, size = int(reference.pieces[number]), int(reference.sizes[number])
        if pieces > 1:
            yield Mark(SPLIT, *places[label], size, f"true cell {label} lies in {pieces} pieces")
        elif not reference.result[number]:
            yield Mark(MISSED, *places[label], size, f"true cell {label}, {size} px")


def _of_result(reference: ReferenceObjects, result: ResultObjects, places: Places) -> Iterator[Mark]:
    for number, label in enumerate(result.labels.tolist()):
        size, covers = int(result.sizes[number]), int(result.covers[number])
        if covers > 1:
            joined = reference.labels[reference.result == label].tolist()
            named = ", ".join(map(str, joined[:4])) + (" .." if len(joined) > 4 else "")
            yield Mark(MERGE, *places[label], size, f"found cell {label} joins true cells {named}")
        elif not covers and not result.inside[number]:
            yield Mark(EXTRA, *places[label], size, f"found cell {label}, {size} px")


def gravest(marks: list[Mark]) -> list[Mark]:
    """The largest first."""
    return sorted(marks, key=lambda mark: -mark.size)


def places_of(labels: NDArray[Any]) -> Places:
    """Where each label that is not 0 lies."""
    if labels.max(initial=0) <= FEW_LABELS:
        boxes = ndimage.find_objects(labels.astype(np.int32))
        return {label: _middle(box) for label, box in enumerate(boxes, start=1) if box is not None}
    names, compact = distinct(labels)
    boxes = ndimage.find_objects(compact.astype(np.int32) + 1)
    return {int(name): _middle(box) for name, box in zip(names, boxes, strict=True) if name}


def _middle(box: tuple[slice, ...]) -> tuple[float, float, float]:
    y, x = ((side.start + side.stop - 1) / 2 for side in box)
    return y, x, max(side.stop - side.start for side in box) / 2
