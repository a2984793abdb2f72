"""Variation of information and adapted Rand error of instances, 2-D or 3-D, from tables that add up over blocks.

Variation of information (Meila 2007), in nats: ``split`` = H(result | reference) grows where one object is cut into
several, ``merge`` = H(reference | result) where several become one. Every pixel counts, background is a segment like
any other; ``ignore=0`` leaves the reference's background out, as CREMI does. scikit-image and CREMI give bits:
nats / ln 2, which ``split_bits`` and ``merge_bits`` are.

Adapted Rand error (SNEMI3D; Arganda-Carreras et al. 2015): 1 - F of pairs of different pixels, among the pixels of
reference objects only. ``adapted_rand_error`` takes the result's background as one segment, as scikit-image does;
``adapted_rand_error_singletons`` takes each of its pixels as a segment of its own, as the challenge's programs do:
where a result has membrane between objects, that is the fairer one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.metrics.contingency import NOTHING, Contingency, marginal
from unetcli.metrics.sums import Sums, quotient, stated

Numbers = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class VoiSums(Sums):
    """What a frame (or a whole volume) adds; objects of different frames are different objects.

    The sums over frames are float64: pairs are exact up to 2^53, beyond that to 16 digits.
    """

    pixels: Numbers
    joint: Numbers
    """Sum of n ln n over the pixels n of each pair of segments."""
    reference: Numbers
    """The same over reference segments."""
    result: Numbers
    """The same over result segments."""
    pairs: Numbers
    """Pairs of pixels in reference objects that lie together in both reference and result."""
    pairs_reference: Numbers
    """Pairs of pixels that lie together in a reference object."""
    pairs_result: Numbers
    """Pairs of pixels in reference objects that lie together in a result segment, background being one."""
    pairs_background: Numbers
    """Those of ``pairs`` that lie in the result's background."""
    pairs_result_background: Numbers
    """Those of ``pairs_result`` that lie in the result's background."""

    @classmethod
    def of(cls, table: Contingency) -> VoiSums:
        """Sums of one frame or volume, from its whole table."""
        objects = table.reference > 0
        inside = Contingency(table.reference[objects], table.result[objects], table.counts[objects])
        background = inside.counts[inside.result == 0]
        sums = (
            table.counts.sum(),
            n_ln_n(table.counts),
            n_ln_n(marginal(table.reference, table.counts)),
            n_ln_n(marginal(table.result, table.counts)),
            pairs(inside.counts),
            pairs(marginal(inside.reference, inside.counts)),
            pairs(marginal(inside.result, inside.counts)),
            pairs(background),
            pairs(background.sum(keepdims=True)),
        )
        return cls(*map(np.asarray, sums))


def n_ln_n(counts: Numbers) -> float:
    """Sum of n ln n, for n > 0."""
    values = counts.astype(np.float64)
    return float((values * np.log(values)).sum())


def pairs(counts: Numbers) -> float:
    """Sum of n (n - 1) / 2."""
    values = counts.astype(np.float64)
    return float((values * (values - 1)).sum() / 2)


def split(sums: VoiSums) -> Numbers:
    """H(result | reference), nats."""
    return quotient(np.maximum(sums.reference - sums.joint, 0), sums.pixels)


def merge(sums: VoiSums) -> Numbers:
    """H(reference | result), nats."""
    return quotient(np.maximum(sums.result - sums.joint, 0), sums.pixels)


def adapted_rand_error(sums: VoiSums) -> Numbers:
    """1 - F of pairs, the result's background being one segment."""
    return 1 - quotient(2 * sums.pairs, sums.pairs_reference + sums.pairs_result)


def adapted_rand_error_singletons(sums: VoiSums) -> Numbers:
    """1 - F of pairs, each pixel of the result's background being a segment of its own."""
    together = sums.pairs - sums.pairs_background
    return 1 - quotient(2 * together, sums.pairs_reference + sums.pairs_result - sums.pairs_result_background)


SCORES: dict[str, Callable[[VoiSums], Numbers]] = {
    "split": split,
    "merge": merge,
    "split_bits": lambda sums: split(sums) / math.log(2),
    "merge_bits": lambda sums: merge(sums) / math.log(2),
    "adapted_rand_error": adapted_rand_error,
    "adapted_rand_error_singletons": adapted_rand_error_singletons,
}
"""Scores by name, from sums with any leading axes; NaN where there is nothing to judge."""


def scores(frames: Sequence[VoiSums]) -> dict[str, Any]:
    """Scores by name, pooled over the frames (or the one volume); lower is better, 0 is perfect.

    A score that is not defined is None, with the reason under ``<name>_reason``.
    """
    total = sum(frames, start=VoiSums.of(Contingency.of(NOTHING, NOTHING)))
    found: dict[str, Any] = {"unit": "nats"}
    for name, score in SCORES.items():
        without = "no two pixels of a reference object" if "rand" in name else "no pixel to judge"
        found |= stated(name, score(total), without)
    return found
