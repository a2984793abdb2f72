"""From counts to scores: of everything, of each section, and the curves over thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unetcli.evaluate.counts import Counts
from unetcli.evaluate.families import SECTION, VOLUME, Family, families
from unetcli.evaluate.result import Curves, Scores, Section
from unetcli.metrics import cells, em, probabilities, voi
from unetcli.metrics.em_counts import LEVELS
from unetcli.metrics.pixels import Confusion
from unetcli.metrics.sums import count, listed

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
        found["voi"] = withheld_voi() if partial else voi.scores(list(counts.voi.values()))
    return found


def first(confusions: Mapping[int, Confusion]) -> Confusion:
    """Of the first section, of which there is one at least."""
    return next(iter(confusions.values()))


def withheld_voi() -> dict[str, Any]:
    """Variation of information takes every pixel, which a partial reference does not say."""
    return {"unit": "nats", **dict.fromkeys(voi.SCORES), **{f"{name}_reason": PARTIAL for name in voi.SCORES}}


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
