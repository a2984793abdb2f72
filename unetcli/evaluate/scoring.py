"""From counts to scores with their confidence intervals: of everything, of each section, and over thresholds."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.evaluate.counting import Counts
from unetcli.evaluate.result import Curves, Scores, Section
from unetcli.metrics import cells, em, em_counts, pixels, probabilities, voi
from unetcli.metrics.cells import CellSums
from unetcli.metrics.em_counts import LEVELS, EmSums
from unetcli.metrics.pixels import Confusion
from unetcli.metrics.probabilities import ProbabilitySums
from unetcli.metrics.sums import LEVEL, RESAMPLES, Sums, count, intervals, listed
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


PARTIAL = "the reference is partial: not every pixel has its true label"
FEW_UNITS = 5
"""An interval over fewer units is too narrow: they show too little of what others would be like."""
INVERTED = 1 / 3
"""A foreground pixel has a higher probability than a pixel of background this often, or less: see ``em.ranking``."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scored:
    """What follows from counts."""

    scores: Scores
    sections: tuple[Section, ...]
    curves: Curves
    families: list[Family]

    def note_on_intervals(self) -> str | None:
        """What to know of intervals over very few units."""
        units = [(count(family.sums), family.unit) for family in self.families]
        number, unit = min((pair for pair in units if pair[0] > 1), default=(FEW_UNITS, ""))
        return f"intervals over {number} {unit}s are too narrow: take them as a hint" if number < FEW_UNITS else None


def score_all(
    counts: Counts,
    metrics: tuple[str, ...],
    places: Sequence[tuple[tuple[int, ...], str]],
    *,
    by_object: bool,
    three_d: bool = False,
    partial: bool = False,
) -> Scored:
    """Scores with their intervals, and those of each section; ``places``: coordinates and name of each section.

    Where objects go through sections (``three_d``), a section is scored by its cut through them, if that was counted.
    """
    found = families(counts, metrics, by_object=by_object, unit=VOLUME if three_d else SECTION)
    scores = scores_of(counts, metrics, partial=partial)
    for family in found:
        scores[family.metric] |= family.intervals(scores[family.metric])
        scores[family.metric].setdefault("intervals", family.told())
    alone = replace(counts, cells=counts.cut_cells, voi=counts.cut_voi) if three_d else counts
    sections = (
        score_section(alone, metrics, number, place, name, partial=partial)
        for number, (place, name) in enumerate(places)
    )
    return Scored(scores=scores, sections=tuple(sections), curves=curves_of(counts, metrics), families=found)


def scores_of(counts: Counts, metrics: tuple[str, ...], *, partial: bool = False) -> Scores:
    """Scores by metric and name."""
    found: Scores = {}
    if "pixels" in metrics:
        found["pixels"] = sum(list(counts.confusions.values())[1:], start=first(counts.confusions)).scores()
        if counts.probabilities is not None:
            found["pixels"] |= probabilities.scores(counts.probabilities)
    if "em" in metrics:
        stack = list(counts.em.values())
        found["em"] = em.scores(stack) | {"looks_inverted": em.looks_inverted(stack)}
    if "cells" in metrics:
        markers = list(counts.markers.values()) or None
        found["cells"] = cells.scores(list(counts.cells.values()), markers=markers, partial=partial)
    if "voi" in metrics:
        reasons = {f"{name}_reason": PARTIAL for name in voi.SCORES}  # it takes every pixel, which is not known
        withheld = {"unit": "nats", **dict.fromkeys(voi.SCORES), **reasons}
        found["voi"] = withheld if partial else voi.scores(list(counts.voi.values()))
    return found


def first(confusions: Mapping[int, Confusion]) -> Confusion:
    """Of the first section, of which there is one at least."""
    return next(iter(confusions.values()))


def score_section(
    counts: Counts, metrics: tuple[str, ...], number: int, place: tuple[int, ...], name: str, *, partial: bool
) -> Section:
    """One section by itself."""
    cut = Counts(
        confusions=only(counts.confusions, number),
        probabilities=counts.histograms.get(number),
        em=only(counts.em, number),
        cells=only(counts.cells, number),
        voi=only(counts.voi, number),
        markers=only(counts.markers, number),
    )
    there = tuple(metric for metric, held in held_by(cut).items() if held and metric in metrics)
    return Section(
        number=number,
        place=place,
        name=name,
        scores=scores_of(cut, there, partial=partial),
        curves=curves_of(cut, tuple(metric for metric in there if metric != "pixels")),
    )


def only(values: Mapping[int, Any], number: int) -> dict[int, Any]:
    """What is there of one section."""
    return {number: values[number]} if number in values else {}


def held_by(counts: Counts) -> dict[str, bool]:
    """By metric, whether there is anything to score it by."""
    return {
        "pixels": bool(counts.confusions),
        "em": bool(counts.em),
        "cells": bool(counts.cells or counts.markers),
        "voi": bool(counts.voi),
    }


def curves_of(counts: Counts, metrics: tuple[str, ...]) -> Curves:
    """Scores over thresholds, by metric."""
    found: Curves = {}
    if "em" in metrics:
        found["em"] = {"threshold": list(LEVELS), **em.curves(list(counts.em.values()))}
    if "pixels" in metrics and counts.probabilities is not None and len(counts.probabilities.classes) == 1:
        found["pixels"] = dict(probabilities.curve(counts.probabilities.classes[0]))
    if "cells" in metrics:
        total = cells.pooled(list(counts.cells.values()))
        values = {name: listed(curve(total)) for name, curve in cells.CURVES.items()}
        found["cells"] = {"threshold": list(cells.THRESHOLDS), **values}
    return found


def looks_inverted(counts: Counts) -> bool:
    """Whether foreground seems to be given as background: the inverted map would be right twice as often."""
    if counts.em:
        return em.looks_inverted(list(counts.em.values()))
    if not counts.confusions:
        return False
    total = np.sum([confusion.counts for confusion in counts.confusions.values()], axis=0)
    if total.shape != (2, 2) or not total.sum(axis=1).all():
        return False
    found = total[:, 1] / total.sum(axis=1)  # of background and of foreground, the share that is taken for foreground
    return bool((1 + found[1] - found[0]) / 2 < INVERTED)
