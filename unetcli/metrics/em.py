"""Measures of the ISBI 2012 EM segmentation challenge, from the counts of its sections.

Each measure takes its own best level for the whole stack, after the sections came together: pixel and Rand errors pool
their counts, V_Rand, V_Info and the shares of wrong pixels are means over the sections. Definitions: Arganda-Carreras
et al. 2015 and the classes of Fiji's Trainable Segmentation that scored the entries, to whose numbers these are equal.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from unetcli.metrics.contingency import PairCounts
from unetcli.metrics.em_counts import LEVELS, LevelCounts, PixelCounts, SectionCounts

Level = Sequence[LevelCounts]
"""The counts of all sections at one level."""
Curve = list[float | None]
"""A score per level of ``LEVELS``; None where it is not defined."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A score of a stack at one level."""

    at: Callable[[Level], float | None]
    undefined: str
    """Why there can be no score at all."""
    best: Callable[[Iterable[float]], float] = min


def scores(sections: Collection[SectionCounts]) -> dict[str, Any]:
    """Scores of a stack, or of one section, each with its level under ``<name>_threshold``.

    Undefined: None, with the reason under ``<name>_reason``. Where a number is the official one but says less than
    one would think, ``<name>_note`` tells.
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
    """Every measure at every level, for a stack or for one section.

    The warping errors have no score at the last level, which the challenge does not use for them.
    """
    levels = list(zip(*(section.levels for section in sections), strict=True))
    return {name: [measure.at(level) for level in levels] for name, measure in MEASURES.items()}


def pixels_at(sections: Iterable[SectionCounts], level: float) -> PixelCounts:
    """The confusion of a stack, or of one section, at a level of ``LEVELS``."""
    place = LEVELS.index(level)
    return sum((section.levels[place].pixels for section in sections), PixelCounts(0, 0, 0, 0))


def ranking(sections: Collection[SectionCounts]) -> float | None:
    """How often a pixel of interior has a higher probability than one of membrane; ties count half.

    The area under the receiver operating characteristic, from its points at ``LEVELS``: 1 for a perfect map, 0.5
    without any relation, 0 for a perfect map of the membrane. None if the reference has one of the two only.
    """
    stack = [pixels_at(sections, level) for level in LEVELS]
    interior = stack[0].interior
    membrane = stack[0].all - interior
    if not interior or not membrane:
        return None
    points = [(1.0, 1.0), *((at.fp / membrane, at.tp / interior) for at in stack), (0.0, 0.0)]
    return sum((x - u) * (y + v) / 2 for (x, y), (u, v) in itertools.pairwise(points))


def looks_inverted(sections: Collection[SectionCounts]) -> bool:
    """Was probability of membrane given as that of interior? True if the inverted map is right twice as often.

    Right means: of one pixel of interior and one of membrane, the first has the higher probability.
    """
    rank = ranking(sections)
    return rank is not None and rank < 1 / 3


def _pooled(pick: Callable[[LevelCounts], PairCounts]) -> Callable[[Level], float | None]:
    return lambda level: _error(sum((pick(counts) for counts in level), PairCounts(0, 0, 0)).f_score)


def _mean(pick: Callable[[LevelCounts], float | None]) -> Callable[[Level], float | None]:
    """Over the sections that have a score."""

    def at(level: Level) -> float | None:
        defined = [score for counts in level if (score := pick(counts)) is not None]
        return math.fsum(defined) / len(defined) if defined else None

    return at


def _error(f_score: float | None) -> float | None:
    return None if f_score is None else 1 - f_score


def _pixel_error(level: Level) -> float | None:
    return _error(sum((counts.pixels for counts in level), PixelCounts(0, 0, 0, 0)).f_score)


def _warping_error(level: Level) -> float | None:
    """Pixels of splits and mergers, as a share of all."""
    pixels = sum((counts.pixels for counts in level), PixelCounts(0, 0, 0, 0))
    errors = [counts.warping for counts in level if counts.warping]
    if not errors or not pixels.interior:
        return None
    return sum(counts.split + counts.merge for counts in errors) / pixels.all


def _classic_warping_error(counts: LevelCounts) -> float | None:
    return counts.warping.total / counts.pixels.all if counts.warping and counts.pixels.all else None


def _information(level: Level) -> float | None:
    """A section in which there is nothing to tell, one cell found as one, scores 0, as in the official program."""
    scores = [counts.information.f_score or 0.0 for counts in level if counts.pixels.interior]
    return math.fsum(scores) / len(scores) if scores else None


NO_INTERIOR = "the reference has no interior"
EMPTY = "the prediction has no interior at any level, which has no split and no merge"
MEASURES = {
    "pixel_error": Measure(_pixel_error, NO_INTERIOR),
    "pixel_disagreement": Measure(_mean(lambda counts: counts.pixels.disagreement), "there is no pixel to judge"),
    "rand_error": Measure(_pooled(lambda counts: counts.rand), NO_INTERIOR),
    "rand_error_pairs": Measure(
        _pooled(lambda counts: counts.rand_pairs), "no two pixels of reference interior belong together"
    ),
    "warping_error": Measure(_warping_error, NO_INTERIOR),
    "warping_error_classic": Measure(_mean(_classic_warping_error), "there is no pixel to judge"),
    "v_rand": Measure(_mean(lambda counts: counts.thinned.f_score), NO_INTERIOR, max),
    "v_info": Measure(_information, NO_INTERIOR, max),
}
"""The challenge's measures. Errors are best at 0, V_Rand and V_Info at 1."""


def _best(name: str, curve: Curve) -> dict[str, Any]:
    """The best of a curve, at the first level that reaches it."""
    defined = [score for score in curve if score is not None]
    if not defined:
        return _undefined(name, MEASURES[name].undefined)
    best = MEASURES[name].best(defined)
    return {name: best, f"{name}_threshold": LEVELS[curve.index(best)]}


def _undefined(name: str, reason: str) -> dict[str, Any]:
    return {name: None, f"{name}_threshold": None, f"{name}_reason": reason}


def _empty_at(sections: Iterable[SectionCounts], level: float) -> int:
    """Sections with interior of which the proposal has none."""
    stack = [pixels_at([section], level) for section in sections]
    return sum(at.interior > 0 and at.proposed == 0 for at in stack)


def _notes(sections: Collection[SectionCounts], found: dict[str, Any]) -> dict[str, str]:
    """What has to be said beside an official number, by measure."""
    notes = {name: _note_on_empty(name, sections, found) for name in ("warping_error", "v_rand", "v_info")}
    bare = sum(not pixels_at([section], 0.0).interior for section in sections)
    single = sum(section.cells == 1 for section in sections)
    if bare:
        for name in ("v_rand", "v_info"):
            notes[name] += [f"left out: {bare} of {len(sections)} sections, without interior in the reference"]
    if single:
        notes["v_info"] += [f"{single} of {len(sections)} sections are one cell, which scores 0 whatever is predicted"]
    return {name: "; ".join(said) for name, said in notes.items() if said and found[name] is not None}


def _note_on_empty(name: str, sections: Collection[SectionCounts], found: dict[str, Any]) -> list[str]:
    """An empty prediction has no split and no merge, and thinning makes it one cell."""
    level = found[f"{name}_threshold"]
    empty = 0 if level is None else _empty_at(sections, level)
    if not empty:
        return []
    said = f"at this level the prediction is empty in {empty} of {len(sections)} sections"
    if name != "warping_error":
        return [f"{said}: taken as one cell"]
    lacking = "no merge" if found[name] else "no split and no merge"  # of a large ring what is left is a split
    return [f"{said}: {lacking} there{_best_without_empty(sections)}"]


def _best_without_empty(sections: Collection[SectionCounts]) -> str:
    curve = curves(sections)["warping_error"]
    full = [(score, level) for score, level in zip(curve, LEVELS, strict=True) if not _empty_at(sections, level)]
    ranked = sorted((score, level) for score, level in full if score is not None)
    return "; best of the other levels: {:.6f} at {:.1f}".format(*ranked[0]) if ranked else ""
