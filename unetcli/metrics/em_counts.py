"""Counts of one section for the measures of the ISBI 2012 EM challenge; sections are combined in any order.

Reference: cell interior and membrane. Proposal: probability of interior, thresholded at 11 levels. Sections are
counted separately; objects are not linked from one section to the next. Definitions: Arganda-Carreras et al. 2015, and
the classes of Fiji's Trainable Segmentation that scored the entries.

The reported scores come from :mod:`unetcli.metrics.em`, whose counts are exact integers. :class:`EmSums` holds the same
counts as float64 arrays, for confidence intervals and for later comparisons; its scores agree up to rounding. Each
resample takes its own best level, as the measures do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.metrics.contingency import Cells, Information, Overlap, PairCounts, components, thin
from unetcli.metrics.pixels import NO_PIXEL
from unetcli.metrics.sums import Function, Score, Sums, quotient
from unetcli.metrics.warping import ErrorCounts, WarpingErrors, warping_errors

LEVELS = tuple(float(level) for level in np.cumsum([0.0] + [0.1] * 10))
"""0.0 to 1.0, accumulated in double-precision steps of 0.1 as in the official loop: the last is 0.9999999999999999."""
WARPING_LEVELS = LEVELS[:-1]
"""The warping error excludes the last level: a proposal that is empty there has no split and no merge."""
NO_INTERIOR = "the reference has no interior"
NO_PAIR = "no two pixels of reference interior belong together"

Numbers = NDArray[Any]


@dataclass(frozen=True, slots=True)
class PixelCounts:
    """Confusion of interior (positive) and membrane, in pixels of a section or stack."""

    tp: int
    fp: int
    fn: int
    tn: int

    def __add__(self, other: PixelCounts) -> PixelCounts:
        return PixelCounts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)

    @property
    def all(self) -> int:
        """All pixels."""
        return self.tp + self.fp + self.fn + self.tn

    @property
    def interior(self) -> int:
        """Interior of the reference."""
        return self.tp + self.fn

    @property
    def proposed(self) -> int:
        """Interior of the proposal."""
        return self.tp + self.fp

    @property
    def disagreement(self) -> float | None:
        """Share of pixels that differ, 0 to 1; None without pixels."""
        return (self.fp + self.fn) / self.all if self.all else None

    @property
    def f_score(self) -> float | None:
        """F of precision (1 without false positives) and recall (1 without false negatives); None without interior."""
        if not self.interior:
            return None
        precision = self.tp / self.proposed if self.fp else 1.0
        recall = self.tp / self.interior if self.fn else 1.0
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@dataclass(frozen=True, slots=True)
class LevelCounts:
    """Counts of one section at one level."""

    pixels: PixelCounts
    rand: PairCounts
    """Foreground-restricted pairs, normalised by N^2: each pixel is paired with itself too."""
    rand_pairs: PairCounts
    """Foreground-restricted pairs of two different pixels."""
    thinned: PairCounts
    """Pairs as in ``rand``, after thinning the predicted membrane."""
    information: Information
    """Mutual information of the thinned proposal and the reference, within the cells of the reference."""
    warping: ErrorCounts | None
    """Remaining pixels after warping; None at the level that the warping error excludes."""


@dataclass(frozen=True, slots=True)
class SectionCounts:
    """Counts of one section at every level of ``LEVELS``: plain numbers, which JSON can store."""

    levels: tuple[LevelCounts, ...]
    cells: int
    """Number of cells in the reference."""

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries and lists, as for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> SectionCounts:
        """Restore counts from the result of :meth:`to_dict`, before or after JSON."""
        return cls(tuple(_level(level) for level in stored["levels"]), stored["cells"])


def _level(stored: Mapping[str, Any]) -> LevelCounts:
    pairs = {name: PairCounts(**stored[name]) for name in ("rand", "rand_pairs", "thinned")}
    warping = stored["warping"] and ErrorCounts(**stored["warping"])
    pixels, information = PixelCounts(**stored["pixels"]), Information(**stored["information"])
    return LevelCounts(pixels=pixels, **pairs, information=information, warping=warping)


def section_counts(
    probability: NDArray[np.float32], interior: NDArray[np.bool_], valid: NDArray[np.bool_] | None = None
) -> SectionCounts:
    """Counts of one section at every level.

    Parameters
    ----------
    probability : (y, x), float32
        Probability of interior, 0 to 1.
    interior : (y, x), bool
        The reference: True inside cells, False on membrane.
    valid : (y, x), bool, optional
        Pixels that are counted; the others still connect the parts of a cell. Default: all.

    Raises
    ------
    ValueError
        The shapes differ, or are not two-dimensional.
    """
    require_same_shapes(probability, interior, valid)
    cells = Cells.of(interior, valid)
    levels = tuple(level_counts(probability, interior, cells, level, valid) for level in LEVELS)
    return SectionCounts(levels, cells.stops.size)


def level_counts(
    probability: NDArray[np.float32],
    interior: NDArray[np.bool_],
    cells: Cells,
    level: float,
    valid: NDArray[np.bool_] | None = None,
) -> LevelCounts:
    """Counts of one section at one level; ``cells`` are those of ``interior``, other parameters as above."""
    proposal = above(probability, level)
    segments = components(proposal)
    plain, thinned = Overlap.of(cells, segments), Overlap.of(cells, thin(segments))
    warping = warping_errors(probability, interior, proposal, level, valid).counts if level in WARPING_LEVELS else None
    return LevelCounts(
        pixels=pixel_counts(proposal, interior, valid),
        rand=plain.pairs,
        rand_pairs=plain.different_pairs,
        thinned=thinned.pairs,
        information=thinned.information,
        warping=warping,
    )


def errors_at(
    probability: NDArray[np.float32], interior: NDArray[np.bool_], level: float, valid: NDArray[np.bool_] | None = None
) -> WarpingErrors:
    """Positions of the warping errors of a section at one level; parameters as in :func:`section_counts`."""
    require_same_shapes(probability, interior, valid)
    return warping_errors(probability, interior, above(probability, level), level, valid)


def above(probability: NDArray[np.float32], level: float) -> NDArray[np.bool_]:
    """Pixels whose probability exceeds the level, with the same result as a comparison in float64.

    The level is rounded down to float32 first, so that no float64 copy of the map is needed.

    Parameters
    ----------
    probability : any shape, float32
    level : float64

    Returns
    -------
    same shape, bool
    """
    single = np.float32(level)
    return probability > (single if float(single) <= level else np.nextafter(single, np.float32(-1)))


def pixel_counts(
    proposal: NDArray[np.bool_], interior: NDArray[np.bool_], valid: NDArray[np.bool_] | None = None
) -> PixelCounts:
    """Confusion of two masks, (y, x) bool each, over the ``valid`` pixels (default: all)."""
    if valid is not None:
        proposal, interior = proposal[valid], interior[valid]
    tp = int(np.count_nonzero(proposal & interior))
    fp, fn = int(np.count_nonzero(proposal)) - tp, int(np.count_nonzero(interior)) - tp
    return PixelCounts(tp, fp, fn, proposal.size - tp - fp - fn)


def require_same_shapes(probability: NDArray[Any], interior: NDArray[Any], valid: NDArray[Any] | None) -> None:
    """Raise ``ValueError`` unless all shapes are the same (y, x): the compiled loops do not check indices."""
    shapes = {a.shape for a in (probability, interior, valid) if a is not None}
    if len(shapes) > 1 or probability.ndim != 2:
        raise ValueError(f"arrays of one section have shapes {sorted(shapes)}; expected the same (y, x)")


@dataclass(frozen=True, slots=True, eq=False)
class EmSums(Sums):
    """Sums over sections at each level, as float64."""

    pixels: Numbers
    """(..., level, 4): pixels tp, fp, fn, tn; interior is positive."""
    rand: Numbers
    """(..., level, 3): pairs of pixels tp, fp, fn; see ``LevelCounts``."""
    rand_pairs: Numbers
    """(..., level, 3): pairs of different pixels tp, fp, fn."""
    warping: Numbers
    """(..., level, 2): pixels of splits and merges, and all pixels of the sections where these were counted."""
    means: Numbers
    """(..., level, 4, 2): sum over sections of pixel disagreement, classic warping error, V_Rand and V_Info; and the
    number of sections that have each."""

    @classmethod
    def of(cls, section: SectionCounts) -> EmSums:
        """Sums of one section; fields (level, ...)."""
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
    """Value of each measure that is averaged over sections, and 1 if it is defined for this section, else 0."""
    classic = at.warping.total / at.pixels.all if at.warping and at.pixels.all else None
    information = at.information.f_score or 0.0 if at.pixels.interior else None  # single cell: 0, as officially
    values = (at.pixels.disagreement, classic, at.thinned.f_score, information)
    return [(0.0, 0) if value is None else (value, 1) for value in values]


def _pixel_error(sums: EmSums) -> Numbers:
    """1 - F = (fp + fn) / (2 tp + fp + fn), with the limits of the official program; (..., level)."""
    tp, fp, fn, _ = np.moveaxis(sums.pixels, -1, 0)
    error = quotient(fp + fn, 2 * tp + fp + fn)
    return np.where(tp + fn > 0, error, np.nan)


def _pairs_error(pairs: Numbers) -> Numbers:
    tp, fp, fn = np.moveaxis(pairs, -1, 0)
    return 1 - quotient(2 * tp, 2 * tp + fp + fn)


def _warping_error(sums: EmSums) -> Numbers:
    interior = sums.pixels[..., 0] + sums.pixels[..., 2]
    return np.where(interior > 0, quotient(sums.warping[..., 0], sums.warping[..., 1]), np.nan)


def _mean(index: int) -> Function[EmSums]:
    return lambda sums: quotient(sums.means[..., index, 0], sums.means[..., index, 1])


def _lowest(curve: Function[EmSums], undefined: str = NO_INTERIOR) -> Score[EmSums]:
    """Minimum over the levels that have a score; NaN if none has."""
    return Score(lambda sums: np.asarray(np.fmin.reduce(curve(sums), axis=-1)), undefined, higher_is_better=False)


def _highest(curve: Function[EmSums]) -> Score[EmSums]:
    """Maximum over the levels that have a score; NaN if none has."""
    return Score(lambda sums: np.asarray(np.fmax.reduce(curve(sums), axis=-1)), NO_INTERIOR)


SCORES: dict[str, Score[EmSums]] = {
    "pixel_error": _lowest(_pixel_error),
    "pixel_disagreement": _lowest(_mean(0), NO_PIXEL),
    "rand_error": _lowest(lambda sums: _pairs_error(sums.rand)),
    "rand_error_pairs": _lowest(lambda sums: _pairs_error(sums.rand_pairs), NO_PAIR),
    "warping_error": _lowest(_warping_error),
    "warping_error_classic": _lowest(_mean(1), NO_PIXEL),
    "v_rand": _highest(_mean(2)),
    "v_info": _highest(_mean(3)),
}
"""Scores by name."""
