"""What one section adds to the measures of the ISBI 2012 EM challenge; counts of sections come together in any order.

Reference: cell interior against membrane. Proposal: probability of interior, cut at 11 levels. Everything is counted
section by section, nothing is linked from one section to the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.metrics.partitions import Cells, Information, Overlap, PairCounts, components
from unetcli.metrics.thinning import thin
from unetcli.metrics.warping import ErrorCounts, WarpingErrors, warping_errors

LEVELS = tuple(float(level) for level in np.cumsum([0.0] + [0.1] * 10))
"""0.0 to 1.0 in steps of 0.1 added up in doubles, as the official loop does: the last is 0.9999999999999999."""
WARPING_LEVELS = LEVELS[:-1]
"""The warping error stops at 0.9: a proposal that is empty at 1.0 would have no split and no merge."""


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
    probability: NDArray[np.float32],
    interior: NDArray[np.bool_],
    level: float,
    judged: NDArray[np.bool_] | None = None,
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


def combine(*parts: Mapping[int, SectionCounts]) -> dict[int, SectionCounts]:
    """Counts from several workers, by the number of the section, in its order.

    A section that was counted twice, as after a retry, counts once.

    Raises
    ------
    ValueError
        Two parts hold different counts of one section.
    """
    together: dict[int, SectionCounts] = {}
    for part in parts:
        for number, counts in part.items():
            if together.setdefault(number, counts) != counts:
                raise ValueError(f"section {number} was counted twice, with different results")
    return dict(sorted(together.items()))


def require_alike(probability: NDArray[Any], interior: NDArray[Any], judged: NDArray[Any] | None) -> None:
    """The compiled loops check no index: arrays have to fit before they run."""
    shapes = {a.shape for a in (probability, interior, judged) if a is not None}
    if len(shapes) > 1 or probability.ndim != 2:
        raise ValueError(f"arrays of one section have shapes {sorted(shapes)}; expected the same (y, x)")
