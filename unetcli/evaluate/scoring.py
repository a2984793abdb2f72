"""Scores and confidence intervals from counts: of the whole region, of each section, and over thresholds."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.evaluate.counting import SUMS_METRICS, TABLE_SUMS, Counts
from unetcli.evaluate.request import METRICS
from unetcli.evaluate.result import Curves, Scores, Section
from unetcli.metrics import cells, em, em_counts, pixels, probabilities
from unetcli.metrics.cells import CellSums
from unetcli.metrics.em_counts import LEVELS, EmSums
from unetcli.metrics.pixels import Confusion
from unetcli.metrics.sums import LEVEL, RESAMPLES, S, Score, Sums, intervals, json_list, unit_count

SECTION, VOLUME, OBJECT = "section", "volume", "object"
REFERENCE_ONLY = ("seg", "recall")
"""Scores of cells that only reference objects contribute to; these are the same objects for every prediction."""


@dataclass(frozen=True, slots=True, eq=False)
class ScoreGroup:
    """Sums of each unit, and the scores computed from them."""

    metric: str
    name: str
    sums: Sums
    """Sums with fields (unit, ...)."""
    scores: Mapping[str, Score[Any]]
    unit: str
    """The resampled unit: section, volume or object."""

    def intervals(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """``<name>_interval`` of each score that is defined."""
        defined = {name: score for name, score in self.scores.items() if found.get(name) is not None}
        entries: dict[str, Any] = {}
        for name, interval in intervals(self.sums, defined).items():
            entries |= interval.entries(name)
        return entries

    def description(self) -> dict[str, Any]:
        """Units, level and number of resamples of the intervals."""
        return {"unit": self.unit, "units": unit_count(self.sums), "level": LEVEL, "resamples": RESAMPLES}

    def packed(self) -> dict[str, Any]:
        """Sums as compressed text, for JSON."""
        arrays = {one.name: pack(np.asarray(getattr(self.sums, one.name))) for one in fields(self.sums)}
        return {"unit": self.unit, "units": unit_count(self.sums), "sums": arrays}


def score_groups(counts: Counts, metrics: tuple[str, ...], *, by_object: bool, unit: str = SECTION) -> list[ScoreGroup]:
    """Groups of scores of all metrics that were counted; ``unit`` is the one of objects: section or volume."""
    confusion, markers = stack(counts.listed("confusions")), stack(counts.listed("markers"))
    two_classes = confusion is not None and confusion.counts.shape[-1] == 2
    pixel_scores = pixels.SCORES | (pixels.FOREGROUND_SCORES if two_classes else {})
    cell_scores = {name: score for name, score in cells.SCORES.items() if name != "det" or markers is None}
    objects = CellSums.concatenated(list(counts.objects.values())) if by_object and counts.objects else None
    frames = stack(counts.listed("cells")) if objects is None else None
    rows: list[tuple[str, str, Sums | None, Mapping[str, Score[Any]], str]] = [
        ("pixels", "confusion", confusion, pixel_scores, SECTION),
        ("pixels", "probability", stack(counts.listed("histograms")), probabilities.SCORES, SECTION),
        ("em", "em", stack([EmSums.of(section) for section in counts.em.values()]), em_counts.SCORES, SECTION),
        ("cells", "objects", objects, cell_scores, OBJECT),
        ("cells", "cells", frames, cell_scores, unit),
        ("cells", "markers", markers, {"det": cells.SCORES["det"]}, SECTION),
    ]
    for name, definition in SUMS_METRICS.items():
        resampled = unit if METRICS[name].objects else SECTION
        rows.append((name, name, stack(counts.listed(name)), definition.scores, resampled))
    return [
        ScoreGroup(metric, name, sums, scores, resampled)
        for metric, name, sums, scores, resampled in rows
        if sums is not None and metric in metrics
    ]


def stack(units: Sequence[S]) -> S | None:
    """Stack the sums of units; None without units."""
    return type(units[0]).stacked(units) if units else None


def pack(values: NDArray[Any]) -> dict[str, Any]:
    """Encode an array as text: little-endian numbers of the smallest type, compressed, in base64.

    >>> unpack(pack(np.array([[1.0, 2.0], [300.0, 4.0]]))).tolist()
    [[1.0, 2.0], [300.0, 4.0]]
    """
    small = smallest(values)
    data = base64.b64encode(zlib.compress(np.ascontiguousarray(small).tobytes())).decode()
    return {"dtype": small.dtype.str, "shape": list(small.shape), "zlib": data}


MOST_BYTES = 2**30
"""Largest array that is unpacked."""


def unpack(packed: Mapping[str, Any]) -> NDArray[np.float64]:
    """Decode the result of :func:`pack`; raises ValueError, KeyError or TypeError for anything else."""
    try:
        data = zlib.decompressobj().decompress(base64.b64decode(packed["zlib"], validate=True), MOST_BYTES)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    return np.frombuffer(data, np.dtype(packed["dtype"])).reshape(packed["shape"]).astype(np.float64)


def smallest(values: NDArray[Any]) -> NDArray[Any]:
    """Convert non-negative integers to the smallest unsigned type, and other numbers to float64."""
    if values.size and (values >= 0).all() and (values == np.floor(values)).all() and values.max() < 2**53:
        for dtype in ("<u1", "<u2", "<u4", "<u8"):
            if values.max() <= np.iinfo(dtype).max:
                return values.astype(dtype)
    return values.astype("<f8")


PARTIAL = "the reference is partial: not every pixel has its true label"
FEW_UNITS = 5
"""Intervals over fewer units than this are too narrow, because so few units do not show the full variation."""
INVERTED = 1 / 3
"""A map with a smaller area under the ROC than this is reported as inverted: see ``em.looks_inverted``."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scored:
    """Scores computed from counts."""

    scores: Scores
    sections: tuple[Section, ...]
    curves: Curves
    score_groups: list[ScoreGroup]

    def note_on_intervals(self) -> str | None:
        """Note on intervals over very few units."""
        units = [(unit_count(group.sums), group.unit) for group in self.score_groups]
        number, unit = min((pair for pair in units if pair[0] > 1), default=(FEW_UNITS, ""))
        return f"intervals over {number} {unit}s are too narrow to be reliable" if number < FEW_UNITS else None


def score_all(
    counts: Counts,
    metrics: tuple[str, ...],
    places: Sequence[tuple[tuple[int, ...], str]],
    *,
    by_object: bool,
    three_d: bool = False,
    partial: bool = False,
) -> Scored:
    """Scores with their intervals, and scores of each section.

    Parameters
    ----------
    counts
        Counts of all blocks.
    metrics
        Metrics to report.
    places
        Coordinates and name of each section.
    by_object
        Compute the intervals of scores of cells from objects.
    three_d
        Objects extend over sections; each section is scored by its cross section of them, if that was counted.
    partial
        The truth does not contain all objects.
    """
    found = score_groups(counts, metrics, by_object=by_object, unit=VOLUME if three_d else SECTION)
    scores = scores_of(counts, metrics, partial=partial)
    for group in found:
        scores[group.metric] |= group.intervals(scores[group.metric])
        scores[group.metric].setdefault("intervals", group.description())
    cut = {name: counts.sums.get(f"cut_{name}", {}) for name in TABLE_SUMS} if three_d else {}
    alone = replace(counts, sums={**counts.sums, **cut})
    sections = (
        score_section(alone, metrics, number, place, name, partial=partial)
        for number, (place, name) in enumerate(places)
    )
    return Scored(scores=scores, sections=tuple(sections), curves=curves_of(counts, metrics), score_groups=found)


def scores_of(counts: Counts, metrics: tuple[str, ...], *, partial: bool = False) -> Scores:
    """Scores by metric and name."""
    found: Scores = {}
    if "pixels" in metrics:
        found["pixels"] = Confusion.pooled(counts.listed("confusions")).scores()
        if counts.probabilities is not None:
            found["pixels"] |= probabilities.scores(counts.probabilities)
    if "em" in metrics:
        stack = list(counts.em.values())
        found["em"] = em.scores(stack) | {"looks_inverted": em.looks_inverted(stack)}
    if "cells" in metrics:
        markers = counts.listed("markers") or None
        found["cells"] = cells.scores(counts.listed("cells"), markers=markers, partial=partial)
    for name, metric in SUMS_METRICS.items():
        if name in metrics:
            found[name] = metric.withheld(PARTIAL) if partial else metric.entries(counts.listed(name))
    return found


def score_section(
    counts: Counts, metrics: tuple[str, ...], number: int, place: tuple[int, ...], name: str, *, partial: bool
) -> Section:
    """Scores of one section."""
    sums = {kind: select(found, number) for kind, found in counts.sums.items()}
    histogram = counts.sums.get("histograms", {}).get(number)
    cut = Counts(sums=sums, em=select(counts.em, number), probabilities=histogram)
    scored = tuple(metric for metric, found in available(cut).items() if found and metric in metrics)
    return Section(
        number=number,
        place=place,
        name=name,
        scores=scores_of(cut, scored, partial=partial),
        curves=curves_of(cut, tuple(metric for metric in scored if metric != "pixels")),
    )


def select(values: Mapping[int, Any], number: int) -> dict[int, Any]:
    """The entry of one section, if there is one."""
    return {number: values[number]} if number in values else {}


def available(counts: Counts) -> dict[str, bool]:
    """Whether there are counts, by metric."""
    return {
        "pixels": bool(counts.listed("confusions")),
        "em": bool(counts.em),
        "cells": bool(counts.listed("cells") or counts.listed("markers")),
        **{name: bool(counts.listed(name)) for name in SUMS_METRICS},
    }


def curves_of(counts: Counts, metrics: tuple[str, ...]) -> Curves:
    """Curves over thresholds, by metric."""
    found: Curves = {}
    if "em" in metrics:
        found["em"] = {"threshold": list(LEVELS), **em.curves(list(counts.em.values()))}
    if "pixels" in metrics and counts.probabilities is not None and len(counts.probabilities.classes) == 1:
        found["pixels"] = dict(probabilities.curve(counts.probabilities.classes[0]))
    if "cells" in metrics:
        total = CellSums.pooled(counts.listed("cells"))
        values = {name: json_list(curve(total)) for name, curve in cells.CURVES.items()}
        found["cells"] = {"threshold": list(cells.THRESHOLDS), **values}
    return found


def looks_inverted(counts: Counts) -> bool:
    """Whether the prediction seems to be the probability of background: see ``em.looks_inverted``."""
    if counts.em:
        return em.looks_inverted(list(counts.em.values()))
    confusions = counts.listed("confusions")
    if not confusions:
        return False
    total = Confusion.pooled(confusions).counts
    if total.shape != (2, 2) or not total.sum(axis=1).all():
        return False
    found = total[:, 1] / total.sum(axis=1)  # share of background, and of foreground, that is predicted as foreground
    return bool((1 + found[1] - found[0]) / 2 < INVERTED)
