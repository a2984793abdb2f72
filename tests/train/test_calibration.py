"""Fitting of calibrations to pixels with known probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from unetcli.model.calibration import LIKELIHOOD, LOSS_WEIGHTS
from unetcli.train.calibration import HeldOutPixels, by_loss_weights, fitted
from unetcli.train.settings import IGNORED

RANDOM = np.random.default_rng(7)
EVEN = by_loss_weights(np.ones(2))


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max(axis=0))
    return np.asarray(powers / powers.sum(axis=0))


def pixels_of(scale: float, shift: list[float], count: int = 200_000) -> HeldOutPixels:
    """Pixels whose truth is drawn from ``scale`` z + ``shift``, predicted by a network with the logits z."""
    logits = RANDOM.normal(0, 2, (len(shift), count))
    chances = softmax(scale * logits + np.array(shift)[:, None])
    truth = (RANDOM.random(count) > chances.cumsum(axis=0)).sum(axis=0).clip(max=len(shift) - 1)
    return HeldOutPixels(softmax(logits).astype(np.float32), truth.astype(np.uint8), 1.0)


@pytest.mark.parametrize(
    ("scale", "shift"), [(1.0, [0.0, 0.0]), (0.5, [0.0, 1.5]), (2.0, [0.0, -0.7]), (0.8, [0.0, 1.0, -1.0])], ids=str
)
def test_scale_and_shift_of_a_network_are_found(scale: float, shift: list[float]) -> None:
    found = fitted(pixels_of(scale, shift), by_loss_weights(np.ones(len(shift))), ((17, 20),))
    assert (found.method, found.sections, found.pixels) == (LIKELIHOOD, ((17, 20),), 200_000)
    assert found.scale == pytest.approx(scale, abs=0.02)
    assert np.subtract(found.shift, found.shift[0]) == pytest.approx(shift, abs=0.03)


def test_the_scale_is_limited() -> None:
    assert fitted(pixels_of(0.02, [0.0, 0.0]), EVEN, ()).scale == 0.2
    assert fitted(pixels_of(50.0, [0.0, 0.0]), EVEN, ()).scale == 5.0


def test_loss_weights_are_undone() -> None:
    """A network that learned from weighted pixels says weight x frequency; both classes are equally frequent here."""
    chance = RANDOM.random(1000)
    said = np.stack([3 * (1 - chance), 1 * chance])
    found = by_loss_weights(np.array([3.0, 1.0])).apply(said / said.sum(axis=0))
    assert np.abs(found[1] - chance).max() < 1e-6


def test_the_logit_of_a_class_that_was_never_trained_stays() -> None:
    assert by_loss_weights(np.array([0.0, 1.0, 4.0])).shift == (0.0, 0.693147, -0.693147)


def test_a_rare_class_keeps_the_shift_of_the_loss_weights() -> None:
    pixels, weights = pixels_of(0.8, [0.0, 1.0, -1.0]), np.array([1.0, 2.0, 8.0])
    start = by_loss_weights(weights)
    kept = (pixels.truth < 2) | (np.cumsum(pixels.truth == 2) <= 999)
    few = HeldOutPixels(pixels.probabilities[:, kept], pixels.truth[kept], 1.0)
    found = fitted(few, start, ())
    assert found.by_loss_weights == (2,)
    assert found.shift[2] == start.shift[2]
    assert found.shift[1] - found.shift[0] == pytest.approx(1.0, abs=0.03)
    assert found.scale == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("pixels", [pixels_of(0.5, [0.0, 1.0], 900), HeldOutPixels.of([], 2)], ids=["few", "none"])
def test_without_enough_pixels_only_the_loss_weights_count(pixels: HeldOutPixels) -> None:
    start = by_loss_weights(np.array([1.0, 5.0]))
    assert fitted(pixels, start, ((17, 20),)) == start
    assert start.method == LOSS_WEIGHTS


def test_of_sparse_annotation_only_the_loss_weights_count() -> None:
    plenty = pixels_of(0.5, [0.0, 1.0])
    sparse = HeldOutPixels(plenty.probabilities, plenty.truth, 0.4)
    assert fitted(sparse, EVEN, ()) == EVEN


def test_pixels_without_truth_are_left_out() -> None:
    values, truth = RANDOM.random((2, 4, 5), np.float32), np.array([[0, 1, IGNORED, 1, 0]] * 4, np.uint8)
    found = HeldOutPixels.of([(values, truth), (values, truth)], 2)
    assert (found.truth.tolist(), found.annotated) == ([0, 1, 1, 0] * 8, 0.8)
    assert np.array_equal(found.probabilities[:, :4], values[:, 0, [0, 1, 3, 4]])


def test_the_result_is_the_same_to_the_last_digit() -> None:
    pixels = pixels_of(0.7, [0.0, 0.4], 5000)
    again = HeldOutPixels(pixels.probabilities[:, ::-1].copy(), pixels.truth[::-1].copy(), 1.0)
    first, second = (fitted(each, EVEN, ()) for each in (pixels, again))
    assert first == second
