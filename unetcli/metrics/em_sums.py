"""What sections add to the measures of the EM challenge, as arrays: for intervals, and to keep beside the scores.

The scores themselves come from :mod:`unetcli.metrics.em`, whose counts are exact integers; these are float64 and give
the same numbers to rounding. Resampled, each sample takes its own best level, as the measure does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.metrics.em_counts import LevelCounts, SectionCounts
from unetcli.metrics.sums import Sums, quotient

Numbers = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class EmSums(Sums):
    """Sums over sections, (..., level) each."""

    pixels: Numbers
    """(..., level, 4): tp, fp, fn, tn; interior is positive."""
    rand: Numbers
    """(..., level, 3): pairs of pixels, tp, fp, fn; see ``LevelCounts``."""
    rand_pairs: Numbers
    """(..., level, 3)"""
    warping: Numbers
    """(..., level, 2): pixels of splits and merges, and all pixels where they were looked for."""
    means: Numbers
    """(..., level, 4, 2): sum of the sections' own disagreement, classic warping error, V_Rand and V_Info; sections."""

    @classmethod
    def of(cls, section: SectionCounts) -> EmSums:
        """Of one section."""
        levels = section.levels
        return cls(
            np.array([[at.pixels.tp, at.pixels.fp, at.pixels.fn, at.pixels.tn] for at in levels], np.float64),
            np.array([[at.rand.tp, at.rand.fp, at.rand.fn] for at in levels], np.float64),
            np.array([[at.rand_pairs.tp, at.rand_pairs.fp, at.rand_pairs.fn] for at in levels], np.float64),
            np.array([_warping(at) for at in levels], np.float64),
            np.array([_means(at) for at in levels], np.float64),
        )


def _warping(at: LevelCounts) -> tuple[int, int]:
    return (at.warping.split + at.warping.merge, at.pixels.all) if at.warping else (0, 0)


def _means(at: LevelCounts) -> list[tuple[float, int]]:
    """Of one section: each measure that is a mean over sections, and whether the section takes part."""
    classic = at.warping.total / at.pixels.all if at.warping and at.pixels.all else None
    information = at.information.f_score or 0.0 if at.pixels.interior else None  # of one cell alone: 0, as officially
    values = (at.pixels.disagreement, classic, at.thinned.f_score, information)
    return [(0.0, 0) if value is None else (value, 1) for value in values]


def _pixel_error(sums: EmSums) -> Numbers:
    """1 - F = (fp + fn) / (2 tp + fp + fn), whose limits are those of the official program."""
    tp, fp, fn, _ = np.moveaxis(sums.pixels, -1, 0)
    error = quotient(fp + fn, 2 * tp + fp + fn)
    return np.where(tp + fn > 0, error, np.nan)


def _pairs_error(pairs: Numbers) -> Numbers:
    tp, fp, fn = np.moveaxis(pairs, -1, 0)
    return 1 - quotient(2 * tp, 2 * tp + fp + fn)


def _warping_error(sums: EmSums) -> Numbers:
    interior = sums.pixels[..., 0] + sums.pixels[..., 2]
    return np.where(interior > 0, quotient(sums.warping[..., 0], sums.warping[..., 1]), np.nan)


def _mean(place: int) -> Callable[[EmSums], Numbers]:
    return lambda sums: quotient(sums.means[..., place, 0], sums.means[..., place, 1])


def _lowest(curve: Callable[[EmSums], Numbers]) -> Callable[[EmSums], Numbers]:
    """The least of the levels that have a score; NaN where none has."""
    return lambda sums: np.asarray(np.fmin.reduce(curve(sums), axis=-1))


def _highest(curve: Callable[[EmSums], Numbers]) -> Callable[[EmSums], Numbers]:
    return lambda sums: np.asarray(np.fmax.reduce(curve(sums), axis=-1))


SCORES: dict[str, Callable[[EmSums], Numbers]] = {
    "pixel_error": _lowest(_pixel_error),
    "pixel_disagreement": _lowest(_mean(0)),
    "rand_error": _lowest(lambda sums: _pairs_error(sums.rand)),
    "rand_error_pairs": _lowest(lambda sums: _pairs_error(sums.rand_pairs)),
    "warping_error": _lowest(_warping_error),
    "warping_error_classic": _lowest(_mean(1)),
    "v_rand": _highest(_mean(2)),
    "v_info": _highest(_mean(3)),
}
"""Scores by name, from sums with any leading axes; NaN where there is nothing to judge."""
