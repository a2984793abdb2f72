from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from unetcli.training.targets import class_weights, target, touching

SEED = st.integers(0, 2**32 - 1)


def labels_of(seed: int, dtype: str = "uint16") -> NDArray[np.integer]:
    """Blobs of 2 x 3 pixels, numbers 0 to 3."""
    random = np.random.default_rng(seed)
    return np.kron(random.integers(0, 4, (7, 8)), np.ones((2, 3))).astype(dtype)


@given(SEED)
def test_binary_targets_are_all_that_is_labelled(seed: int) -> None:
    labels = labels_of(seed)
    assert np.array_equal(target(labels, "binary"), labels[1:-1, 1:-1] > 0)


@given(SEED)
def test_class_targets_are_the_labels(seed: int) -> None:
    labels = labels_of(seed)
    assert np.array_equal(target(labels, "classes"), labels[1:-1, 1:-1])


@given(SEED)
def test_objects_that_touch_are_parted_by_background(seed: int) -> None:
    """No foreground pixel has another object among its eight neighbours; all others keep their class."""
    labels, result = labels_of(seed), target(labels_of(seed), "instances")
    for y, x in np.ndindex(result.shape):
        around = labels[y : y + 3, x : x + 3]
        alone = set(np.unique(around)) <= {0, labels[y + 1, x + 1]}
        assert result[y, x] == (labels[y + 1, x + 1] > 0 and alone)


@given(SEED)
def test_the_numbers_of_objects_do_not_matter(seed: int) -> None:
    labels = labels_of(seed)
    renumbered = np.array([0, 60000, 7, 900], np.uint16)[labels]
    assert np.array_equal(target(labels, "instances"), target(renumbered, "instances"))


def test_touching_at_a_corner_counts() -> None:
    labels = np.zeros((6, 6), np.uint8)
    labels[1:3, 1:3], labels[3:5, 3:5] = 1, 2
    found = np.argwhere(touching(labels)).tolist()
    assert found == [[2, 2], [3, 3]]


def test_an_object_alone_touches_nothing_and_keeps_its_edge() -> None:
    labels = np.zeros((9, 11), np.uint16)
    labels[2:7, 3:9] = 5
    assert not touching(labels).any()
    assert np.array_equal(target(labels, "instances"), target(labels, "binary"))


def test_numbers_that_doubles_cannot_tell_apart_are_two_objects() -> None:
    labels = np.full((4, 4), 2**62, np.uint64)
    labels[:, 2:] += np.uint64(1)
    assert touching(labels).tolist() == [[False, True, True, False]] * 4


def test_an_object_beyond_the_edge_is_seen() -> None:
    labels = np.zeros((4, 5), np.uint8)
    labels[:, :2], labels[:, 2:] = 1, 2
    assert target(labels, "instances").tolist() == [[0, 0, 1]] * 2


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "uint32", "int64"])
@pytest.mark.parametrize("truth", ["binary", "instances", "classes"])
def test_targets_are_int64_for_any_integer(dtype: str, truth: str) -> None:
    result = target(np.ones((4, 7), dtype), truth)
    assert result.dtype == np.int64
    assert np.array_equal(result, np.ones((2, 5)))


def test_a_weight_makes_every_class_count_the_same() -> None:
    counts = np.array([900, 90, 10])
    weights = class_weights(counts)
    assert (weights * counts).tolist() == pytest.approx([1000 / 3] * 3)
    assert weights.dtype == np.float32


def test_a_class_that_does_not_occur_weighs_nothing() -> None:
    assert class_weights(np.array([30, 0, 10]))[1] == 0
