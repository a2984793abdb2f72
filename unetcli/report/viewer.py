"""The pictures of a report: sections read again one by one, as the page's viewer takes them, the worst first."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.core.files import is_remote, place_of
from unetcli.core.geometry import Box
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
"""Bytes of all pictures of a page; the first is shown whatever it needs."""
MOST_VOXELS = 2**28
"""Voxels that are read again for the table of objects; beyond, only the sections that are shown."""
MOST_PIXELS = 1024
"""Pixels of a side of a picture; larger sections are thinned by a whole factor."""
MOST_MARKS = 150
"""Marks of one section; the number of all errors is given beside them."""
CLOSE_UPS, WINDOW = 3, 512
"""Windows at full resolution of a section that is thinned, and their side in pixels."""

SourceImage = Callable[[Section], NDArray[Any] | None]
"""Grey values (c, y, x) of a section, of any type; None where there is no image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """The single sections that the page shows."""

    pictures: list[dict[str, Any]]
    """For the viewer, the worst first."""
    objects: list[ObjectRow]
    """The worst first."""
    looked: int
    """Number of sections that the objects are from."""

    @property
    def whole(self) -> list[dict[str, Any]]:
        """The pictures of whole sections, without the close-ups."""
        return [picture for picture in self.pictures if picture["corner"] is None]


def gallery(
    evaluation: Evaluation, image: SourceImage, report: Callable[[int, int], None] = lambda done, total: None
) -> Gallery:
    """Pictures of the worst sections, and the objects of all sections, as far as the limits go."""
    order = ranked(evaluation)
    pixels = int(np.prod(evaluation.region.shape[-2:]))
    every = bool({"cells", "voi"} & set(evaluation.metrics)) and pixels * len(order) <= MOST_VOXELS
    chosen = order if every else order[:MOST_PICTURES]
    pictures: list[dict[str, Any]] = []
    rows: list[ObjectRow] = []
    used = 0
    for number, section in enumerate(chosen):
        view = View.of(evaluation, section)
        rows += view.rows()
        for picture in view.pictures(image(section)) if number < MOST_PICTURES and used <= MOST_BYTES else ():
            used += sum(len(value) for value in picture.values() if isinstance(value, str))
            if used <= MOST_BYTES or not pictures:
                pictures.append(picture)
        report(number + 1, len(chosen))
    rows.sort(key=lambda row: (row.fate == errors.EXTRA, row.overlap, -row.size))  # extra ones have no overlap: last
    return Gallery(pictures=pictures, objects=rows, looked=len(chosen))


def ranked(evaluation: Evaluation) -> list[Section]:
    """The sections, the worst first; those without a score last, and those alike in their own order."""
    measure = ranked_by(evaluation)
    if measure is None:
        return list(evaluation.sections)

    def badness(section: Section) -> float:
        value = measure.value(section.scores)
        return -np.inf if value is None else value if measure.lower else -value

    return sorted(evaluation.sections, key=badness, reverse=True)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class View:
    """One section that was read again."""

    evaluation: Evaluation
    section: Section
    images: SectionImages
    objects: tuple[ReferenceObjects, ResultObjects] | None
    places: tuple[Places, Places]
    """Places of the objects of reference and result."""

    @classmethod
    def of(cls, evaluation: Evaluation, section: Section) -> View:
        """Read a section, and find its objects where there are any."""
        images = evaluation.images(section)
        if images.true_objects is None or images.labels is None:
            return cls(evaluation=evaluation, section=section, images=images, objects=None, places=({}, {}))
        seen = [a if images.valid is None else a * images.valid for a in (images.true_objects, images.labels)]
        places = errors.places_of(seen[0]), errors.places_of(seen[1])
        return cls(evaluation=evaluation, section=section, images=images, objects=images.objects(), places=places)

    def pictures(self, image: NDArray[Any] | None) -> Iterator[dict[str, Any]]:
        """The section, and where it has to be thinned windows around the largest errors at full resolution too."""
        marks, shape = self.marks(), self.images.reference.shape
        factor = max(1, -(-max(shape) // MOST_PIXELS))
        yield self._picture(image, marks, factor)
        for corner in corners(marks, shape) if factor > 1 else ():
            yield self._close_up(image, marks, corner)

    def marks(self) -> list[Mark]:
        """Splits and merges of the EM challenge, else what went wrong with objects, else wrong patches."""
        if "em" in self.evaluation.metrics and self.images.probability is not None:
            return errors.splits_and_merges(self.images, self.threshold)
        if self.objects is not None:
            return errors.object_errors(self.objects, self.places)
        wrong = self._classes() != self._true_classes()
        return errors.wrong_patches(wrong if self.images.valid is None else wrong & self.images.valid)

    def rows(self) -> list[ObjectRow]:
        """All objects of the section; none of a frame that is marked, but not drawn."""
        counted = self.section.scores.get("cells", {})
        if self.objects is None or counted.get("reference_objects") == counted.get("result_objects") == 0:
            return []
        return list(errors.object_rows(self.section, self.objects, self.places))

    @property
    def threshold(self) -> float:
        """Foreground lies above it: for em where the warping error is least, which is where errors are marked."""
        if "em" in self.evaluation.metrics:
            return self.evaluation.scores["em"].get("warping_error_threshold") or 0.5
        return self.evaluation.thresholds.get("objects", self.evaluation.thresholds.get("foreground", 0.5))

    def _picture(
        self, image: NDArray[Any] | None, marks: list[Mark], factor: int, corner: tuple[int, int] | None = None
    ) -> dict[str, Any]:
        """What the viewer takes: images as data URLs, marks, sizes in pixels of the picture."""
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
            "judged": None if judged is None else png.share_url(samples(judged, factor)),
            "outputs": len(confusion) or 2,
            "membrane": "em" in self.evaluation.metrics,
            "marks": [mark.scaled(factor) for mark in marks[:MOST_MARKS]],
            "found": dict(Counter(mark.kind for mark in marks)),
        }

    def _close_up(self, image: NDArray[Any] | None, marks: list[Mark], corner: tuple[int, int]) -> dict[str, Any]:
        """The window at a corner, with the marks that lie in it."""
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
        """Whether values are class numbers, and not foreground or background."""
        probability = self.images.probability
        return self.evaluation.kind == CLASSES or (probability is not None and len(probability) > 1)

    def _classes(self) -> NDArray[Any]:
        """The prediction as class numbers."""
        probability, labels = self.images.probability, self.images.labels
        if probability is None:
            assert labels is not None
            return labels if self._has_classes else labels != 0
        found: NDArray[Any] = probability.argmax(0) if len(probability) > 1 else probability[0] > self.threshold
        return found

    def _true_classes(self) -> NDArray[Any]:
        return self.images.reference if self._has_classes else self.images.reference != 0


def corners(marks: list[Mark], shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Where windows around the largest errors begin, which do not overlap and stay inside.

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
    """Grey values by section: of the volume named, else of the one that the prediction's run folder knows.

    Raises
    ------
    UnetcliError
        The volume named does not cover what was evaluated, or cannot be opened.
    """
    if named is not None:
        return sections_of(evaluation, open_volume(named, evaluation.request.level))
    known = predicted_volume(evaluation.request.prediction)
    try:
        return sections_of(evaluation, open_volume(known, evaluation.request.level)) if known else no_image
    except UnetcliError:  # moved, or another volume by now; nobody asked for it
        return no_image


def no_image(section: Section) -> None:
    """No source image is available."""


def sections_of(evaluation: Evaluation, volume: Volume) -> SourceImage:
    """Sections of a volume that covers what was evaluated; of a frame in space, its middle section."""
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
                f"--image {fitting.path}: is {describe(fitting.whole(), fitting.axes)}, but "
                f"{describe(box, fitting.axes)} was judged; the image has to cover what the truth covers"
            )

    def read(section: Section) -> NDArray[Any]:
        voxels = fitting.read(box_of(section))
        return voxels.reshape(voxels.shape[0], *voxels.shape[-2:])

    return read


def predicted_volume(prediction: str) -> str | None:
    """The volume that a prediction was made of, where its run folder still lies beside it."""
    if is_remote(place_of(prediction)):
        return None
    try:
        return str(json.loads(RunFolder.of(place_of(prediction)).plan_file.read_text())["sources"]["volume"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
