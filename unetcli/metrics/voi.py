"""Variation of information and adapted Rand error of instances, 2-D or 3-D, from tables that are added over blocks.

Variation of information (Meila 2007), in nats: ``split`` = H(result | reference) grows where one object is cut into
several, ``merge`` = H(reference | result) where several are joined. Every pixel counts, and background is a segment
like any other; ``ignore=0`` excludes the background of the reference, as CREMI does. scikit-image and CREMI report
bits: nats / ln 2, here ``split_bits`` and ``merge_bits``.

Adapted Rand error (SNEMI3D; Arganda-Carreras et al. 2015): 1 - F over pairs of different pixels, restricted to pixels
of reference objects. ``adapted_rand_error`` treats the background of the result as one segment, as scikit-image does;
``adapted_rand_error_singletons`` treats each of its pixels as a segment of its own, as the programs of the challenges
do. The latter is fairer to results that leave membrane between objects.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from unetcli.metrics.contingency import Contingency, marginal
from unetcli.metrics.pixels import NO_PIXEL
from unetcli.metrics.sums import Score, SumsMetric, TableSums, quotient

Numbers = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class VoiSums(TableSums):
    """Sums of one frame or volume; fields (...). Objects of different frames are different objects.

    Sums over frames are float64: numbers of pairs are exact up to 2^53, beyond that to 16 digits.
    """

    pixels: Numbers
    """Number of pixels."""
    joint: Numbers
    """Sum of n ln n over the pairs of segments, n being the pixels that they share."""
    reference: Numbers
    """Sum of n ln n over reference segments, n being their pixels."""
    result: Numbers
    """Sum of n ln n over result segments, n being their pixels."""
    pairs: Numbers
    """Pairs of pixels in reference objects that are together in both reference and result."""
    pairs_reference: Numbers
    """Pairs of pixels that are together in a reference object."""
    pairs_result: Numbers
    """Pairs of pixels in reference objects that are together in a result segment; background is one segment."""
    pairs_background: Numbers
    """Part of ``pairs`` in the background of the result."""
    pairs_result_background: Numbers
    """Part of ``pairs_result`` in the background of the result."""

    @classmethod
    def of(cls, table: Contingency) -> Self:
        """Sums of one frame or volume, from its complete table; each field is a scalar array."""
        objects = table.reference > 0
        inside = Contingency(table.reference[objects], table.result[objects], table.counts[objects])
        background = inside.counts[inside.result == 0]
        sums = (
            table.counts.sum(),
            n_ln_n(table.counts),
            n_ln_n(marginal(table.reference, table.counts)),
            n_ln_n(marginal(table.result, table.counts)),
            pair_count(inside.counts),
            pair_count(marginal(inside.reference, inside.counts)),
            pair_count(marginal(inside.result, inside.counts)),
            pair_count(background),
            pair_count(background.sum(keepdims=True)),
        )
        return cls(*map(np.asarray, sums))


def n_ln_n(counts: Numbers) -> float:
    """Sum of n ln n over counts n > 0."""
    values = counts.astype(np.float64)
    return float((values * np.log(values)).sum())


def pair_count(counts: Numbers) -> float:
    """Sum of n (n - 1) / 2: the number of pairs of different pixels within segments of n pixels."""
    values = counts.astype(np.float64)
    return float((values * (values - 1)).sum() / 2)


def split(sums: VoiSums) -> Numbers:
    """Conditional entropy H(result | reference) in nats, (...), at least 0 (Meila 2007)."""
    return quotient(np.maximum(sums.reference - sums.joint, 0), sums.pixels)


def merge(sums: VoiSums) -> Numbers:
    """Conditional entropy H(reference | result) in nats, (...), at least 0 (Meila 2007)."""
    return quotient(np.maximum(sums.result - sums.joint, 0), sums.pixels)


def adapted_rand_error(sums: VoiSums) -> Numbers:
    """1 - F of pairs of pixels, (...), 0 to 1; the background of the result is one segment (as in scikit-image)."""
    return 1 - quotient(2 * sums.pairs, sums.pairs_reference + sums.pairs_result)


def adapted_rand_error_singletons(sums: VoiSums) -> Numbers:
    """1 - F of pairs of pixels, (...), 0 to 1; each background pixel of the result is a segment of its own."""
    together = sums.pairs - sums.pairs_background
    return 1 - quotient(2 * together, sums.pairs_reference + sums.pairs_result - sums.pairs_result_background)


NO_PAIR = "no two pixels of a reference object"
SCORES: dict[str, Score[VoiSums]] = {
    "split": Score(split, NO_PIXEL, higher_is_better=False),
    "merge": Score(merge, NO_PIXEL, higher_is_better=False),
    "split_bits": Score(lambda sums: split(sums) / math.log(2), NO_PIXEL, higher_is_better=False),
    "merge_bits": Score(lambda sums: merge(sums) / math.log(2), NO_PIXEL, higher_is_better=False),
    "adapted_rand_error": Score(adapted_rand_error, NO_PAIR, higher_is_better=False),
    "adapted_rand_error_singletons": Score(adapted_rand_error_singletons, NO_PAIR, higher_is_better=False),
}
"""Scores by name."""
METRIC = SumsMetric(VoiSums, SCORES, {"unit": "nats"})
"""``METRIC.entries`` reports the scores of any number of frames or volumes; 0 is perfect."""
