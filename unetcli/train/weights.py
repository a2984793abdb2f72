"""weights: the loss weights that training gives to the pixels of a label volume, as an image and a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.core.files import require_apart, stem, telling_unwritable
from unetcli.core.geometry import Box
from unetcli.core.progress import ProgressCallback, silent
from unetcli.core.sections import resolve_sections
from unetcli.train.border import loss_weights
from unetcli.train.lessons import Census, Lessons, require_labels
from unetcli.train.request import WeightsRequest
from unetcli.train.survey import resolve_truth
from unetcli.train.targets import TruthRules, class_weights
from unetcli.train.weight_map import WeightMap, Write
from unetcli.volumes.opening import open_volume
from unetcli.volumes.volume import Volume, describe

SHOWN = 768
"""Largest side of what the picture shows, in pixels."""
STEP = 64
"""Pixels by which its place is found."""


def rules_of(request: WeightsRequest, labels: Volume, region: Box) -> TruthRules:
    """The rules asked for, with the kind of truth found out where it is left open."""
    asked = {name: getattr(request, name) for name in ("w0", "sigma", "everywhere", "ignore", "partial")}
    given = {name: value for name, value in asked.items() if value is not None}
    TruthRules(truth="binary", **given)  # what is wrong with options goes first: no data have to be read
    return TruthRules(truth=resolve_truth(request.truth, [(labels, region)], request.ignore), **given)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassWeight:
    """One class of the truth."""

    name: str
    pixels: int
    weight: float
    """w_c of eq. 2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsSummary:
    """What a call of weights found and wrote."""

    output: str
    picture: str
    rules: dict[str, Any]
    sections: tuple[int, int]
    left_out: int
    """Sections in which nothing is drawn; their weights are 0."""
    classes: list[ClassWeight]
    ignored: int
    """Pixels without truth, in the other sections."""
    cells: int
    highest: float
    """The largest weight of all."""

    @property
    def sentence(self) -> str:
        """The outcome in one line."""
        left_out = f", {self.left_out} of them with nothing drawn: weight 0" if self.left_out else ""
        return f"{self.output}: weights of sections {self.sections[0]}:{self.sections[1]}{left_out}; {self.picture}"


def write_weights(request: WeightsRequest, report: ProgressCallback = silent) -> WeightsSummary:
    """Write the loss weights of all sections asked for, and a picture of the place where they are raised most.

    Raises
    ------
    UnetcliError
        Anything about the request that the user can put right; nothing has been written then.
    """
    place = resolve_place(request)
    rules = rules_of(request, place.labels, place.region)
    lessons = Lessons(place.labels, rules, budget_bytes=0)  # the piece at hand alone: memory stays what one needs
    planes = used_planes(lessons, place.region, keep_empty=bool(request.keep_empty))
    found = take_census(lessons, planes, lambda done: report(done, 2 * len(planes)))
    weights = class_weights(found.class_counts)
    if request.balance is False:
        weights = np.ones_like(weights)
    work = Weighing(lessons, weights)

    def fill(write: Write) -> None:
        for done, plane in enumerate(planes, start=1):
            work.write(plane, write)
            report(len(planes) + done, 2 * len(planes))

    told = {"rules": lessons.rules.to_dict(), "class_weights": [round(float(w), 6) for w in weights]}
    with telling_unwritable(place.path, "writes it anew"):
        place.publish(told, fill)
        work.draw(place.picture)
    return WeightsSummary(
        output=str(place.path),
        picture=str(place.picture),
        rules=lessons.rules.to_dict(),
        sections=place.sections,
        left_out=place.sections[1] - place.sections[0] - len(planes),
        classes=class_table(lessons.rules.truth, found, weights),
        ignored=found.ignored,
        cells=found.cells,
        highest=round(work.highest, 6),
    )


def resolve_place(request: WeightsRequest) -> WeightMap:
    """The image to write, whose place is free or may be written anew."""
    labels = open_volume(request.labels).channels_as_sections()
    require_labels(labels)
    count = 1 if labels.section_axis is None else labels.extent[labels.section_axis]
    sections = resolve_sections(request.sections, count, labels.path)
    place = WeightMap.at(request.output or f"{stem(request.labels)}.weights.zarr", labels, sections)
    require_apart(place.path, [request.labels])
    place.require_free(overwrite=request.overwrite)
    return place


def used_planes(lessons: Lessons, region: Box, *, keep_empty: bool) -> list[Box]:
    """The sections in which something is drawn, or all."""
    planes = [plane for plane in region.planes() if keep_empty or not lessons.is_empty(plane)]
    if not planes:
        raise UnetcliError(f"{lessons.labels.path}: nothing is drawn in any section; --keep-empty takes that for truth")
    return planes


def take_census(lessons: Lessons, planes: Sequence[Box], report: Callable[[int], None]) -> Census:
    """Classes and cells of all sections."""
    found = Census.nothing()
    for done, plane in enumerate(planes, start=1):
        found += lessons.census(plane)
        report(done)
    return found


def class_table(truth: str, found: Census, weights: NDArray[np.float32]) -> list[ClassWeight]:
    """The classes by name."""
    foreground = "class 1" if truth == "classes" else "foreground"
    names = ["background", foreground, *(f"class {n}" for n in range(2, len(weights)))]
    counted = zip(names, found.class_counts, weights, strict=True)
    return [ClassWeight(name=name, pixels=int(n), weight=round(float(w), 6)) for name, n, w in counted]


@dataclass(slots=True)
class Weighing:
    """Weights of one section after another; remembers where they are raised most."""

    lessons: Lessons
    class_weights: NDArray[np.float32]
    highest: float = 0.0
    _busiest: Box | None = None
    _raise: float = -1.0

    def write(self, plane: Box, write: Write) -> None:
        """Store the weights of a section, piece by piece."""
        for piece in self.lessons.pieces(plane):
            classes, raised = self.lessons.window(piece)
            weights = loss_weights(classes, raised, self.class_weights)
            write(piece, weights)
            self.highest = max(self.highest, float(weights.max()))
            if (total := float(raised.sum(dtype=np.float64))) > self._raise:
                self._busiest, self._raise = piece, total

    def draw(self, file: Path) -> None:
        """Labels, classes and weights where there is most to see."""
        from unetcli.viz.pictures import draw_weights

        assert self._busiest is not None, "nothing was written"
        box = busiest_window(self._busiest, self.lessons.window(self._busiest)[1])
        classes, raised = self.lessons.window(box)
        labels = self.lessons.labels.read(box).reshape(classes.shape)
        title = f"{Path(self.lessons.labels.path).name}: {describe(box, self.lessons.labels.axes)}"
        draw_weights(labels, classes, loss_weights(classes, raised, self.class_weights), title, file)


def busiest_window(box: Box, raised: NDArray[np.float32]) -> Box:
    """The part of a window, at most ``SHOWN`` pixels a side, with the most raise.

    >>> busiest_window(Box((3, 0, 100), (4, 9, 1200)), np.eye(9, 1100, 900, dtype=np.float32))
    Box(start=(3, 0, 292), stop=(4, 9, 1060))
    """
    sums = np.pad(raised.cumsum(0, np.float64).cumsum(1), ((1, 0), (1, 0)))
    rows, columns = (np.arange(0, max(n - SHOWN, 0) + STEP, STEP).clip(0, max(n - SHOWN, 0)) for n in raised.shape)
    below, right = (np.minimum(at + SHOWN, n) for at, n in zip((rows, columns), raised.shape, strict=True))
    inside = sums[np.ix_(below, right)] - sums[np.ix_(rows, right)] - sums[np.ix_(below, columns)]
    row, column = np.unravel_index(np.argmax(inside + sums[np.ix_(rows, columns)]), inside.shape)
    start = (box.start[-2] + int(rows[row]), box.start[-1] + int(columns[column]))
    stop = tuple(min(a + SHOWN, b) for a, b in zip(start, box.stop[-2:], strict=True))
    return Box(box.start[:-2] + start, box.stop[:-2] + stop)
