from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from unetcli.metrics.cells import seg_sums

Labels = NDArray[np.integer]
IMAGES = st.integers(1, 30).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(0, 4), min_size=n, max_size=n).map(np.array)] * 2)
)


def seg_by_hand(reference: Labels, result: Labels) -> tuple[float, int]:
    """The challenge's rule, object by object, on sets of pixels."""
    total, objects = 0.0, set(reference.tolist()) - {0}
    for label in objects:
        cell = set(np.flatnonzero(reference == label).tolist())
        for other in set(result.tolist()) - {0}:
            found = set(np.flatnonzero(result == other).tolist())
            if len(cell & found) > 0.5 * len(cell):
                total += len(cell & found) / len(cell | found)
    return total, len(objects)


@given(IMAGES)
def test_seg_follows_the_rule_object_by_object(images: tuple[Labels, Labels]) -> None:
    total, objects = seg_by_hand(*images)
    assert seg_sums(*images) == (pytest.approx(total), objects)


def test_seg_is_pooled_over_the_objects_of_a_challenge_sequence(data: Path) -> None:
    case = data / "metrics_cases" / "ctc_mixed"
    total, objects = 0.0, 0
    for frame in ("001", "003"):
        j, count = seg_sums(
            *(tifffile.imread(case / place) for place in (f"01_GT/SEG/man_seg{frame}.tif", f"01_RES/mask{frame}.tif"))
        )
        total, objects = total + j, objects + count
    assert total / objects == pytest.approx(0.478125, abs=1e-12)


@pytest.mark.parametrize(
    ("reference", "result", "expected"),
    [
        ([7, 7, 7, 7], [3, 3, 0, 0], (0, 1)),
        ([7, 7, 7, 0], [3, 3, 0, 0], (2 / 3, 1)),
        ([5, 5, 6, 6], [1, 1, 1, 1], (0.5 + 0.5, 2)),
        ([5, 5, 5, 5], [1, 1, 1, 2], (3 / 4, 1)),
        ([5, 5, 0, 0], [1, 1, 2, 2], (1, 1)),
        ([5, 0, 0, 5], [9, 0, 0, 9], (1, 1)),
        ([5, 5, 6, 6], [0, 0, 0, 0], (0, 2)),
        ([0, 0, 0, 0], [1, 1, 0, 2], (0, 0)),
    ],
    ids=["half", "more than half", "merged", "split", "false positive", "in two pieces", "nothing found", "no object"],
)
def test_seg_of_small_images(reference: list[int], result: list[int], expected: tuple[float, int]) -> None:
    assert seg_sums(np.array([reference], np.uint16), np.array([result], np.uint16)) == expected
