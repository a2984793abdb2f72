"""What blocks and sections add to a score, and how sure the score is: percentile bootstrap over units.

Units (sections, frames, objects) are drawn with replacement, the score is computed anew from their summed counts, and
the interval is what lies between the percentiles (Efron & Tibshirani 1993, chapter 13). Two predictions are compared
on the same draws, as what is hard for one is hard for the other. Units have to be independent: sections are less so
than images, objects of one frame less than frames; where there are many frames, take frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
RESAMPLES, LEVEL, SEED = 2000, 0.95, 2015
MOST_UNITS = 5000
"""Beyond, units are pooled at random into so many groups: the spread of the sums stays the same."""
ENOUGH_DEFINED = 0.95
"""Least share of the resamples in which the score has to be defined."""
BYTES = 64 * 2**20
"""Memory for the weights and sums of the resamples that are at work."""


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """Base of sums that add up field by field; each field is an array.

    Scores are functions of such sums. They keep leading axes apart, so that the same function scores one stack or a
    thousand resampled ones: see :func:`intervals`.
    """

    def __add__(self, other: Self) -> Self:
        return self._made(lambda name: getattr(self, name) + getattr(other, name))

    @classmethod
    def stacked(cls, units: Sequence[Self]) -> Self:
        """Sums of n units, of which there is one at least, as one value whose fields are (n, ...)."""
        return cls(*(np.stack([getattr(unit, field.name) for unit in units]) for field in fields(cls)))

    @classmethod
    def joined(cls, stacks: Sequence[Self]) -> Self:
        """Stacks, of which there is one at least, one after the other: the objects of all frames."""
        return cls(*(np.concatenate([getattr(stack, field.name) for stack in stacks]) for field in fields(cls)))

    def total(self) -> Self:
        """Sum over the units of a stack."""
        return self._made(lambda name: getattr(self, name).sum(axis=0))

    def resampled(self, weights: NDArray[np.float64]) -> Self:
        """Sums of many samples of a stack's n units at once; ``weights`` (sample, n): how often a unit is in each."""
        return self._made(lambda name: np.tensordot(weights, getattr(self, name), axes=1))

    def taken(self, places: Any) -> Self:
        """Some of the units of a stack."""
        return self._made(lambda name: getattr(self, name)[places])

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, as for JSON."""
        return {field.name: np.asarray(getattr(self, field.name)).tolist() for field in fields(self)}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Self:
        """The sums that :meth:`to_dict` gave; a field that is missing is a ``KeyError``."""
        return cls(*(np.asarray(plain[field.name]) for field in fields(cls)))

    def _made(self, field_of: Callable[[str], Any]) -> Self:
        return type(self)(*(field_of(field.name) for field in fields(self)))


def quotient(numerator: Any, denominator: Any) -> NDArray[np.float64]:
    """Quotient, NaN where the denominator is 0: nothing to judge.

    >>> quotient(np.array([1, 0]), np.array([4, 0])).tolist()
    [0.25, nan]
    """
    over, under = np.broadcast_arrays(np.asarray(numerator, float), np.asarray(denominator, float))
    found = np.full(over.shape, np.nan)
    np.divide(over, under, out=found, where=under != 0)
    return found


def stated(name: str, value: Any, reason: str) -> dict[str, Any]:
    """A score under its name; NaN is told as None, with the reason under ``<name>_reason``.

    >>> stated("seg", 0.5, "no object"), stated("seg", float("nan"), "no object")
    ({'seg': 0.5}, {'seg': None, 'seg_reason': 'no object'})
    """
    number = float(value)
    return {name: None, f"{name}_reason": reason} if math.isnan(number) else {name: number}


def listed(values: NDArray[np.float64]) -> list[float | None]:
    """Numbers for JSON, which has no NaN: None instead."""
    return [None if math.isnan(value) else value for value in values.tolist()]


S = TypeVar("S", bound=Sums)
Score = Callable[[S], Values]


@dataclass(frozen=True, slots=True)
class Interval:
    """Where a score lies, at 95 % confidence, were other units drawn from the same source."""

    low: float | None
    high: float | None
    units: int
    reason: str | None = None
    """Why there is none."""

    def stated(self, name: str) -> dict[str, Any]:
        """``<name>_interval``: [low, high], else None with the reason under ``<name>_interval_reason``."""
        if self.reason is not None:
            return {f"{name}_interval": None, f"{name}_interval_reason": self.reason}
        return {f"{name}_interval": [self.low, self.high]}


@dataclass(frozen=True, slots=True)
class Difference:
    """The score of one prediction less that of another on the same units."""

    value: float | None
    interval: Interval

    @property
    def more_than_noise(self) -> bool | None:
        """Whether 0 lies outside the interval; None where there is no interval."""
        low, high = self.interval.low, self.interval.high
        return None if low is None or high is None else not low <= 0 <= high


def intervals(
    units: S, scores: Mapping[str, Score[S]], *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = SEED
) -> dict[str, Interval]:
    """Percentile intervals of scores, all from the same draws of the units (unit, ...): see ``Sums.stacked``."""
    n = count(units)
    if n < 2:
        return dict.fromkeys(scores, Interval(None, None, n, f"{n} unit{'s' * (n != 1)} to draw from, two are needed"))
    drawn = samples(units, resamples, seed)
    return {name: between(score(drawn), n, level) for name, score in scores.items()}


def differences(
    ours: S, theirs: S, scores: Mapping[str, Score[S]], *, resamples: int = RESAMPLES, level: float = LEVEL
) -> dict[str, Difference]:
    """Paired comparisons, ``score(ours) - score(theirs)``; both have the same units in the same order."""
    n = count(ours)
    if n != count(theirs):
        raise ValueError(f"{n} units against {count(theirs)}; a paired comparison needs the same")
    values = {name: float(score(ours.total()) - score(theirs.total())) for name, score in scores.items()}
    if n < 2:
        found = intervals(ours, scores)
    else:
        one, other = samples(ours, resamples, SEED), samples(theirs, resamples, SEED)
        found = {name: between(score(one) - score(other), n, level) for name, score in scores.items()}
    return {name: Difference(None if np.isnan(value) else value, found[name]) for name, value in values.items()}


def samples(units: S, resamples: int, seed: int) -> S:
    """Sums of samples drawn from the units, (sample, ...); the same draws for two stacks of the same length."""
    units = pooled(units, seed)
    return type(units).joined([units.resampled(weights) for weights in draws(units, resamples, seed)])


def between(values: Values, units: int, level: float) -> Interval:
    """The middle ``level`` of the values of all resamples."""
    defined = values[~np.isnan(values)]
    if defined.size < ENOUGH_DEFINED * values.size:
        undefined = values.size - defined.size
        return Interval(None, None, units, f"not defined in {undefined} of {values.size} resamples")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), units)


def count(units: Sums) -> int:
    """Units of a stack."""
    return len(getattr(units, fields(units)[0].name))


def pooled(units: S, seed: int) -> S:
    """At most ``MOST_UNITS`` groups of units, drawn at random; the same for two stacks of the same length."""
    n = count(units)
    if n <= MOST_UNITS:
        return units
    group = np.random.default_rng(seed).permutation(n) % MOST_UNITS
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(MOST_UNITS))
    return type(units)(*(np.add.reduceat(getattr(units, field.name)[order], starts, axis=0) for field in fields(units)))


def draws(units: Sums, resamples: int, seed: int) -> Iterator[Values]:
    """(resample, unit): how often each unit is drawn, in batches that fit the memory."""
    n = count(units)
    numbers = sum(getattr(units, field.name)[0].size for field in fields(units))
    batch = max(1, BYTES // (8 * (2 * n + numbers)))
    generator = np.random.default_rng(seed)
    for first in range(0, resamples, batch):
        rows = min(batch, resamples - first)
        drawn = generator.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)
