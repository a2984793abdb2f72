from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.metrics.probabilities import SCORES, STEPS, ProbabilitySums, curve, scores
from unetcli.metrics.sums import intervals

Pixels = list[tuple[int, int]]
PIXELS = st.lists(st.tuples(st.integers(0, 255), st.integers(0, 2)), min_size=1, max_size=40)
FEW = settings(max_examples=40, deadline=None)
"""Few examples, because each one sums histograms of 65536 steps."""


def arrays(pixels: Pixels) -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
    values, truth = np.array(pixels).T
    return values[None].astype(np.uint8), truth


def of(pixels: Pixels, ignore: int | None = None) -> dict[str, Any]:
    return scores(ProbabilitySums.of(*arrays(pixels), ignore=ignore))


def average_precision(values: NDArray[Any], positive: NDArray[np.bool_]) -> float | None:
    """Average precision computed threshold by threshold, from the highest value down."""
    found, before = 0.0, 0.0
    for threshold in np.unique(values)[::-1]:
        taken = values >= threshold
        recall = (positive & taken).sum() / positive.sum()
        found, before = found + (recall - before) * (positive & taken).sum() / taken.sum(), recall
    return found


def calibration_error(probability: NDArray[Any], right: NDArray[np.bool_], bins: int) -> float:
    bin_of = np.minimum((probability * bins + 1e-9).astype(int), bins - 1)
    inside = [bin_of == b for b in range(bins) if (bin_of == b).any()]
    return float(sum(abs(right[i].mean() - probability[i].mean()) * i.sum() for i in inside) / right.size)


@FEW
@given(PIXELS)
def test_average_precision_is_that_of_every_threshold_in_turn(pixels: Pixels) -> None:
    values, truth = arrays(pixels)
    found = of(pixels)
    if (truth > 0).any():
        assert found["average_precision"] == pytest.approx(average_precision(values[0], truth > 0))
    else:
        assert (found["average_precision"], found["dice_best"]) == (None, None)
        assert "no foreground" in found["average_precision_reason"]
        assert "no foreground" in found["dice_best_reason"]


@FEW
@given(PIXELS)
def test_the_calibration_error_is_the_gap_between_probability_and_truth_bin_by_bin(pixels: Pixels) -> None:
    values, truth = arrays(pixels)
    found = of(pixels)
    assert found["calibration_error"] == pytest.approx(calibration_error(values[0] / 255, truth > 0, 15))
    assert sum(found["calibration"]["pixels"]) == len(pixels)
    assert len(found["calibration"]["right"]) == 15


@FEW
@given(PIXELS)
def test_the_curve_is_that_of_thresholding_above_each_grey_value(pixels: Pixels) -> None:
    values, truth = arrays(pixels)
    found = curve(ProbabilitySums.of(values, truth).classes[0])
    for grey, threshold in enumerate(found["threshold"]):
        above, true = values[0] > grey, truth > 0
        both = (above & true).sum()
        assert threshold == grey / 255
        assert found["precision"][grey] == (pytest.approx(both / above.sum()) if above.any() else None)
        assert found["recall"][grey] == (pytest.approx(both / true.sum()) if true.any() else None)
        either = above.sum() + true.sum()
        assert found["dice"][grey] == (pytest.approx(2 * both / either) if either else None)


@FEW
@given(PIXELS)
def test_uint8_and_the_same_probabilities_as_floats_score_the_same(pixels: Pixels) -> None:
    values, truth = arrays(pixels)
    expected = scores(ProbabilitySums.of(values, truth))
    for floats in (values / 255, (values / 255).astype(np.float32), values.astype(np.float32) / np.float32(255)):
        assert scores(ProbabilitySums.of(floats, truth)) == expected


@FEW
@given(PIXELS)
def test_grey_values_are_enough_for_uint8(pixels: Pixels) -> None:
    sums = ProbabilitySums.of(*arrays(pixels)).to_grey_values()
    assert sums.classes.shape == (1, 256, 2)
    found, expected = scores(sums), of(pixels)
    assert {name: found[name] for name in SCORES} == pytest.approx({name: expected[name] for name in SCORES})
    assert (found["dice_best"], found["dice_best_threshold"]) == (
        expected["dice_best"],
        expected["dice_best_threshold"],
    )


def test_floats_are_scored_to_a_step() -> None:
    generator = np.random.default_rng(1)
    truth = generator.random(5_000) < 0.3
    logits = 3 * generator.normal(size=truth.size) + 6 * truth - 3
    values = (1 / (1 + np.exp(-logits))).astype(np.float32)
    sums = ProbabilitySums.of(values[None], truth)
    for found, error in ((scores(sums), 1e-4), (scores(sums.to_grey_values()), 1e-2)):
        assert found["average_precision"] == pytest.approx(average_precision(values, truth), abs=error)
        assert found["calibration_error"] == pytest.approx(calibration_error(values, truth, 15), abs=error)


def test_a_threshold_between_grey_values_is_exact_to_a_step() -> None:
    found = curve(ProbabilitySums.of(np.array([[0.2, 0.5, 0.7]]), np.array([0, 1, 1])).classes[0], [0.3, 0.51, 1.0])
    assert found["precision"] == [1, 1, None]
    assert found["recall"] == [1, 0.5, 0]


@FEW
@given(PIXELS, st.integers(0, 40))
def test_blocks_add_up(pixels: Pixels, cut: int) -> None:
    values, truth = arrays(pixels)
    blocks = [ProbabilitySums.of(values[:, part], truth[part]) for part in (slice(cut), slice(cut, None))]
    assert scores(blocks[0] + blocks[1]) == of(pixels)


@FEW
@given(PIXELS, st.integers(0, 2))
def test_ignored_pixels_count_nowhere(pixels: Pixels, ignore: int) -> None:
    kept = [pixel for pixel in pixels if pixel[1] != ignore]
    if kept:
        assert of(pixels, ignore) == of(kept)
    else:
        found = of(pixels, ignore)
        assert [found[name] for name in SCORES] == [None, None]
        assert found["calibration_error_reason"] == "no pixel to score"


def test_of_many_classes_each_has_its_curve_and_the_likeliest_is_calibrated() -> None:
    generator = np.random.default_rng(2)
    probability = generator.dirichlet([1, 1, 1, 1], 500).T.astype(np.float32)
    probability = np.floor(probability * STEPS) / STEPS
    truth = np.where(generator.random(500) < 0.5, probability.argmax(0), generator.integers(0, 3, 500))
    truth[truth == 3] = 0
    found = scores(ProbabilitySums.of(probability.reshape(4, 20, 25), truth.reshape(20, 25)))
    each = {str(c): average_precision(probability[c], truth == c) for c in range(3)}
    assert found["average_precision_per_class"] == pytest.approx(each)
    assert found["average_precision"] == pytest.approx(np.mean(list(each.values())))
    right = probability.argmax(0) == truth
    assert found["calibration_error"] == pytest.approx(calibration_error(probability.max(0), right, 15))


def test_a_perfect_and_sure_prediction_has_nothing_to_improve() -> None:
    truth = np.array([0, 5, 0, 7])
    found = scores(ProbabilitySums.of((truth > 0)[None], truth))
    assert (found["average_precision"], found["calibration_error"], found["dice_best"]) == (1, 0, 1)
    assert found["dice_best_threshold"] == 0


@pytest.mark.parametrize("value", [np.nan, -0.01, 1.01])
def test_values_that_are_not_probabilities_are_refused(value: float) -> None:
    with pytest.raises(UnetcliError, match="expected probabilities"):
        ProbabilitySums.of(np.array([[0.5, value]]), np.array([0, 1]))


@pytest.mark.parametrize("value", [2, -1])
def test_a_class_that_the_prediction_does_not_have_is_refused(value: int) -> None:
    with pytest.raises(UnetcliError, match=f"class {value} in the truth; the prediction has classes 0 to 1"):
        ProbabilitySums.of(np.zeros((2, 3), np.uint8), np.array([0, value, 1]))


def test_many_resamples_are_scored_at_once() -> None:
    generator = np.random.default_rng(3)
    sections = [
        ProbabilitySums.of(
            generator.integers(0, 256, (1, 90)).astype(np.uint8), generator.integers(0, 2, 90)
        ).to_grey_values()
        for _ in range(7)
    ]
    stack = ProbabilitySums.stacked(sections)
    drawn = intervals(stack, SCORES, resamples=60)
    for name, score in SCORES.items():
        assert score(stack) == pytest.approx([scores(section)[name] for section in sections])
        found = drawn[name]
        assert found.low is not None
        assert found.low < float(score(stack.total())) < found.high  # type: ignore[operator]
