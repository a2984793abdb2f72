"""Measures of the ISBI 2012 EM segmentation challenge, as its official program computes them.

Reference: cell interior against membrane, section by section. Proposal: probability of interior, cut at 11 levels.
Each measure takes its own best level for the whole stack, after the sections' counts have been pooled.
Definitions: Arganda-Carreras et al. 2015, and the classes of Fiji's Trainable Segmentation that scored the entries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse

LEVELS = tuple(float(level) for level in np.cumsum([0.0] + [0.1] * 10))
"""0.0 to 1.0 in steps of 0.1 added up in doubles, as the official loop does: the last is 0.9999999999999999."""


@dataclass(frozen=True, slots=True)
class PairCounts:
    """Agreements and disagreements, of pixels or of pairs of pixels; exact integers."""

    tp: int
    fp: int
    fn: int

    def __add__(self, other: PairCounts) -> PairCounts:
        return PairCounts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)


@dataclass(frozen=True, slots=True)
class LevelCounts:
    """What one section adds to the measures at one level."""

    pixels: PairCounts
    disagreement: float
    """Share of the section's pixels that differ."""
    rand: PairCounts
    """Pairs normalised by N^2: a pixel pairs with itself too."""
    rand_pairs: PairCounts
    """Pairs of two different pixels."""


def section_counts(probability: NDArray[np.float32], interior: NDArray[np.bool_]) -> list[LevelCounts]:
    """Counts of one section, (y, x) each, at every level of ``LEVELS``."""
    cells, _ = ndimage.label(interior)  # scipy's default is 4-connected
    return [level_counts(above(probability, level), interior, cells) for level in LEVELS]


def above(probability: NDArray[np.float32], level: float) -> NDArray[np.bool_]:
    """float32 probability > float64 level, compared in float32: against the largest float32 not above the level."""
    single = np.float32(level)
    return probability > (single if float(single) <= level else np.nextafter(single, np.float32(-1)))


def level_counts(proposal: NDArray[np.bool_], interior: NDArray[np.bool_], cells: NDArray[np.integer]) -> LevelCounts:
    """Counts of one binary proposal against the reference and its labelled cells."""
    tp = int(np.count_nonzero(proposal & interior))
    fp, fn = int(np.count_nonzero(proposal)) - tp, int(np.count_nonzero(interior)) - tp
    rand, rand_pairs = rand_counts(cells, ndimage.label(proposal)[0])
    return LevelCounts(PairCounts(tp, fp, fn), (fp + fn) / proposal.size, rand, rand_pairs)


def rand_counts(cells: NDArray[np.integer], segments: NDArray[np.integer]) -> tuple[PairCounts, PairCounts]:
    """Foreground-restricted pair counts, normalised by N^2 and by pairs of different pixels.

    Only pixels inside reference cells count; those that the proposal calls membrane are each a segment of their own.
    """
    inside = cells > 0
    a, b = cells[inside], segments[inside]
    singles = int(np.count_nonzero(b == 0))
    table = sparse.coo_array((np.ones(a.size, np.int64), (a, b))).tocsr() if a.size else sparse.csr_array((1, 1))
    joint, a_sizes = table[:, 1:].data if a.size else np.zeros(0, np.int64), np.bincount(a)
    b_sizes = np.bincount(b)[1:]
    squares = [int((sizes.astype(np.int64) ** 2).sum()) for sizes in (joint, a_sizes, b_sizes)]
    together, in_a, in_b = squares[0] + singles, squares[1], squares[2] + singles
    every = PairCounts(together, in_b - together, in_a - together)
    n = a.size  # each pixel's pair with itself is together, in both
    return every, PairCounts((together - n) // 2, every.fp // 2, every.fn // 2)


def scores(sections: Sequence[list[LevelCounts]]) -> dict[str, Any]:
    """Scores of a stack from its sections' counts, each with its level under ``<name>_threshold``.

    ``pixel_error``, ``rand_error`` (N^2), ``rand_error_pairs``: 1 - the best F-score; ``pixel_disagreement``: the
    smallest mean share of differing pixels. Undefined: None, with the reason under ``<name>_reason``.
    """
    stacks = list(zip(*sections, strict=True))  # per level, over the sections
    curves: dict[str, list[float]] = {
        "pixel_error": [1 - f_score(total(level, lambda c: c.pixels)) for level in stacks],
        "pixel_disagreement": [float(np.mean([c.disagreement for c in level])) for level in stacks],
        "rand_error": [1 - pair_f_score(total(level, lambda c: c.rand)) for level in stacks],
        "rand_error_pairs": [1 - pair_f_score(total(level, lambda c: c.rand_pairs)) for level in stacks],
    }
    result: dict[str, Any] = {}
    for name, curve in curves.items():
        result |= _best(name, curve)
    return result


def total(level: Sequence[LevelCounts], pick: Callable[[LevelCounts], PairCounts]) -> PairCounts:
    """Counts pooled over the sections."""
    return sum((pick(counts) for counts in level), PairCounts(0, 0, 0))


def f_score(counts: PairCounts) -> float:
    """F of pixels; precision is 1 without false positives, recall 1 without false negatives; NaN without interior."""
    if counts.tp + counts.fn == 0:
        return float("nan")
    precision = counts.tp / (counts.tp + counts.fp) if counts.fp else 1.0
    recall = counts.tp / (counts.tp + counts.fn) if counts.fn else 1.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def pair_f_score(counts: PairCounts) -> float:
    """F of pairs, 2 tp / (2 tp + fp + fn); NaN where there is no pair."""
    weight = 2 * counts.tp + counts.fp + counts.fn
    return 2 * counts.tp / weight if weight else float("nan")


def _best(name: str, curve: list[float]) -> dict[str, Any]:
    if np.isnan(curve).all():
        reason = f"the reference has no {'two pixels of ' if name == 'rand_error_pairs' else ''}interior"
        return {name: None, f"{name}_threshold": None, f"{name}_reason": reason}
    place = int(np.nanargmin(curve))
    return {name: curve[place], f"{name}_threshold": LEVELS[place]}
