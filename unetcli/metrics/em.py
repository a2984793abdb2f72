"""Measures of the ISBI 2012 EM segmentation challenge, from the counts of its sections.

Each measure takes its own best level for the whole stack, after the sections were combined: pixel and Rand errors pool
their counts; V_Rand, V_Info, pixel disagreement and the classic warping error are means over sections. Definitions:
Arganda-Carreras et al. 2015, and the classes of Fiji's Trainable Segmentation that scored the entries; the scores
are equal to those of that program.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from unetcli.metrics.contingency import PairCounts
from unetcli.metrics.em_counts import LEVELS, NO_INTERIOR, SCORES, LevelCounts, PixelCounts, SectionCounts

Level = Sequence[LevelCounts]
"""Counts of all sections at one level."""
Curve = list[float | None]
"""Score at each level of ``LEVELS``; None where it is undefined."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure of a stack, computed level by level."""

    compute: Callable[[Level], float | None]
    best: Callable[[Iterable[float]], float] = min
    """``min`` or ``max``: the level with the lowest or the highest value is reported."""


def scores(sections: Collection[SectionCounts]) -> dict[str, Any]:
    """Scores of a stack or of one section, by name.

    Parameters
    ----------
    sections
        Counts of each section, in any order; may be empty.

    Returns
    -------
    dict
        Each measure (0 to 1), with its best level under ``<name>_threshold``. An undefined measure is None, with the
        reason under ``<name>_reason``. ``<name>_note`` explains an official value that is misleading, for example the
        warping error of an empty prediction.
    """
    result: dict[str, Any] = {}
    for name, curve in curves(sections).items():
        result |= _best(name, curve)
    if result["warping_error"] == 0 and not pixels_at(sections, 0.0).proposed:
        result |= _undefined("warping_error", EMPTY)
    if not pixels_at(sections, 0.0).interior:
        result |= {f"{name}_reason": NO_INTERIOR for name in MEASURES if result[name] is None}
    for name, note in _notes(sections, result).items():
        result[f"{name}_note"] = note
    return result


def curves(sections: Collection[SectionCounts]) -> dict[str, Curve]:
    """Every measure at every level of ``LEVELS``, for a stack or for one section.

    The warping errors are None at the last level, which the challenge does not use for them.
    """
    levels = list(zip(*(section.levels for section in sections), strict=True))
    return {name: [measure.compute(level) for level in levels] for name, measure in MEASURES.items()}


def pixels_at(sections: Iterable[SectionCounts], level: float) -> PixelCounts:
    """Confusion of a stack, or of one section, at a level of ``LEVELS``."""
    index = LEVELS.index(level)
    return sum((section.levels[index].pixels for section in sections), PixelCounts(0, 0, 0, 0))


def roc_auc(sections: Collection[SectionCounts]) -> float | None:
    """Area under the receiver operating characteristic (ROC) of interior, by the trapezoidal rule over ``LEVELS``.

    It is the probability that a random interior pixel has a higher value than a random membrane pixel, ties counting
    half: 1 for a perfect map, 0.5 for an unrelated one, 0 for a perfect map of the membrane. None if the reference has
    only interior or only membrane.
    """
    stack = [pixels_at(sections, level) for level in LEVELS]
    interior = stack[0].interior
    membrane = stack[0].all - interior
    if not interior or not membrane:
        return None
    points = [(1.0, 1.0), *((at.fp / membrane, at.tp / interior) for at in stack), (0.0, 0.0)]
    return sum((x - u) * (y + v) / 2 for (x, y), (u, v) in itertools.pairwise(points))


def looks_inverted(sections: Collection[SectionCounts]) -> bool:
    """Whether the map seems to be the probability of membrane: the area under the ROC is below 1/3.

    The inverted map then ranks a pair of an interior and a membrane pixel correctly more than twice as often.
    """
    area = roc_auc(sections)
    return area is not None and area < 1 / 3


def _pooled(pick: Callable[[LevelCounts], PairCounts]) -> Callable[[Level], float | None]:
    return lambda level: _error(sum((pick(counts) for counts in level), PairCounts(0, 0, 0)).f_score)


def _mean(pick: Callable[[LevelCounts], float | None]) -> Callable[[Level], float | None]:
    """Mean over the sections that have a score."""

    def at(level: Level) -> float | None:
        defined = [score for counts in level if (score := pick(counts)) is not None]
        return math.fsum(defined) / len(defined) if defined else None

    return at


def _error(f_score: float | None) -> float | None:
    return None if f_score is None else 1 - f_score


def _pixel_error(level: Level) -> float | None:
    return _error(sum((counts.pixels for counts in level), PixelCounts(0, 0, 0, 0)).f_score)


def _warping_error(level: Level) -> float | None:
    """Share of pixels that are splits or merges."""
    pixels = sum((counts.pixels for counts in level), PixelCounts(0, 0, 0, 0))
    errors = [counts.warping for counts in level if counts.warping]
    if not errors or not pixels.interior:
        return None
    return sum(counts.split + counts.merge for counts in errors) / pixels.all


def _classic_warping_error(counts: LevelCounts) -> float | None:
    return counts.warping.total / counts.pixels.all if counts.warping and counts.pixels.all else None


def _information(level: Level) -> float | None:
    """Mean V_Info; a section with a single cell scores 0 even if it is found, as in the official program."""
    scores = [counts.information.f_score or 0.0 for counts in level if counts.pixels.interior]
    return math.fsum(scores) / len(scores) if scores else None


EMPTY = "the prediction has no interior at any level, so it has no split and no merge"
MEASURES = {
    "pixel_error": Measure(_pixel_error),
    "pixel_disagreement": Measure(_mean(lambda counts: counts.pixels.disagreement)),
    "rand_error": Measure(_pooled(lambda counts: counts.rand)),
    "rand_error_pairs": Measure(_pooled(lambda counts: counts.rand_pairs)),
    "warping_error": Measure(_warping_error),
    "warping_error_classic": Measure(_mean(_classic_warping_error)),
    "v_rand": Measure(_mean(lambda counts: counts.thinned.f_score), max),
    "v_info": Measure(_information, max),
}
"""Measures of the challenge by name; each one needs an entry in ``em_counts.SCORES`` too. Errors are best at 0, V_Rand
and V_Info at 1.
"""


def _best(name: str, curve: Curve) -> dict[str, Any]:
    """The best value of a curve, and the first level that reaches it."""
    defined = [score for score in curve if score is not None]
    if not defined:
        return _undefined(name, SCORES[name].undefined)
    best = MEASURES[name].best(defined)
    return {name: best, f"{name}_threshold": LEVELS[curve.index(best)]}


def _undefined(name: str, reason: str) -> dict[str, Any]:
    return {name: None, f"{name}_threshold": None, f"{name}_reason": reason}


def _empty_at(sections: Iterable[SectionCounts], level: float) -> int:
    """Number of sections where the reference has interior but the proposal has none."""
    stack = [pixels_at([section], level) for section in sections]
    return sum(at.interior > 0 and at.proposed == 0 for at in stack)


def _notes(sections: Collection[SectionCounts], found: dict[str, Any]) -> dict[str, str]:
    """Notes on official values that are misleading, by measure."""
    notes = {name: _note_on_empty(name, sections, found) for name in ("warping_error", "v_rand", "v_info")}
    bare = sum(not pixels_at([section], 0.0).interior for section in sections)
    single = sum(section.cells == 1 for section in sections)
    if bare:
        for name in ("v_rand", "v_info"):
            notes[name] += [f"excluded: {bare} of {len(sections)} sections, without interior in the reference"]
    if single:
        notes["v_info"] += [f"{single} of {len(sections)} sections are one cell, which scores 0 for any prediction"]
    return {name: "; ".join(texts) for name, texts in notes.items() if texts and found[name] is not None}


def _note_on_empty(name: str, sections: Collection[SectionCounts], found: dict[str, Any]) -> list[str]:
    """Note on sections without predicted interior: no split and no merge, and a single cell after thinning."""
    level = found[f"{name}_threshold"]
    empty = 0 if level is None else _empty_at(sections, level)
    if not empty:
        return []
    note = f"at this level the prediction is empty in {empty} of {len(sections)} sections"
    if name != "warping_error":
        return [f"{note}, which count as one cell"]
    lacking = "no merge" if found[name] else "no split and no merge"  # the remains of a large ring are a split
    return [f"{note}, which have {lacking}{_best_without_empty(sections)}"]


def _best_without_empty(sections: Collection[SectionCounts]) -> str:
    """Text with the lowest warping error of the levels without an empty section; empty if there is no such level."""
    curve = curves(sections)["warping_error"]
    full = [(score, level) for score, level in zip(curve, LEVELS, strict=True) if not _empty_at(sections, level)]
    ranked = sorted((score, level) for score, level in full if score is not None)
    return "; best of the other levels: {:.6f} at {:.1f}".format(*ranked[0]) if ranked else ""
