from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetcli.metrics.pixels import SCORES, Confusion, without_ignored

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
    assert scores["precision"] == (pytest.approx(len(truth & found) / len(found)) if found else None)
    assert scores["recall"] == (pytest.approx(len(truth & found) / len(truth)) if truth else None)


@given(BINARY, BINARY)
def test_sections_add_up(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    assert (of(one) + of(other)).scores() == of(one + other).scores()


def test_without_foreground_there_is_no_overlap_but_a_reason() -> None:
    scores = of([(0, 0)] * 5).scores()
    assert (scores["iou"], scores["dice"], scores["accuracy"]) == (None, None, 1)
    assert "no foreground" in scores["iou_reason"]
    assert all("no foreground" in scores[f"{name}_reason"] for name in ("dice", "precision", "recall"))


@pytest.mark.parametrize("classes", [2, 3])
def test_without_a_pixel_there_is_no_score_but_a_reason(classes: int) -> None:
    scores = Confusion(np.zeros((classes, classes), np.int64)).scores()
    assert (scores["accuracy"], scores["accuracy_reason"], scores["iou"]) == (None, "no pixel to score", None)


@pytest.mark.parametrize("classes", [2, 4])
def test_many_resamples_are_scored_at_once(classes: int) -> None:
    counts = np.random.default_rng(3).integers(0, 50, (6, classes, classes))
    each = [Confusion(section).scores() for section in counts]
    for name, score in SCORES.items():
        assert score(Confusion(counts)) == pytest.approx([scores[name] for scores in each])


def test_ignored_pixels_are_taken_from_both() -> None:
    probability, reference = np.arange(12).reshape(2, 2, 3), np.array([[0, 9, 1], [9, 2, 0]])
    values, truth = without_ignored(probability, reference, 9)
    assert (values.tolist(), truth.tolist()) == ([[0, 2, 4, 5], [6, 8, 10, 11]], [0, 1, 2, 0])
    assert without_ignored(probability, reference, None)[0].shape == (2, 6)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int64"])
def test_many_classes_do_not_overflow_a_small_dtype(dtype: str) -> None:
    truth = np.array([[0, 199], [150, 3]], dtype)
    assert Confusion.of(truth, truth, 200).counts.trace() == 4


def test_means_are_over_the_classes_that_occur() -> None:
    scores = of([(0, 0), (0, 0), (0, 1), (1, 1), (3, 0)], classes=5).scores()
    iou = {"0": 2 / 4, "1": 1 / 2, "3": 0}
    assert scores["iou_per_class"] == pytest.approx(iou)
    assert scores["iou"] == pytest.approx(np.mean(list(iou.values())))
    dice = {"0": 4 / 6, "1": 2 / 3, "3": 0}
    assert scores["dice_per_class"] == pytest.approx(dice)
    assert scores["dice"] == pytest.approx(np.mean(list(dice.values())))
    assert scores["accuracy"] == pytest.approx(3 / 5)
    assert scores["confusion"][0] == [2, 1, 0, 0, 0]
