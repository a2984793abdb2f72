from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetcli.metrics.cells import CellSums
from unetcli.metrics.contingency import Contingency
from unetcli.metrics.objects import matched_objects

PIXELS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=40)


def table(pixels: list[tuple[int, int]]) -> Contingency:
    columns = np.array(pixels, int).reshape(-1, 2)
    return Contingency.of(columns[:, 0], columns[:, 1])


def test_found_missed_merged_split_and_extra_are_told_apart() -> None:
    found = [(10, 1)] * 3 + [(0, 1)]
    missed = [(11, 0)] * 4
    merged = [(12, 2)] * 3 + [(13, 2)] * 3
    split = [(14, 3)] * 3 + [(14, 4)] * 2
    extra = [(0, 5)] * 2
    reference, result = matched_objects(table(found + missed + merged + split + extra))
    assert reference.labels.tolist() == [10, 11, 12, 13, 14]
    assert reference.sizes.tolist() == [3, 4, 3, 3, 5]
    assert reference.result.tolist() == [1, 0, 2, 2, 3]
    assert reference.jaccard.tolist() == pytest.approx([3 / 4, 0, 1 / 2, 1 / 2, 3 / 5])
    assert reference.shared_with.tolist() == [0, 0, 1, 1, 0]
    assert reference.pieces.tolist() == [1, 0, 0, 0, 2]
    assert result.labels.tolist() == [1, 2, 3, 4, 5]
    assert result.sizes.tolist() == [4, 6, 3, 2, 2]
    assert result.covers.tolist() == [1, 2, 1, 0, 0]
    assert result.inside.tolist() == [True, False, True, True, False]


@given(PIXELS)
def test_the_list_agrees_with_the_scores(pixels: list[tuple[int, int]]) -> None:
    reference, result = matched_objects(table(pixels))
    sums = CellSums.of(table(pixels))
    assert (len(reference.labels), len(result.labels)) == (sums.references, sums.results)
    assert reference.jaccard.sum() == pytest.approx(float(sums.jaccard))
    assert (reference.result == 0).sum() == sums.missed
    assert (result.covers == 0).sum() == sums.spurious
    assert np.maximum(result.covers - 1, 0).sum() == sums.merged
