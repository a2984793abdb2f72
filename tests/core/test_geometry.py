from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetcli.core.geometry import Box, ceil_to, mirror_indices

SIDES = st.integers(-40, 40)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    sides = [sorted((draw(SIDES), draw(SIDES))) for _ in range(3)]
    return Box(tuple(a for a, _ in sides), tuple(b for _, b in sides))


def voxels(box: Box) -> set[tuple[int, ...]]:
    return {tuple(place) for place in (np.argwhere(np.ones(box.shape)) + box.start).tolist()}


@pytest.mark.parametrize("extent", [1, 2, 3, 4, 5, 13, 64])
@pytest.mark.parametrize("before", [0, 1, 7, 200])
@pytest.mark.parametrize("after", [0, 3, 131])
def test_mirroring_is_that_of_numpy_however_often_it_bounces(extent: int, before: int, after: int) -> None:
    expected = np.pad(np.arange(extent), (before, after), mode="reflect")
    assert mirror_indices(-before, extent + after, extent).tolist() == expected.tolist()


@given(start=st.integers(-300, 300), length=st.integers(0, 50), extent=st.integers(1, 20))
def test_a_window_that_misses_the_volume_is_mirrored_as_part_of_a_larger_one(
    start: int, length: int, extent: int
) -> None:
    padded = np.pad(np.arange(extent), 400, mode="reflect")
    assert mirror_indices(start, start + length, extent).tolist() == padded[400 + start :][:length].tolist()


@pytest.mark.parametrize(
    ("start", "stop"), [((0, 3), (2, 2)), ((0,), (1, 1)), ((5,), (4,))], ids=["one axis", "axes differ", "reversed"]
)
def test_a_box_never_ends_before_it_starts(start: tuple[int, ...], stop: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="start <= stop"):
        Box(start, stop)


def test_an_empty_box_is_a_box() -> None:
    assert Box((3, 0), (3, 7)).shape == (0, 7)
    assert Box((3, 0), (3, 7)).size == 0


@given(boxes(), st.tuples(SIDES, SIDES, SIDES))
def test_shifting_there_and_back_changes_nothing(box: Box, offset: tuple[int, ...]) -> None:
    moved = box.shifted(offset)
    assert moved.shape == box.shape
    assert moved.relative_to(Box(offset, offset)) == box


@given(boxes(), st.tuples(*[st.integers(0, 9)] * 3))
def test_growing_adds_the_margin_on_both_sides(box: Box, margin: tuple[int, ...]) -> None:
    grown = box.grown(margin)
    assert grown.shape == tuple(n + 2 * m for n, m in zip(box.shape, margin, strict=True))
    assert grown.clipped(box) == box


@given(
    st.tuples(*[st.integers(-4, 9)] * 4),
    st.tuples(*[st.integers(0, 9)] * 4),
)
def test_clipping_keeps_exactly_the_common_voxels(corners: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    one = Box(corners[:2], (corners[0] + sizes[0], corners[1] + sizes[1]))
    other = Box(corners[2:], (corners[2] + sizes[2], corners[3] + sizes[3]))
    assert voxels(one.clipped(other)) == voxels(one) & voxels(other)


def test_slices_pick_the_box_from_an_array() -> None:
    values = np.arange(13 * 22).reshape(13, 22)
    assert values[Box((2, 20), (5, 22)).slices].tolist() == [[64, 65], [86, 87], [108, 109]]
    assert values[Box.of_shape(values.shape).slices].size == values.size


@given(st.integers(0, 10**15), st.integers(1, 5000))
def test_rounding_up_is_the_nearest_multiple_above(value: int, multiple: int) -> None:
    result = ceil_to(value, multiple)
    assert result % multiple == 0
    assert 0 <= result - value < multiple
