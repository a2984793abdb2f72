"""What one section adds to the measures of the ISBI 2012 EM challenge; counts of sections come together in any order.

Reference: cell interior against membrane. Proposal: probability of interior, cut at 11 levels. Everything is counted
section by section, nothing is linked from one section to the next.

The scores themselves come from :mod:`unetcli.metrics.em`, whose counts are exact integers. :class:`EmSums` are the same
counts as float64 arrays, for intervals and to keep beside the scores; they give the same numbers to rounding.
Resampled, each sample takes its own best level, as the measure does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.metrics.contingency import Cells, Information, Overlap, PairCounts, components, thin
from unetcli.metrics.sums import Sums, quotient
from unetcli.metrics.warping import ErrorCounts, WarpingErrors, warping_errors

LEVELS = tuple(float(level) for level in np.cumsum([0.0] + [0.1] * 10))
"""0.0 to 1.0 in steps of 0.1 added up in doubles, as the official loop does: the last is 0.9999999999999999."""
WARPING_LEVELS = LEVELS[:-1]
"""The warping error stops at 0.9: a proposal that is empty at 1.0 would have no split and no merge."""

Numbers = NDArray[Any]


@dataclass(frozen=True, slots=True)
class PixelCounts:
    """Pixels of a section or a stack; interior is positive."""

    tp: int
    fp: int
    fn: int
    tn: int

    def __add__(self, other: PixelCounts) -> PixelCounts:
        return PixelCounts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)

    @property
    def all(self) -> int:
        return self.tp + self.fp + self.fn + self.tn

    @property
    def interior(self) -> int:
        """Of the reference."""
        return self.tp + self.fn

    @property
    def proposed(self) -> int:
        """Interior of the proposal."""
        return self.tp + self.fp

    @property
    def disagreement(self) -> float | None:
        """Share of pixels that differ; None without pixels."""
        return (self.fp + self.fn) / self.all if self.all else None

    @property
    def f_score(self) -> float | None:
        """Precision is 1 without false positives, recall 1 without false negatives; None without interior."""
        if not self.interior:
            return None
        precision = self.tp / self.proposed if self.fp else 1.0
        recall = self.tp / self.interior if self.fn else 1.0
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@dataclass(frozen=True, slots=True)
class LevelCounts:
    """What one section adds at one level."""

    pixels: PixelCounts
    rand: PairCounts
    """Foreground-restricted, normalised by N^2: a pixel pairs with itself too."""
    rand_pairs: PairCounts
    """The same, pairs of two different pixels."""
    thinned: PairCounts
    """As ``rand``, with the predicted membrane thinned."""
    information: Information
    """Of the thinned proposal and the reference, inside the reference's cells."""
    warping: ErrorCounts | None
    """None at levels that the warping error does not use."""


@dataclass(frozen=True, slots=True)
class SectionCounts:
    """What one section adds, at every level of ``LEVELS``; plain numbers that travel as JSON."""

    levels: tuple[LevelCounts, ...]
    cells: int
    """Cells of the reference."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> SectionCounts:
        """What ``to_dict`` gave, before or after JSON."""
        return cls(tuple(_level(level) for level in stored["levels"]), stored["cells"])


def _level(stored: Mapping[str, Any]) -> LevelCounts:
    pairs = {name: PairCounts(**stored[name]) for name in ("rand", "rand_pairs", "thinned")}
    warping = stored["warping"] and ErrorCounts(**stored["warping"])
    pixels, information = PixelCounts(**stored["pixels"]), Information(**stored["information"])
    return LevelCounts(pixels=pixels, **pairs, information=information, warping=warping)


def section_counts(
    probability: NDArray[np.float32], interior: NDArray[np.bool_], judged: NDArray[np.bool_] | None = None
) -> SectionCounts:
    """Counts of one section at every level.

    Parameters
    ----------
    probability : (y, x), float32
        Of interior, 0 to 1.
    interior : (y, x), bool
        The reference: True inside cells, False on membrane.
    judged : (y, x), bool, optional
        Pixels that count; the others still decide what is connected.
    """
    require_alike(probability, interior, judged)
    cells = Cells.of(interior, judged)
    levels = tuple(level_counts(probability, interior, cells, level, judged) for level in LEVELS)
    return SectionCounts(levels, cells.stops.size)


def level_counts(
    probability: NDArray[np.float32],
    interior: NDArray[np.bool_],
    cells: Cells,
    level: float,
    judged: NDArray[np.bool_] | None = None,
) -> LevelCounts:
    """Counts of one section at one level; ``cells`` are those of ``interior``."""
    proposal = above(probability, level)
    segments = components(proposal)
    plain, thinned = Overlap.of(cells, segments), Overlap.of(cells, thin(segments))
    warping = warping_errors(probability, interior, proposal, level, judged).counts if level in WARPING_LEVELS else None
    return LevelCounts(
        pixels=pixel_counts(proposal, interior, judged),
        rand=plain.pairs,
        rand_pairs=plain.different_pairs,
        thinned=thinned.pairs,
        information=thinned.information,
        warping=warping,
    )


def errors_at(
    probability: NDArray[np.float32], interior: NDArray[np.bool_], level: float, judged: NDArray[np.bool_] | None = None
) -> WarpingErrors:
    """Where a section has splits, merges and the other warping errors at a level, for pictures; (y, x) each."""
    require_alike(probability, interior, judged)
    return warping_errors(probability, interior, above(probability, level), level, judged)


def above(probability: NDArray[np.float32], level: float) -> NDArray[np.bool_]:
    """float32 probability > float64 level, compared in float32: against the largest float32 not above the level."""
    single = np.float32(level)
    return probability > (single if float(single) <= level else np.nextafter(single, np.float32(-1)))


def pixel_counts(
    proposal: NDArray[np.bool_], interior: NDArray[np.bool_], judged: NDArray[np.bool_] | None = None
) -> PixelCounts:
    """Confusion of two masks, over the ``judged`` pixels if given."""
    if judged is not None:
        proposal, interior = proposal[judged], interior[judged]
    tp = int(np.count_nonzero(proposal & interior))
    fp, fn = int(np.count_nonzero(proposal)) - tp, int(np.count_nonzero(interior)) - tp
    return PixelCounts(tp, fp, fn, proposal.size - tp - fp - fn)


def require_alike(probability: NDArray[Any], interior: NDArray[Any], judged: NDArray[Any] | None) -> None:
    """The compiled loops check no index: arrays have to fit before they run."""
    shapes = {a.shape for a in (probability, interior, judged) if a is not None}
    if len(shapes) > 1 or probability.ndim != 2:
        raise ValueError(f"arrays of one section have shapes {sorted(shapes)}; expected the same (y, x)")


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
