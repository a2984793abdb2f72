"""The sections that a report shows, read again one by one, with their errors and the fate of their objects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.evaluation.request import CLASSES
from unetcli.evaluation.result import Evaluation, Section, SectionImages
from unetcli.metrics.objects import ReferenceObjects, ResultObjects
from unetcli.report import layers
from unetcli.report.errors import EXTRA, Mark, Places, fates, object_errors, places_of, splits_and_merges, wrong_patches
from unetcli.report.words import ranked_by

MOST_PICTURES = 12
MOST_MARKS = 150
"""Of one section; how many errors there are is told."""
MOST_BYTES = 24 * 2**20
"""Of all pictures of a page; the first is shown whatever it needs."""
MOST_VOXELS = 2**28
"""Of all sections that are read again for the table of objects; beyond, only those that are shown."""

Image = Callable[[Section], NDArray[Any] | None]
"""Grey values (c, y, x) of a section."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """What the pages shows of single sections."""

    pictures: list[dict[str, Any]]
    """As the viewer takes them, the worst first."""
    objects: list[ObjectRow]
    """The worst first."""
    looked: int
    """Sections that the objects are from."""


def ranked(evaluation: Evaluation) -> list[Section]:
    """The sections, the worst first; those without a score, and those alike, in their own order."""
    measure = ranked_by(evaluation)
    if measure is None:
        return list(evaluation.sections)

    def badness(section: Section) -> float:
        value = measure.of(section.scores)
        return -np.inf if value is None else value if measure.lower else -value

    return sorted(evaluation.sections, key=badness, reverse=True)


def gallery(
    evaluation: Evaluation, image: Image, report: Callable[[int, int], None] = lambda done, total: None
) -> Gallery:
    """Pictures of the worst sections, and the objects of all, as far as the limits go."""
    order = ranked(evaluation)
    pixels = int(np.prod(evaluation.region.shape[-2:]))
    every = bool({"cells", "voi"} & set(evaluation.metrics)) and pixels * len(order) <= MOST_VOXELS
    chosen = order if every else order[:MOST_PICTURES]
    pictures: list[dict[str, Any]] = []
    rows: list[ObjectRow] = []
    used = 0
    for number, section in enumerate(chosen):
        images = evaluation.images(section)
        view = View.of(evaluation, section, images)
        rows += list(view.rows())
        if len(pictures) == number < MOST_PICTURES:
            picture = view.picture(image(section))
            used += sum(len(value) for value in picture.values() if isinstance(value, str))
            if used <= MOST_BYTES or not pictures:
                pictures.append(picture)
        report(number + 1, len(chosen))
    rows.sort(key=lambda row: (row.fate == EXTRA, row.overlap, -row.size))  # extra ones have no overlap: last
    return Gallery(pictures=pictures, objects=rows, looked=len(chosen))


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
    def of(cls, evaluation: Evaluation, section: Section, images: SectionImages) -> View:
        if images.true_objects is None or images.labels is None:
            return cls(evaluation=evaluation, section=section, images=images, objects=None, places=({}, {}))
        judged = 1 if images.judged is None else images.judged
        places = places_of(images.true_objects * judged), places_of(images.labels * judged)
        return cls(evaluation=evaluation, section=section, images=images, objects=images.objects(), places=places)

    def picture(self, image: NDArray[Any] | None) -> dict[str, Any]:
        """What the viewer takes: images as data URLs, marks, sizes in pixels of the picture."""
        height, width = self.images.reference.shape
        marks = self.marks()
        factor = layers.factor_of((height, width))
        return {
            "section": self.section.number,
            "name": self.section.name,
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
