from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unetcli.core.distinct import distinct

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
