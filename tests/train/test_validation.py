"""Metrics on held-out sections, compared with those that evaluate reports for the same sections."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import grey
from numpy.typing import NDArray
from scipy import ndimage
from train.scenes import annotated

from unetcli.core.geometry import Box
from unetcli.metrics import em
from unetcli.metrics.cells import seg_sums
from unetcli.metrics.em_counts import section_counts
from unetcli.metrics.pixels import Confusion
from unetcli.train.request import MEASURES
from unetcli.train.settings import IGNORED
from unetcli.train.validation_results import MetricSums, ValidatedSection, ValidationMetrics, is_better

SHAPE = (3, 37, 46)
EVEN = np.ones(2, np.float32)


def blobs(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Values from 0 to 1 that are smooth within each section."""
    noise = np.random.default_rng(seed).standard_normal(shape)
    smooth = ndimage.gaussian_filter(noise, (0,) * (len(shape) - 2) + (2, 2))
    smooth -= smooth.min()
    return (smooth / smooth.max()).astype(np.float32)


LABELS = (blobs(*SHAPE) > 0.5).astype(np.uint8)
VALUES = np.clip(0.6 * blobs(*SHAPE) + 0.4 * blobs(*SHAPE, seed=9), 0, 1).astype(np.float32)


def metric_sums(values: NDArray[np.float32], labels: NDArray[Any], measure: str, **rules: Any) -> MetricSums:
    """Metrics over all sections; values are (z, y, x) or (classes, z, y, x)."""
    pair = annotated(grey(*labels.shape), labels, **{"truth": "binary", **rules})
    outputs = values[None] if values.ndim == labels.ndim else values
    sums = MetricSums(EVEN if len(outputs) == 1 else np.ones(len(outputs), np.float32), measure)
    for box in Box.of_shape(labels.shape).planes():
        sums.add(ValidatedSection(pair, box, outputs[:, box.start[0]], pair.targets.classes(box)))
    return sums


def metrics(values: NDArray[np.float32], labels: NDArray[Any], measure: str, **rules: Any) -> ValidationMetrics:
    found = metric_sums(values, labels, measure, **rules).result()
    assert found is not None
    return found


@pytest.mark.parametrize("measure", ["pixel_disagreement", "pixel_error", "rand_error"])
def test_measures_of_the_em_challenge_are_those_that_evaluate_reports(measure: str) -> None:
    official = em.scores([section_counts(v, t != 0) for v, t in zip(VALUES, LABELS, strict=True)])
    found = metrics(VALUES, LABELS, measure)
    assert found.selected == pytest.approx(official[measure], abs=1e-6)
    assert found.pixel_disagreement == pytest.approx(official["pixel_disagreement"], abs=1e-6)
    assert found.threshold == official["pixel_disagreement_threshold"]


def test_iou_is_that_of_the_foreground_at_a_half() -> None:
    expected = Confusion.of(LABELS.astype(np.int64), (VALUES > 0.5).astype(np.int64), 2).scores()["iou"]
    for measure in MEASURES:
        assert metrics(VALUES, LABELS, measure).iou == pytest.approx(expected, abs=1e-6)
    assert metrics(VALUES, LABELS, "iou").selected == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("truth", ["binary", "instances"])
def test_seg_is_that_of_components_against_the_objects(truth: str) -> None:
    objects = np.stack([ndimage.label(section)[0] for section in LABELS]).astype(np.uint16)
    sums = [seg_sums(o, ndimage.label(v > 0.5)[0]) for o, v in zip(objects, VALUES, strict=True)]
    expected = sum(total for total, _ in sums) / sum(count for _, count in sums)
    labels = LABELS if truth == "binary" else objects
    assert metrics(VALUES, labels, "seg", truth=truth).selected == pytest.approx(expected, abs=1e-6)


def test_the_loss_is_the_weighted_mean_of_the_log_likelihood() -> None:
    pair = annotated(grey(*SHAPE), LABELS, truth="binary")
    sums = MetricSums(np.array([0.5, 3.0], np.float32), "iou")
    for box in Box.of_shape(SHAPE).planes():
        sums.add(ValidatedSection(pair, box, VALUES[box.start[0]][None], pair.targets.classes(box)))
    p = np.where(LABELS, VALUES, 1 - VALUES).astype(float)
    w = np.where(LABELS, 3.0, 0.5)
    found = sums.result()
    assert found is not None
    assert found.loss == pytest.approx((-np.log(np.maximum(p, 1e-12)) * w).sum() / w.sum(), rel=1e-4)


@pytest.mark.parametrize("measure", sorted(set(MEASURES) - {"rand_error"}))
def test_ignored_pixels_count_nowhere(measure: str) -> None:
    """Predictions there change no metric. (For the Rand error they may connect components; see below.)"""
    labels = LABELS.copy()
    labels[:, :5], labels[:, :, -6:], labels[2, 20:] = 7, 7, 7
    one = metrics(VALUES, labels, measure, ignore=7)
    for filling in (0.0, 0.45, 1.0):
        other = np.where(labels == 7, np.float32(filling), VALUES)
        assert metrics(other, labels, measure, ignore=7) == one


def test_ignored_pixels_connect_components_but_are_not_evaluated() -> None:
    labels = LABELS.copy()
    labels[:, 10:13] = 7
    official = em.scores([section_counts(v, t == 1, t != 7) for v, t in zip(VALUES, labels, strict=True)])
    for measure in ("pixel_error", "rand_error"):
        assert metrics(VALUES, labels, measure, ignore=7).selected == pytest.approx(official[measure], abs=1e-6)


def test_of_several_classes_the_likeliest_counts() -> None:
    labels = (LABELS + (blobs(*SHAPE, seed=4) > 0.6)).astype(np.uint8)
    raw = np.stack([blobs(*SHAPE, seed=k) for k in (11, 12, 13)])
    values = (raw / raw.sum(0)).astype(np.float32)
    confusion = Confusion.of(labels.astype(np.int64), values.argmax(0), 3)
    found = metrics(values, labels, "iou", truth="classes")
    assert found.pixel_disagreement == pytest.approx((values.argmax(0) != labels).mean(), abs=1e-6)
    assert found.selected == pytest.approx(confusion.scores()["iou"], abs=1e-6)
    assert found.threshold is None
    ignored = labels.copy()
    ignored[:, :10] = 9
    part = metrics(values, ignored, "pixel_disagreement", truth="classes", ignore=9)
    assert part.selected == pytest.approx((values.argmax(0) != labels)[:, 10:].mean(), abs=1e-6)


@pytest.mark.parametrize(
    ("measure", "expected"),
    [("pixel_disagreement", 0.0), ("pixel_error", 0.0), ("rand_error", 0.0), ("iou", 1.0), ("seg", 1.0)],
)
def test_a_perfect_map_is_perfect_in_every_measure(measure: str, expected: float) -> None:
    found = metrics(LABELS.astype(np.float32), LABELS, measure)
    assert found.selected == expected
    assert found.to_dict()[measure] == expected


@pytest.mark.parametrize("measure", ["pixel_error", "rand_error", "seg"])
def test_a_measure_without_objects_is_undefined_not_perfect(measure: str) -> None:
    found = metrics(VALUES, np.zeros(SHAPE, np.uint8), measure)
    assert found.selected is None
    assert found.to_dict()[measure] is None


def test_without_ground_truth_there_are_no_metrics() -> None:
    assert MetricSums(EVEN, "iou").result() is None
    everything_ignored = metric_sums(VALUES, np.full(SHAPE, 7, np.uint8), "iou", ignore=7)
    assert everything_ignored.result() is None


def test_better_is_lower_for_errors_and_higher_for_overlaps_and_never_the_same() -> None:
    for measure in MEASURES:
        higher = measure in ("iou", "seg")
        assert is_better(measure, 0.2, 0.1) == higher
        assert is_better(measure, 0.1, 0.2) != higher
        assert not is_better(measure, 0.1, 0.1)


def test_pixels_without_ground_truth_are_distinguished_from_classes() -> None:
    pair = annotated(grey(*SHAPE), LABELS, truth="binary")
    box = Box((0, 0, 0), (1, *SHAPE[1:]))
    item = ValidatedSection(pair, box, VALUES[:1], pair.targets.classes(box))
    half = replace(item, classes=np.where(np.arange(SHAPE[2]) < 10, IGNORED, item.classes).astype(np.uint8))
    assert item.has_truth.all()
    assert half.has_truth.mean() == pytest.approx(36 / 46)
    assert np.allclose(item.per_class.sum(0), 1)
