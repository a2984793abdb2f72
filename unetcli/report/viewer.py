"""Pictures of single sections for the viewer of the report, and their objects, the worst first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.core.files import is_remote, parse_place
from unetcli.core.geometry import Box
from unetcli.core.records import parse_json, read_text
from unetcli.engine.runfolder import RunFolder
from unetcli.evaluate.request import CLASSES
from unetcli.evaluate.result import Evaluation, Section, SectionImages
from unetcli.metrics.contingency import ReferenceObjects, ResultObjects
from unetcli.report import measure_texts as errors
from unetcli.report.measure_texts import Mark, ObjectRow, Places, ranked_by
from unetcli.viz import png
from unetcli.viz.png import means, samples
from unetcli.volumes.opening import open_volume
from unetcli.volumes.volume import Volume, describe

MOST_PICTURES = 12
MOST_BYTES = 24 * 2**20
"""Largest size of all pictures of a page in bytes; the first picture is always included."""
MOST_VOXELS = 2**28
"""Largest number of voxels to read for the table of objects; beyond it, only the sections of the viewer are read."""
MOST_PIXELS = 1024
"""Longest side of a picture; larger sections are downsampled by a whole factor."""
MOST_MARKS = 150
"""Largest number of marks in one section; the number of all errors is shown beside them."""
CLOSE_UPS, WINDOW = 3, 512
"""Number of close-ups at full resolution of a downsampled section, and their side in pixels."""

SourceImage = Callable[[Section], NDArray[Any] | None]
"""Returns the image (c, y, x) of a section, of any type, or None if there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """Pictures and objects of single sections."""

    pictures: list[dict[str, Any]]
    """Pictures for the viewer, the worst section first."""
    objects: list[ObjectRow]
    """Objects of the sections, the worst first."""
    sections_read: int
    """Number of sections that the objects come from."""

    @property
    def whole(self) -> list[dict[str, Any]]:
        """Pictures of whole sections, without the close-ups."""
        return [picture for picture in self.pictures if picture["corner"] is None]


def gallery(
    evaluation: Evaluation, image: SourceImage, report: Callable[[int, int], None] = lambda done, total: None
) -> Gallery:
    """Read the worst sections for the viewer, and the objects of all sections within ``MOST_VOXELS``."""
    order = ranked(evaluation)
    pixels = int(np.prod(evaluation.region.shape[-2:]))
    every = bool({"cells", "voi"} & set(evaluation.metrics)) and pixels * len(order) <= MOST_VOXELS
    chosen = order if every else order[:MOST_PICTURES]
    pictures: list[dict[str, Any]] = []
    rows: list[ObjectRow] = []
    used = 0
    for number, section in enumerate(chosen):
        loaded = LoadedSection.read(evaluation, section)
        rows += loaded.rows()
        for picture in loaded.pictures(image(section)) if number < MOST_PICTURES and used <= MOST_BYTES else ():
            used += sum(len(value) for value in picture.values() if isinstance(value, str))
            if used <= MOST_BYTES or not pictures:
                pictures.append(picture)
        report(number + 1, len(chosen))
    rows.sort(key=lambda row: (row.outcome == errors.EXTRA, row.overlap, -row.size))  # extra ones have no overlap
    return Gallery(pictures=pictures, objects=rows, sections_read=len(chosen))


def ranked(evaluation: Evaluation) -> list[Section]:
    """Sections, the worst first and those without a score last; ties keep their order."""
    measure = ranked_by(evaluation)
    if measure is None:
        return list(evaluation.sections)

    def badness(section: Section) -> float:
        value = measure.value(section.scores)
        return -np.inf if value is None else value if measure.lower else -value

    return sorted(evaluation.sections, key=badness, reverse=True)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedSection:
    """One section of an evaluation, with its images and objects in memory."""

    evaluation: Evaluation
    section: Section
    images: SectionImages
    objects: tuple[ReferenceObjects, ResultObjects] | None
    places: tuple[Places, Places]
    """Places of the objects of reference and result."""

    @classmethod
    def read(cls, evaluation: Evaluation, section: Section) -> LoadedSection:
        """Read a section and its objects, if it has any."""
        images = evaluation.images(section)
        if images.true_objects is None or images.labels is None:
            return cls(evaluation=evaluation, section=section, images=images, objects=None, places=({}, {}))
        seen = [a if images.valid is None else a * images.valid for a in (images.true_objects, images.labels)]
        places = errors.places_of(seen[0]), errors.places_of(seen[1])
        return cls(evaluation=evaluation, section=section, images=images, objects=images.objects(), places=places)

    def pictures(self, image: NDArray[Any] | None) -> Iterator[dict[str, Any]]:
        """Picture of the section and, if it has to be downsampled, close-ups of the largest errors."""
        marks, shape = self.marks(), self.images.reference.shape
        factor = max(1, -(-max(shape) // MOST_PIXELS))
        yield self._picture(image, marks, factor)
        for corner in corners(marks, shape) if factor > 1 else ():
            yield self._close_up(image, marks, corner)

    def marks(self) -> list[Mark]:
        """Errors of the section: splits and merges of membranes, else of objects, else misclassified patches."""
        if "em" in self.evaluation.metrics and self.images.probability is not None:
            return errors.splits_and_merges(self.images, self.threshold)
        if self.objects is not None:
            return errors.object_errors(self.objects, self.places)
        wrong = self._classes() != self._true_classes()
        return errors.wrong_patches(wrong if self.images.valid is None else wrong & self.images.valid)

    def rows(self) -> list[ObjectRow]:
        """Rows of all objects of the section; none for a frame whose cells are marked but not outlined."""
        counted = self.section.scores.get("cells", {})
        if self.objects is None or counted.get("reference_objects") == counted.get("result_objects") == 0:
            return []
        return list(errors.object_rows(self.section, self.objects, self.places))

    @property
    def threshold(self) -> float:
        """Threshold of the foreground; for em, the one with the lowest warping error, at which errors are marked."""
        if "em" in self.evaluation.metrics:
            return self.evaluation.scores["em"].get("warping_error_threshold") or 0.5
        return self.evaluation.thresholds.get("objects", self.evaluation.thresholds.get("foreground", 0.5))

    def _picture(
        self, image: NDArray[Any] | None, marks: list[Mark], factor: int, corner: tuple[int, int] | None = None
    ) -> dict[str, Any]:
        """Picture for the viewer: images as data URLs, marks, and sizes in pixels of the picture."""
        height, width = self.images.reference.shape
        judged, confusion = self.images.valid, self.evaluation.scores.get("pixels", {}).get("confusion", ())
        return {
            "section": self.section.number,
            "name": self.section.name + (f", near y {corner[0]}, x {corner[1]}" if corner else ""),
            "corner": corner,
            "width": -(-width // factor),
            "height": -(-height // factor),
            "factor": factor,
            "image": None if image is None else png.grey_url(means(image, factor)),
            **self._prediction(factor),
            **self._truth(factor),
            "valid": None if judged is None else png.share_url(samples(judged, factor)),
            "outputs": len(confusion) or 2,
            "membrane": "em" in self.evaluation.metrics,
            "marks": [mark.scaled(factor) for mark in marks[:MOST_MARKS]],
            "found": dict(Counter(mark.kind for mark in marks)),
        }

    def _close_up(self, image: NDArray[Any] | None, marks: list[Mark], corner: tuple[int, int]) -> dict[str, Any]:
        """Picture of the window at ``corner`` (y, x), with the marks inside."""
        y, x = corner

        def cut(values: NDArray[Any] | None) -> Any:
            return None if values is None else values[..., y : y + WINDOW, x : x + WINDOW]

        images = SectionImages(**{field.name: cut(getattr(self.images, field.name)) for field in fields(SectionImages)})
        moved = [replace(mark, y=mark.y - y, x=mark.x - x) for mark in marks]
        inside = [mark for mark in moved if 0 <= mark.y < WINDOW and 0 <= mark.x < WINDOW]
        return replace(self, images=images)._picture(cut(image), inside, 1, corner)

    def _prediction(self, factor: int) -> dict[str, Any]:
        images = self.images
        found: dict[str, Any] = {"probability": None, "labels": None, "classes": None, "threshold": self.threshold}
        if images.probability is not None and len(images.probability) == 1:
            found["probability"] = png.share_url(means(images.probability[0], factor))
        if self.objects is not None and images.labels is not None:
            found["labels"] = png.labels_url(samples(images.labels, factor))
        elif found["probability"] is None:
            found["classes"] = png.labels_url(samples(self._classes(), factor))
        return found

    def _truth(self, factor: int) -> dict[str, Any]:
        objects = self.images.true_objects
        if objects is None and not self._has_classes:
            return {"truth": png.share_url(samples(self._true_classes(), factor)), "truth_kind": "mask"}
        kind, values = ("classes", self.images.reference) if objects is None else ("labels", objects)
        return {"truth": png.labels_url(samples(values, factor)), "truth_kind": kind}

    @property
    def _has_classes(self) -> bool:
        """Whether values are class numbers rather than foreground and background."""
        probability = self.images.probability
        return self.evaluation.kind == CLASSES or (probability is not None and len(probability) > 1)

    def _classes(self) -> NDArray[Any]:
        """Predicted class of each pixel, (y, x)."""
        probability, labels = self.images.probability, self.images.labels
        if probability is None:
            assert labels is not None
            return labels if self._has_classes else labels != 0
        found: NDArray[Any] = probability.argmax(0) if len(probability) > 1 else probability[0] > self.threshold
        return found

    def _true_classes(self) -> NDArray[Any]:
        return self.images.reference if self._has_classes else self.images.reference != 0


def corners(marks: list[Mark], shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Corners (y, x) of the windows around the largest errors; windows do not overlap and stay inside ``shape``.

    >>> corners([Mark("split", y, 600, 3, 9, "") for y in (40, 60, 1990)], (2000, 2000))
    [(0, 344), (1488, 344)]
    """
    found: list[tuple[int, int]] = []
    for mark in marks:
        middle = zip((mark.y, mark.x), shape, strict=True)
        y, x = (int(max(0, min(max(at - WINDOW // 2, 0), n - WINDOW))) for at, n in middle)
        if len(found) < CLOSE_UPS and all(abs(y - v) >= WINDOW or abs(x - u) >= WINDOW for v, u in found):
            found.append((y, x))
    return found


def source_image(evaluation: Evaluation, named: str | None) -> SourceImage:
    """Function that reads the image of a section.

    Parameters
    ----------
    named
        Volume to read from. Default: the volume in the plan of the prediction, if it can still be read.

    Raises
    ------
    UnetcliError
        The named volume cannot be opened, or does not cover the evaluated region.
    """
    if named is not None:
        return sections_of(evaluation, open_volume(named, evaluation.request.level))
    known = predicted_volume(evaluation.request.prediction)
    try:
        return sections_of(evaluation, open_volume(known, evaluation.request.level)) if known else no_image
    except UnetcliError:  # the volume was moved or replaced, and the user did not name it
        return no_image


def no_image(section: Section) -> None:
    """Source of images if there is none."""


def sections_of(evaluation: Evaluation, volume: Volume) -> SourceImage:
    """Function that reads sections of a volume, which has to cover the evaluated region.

    For a frame that is a volume, it reads the middle section.
    """
    volume = volume.channels_as_sections() if len(volume.axes) < len(evaluation.axes) else volume
    fitting = volume if len(volume.axes) == len(evaluation.axes) else volume.without_single_axes()
    lead = fitting.extent[:-2]

    def box_of(section: Section) -> Box:
        place = section.place[: len(lead)]
        place += tuple(n // 2 for n in lead[len(place) :])
        start, stop = evaluation.region.start[-2:], evaluation.region.stop[-2:]
        return Box((*place, *start), (*(first + 1 for first in place), *stop))

    for box in map(box_of, evaluation.sections):
        if box.clipped(fitting.whole()) != box:
            raise UnetcliError(
                f"--image {fitting.path}: covers {describe(fitting.whole(), fitting.axes)}; "
                f"expected an image that covers {describe(box, fitting.axes)}, like the truth"
            )

    def read(section: Section) -> NDArray[Any]:
        voxels = fitting.read(box_of(section))
        return voxels.reshape(voxels.shape[0], *voxels.shape[-2:])

    return read


def predicted_volume(prediction: str) -> str | None:
    """Volume that a prediction was made from, as its run folder records; None if that is gone."""
    if is_remote(parse_place(prediction)):
        return None
    try:
        return str(parse_json(read_text(RunFolder.of(parse_place(prediction)).plan_file))["sources"]["volume"])
    except (OSError, UnetcliError, ValueError, KeyError, TypeError):
        return None
