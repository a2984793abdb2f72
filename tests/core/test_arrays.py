from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import grey
from numpy.typing import NDArray

from unetcli.core.arrays import Moments, broadcast_channels, distinct

RANDOM = np.random.default_rng(5)
IMAGES: dict[str, NDArray[Any]] = {
    "few": RANDOM.integers(0, 5, (13, 22), np.uint8),
    "without background": RANDOM.integers(3, 9, (4, 13, 22), np.int32),
    "beyond the table": RANDOM.integers(0, 2**40, (13, 22), np.int64),
    "beyond 2^53": np.repeat(RANDOM.integers(2**63, 2**64, 7, np.uint64), 5).reshape(5, 7),
    "negative": RANDOM.integers(-3, 3, (6, 5), np.int16),
    "two values": RANDOM.integers(0, 2, (6, 5)).astype(bool),
    "one voxel": np.array([[7]]),
    "nothing": np.zeros((0, 3), np.uint16),
}


@pytest.mark.parametrize("labels", IMAGES.values(), ids=IMAGES)
def test_distinct_values_are_those_of_numpy(labels: NDArray[Any]) -> None:
    values, places = distinct(labels)
    expected, inverse = np.unique(labels, return_inverse=True)
    assert values.dtype == labels.dtype
    assert np.array_equal(values, expected)
    assert np.array_equal(places, inverse.reshape(labels.shape))


def moments(*pieces: np.ndarray) -> Moments:
    found = Moments()
    for piece in pieces:
        found.add(piece)
    return found


def test_each_channel_has_its_own_mean_and_deviation_whatever_the_pieces() -> None:
    values = np.stack([grey(13, 22).astype(np.float64), 1e4 + 3e3 * grey(13, 22, seed=1), np.full((13, 22), 7.0)])
    found = moments(values[:, :5], values[:, 5:, :20], values[:, 5:, 20:])
    assert found.mean == pytest.approx(tuple(values.mean((1, 2))))
    assert found.std == pytest.approx((*values[:2].std((1, 2)), 1))  # 1 where all are equal
    normalised = (values - broadcast_channels(found.mean, 3)) / broadcast_channels(found.std, 3)
    assert normalised[:2].mean((1, 2)) == pytest.approx(0, abs=1e-9)
    assert normalised[:2].std((1, 2)) == pytest.approx(1)


def test_a_single_channel_has_plain_numbers() -> None:
    values = grey(1, 13, 22)
    found = moments(values)
    assert isinstance(found.mean, float)
    assert (found.mean, found.std) == pytest.approx((values.mean(), values.std()))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, bool])
def test_bytes_are_counted_to_the_same_statistics_as_their_values(dtype: Any) -> None:
    values = grey(2, 13, 22).astype(np.uint8).astype(bool) if dtype is bool else grey(2, 13, 22).astype(dtype)
    found, expected = moments(values[:, :5], values[:, 5:]), moments(values.astype(np.float64))
    assert (found.mean, found.std) == (expected.mean, expected.std)


def test_values_that_are_not_finite_are_ignored() -> None:
    values = grey(2, 3, 4).astype(np.float32)
    values[0, 0, 0], values[1, 2, 1], values[1, 1, 1] = np.nan, np.inf, -np.inf
    found = moments(values)
    rest = [channel[np.isfinite(channel)] for channel in values.astype(float)]
    assert found.mean == pytest.approx(tuple(channel.mean() for channel in rest))
    assert found.std == pytest.approx(tuple(channel.std() for channel in rest))


def test_without_values_mean_is_0_and_deviation_is_1() -> None:
    assert (moments().mean, moments().std) == (0.0, 1.0)
    assert moments(np.full((2, 3), np.nan)).mean == (0.0, 0.0)
