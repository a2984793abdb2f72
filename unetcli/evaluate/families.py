"""Scores of one metric that follow from the same sums: their intervals, and how they are kept for comparison.

Sums are kept by unit, a section (frame) or an object, so that an interval can be drawn from them and a later evaluation
compared with them unit by unit.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.evaluate.counts import Counts
from unetcli.metrics import cells, em_counts, pixels, probabilities, voi
from unetcli.metrics.cells import CellSums
from unetcli.metrics.em_counts import EmSums
from unetcli.metrics.pixels import Confusion
from unetcli.metrics.probabilities import ProbabilitySums
from unetcli.metrics.sums import LEVEL, RESAMPLES, Sums, count, intervals
from unetcli.metrics.voi import VoiSums

SECTION, VOLUME, OBJECT = "section", "volume", "object"
OF_REFERENCE = ("seg", "recall")
"""Scores of cells to which only reference objects add, which are the same ones for another prediction."""
HIGHER_IS_BETTER = {
    "pixels": {"calibration_error": False},
    "em": {"v_rand": True, "v_info": True},
    "cells": {},
    "voi": {},
}
"""Exceptions to what is better in a metric: see :func:`higher_is_better`."""

Score = Callable[[Any], NDArray[np.float64]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Family:
    """Sums by unit, and the scores that follow from them."""

    metric: str
    name: str
    sums: Sums
    """(unit, ...)"""
    scores: Mapping[str, Score]
    unit: str

    def intervals(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """``<name>_interval`` of each score that there is one of."""
        defined = {name: score for name, score in self.scores.items() if found.get(name) is not None}
        stated: dict[str, Any] = {}
        for name, interval in intervals(self.sums, defined).items():
            stated |= interval.stated(name)
        return stated

    def told(self) -> dict[str, Any]:
        """What the intervals were drawn from."""
        return {"unit": self.unit, "units": count(self.sums), "level": LEVEL, "resamples": RESAMPLES}

    def packed(self) -> dict[str, Any]:
        """As JSON holds it."""
        arrays = {one.name: pack(np.asarray(getattr(self.sums, one.name))) for one in fields(self.sums)}
        return {"unit": self.unit, "units": count(self.sums), "sums": arrays}


def higher_is_better(metric: str, name: str) -> bool:
    """Whether more of a score is better.

    >>> higher_is_better("em", "rand_error"), higher_is_better("em", "v_rand"), higher_is_better("cells", "seg")
    (False, True, True)
    """
    return HIGHER_IS_BETTER[metric].get(name, metric in ("pixels", "cells"))


def families(counts: Counts, metrics: tuple[str, ...], *, by_object: bool, unit: str = SECTION) -> list[Family]:
    """The families of all metrics that were counted; ``unit`` of objects."""
    found: list[Family] = []
    if "pixels" in metrics and counts.confusions:
        found += _of_pixels(counts)
    if "em" in metrics and counts.em:
        sums = EmSums.stacked([EmSums.of(section) for section in counts.em.values()])
        found.append(Family(metric="em", name="em", sums=sums, scores=em_counts.SCORES, unit=SECTION))
    if "cells" in metrics:
        found += _of_cells(counts, by_object=by_object, unit=unit)
    if "voi" in metrics and counts.voi:
        stack = VoiSums.stacked(list(counts.voi.values()))
        found.append(Family(metric="voi", name="voi", sums=stack, scores=voi.SCORES, unit=unit))
    return found


def _of_pixels(counts: Counts) -> list[Family]:
    confusion = Confusion.stacked(list(counts.confusions.values()))
    names = pixels.SCORES | (pixels.FOREGROUND_SCORES if confusion.counts.shape[-1] == 2 else {})
    found = [Family(metric="pixels", name="confusion", sums=confusion, scores=names, unit=SECTION)]
    if counts.histograms:
        stack = ProbabilitySums.stacked(list(counts.histograms.values()))
        found.append(Family(metric="pixels", name="probability", sums=stack, scores=probabilities.SCORES, unit=SECTION))
    return found


def _of_cells(counts: Counts, *, by_object: bool, unit: str) -> list[Family]:
    found, scores = [], dict(cells.SCORES)
    if counts.markers:
        stack = CellSums.stacked(list(counts.markers.values()))
        scores.pop("det")
        found.append(Family(metric="cells", name="markers", sums=stack, scores={"det": cells.det}, unit=SECTION))
    if by_object and counts.objects:
        objects = CellSums.joined(list(counts.objects.values()))
        found.insert(0, Family(metric="cells", name="objects", sums=objects, scores=scores, unit=OBJECT))
    elif counts.cells:
        stack = CellSums.stacked(list(counts.cells.values()))
        found.insert(0, Family(metric="cells", name="cells", sums=stack, scores=scores, unit=unit))
    return found


def pack(values: NDArray[Any]) -> dict[str, Any]:
    """An array as text: little-endian numbers of the least size, compressed, in base64.

    >>> unpack(pack(np.array([[1.0, 2.0], [300.0, 4.0]]))).tolist()
    [[1.0, 2.0], [300.0, 4.0]]
    """
    small = smallest(values)
    data = base64.b64encode(zlib.compress(np.ascontiguousarray(small).tobytes())).decode()
    return {"dtype": small.dtype.str, "shape": list(small.shape), "zlib": data}


def unpack(packed: Mapping[str, Any]) -> NDArray[np.float64]:
    """The numbers again; ValueError, KeyError or TypeError where it is no such text."""
    try:
        data = zlib.decompress(base64.b64decode(packed["zlib"], validate=True))
    except zlib.error as error:
        raise ValueError(str(error)) from error
    return np.frombuffer(data, np.dtype(packed["dtype"])).reshape(packed["shape"]).astype(np.float64)


def smallest(values: NDArray[Any]) -> NDArray[Any]:
    """The same numbers as unsigned integers where they are, of the least size."""
    if values.size and (values >= 0).all() and (values == np.floor(values)).all() and values.max() < 2**53:
        for dtype in ("<u1", "<u2", "<u4", "<u8"):
            if values.max() <= np.iinfo(dtype).max:
                return values.astype(dtype)
    return values.astype("<f8")
