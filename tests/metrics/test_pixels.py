from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetcli.metrics.pixels import Confusion

BINARY = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=40)


def of(pairs: list[tuple[int, int]], classes: int = 2) -> Confusion:
    truth, predicted = np.array(pairs).T
    return Confusion.of(truth, predicted, classes)


@given(BINARY)
def test_scores_are_those_of_sets_of_pixels(pairs: list[tuple[int, int]]) -> None:
    truth = {place for place, (t, _) in enumerate(pairs) if t}
    found = {place for place, (_, p) in enumerate(pairs) if p}
    scores = of(pairs).scores()
    assert (scores["tp"], scores["fp"], scores["fn"]) == (len(truth & found), len(found - truth), len(truth - found))
    assert scores["accuracy"] == pytest.approx(sum(t == p for t, p in pairs) / len(pairs))
    if truth | found:
        assert scores["iou"] == pytest.approx(len(truth & found) / len(truth | found))
        assert scores["dice"] == pytest.approx(2 * len(truth & found) / (len(truth) + len(found)))


@given(BINARY, BINARY)
def test_sections_add_up(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    assert (of(one) + of(other)).scores() == of(one + other).scores()


def test_without_foreground_there_is_no_overlap_and_it_says_why() -> None:
    scores = of([(0, 0)] * 5).scores()
    assert (scores["iou"], scores["dice"], scores["accuracy"]) == (None, None, 1)
    assert "no foreground" in scores["iou_reason"]
    assert "no foreground" in scores["dice_reason"]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int64"])
def test_many_classes_do_not_overflow_a_small_dtype(dtype: str) -> None:
    truth = np.array([[0, 199], [150, 3]], dtype)
    assert Confusion.of(truth, truth, 200).counts.trace() == 4


def test_means_are_over_the_classes_that_occur() -> None:
    scores = of([(0, 0), (0, 0), (0, 1), (1, 1), (3, 0)], classes=5).scores()
    iou = {"0": 2 / 4, "1": 1 / 2, "3": 0}
    assert scores["iou_per_class"] == pytest.approx(iou)
    assert scores["iou"] == pytest.approx(np.mean(list(iou.values())))
    assert scores["dice"] == pytest.approx(np.mean([4 / 6, 2 / 3, 0]))
    assert scores["accuracy"] == pytest.approx(3 / 5)
    assert scores["confusion"][0] == [2, 1, 0, 0, 0]
