"""Sums that scores are computed from, and bootstrap confidence intervals of the scores.

Percentile bootstrap (Efron and Tibshirani 1993, chapter 13): units (sections, frames or objects) are drawn with
replacement, the score is recomputed from their summed counts, and the interval lies between two percentiles of these
scores. Two predictions are compared on the same draws (paired bootstrap), because both find the same units difficult.
The method assumes independent units. Neighbouring sections are less independent than separate images, and objects of
one frame less than frames: use frames where there are many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import counted
from unetcli.metrics.contingency import Contingency

Values = NDArray[np.float64]
RESAMPLES, LEVEL, SEED = 2000, 0.95, 2015
MAX_UNITS = 5000
"""More units than this are combined into random groups; the spread of the summed counts stays the same."""
MIN_DEFINED = 0.95
"""Smallest share of the resamples in which a score must be defined for an interval to be reported."""
BATCH_BYTES = 64 * 2**20
"""Memory for the weights and sums of one batch of resamples, in bytes."""


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """Base class of sums that are added field by field; each field is an array.

    Scores are functions of such sums. They preserve leading axes, so the same function scores one stack or a thousand
    resampled ones: see :func:`intervals`.
    """

    def __add__(self, other: Self) -> Self:
        return self._mapped(lambda name: getattr(self, name) + getattr(other, name))

    def times(self, count: int) -> Self:
        """Sum of ``count`` equal units."""
        return self._mapped(lambda name: getattr(self, name) * count)

    @classmethod
    def stacked(cls, units: Sequence[Self]) -> Self:
        """Stack the sums of n >= 1 units; each field becomes (n, ...)."""
        return cls(*(np.stack([getattr(unit, field.name) for unit in units]) for field in fields(cls)))

    @classmethod
    def concatenated(cls, stacks: Sequence[Self]) -> Self:
        """Concatenate one or more stacks, for example the objects of all frames."""
        return cls(*(np.concatenate([getattr(stack, field.name) for stack in stacks]) for field in fields(cls)))

    @classmethod
    def pooled(cls, units: Sequence[Self]) -> Self:
        """Sum of one or more units, added one after the other."""
        return sum(units[1:], start=units[0])

    def total(self) -> Self:
        """Sum over the units of a stack."""
        return self._mapped(lambda name: getattr(self, name).sum(axis=0))

    def resampled(self, weights: NDArray[np.float64]) -> Self:
        """Sums of many resamples of a stack at once.

        Parameters
        ----------
        weights : (resample, unit), float64
            How often each unit is drawn.

        Returns
        -------
        Sums
            Each field is (resample, ...).
        """
        return self._mapped(lambda name: np.tensordot(weights, getattr(self, name), axes=1))

    def take(self, indices: Any) -> Self:
        """Select units of a stack by index."""
        return self._mapped(lambda name: getattr(self, name)[indices])

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, as for JSON."""
        return {field.name: np.asarray(getattr(self, field.name)).tolist() for field in fields(self)}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Self:
        """Restore sums from the result of :meth:`to_dict`; a missing field raises ``KeyError``."""
        return cls(*(np.asarray(plain[field.name]) for field in fields(cls)))

    def _mapped(self, field_of: Callable[[str], Any]) -> Self:
        return type(self)(*(field_of(field.name) for field in fields(self)))


class TableSums(Sums):
    """Base class of sums that are computed from the contingency table of a frame or volume."""

    @classmethod
    def of(cls, table: Contingency) -> Self:
        """Sums of one frame or volume, from its complete table; fields have no unit axis."""
        raise NotImplementedError

    @classmethod
    def pooled(cls, units: Sequence[Self]) -> Self:
        """Sum of any number of frames or volumes, added one after the other."""
        return sum(units, start=cls.of(Contingency.total([])))


S = TypeVar("S", bound=Sums)
Function = Callable[[S], Values]
"""Sums whose fields have any leading axes (...) to scores (...), float64; NaN where a score is undefined."""


@dataclass(frozen=True, slots=True)
class Score(Generic[S]):
    """A score of a metric: an entry of the ``SCORES`` table of the metric's module. Call it with sums.

    >>> recall = Score(lambda sums: quotient(sums.tp, sums.tp + sums.fn), "no foreground in the truth")
    >>> recall.higher_is_better
    True
    """

    compute: Function[S]
    undefined: str
    """Reason reported where the score is undefined."""
    higher_is_better: bool = True

    def __call__(self, sums: S) -> Values:
        return self.compute(sums)


@dataclass(frozen=True, slots=True)
class SumsMetric(Generic[S]):
    """A metric whose scores are all computed from sums of one class."""

    sums: type[S]
    scores: Mapping[str, Score[S]]
    """Scores by name."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """Texts to report with the scores, such as their unit; a number would be printed as a score."""

    def entries(self, units: Sequence[S]) -> dict[str, Any]:
        """Scores of all units together, by name.

        Parameters
        ----------
        units
            Sums of each section, frame or volume; of any number if ``sums`` is a :class:`TableSums`, else at least one.

        Returns
        -------
        dict
            ``constants`` and ``scores``. An undefined score is None, with the reason under ``<name>_reason``.
        """
        return {**self.constants, **computed(self.scores, self.sums.pooled(units))}

    def withheld(self, reason: str) -> dict[str, Any]:
        """None and the reason for each score."""
        reasons = {f"{name}_reason": reason for name in self.scores}
        return {**self.constants, **dict.fromkeys(self.scores), **reasons}


def computed(scores: Mapping[str, Score[S]], sums: S) -> dict[str, Any]:
    """Scores by name, from sums without leading axes; see :func:`score_entries` for undefined ones."""
    found: dict[str, Any] = {}
    for name, score in scores.items():
        found |= score_entries(name, score(sums), score.undefined)
    return found


def quotient(numerator: Any, denominator: Any) -> NDArray[np.float64]:
    """Quotient of two broadcastable arrays; NaN where the denominator is 0.

    >>> quotient(np.array([1, 0]), np.array([4, 0])).tolist()
    [0.25, nan]
    """
    over, under = np.broadcast_arrays(np.asarray(numerator, float), np.asarray(denominator, float))
    found = np.full(over.shape, np.nan)
    np.divide(over, under, out=found, where=under != 0)
    return found


def score_entries(name: str, value: Any, reason: str) -> dict[str, Any]:
    """A score under its name; NaN becomes None, with the reason under ``<name>_reason``.

    >>> score_entries("seg", 0.5, "no object"), score_entries("seg", float("nan"), "no object")
    ({'seg': 0.5}, {'seg': None, 'seg_reason': 'no object'})
    """
    number = float(value)
    return {name: None, f"{name}_reason": reason} if math.isnan(number) else {name: number}


def json_list(values: NDArray[np.float64]) -> list[float | None]:
    """Convert an array to a list for JSON, which has no NaN: None instead."""
    return [None if math.isnan(value) else value for value in values.tolist()]


@dataclass(frozen=True, slots=True)
class Interval:
    """Confidence interval of a score."""

    low: float | None
    high: float | None
    units: int
    """Number of units that were resampled."""
    reason: str | None = None
    """Why there is no interval."""

    def entries(self, name: str) -> dict[str, Any]:
        """``<name>_interval``: [low, high]; or None, with the reason under ``<name>_interval_reason``."""
        if self.reason is not None:
            return {f"{name}_interval": None, f"{name}_interval_reason": self.reason}
        return {f"{name}_interval": [self.low, self.high]}


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference between the scores of two predictions on the same units."""

    value: float | None
    interval: Interval

    @property
    def more_than_noise(self) -> bool | None:
        """Whether 0 lies outside the interval; None if there is no interval."""
        low, high = self.interval.low, self.interval.high
        return None if low is None or high is None else not low <= 0 <= high


def intervals(
    units: S, scores: Mapping[str, Function[S]], *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = SEED
) -> dict[str, Interval]:
    """Percentile bootstrap intervals of scores, all from the same resamples.

    Parameters
    ----------
    units : fields (unit, ...)
        Sums of each unit: see :meth:`Sums.stacked`.
    scores
        Scores by name.
    resamples
        Number of resamples.
    level : 0 to 1
        Confidence level.

    Returns
    -------
    dict
        Interval by name; without bounds, but with a reason, for fewer than two units or a score that is undefined in
        more than 1 - ``MIN_DEFINED`` of the resamples.
    """
    n = unit_count(units)
    if n < 2:
        return dict.fromkeys(scores, Interval(None, None, n, f"{counted(n, 'unit')} to resample, two are needed"))
    drawn = resampled_sums(units, resamples, seed)
    return {name: percentile_interval(score(drawn), n, level) for name, score in scores.items()}


def differences(
    current: S, baseline: S, scores: Mapping[str, Function[S]], *, resamples: int = RESAMPLES, level: float = LEVEL
) -> dict[str, Difference]:
    """Paired bootstrap of ``score(current) - score(baseline)``.

    Parameters
    ----------
    current, baseline : fields (unit, ...)
        Sums of the same units in the same order.
    scores
        Scores by name.
    resamples
        Number of resamples.
    level : 0 to 1
        Confidence level.

    Raises
    ------
    ValueError
        The numbers of units differ.
    """
    n = unit_count(current)
    if n != unit_count(baseline):
        raise ValueError(f"{n} units against {unit_count(baseline)}; a paired comparison needs the same units")
    values = {name: float(score(current.total()) - score(baseline.total())) for name, score in scores.items()}
    if n < 2:
        found = intervals(current, scores)
    else:
        one, other = resampled_sums(current, resamples, SEED), resampled_sums(baseline, resamples, SEED)
        found = {name: percentile_interval(score(one) - score(other), n, level) for name, score in scores.items()}
    return {name: Difference(None if np.isnan(value) else value, found[name]) for name, value in values.items()}


def resampled_sums(units: S, resamples: int, seed: int) -> S:
    """Sums of each resample, fields (resample, ...); the draws depend only on the number of units and the seed."""
    units = grouped(units, seed)
    return type(units).concatenated([units.resampled(weights) for weights in draw_weights(units, resamples, seed)])


def percentile_interval(values: Values, units: int, level: float) -> Interval:
    """The central ``level`` of the values of all resamples, (resample,)."""
    defined = values[~np.isnan(values)]
    if defined.size < MIN_DEFINED * values.size:
        undefined = values.size - defined.size
        return Interval(None, None, units, f"not defined in {undefined} of {values.size} resamples")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), units)


def unit_count(units: Sums) -> int:
    """Number of units of a stack."""
    return len(getattr(units, fields(units)[0].name))


def grouped(units: S, seed: int) -> S:
    """Sums of at most ``MAX_UNITS`` random groups of units; the groups depend only on their number and the seed."""
    n = unit_count(units)
    if n <= MAX_UNITS:
        return units
    group = np.random.default_rng(seed).permutation(n) % MAX_UNITS
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(MAX_UNITS))
    return type(units)(*(np.add.reduceat(getattr(units, field.name)[order], starts, axis=0) for field in fields(units)))


def draw_weights(units: Sums, resamples: int, seed: int) -> Iterator[Values]:
    """How often each unit is drawn, (resample, unit), in batches of at most ``BATCH_BYTES``."""
    n = unit_count(units)
    numbers = sum(getattr(units, field.name)[0].size for field in fields(units))
    batch = max(1, BATCH_BYTES // (8 * (2 * n + numbers)))
    generator = np.random.default_rng(seed)
    for first in range(0, resamples, batch):
        rows = min(batch, resamples - first)
        drawn = generator.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)
