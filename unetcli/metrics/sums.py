"""What blocks and sections add to a score, and how a score without anything to judge is told."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """Base of sums that add up field by field; each field is an array.

    Scores are functions of such sums. They keep leading axes apart, so that the same function scores one stack or a
    thousand resampled ones: see :mod:`unetcli.metrics.bootstrap`.
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
