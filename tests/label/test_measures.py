"""Measures summed over the parts of objects equal those of whole objects."""

from __future__ import annotations

import numpy as np
import pytest
from label.maps import blobs, labelled, plan_of
from numpy.typing import NDArray

from unetcli.core.geometry import Box
from unetcli.label.objects import measure, unit


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "bool"])
def test_sums_are_the_same_to_the_last_bit_for_any_block(dtype: str) -> None:
    values = blobs((50, 61), 2, seed=1)
    made = values if dtype == "uint8" else (values / 255).astype(dtype) if dtype != "bool" else values > 127
    first = labelled(plan_of(values.shape, values.shape), made)[1].measures
    for block in ((1, 7), (13, 13), (50, 1)):
        others = labelled(plan_of(values.shape, block), made)[1].measures
        for name, array in first.to_arrays().items():
            assert np.array_equal(array, others.to_arrays()[name]), name


@pytest.mark.parametrize("probability", [True, False])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_sums_times_the_unit_are_intensities(dtype: str, probability: bool) -> None:
    labels = np.array([[0, 1, 1], [3, 0, 1]], np.int32)
    values: NDArray[np.generic] = np.array([[9, 0, 1], [0.5, 9, 1]]).astype(dtype)
    found = measure(labels, 3, Box((4, 5), (6, 8)), (9, 9), values)
    sums = found.bright * unit(values.dtype, probability=probability)
    scale = 255 if probability and dtype == "uint8" else 1
    assert sums.tolist() == pytest.approx([2 / scale, 0, float(values[1, 0].item()) / scale])  # type: ignore[arg-type]
    assert found.size.tolist() == [3, 0, 1]
    assert found.first[[0, 2]].tolist() == [4 * 9 + 6, 5 * 9 + 5]
    assert found.start[0].tolist() == [4, 6]
    assert found.stop[0].tolist() == [6, 8]
