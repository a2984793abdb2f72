"""Runs go in stages: blocks that need nothing of each other, only the stages before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Stage:
    """Some of a run's blocks, and what is done with them."""

    name: str
    blocks: range


class Blocks(Protocol):
    """A stage, as far as it is a matter of order."""

    @property
    def blocks(self) -> range: ...


def within(numbers: NDArray[np.intp], blocks: range) -> NDArray[np.intp]:
    """Those of rising numbers that are in a range.

    >>> within(np.array([0, 3, 4, 9]), range(3, 9)).tolist()
    [3, 4]
    """
    start, stop = np.searchsorted(numbers, [blocks.start, blocks.stop])
    return numbers[start:stop]


def pending(stages: Sequence[Blocks], missing: NDArray[np.intp]) -> NDArray[np.intp]:
    """Of rising missing blocks, those of the first stage that has some: what can be worked off now. None: all is done.

    >>> pending([Stage("find", range(3)), Stage("merge", range(3, 4))], np.array([1, 2, 3])).tolist()
    [1, 2]
    """
    parts = (within(missing, stage.blocks) for stage in stages)
    return next((part for part in parts if len(part)), missing[:0])
