"""One section that was read again: its pictures, its errors, the fate of its objects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.evaluate.request import CLASSES
from unetcli.evaluate.result import Evaluation, Section, SectionImages
from unetcli.metrics.contingency import ReferenceObjects, ResultObjects
from unetcli.report import layers
from unetcli.report.errors import EXTRA, Mark, Places, fates, object_errors, places_of, splits_and_merges, wrong_patches

MOST_MARKS = 150
"""Of one section; how many errors there are is told."""
CLOSE_UPS, WINDOW = 3, 512
"""Windows at full resolution of a section that is thinned, and their side in pixels."""
IMAGES = [field.name for field in fields(SectionImages)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectRow:
    """One true object, or one found object without counterpart."""

    section: Section
    label: int
    fate: str
    overlap: float
    size: int
    result: int
    """The found object in its place; 0: none."""
    place: tuple[float, float, float]
    """y, x and radius, in pixels of the section."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class View:
    """One section that was read again."""

    evaluation: Evaluation
    section: Section
    images: SectionImages
    objects: tuple[ReferenceObjects, ResultObjects] | None
    places: tuple[Places, Places]
    """Of the objects of reference and result."""

    @classmethod
    def of(cls, evaluation: Evaluation, section: Section) -> View:
        """Reads the section."""
        images = evaluation.images(section)
        if images.true_objects is None or images.labels is None:
            return cls(evaluation=evaluation, section=section, images=images, objects=None, places=({}, {}))
        seen = [a if images.judged is None else a * images.judged for a in (images.true_objects, images.labels)]
        places = places_of(seen[0]), places_of(seen[1])
        return cls(evaluation=evaluation, section=section, images=images, objects=images.objects(), places=places)

    def pictures(self, image: NDArray[Any] | None) -> list[dict[str, Any]]:
        """The section, and where it has to be thinned the gravest errors at full resolution too."""
        marks, shape = self.marks(), self.images.reference.shape
        factor = layers.factor_of(shape)
        found = [self._picture(image, marks, factor)]
        return found if factor == 1 else found + [self._close_up(image, marks, at) for at in corners(marks, shape)]

    def marks(self) -> list[Mark]:
        """Splits and merges of the EM challenge, else what went wrong with objects, else wrong patches."""
        if "em" in self.evaluation.metrics and self.images.probability is not None:
            return splits_and_merges(self.images, self.em_level)
        if self.objects is not None:
            return object_errors(self.objects, self.places)
        wrong = self._classes() != self._true_classes()
        return wrong_patches(wrong if self.images.judged is None else wrong & self.images.judged)

    def rows(self) -> Iterator[ObjectRow]:
        """All objects of the section, for the table; none of a frame that is marked, but not drawn."""
        counted = self.section.scores.get("cells", {})
        if self.objects is None or counted.get("reference_objects") == counted.get("result_objects") == 0:
            return
        reference, result = self.objects
        for number, fate in enumerate(fates(reference)):
            label = int(reference.labels[number])
            yield self._row(label, fate, reference, number, int(reference.result[number]))
        for number in np.flatnonzero((result.covers == 0) & ~result.inside).tolist():
            label = int(result.labels[number])
            place, size = self.places[1][label], int(result.sizes[number])
            yield ObjectRow(
                section=self.section, label=0, fate=EXTRA, overlap=0.0, size=size, result=label, place=place
            )

    @property
    def em_level(self) -> float:
        """The threshold at which the warping error is least."""
        return self.evaluation.scores["em"].get("warping_error_threshold") or 0.5

    @property
    def threshold(self) -> float:
        """Foreground is what is above: where errors are marked, so that picture and marks agree."""
        if "em" in self.evaluation.metrics:
            return self.em_level
        return self.evaluation.thresholds.get("objects", self.evaluation.thresholds.get("foreground", 0.5))

    def _picture(
        self, image: NDArray[Any] | None, marks: list[Mark], factor: int, corner: tuple[int, int] | None = None
    ) -> dict[str, Any]:
        """What the viewer takes: images as data URLs, marks, sizes in pixels of the picture."""
        height, width = self.images.reference.shape
        return {
            "section": self.section.number,
            "name": self.section.name + (f", near y {corner[0]}, x {corner[1]}" if corner else ""),
            "corner": corner,
            "width": -(-width // factor),
            "height": -(-height // factor),
            "factor": factor,
            "image": None if image is None else layers.shown(image, factor),
            **self._prediction(factor),
            **self._truth(factor),
            "judged": None if self.images.judged is None else layers.mask(self.images.judged, factor),
            "outputs": self._class_count,
            "membrane": "em" in self.evaluation.metrics,
            "marks": [mark.scaled(factor) for mark in marks[:MOST_MARKS]],
            "found": dict(Counter(mark.kind for mark in marks)),
        }

    def _close_up(self, image: NDArray[Any] | None, marks: list[Mark], corner: tuple[int, int]) -> dict[str, Any]:
        """The window at a corner, with the marks that lie in it."""
        whole = {name: getattr(self.images, name) for name in IMAGES}
        cut: dict[str, Any] = {name: None if a is None else _cut(a, corner) for name, a in whole.items()}
        moved = [replace(mark, y=mark.y - corner[0], x=mark.x - corner[1]) for mark in marks]
        inside = [mark for mark in moved if 0 <= mark.y < WINDOW and 0 <= mark.x < WINDOW]
        below = None if image is None else _cut(image, corner)
        return replace(self, images=SectionImages(**cut))._picture(below, inside, 1, corner)

    def _row(self, label: int, fate: str, reference: ReferenceObjects, number: int, result: int) -> ObjectRow:
        overlap, size = float(reference.jaccard[number]), int(reference.sizes[number])
        place = self.places[0][label]
        return ObjectRow(
            section=self.section, label=label, fate=fate, overlap=overlap, size=size, result=result, place=place
        )

    def _prediction(self, factor: int) -> dict[str, Any]:
        images = self.images
        found: dict[str, Any] = {"probability": None, "labels": None, "classes": None, "threshold": self.threshold}
        if images.probability is not None and len(images.probability) == 1:
            found["probability"] = layers.grey(images.probability[0], factor)
        if self.objects is not None and images.labels is not None:
            found["labels"] = layers.labels(images.labels, factor)
        elif found["probability"] is None:
            found["classes"] = layers.labels(self._classes(), factor)
        return found

    def _truth(self, factor: int) -> dict[str, Any]:
        reference, objects = self.images.reference, self.images.true_objects
        if objects is not None:
            return {"truth": layers.labels(objects, factor), "truth_kind": "labels"}
        if self._has_classes:
            return {"truth": layers.labels(reference, factor), "truth_kind": "classes"}
        return {"truth": layers.mask(reference != 0, factor), "truth_kind": "mask"}

    @property
    def _has_classes(self) -> bool:
        """Whether values are class numbers, and not foreground or background."""
        probability = self.images.probability
        return self.evaluation.kind == CLASSES or (probability is not None and len(probability) > 1)

    @property
    def _class_count(self) -> int:
        return len(self.evaluation.scores.get("pixels", {}).get("confusion", ())) or 2

    def _classes(self) -> NDArray[Any]:
        """What is predicted, as class numbers."""
        probability, labels = self.images.probability, self.images.labels
        if probability is None:
            assert labels is not None
            return labels if self._has_classes else labels != 0
        found: NDArray[Any] = probability.argmax(0) if len(probability) > 1 else probability[0] > self.threshold
        return found

    def _true_classes(self) -> NDArray[Any]:
        return self.images.reference if self._has_classes else self.images.reference != 0


def corners(marks: list[Mark], shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Where windows around the gravest errors begin, which do not overlap and stay inside.

    >>> corners([Mark("split", y, 600, 3, 9, "") for y in (40, 60, 1990)], (2000, 2000))
    [(0, 344), (1488, 344)]
    """
    found: list[tuple[int, int]] = []
    for mark in marks:
        y, x = (int(min(max(at - WINDOW // 2, 0), n - WINDOW)) for at, n in zip((mark.y, mark.x), shape, strict=True))
        y, x = max(y, 0), max(x, 0)
        if len(found) < CLOSE_UPS and all(abs(y - v) >= WINDOW or abs(x - u) >= WINDOW for v, u in found):
            found.append((y, x))
    return found


def _cut(values: NDArray[Any], corner: tuple[int, int]) -> NDArray[Any]:
    """The window of the last two axes."""
    y, x = corner
    return values[..., y : y + WINDOW, x : x + WINDOW]
