"""Resampling between grids of voxels: values, extents and independence of the box."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from unetcli.core.geometry import Box
from unetcli.core.rescaling import Rescaling, exact_size, resample, taps

SHAPE = (37, 22)
SIZES = (1 / 16, 0.37, 0.5, 0.9, 1.0, 1.3, 2.0, 2.5, 16.0)


def grey(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)


def whole(values: NDArray[np.uint8], sizes: tuple[float, ...]) -> NDArray[np.float32]:
    """All of an array, resampled."""
    extent = Rescaling(values.shape, sizes).resampled
    return resample(lambda part: values[part], [slice(0, n) for n in extent], sizes, values.shape)


def boxes(shape: tuple[int, ...]) -> st.SearchStrategy[Box]:
    """Boxes inside a shape that are not empty."""
    sides = [st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True).map(sorted) for n in shape]
    return st.tuples(*sides).map(lambda found: Box(tuple(a for a, _ in found), tuple(b for _, b in found)))


@pytest.mark.parametrize("size", [0.9, 0.5, 0.37, 1 / 16])
def test_smaller_voxels_are_interpolated_between_centres(size: float) -> None:
    values = grey(SHAPE)
    found = whole(values, (size, 1.0))
    centres = (np.arange(len(found)) + 0.5) * size - 0.5
    places = np.meshgrid(centres, np.arange(SHAPE[1]), indexing="ij")
    expected = ndimage.map_coordinates(values.astype(np.float64), places, order=1, mode="nearest")
    assert np.allclose(found, expected, atol=1e-4)


def test_larger_voxels_are_means_of_what_they_cover() -> None:
    values = grey((12, 10))
    assert np.array_equal(whole(values, (4.0, 2.0)), values.reshape(3, 4, 5, 2).mean((1, 3)).astype(np.float32))
    rows = values[:3].astype(np.float64)
    between = (rows[0] + rows[1] / 2) / 1.5, (rows[1] / 2 + rows[2]) / 1.5
    assert np.allclose(whole(values[:3], (1.5, 1.0)), between, atol=1e-4)
    assert np.array_equal(whole(values[:3], (2.0, 1.0))[1], rows[2])  # the last one covers a single row


def test_voxels_of_the_same_size_are_the_same() -> None:
    values = grey(SHAPE)
    assert np.array_equal(whole(values, (1.0, 1.0)), values)


def test_values_without_weight_do_not_show() -> None:
    values = np.array([1.0, 3.0, np.nan, np.nan])
    assert resample(lambda part: values[part], [slice(0, 2)], [2.0], [4]).tolist()[:1] == [2.0]
    index = taps(0, 2, 2.0, 4).index
    assert index.max() == 3
    assert index[0].max() == 1


@settings(max_examples=25)
@given(st.data(), st.sampled_from(SIZES), st.sampled_from(SIZES))
def test_values_do_not_depend_on_the_box(data: st.DataObject, size: float, other: float) -> None:
    values, scale = grey(SHAPE), Rescaling(SHAPE, (size, other))
    seen = whole(values, (size, other))
    box = data.draw(boxes(scale.resampled))
    assert np.array_equal(resample(lambda part: values[part], box.slices, scale.sizes, SHAPE), seen[box.slices])


@settings(max_examples=25)
@given(boxes(SHAPE), st.sampled_from(SIZES), st.sampled_from(SIZES))
def test_values_that_are_mapped_back_do_not_depend_on_the_box(box: Box, size: float, other: float) -> None:
    scale = Rescaling(SHAPE, (size, other))
    seen = whole(grey(SHAPE), (size, other))[np.newaxis]
    needed = scale.needed(box)
    found = scale.mapped_back(seen[:, *needed.slices], box)
    assert np.array_equal(found, scale.mapped_back(seen, Box.of_shape(SHAPE))[:, *box.slices])
    assert scale.affected(needed).clipped(box) == box


def test_only_what_depends_on_a_box_is_affected_by_it() -> None:
    scale, box = Rescaling((40, 9), (2.0, 1.0)), Box((5, 2), (8, 3))
    seen = np.zeros((1, *scale.resampled), np.float32)
    seen[0, *box.slices] = 1
    changed = np.argwhere(scale.mapped_back(seen, Box.of_shape((40, 9)))[0])
    affected = scale.affected(box)
    assert (changed.min(0) >= affected.start).all()
    assert (changed.max(0) < affected.stop).all()
    assert affected.shape[0] <= 2 * 3 + 2 * 2 + 2


def test_rounding_of_units_does_not_show() -> None:
    assert exact_size(0.25 / 0.1) == 2.5
    assert exact_size(0.3 / 0.1) == 3.0
    assert exact_size(3.999 / 4) == 3.999 / 4
