from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from unetcli.core.errors import UnetcliError
from unetcli.train.recipes import IGNORED, TRUTHS, TruthRules
from unetcli.train.targets import class_weights, classes_of, is_empty

SEED = st.integers(0, 2**32 - 1)


def labels_of(seed: int, dtype: str = "uint16") -> NDArray[np.integer]:
    """Blobs of 2 x 3 pixels, numbers 0 to 3."""
    random = np.random.default_rng(seed)
    return np.kron(random.integers(0, 4, (7, 8)), np.ones((2, 3))).astype(dtype)


def test_a_weight_makes_every_class_count_the_same() -> None:
    counts = np.array([900, 90, 10])
    weights = class_weights(counts)
    assert (weights * counts).tolist() == pytest.approx([1000 / 3] * 3)
    assert weights.dtype == np.float32


def test_a_class_that_does_not_occur_weighs_nothing() -> None:
    assert class_weights(np.array([30, 0, 10]))[1] == 0


@given(SEED)
def test_binary_classes_are_all_that_is_labelled(seed: int) -> None:
    labels = labels_of(seed)
    assert np.array_equal(classes_of(labels, TruthRules(truth="binary")), labels > 0)


@given(SEED)
def test_labels_of_classes_are_the_classes(seed: int) -> None:
    labels = labels_of(seed)
    assert np.array_equal(classes_of(labels, TruthRules(truth="classes")), labels)


def test_between_objects_that_touch_the_class_is_background() -> None:
    labels = np.repeat([[3, 3, 3, 8, 8, 8, 0]], 5, axis=0)
    assert classes_of(labels, TruthRules(truth="instances")).tolist() == [[1, 1, 0, 0, 1, 1, 0]] * 5


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("truth", TRUTHS)
def test_classes_are_uint8_for_any_integer(dtype: str, truth: str) -> None:
    labels = np.zeros((4, 7), dtype)
    labels[1:3, 2:5] = 1
    found = classes_of(labels, TruthRules(truth=truth))
    assert found.dtype == np.uint8
    assert np.array_equal(found, labels)


@pytest.mark.parametrize("truth", ["binary", "instances"])
def test_numbers_of_objects_may_be_as_large_as_integers_go(truth: str) -> None:
    labels = np.array([[2**64 - 1, 2**64 - 1, 0, 2**64 - 2]], np.uint64)
    assert classes_of(labels, TruthRules(truth=truth)).tolist() == [[1, 1, 0, 1]]


@given(SEED, st.sampled_from(TRUTHS), st.integers(-1, 4))
def test_ignored_labels_have_no_truth_and_count_as_no_object(seed: int, truth: str, ignore: int) -> None:
    labels = labels_of(seed, "int16")
    found = classes_of(labels, TruthRules(truth=truth, ignore=ignore))
    rest = classes_of(np.where(labels == ignore, 0, labels), TruthRules(truth=truth))
    assert np.array_equal(found, np.where(labels == ignore, IGNORED, rest))


@pytest.mark.parametrize("value", [-1, 255, 70_000])
def test_what_could_be_no_label_may_be_ignored(value: int) -> None:
    labels = np.array([[0, 2, value]])
    for truth, second in (("binary", 1), ("instances", 1), ("classes", 2)):
        assert classes_of(labels, TruthRules(truth=truth, ignore=value)).tolist() == [[0, second, IGNORED]]


@given(SEED, st.sampled_from(TRUTHS), st.integers(1, 9))
def test_background_counts_only_near_what_is_drawn(seed: int, truth: str, partial: int) -> None:
    random = np.random.default_rng(seed)
    labels = np.where(random.random((19, 23)) < 0.02, random.integers(1, 4, (19, 23)), 0)
    found = classes_of(labels, TruthRules(truth=truth, partial=partial))
    drawn = np.argwhere(labels)
    for place in np.argwhere(labels == 0):
        near = len(drawn) and ((drawn - place) ** 2).sum(1).min() <= partial**2
        assert found[tuple(place)] == (0 if near else IGNORED)
    assert np.array_equal(found[labels > 0], classes_of(labels, TruthRules(truth=truth))[labels > 0])


def test_pixels_that_are_ignored_are_no_cell_to_be_near_to() -> None:
    labels = np.array([[1, 0, 0, 0, 0, 9]])
    found = classes_of(labels, TruthRules(truth="binary", ignore=9, partial=2))
    assert found.tolist() == [[1, 0, 0, IGNORED, IGNORED, IGNORED]]


@pytest.mark.parametrize(
    ("value", "truth", "told"),
    [
        (255, "classes", "class 255; classes are numbered 0 to 254"),
        (2**64 - 1, "classes", "class 18446744073709551615; "),
        (-1, "classes", "label -1; .* --ignore -1"),
        (-7, "instances", "label -7; instances are numbered"),
    ],
)
def test_numbers_that_can_be_no_class_are_refused_by_name(value: int, truth: str, told: str) -> None:
    labels = np.array([[0, 1, value]], np.int64 if value < 2**63 else np.uint64)
    with pytest.raises(UnetcliError, match=told):
        classes_of(labels, TruthRules(truth=truth))


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ({"truth": "auto"}, "--truth auto: expected binary, instances or classes"),
        ({"w0": -1}, "--w0 -1: "),
        ({"w0": float("inf")}, "--w0 inf: "),
        ({"sigma": 0}, "--sigma 0: "),
        ({"sigma": float("nan")}, "--sigma nan: "),
        ({"partial": 0}, "--partial 0: expected at least 1 pixel"),
    ],
    ids=str,
)
def test_rules_that_cannot_be_followed_are_refused_by_option(option: dict[str, Any], told: str) -> None:
    with pytest.raises(UnetcliError, match=told):
        TruthRules(**{"truth": "binary", **option})


def test_rules_survive_being_written_down() -> None:
    rules = TruthRules(truth="instances", w0=3, sigma=2.5, everywhere=True, ignore=-1, partial=7)
    assert TruthRules(**asdict(rules)) == rules


@pytest.mark.parametrize(
    ("labels", "ignore", "empty"),
    [([0, 0], None, True), ([0, 1], None, False), ([0, 9], 9, True), ([9, 1], 9, False), ([1, 1], None, False)],
)
def test_a_section_is_empty_where_nothing_is_drawn(labels: list[int], ignore: int | None, empty: bool) -> None:
    assert is_empty(np.array([labels]), TruthRules(truth="binary", ignore=ignore)) is empty


def test_real_cells_that_touch_stay_apart_in_the_classes(data: Path) -> None:
    """Every component of the foreground, four- or eight-connected, lies within one object."""
    labels = tifffile.imread(data / "phc_psc" / "01-labels.tif", key=29)
    foreground = classes_of(labels, TruthRules(truth="instances")) == 1
    for connectivity in (None, np.ones((3, 3))):
        components, count = ndimage.label(foreground, connectivity)
        assert all(len(np.unique(labels[components == n])) == 1 for n in range(1, count + 1))
        assert count >= len(np.unique(labels)) - 1
