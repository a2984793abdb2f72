"""The sections that a report shows, read again one by one, with their errors and the fate of their objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.progress import ProgressCallback, silent
from unetcli.evaluate.result import Evaluation, Section
from unetcli.report.errors import EXTRA
from unetcli.report.view import ObjectRow, View
from unetcli.report.words import ranked_by

MOST_PICTURES = 12
MOST_BYTES = 24 * 2**20
"""Of all pictures of a page; the first is shown whatever it needs."""
MOST_VOXELS = 2**28
"""Of all sections that are read again for the table of objects; beyond, only those that are shown."""

Image = Callable[[Section], NDArray[Any] | None]
"""Grey values (c, y, x) of a section."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """What the page shows of single sections."""

    pictures: list[dict[str, Any]]
    """As the viewer takes them, the worst first."""
    objects: list[ObjectRow]
    """The worst first."""
    looked: int
    """Sections that the objects are from."""

    @property
    def whole(self) -> list[dict[str, Any]]:
        """The pictures of whole sections, without the close-ups."""
        return [picture for picture in self.pictures if picture["corner"] is None]


def ranked(evaluation: Evaluation) -> list[Section]:
    """The sections, the worst first; those without a score, and those alike, in their own order."""
    measure = ranked_by(evaluation)
    if measure is None:
        return list(evaluation.sections)

    def badness(section: Section) -> float:
        value = measure.of(section.scores)
        return -np.inf if value is None else value if measure.lower else -value

    return sorted(evaluation.sections, key=badness, reverse=True)


def gallery(evaluation: Evaluation, image: Image, report: ProgressCallback = silent) -> Gallery:
    """Pictures of the worst sections, and the objects of all, as far as the limits go."""
    order = ranked(evaluation)
    pixels = int(np.prod(evaluation.region.shape[-2:]))
    every = bool({"cells", "voi"} & set(evaluation.metrics)) and pixels * len(order) <= MOST_VOXELS
    chosen = order if every else order[:MOST_PICTURES]
    pictures: list[dict[str, Any]] = []
    rows: list[ObjectRow] = []
    used = 0
    for number, section in enumerate(chosen):
        view = View.of(evaluation, section)
        rows += list(view.rows())
        for picture in view.pictures(image(section)) if number < MOST_PICTURES and used <= MOST_BYTES else ():
            used += sum(len(value) for value in picture.values() if isinstance(value, str))
            if used <= MOST_BYTES or not pictures:
                pictures.append(picture)
        report(number + 1, len(chosen))
    rows.sort(key=lambda row: (row.fate == EXTRA, row.overlap, -row.size))  # extra ones have no overlap: last
    return Gallery(pictures=pictures, objects=rows, looked=len(chosen))
