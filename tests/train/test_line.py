from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from unetcli.train.border import dividing_line, numbered, touching

SEED = st.integers(0, 2**32 - 1)
CORNERS = np.ones((3, 3), int)


def crowd(seed: int, kinds: int = 6) -> NDArray[np.int32]:
    """Objects one to three pixels across, most of which touch others; some pixels are of none."""
    random = np.random.default_rng(seed)
    blocks = np.kron(random.integers(0, kinds, (5, 6)), np.ones((3, 2), int))
    specks = random.integers(0, kinds, blocks.shape)
    return np.where(random.random(blocks.shape) < 0.1, specks, blocks).astype(np.int32)


def merged(cells: NDArray[np.int32], connectivity: NDArray[np.integer] | None) -> int:
    """Components of the foreground that hold more than one object."""
    components, count = ndimage.label(cells > 0, connectivity)
    inside = cells > 0
    pairs = np.unique(np.stack([components[inside], cells[inside]]), axis=1)
    return pairs.shape[1] - count


def vanished(before: NDArray[np.int32], after: NDArray[np.int32]) -> int:
    return len(set(np.unique(before)) - set(np.unique(after)))


def fallen_apart(before: NDArray[np.int32], after: NDArray[np.int32]) -> int:
    """Objects in more four-connected pieces than they are drawn in."""
    return sum(
        ndimage.label(after[box] == n)[1] > ndimage.label(before[box] == n)[1]
        for n, box in enumerate(ndimage.find_objects(before), start=1)
        if box is not None
    )


def test_touching_at_a_corner_counts() -> None:
    labels = np.zeros((6, 6), np.uint8)
    labels[1:3, 1:3], labels[3:5, 3:5] = 1, 2
    found = np.argwhere(touching(labels)).tolist()
    assert found == [[2, 2], [3, 3]]


def test_numbers_that_doubles_cannot_tell_apart_are_two_objects() -> None:
    labels = np.full((4, 4), 2**62, np.uint64)
    labels[:, 2:] += np.uint64(1)
    assert touching(labels).tolist() == [[False, True, True, False]] * 4


def test_what_touches_is_what_has_another_object_among_its_eight_neighbours() -> None:
    cells = crowd(7)
    for place in np.argwhere(cells >= 0):
        around = cells[tuple(slice(max(n - 1, 0), n + 2) for n in place)]
        own = cells[tuple(place)]
        assert touching(cells)[tuple(place)] == (own > 0 and not set(np.unique(around)) <= {0, own})


@given(SEED)
def test_no_two_objects_stay_connected_not_even_at_a_corner(seed: int) -> None:
    cells = crowd(seed)
    apart = np.where(dividing_line(cells), 0, cells)
    assert merged(apart, None) == merged(apart, CORNERS) == 0


@given(SEED)
def test_the_line_takes_pixels_that_touch_and_no_others(seed: int) -> None:
    cells = crowd(seed)
    assert not (dividing_line(cells) & ~touching(cells)).any()


@given(SEED)
def test_no_more_objects_vanish_than_by_taking_all_that_touches(seed: int) -> None:
    cells = crowd(seed)
    careful, plain = (np.where(line, 0, cells) for line in (dividing_line(cells), touching(cells)))
    assert vanished(cells, careful) <= vanished(cells, plain)


@given(SEED)
def test_the_line_does_not_depend_on_the_numbers_of_objects(seed: int) -> None:
    cells = crowd(seed, kinds=60)  # many of few pixels, so that much is decided by who is smaller, or first
    others = np.r_[0, 1 + np.random.default_rng(seed).permutation(59)].astype(np.int32)[cells]
    assert np.array_equal(dividing_line(cells), dividing_line(others))


def test_between_two_large_objects_the_line_is_two_pixels() -> None:
    cells = np.ones((7, 10), np.int32)
    cells[:, 5:] = 2
    assert dividing_line(cells).tolist() == [[x in (4, 5) for x in range(10)]] * 7


def test_a_small_object_inside_a_large_one_stays_and_the_large_one_gives_way() -> None:
    cells = np.ones((9, 11), np.int32)
    cells[4:6, 5:7] = 2
    line = dividing_line(cells)
    assert not line[4:6, 5:7].any()
    assert line.sum() == 4 * 4 - 2 * 2


def test_a_thin_bridge_that_another_object_touches_is_kept() -> None:
    cells = np.zeros((9, 21), np.int32)
    cells[2:7, 1:7] = cells[2:7, 14:20] = cells[4, 7:14] = 1
    cells[5:8, 9:12] = 2
    apart = np.where(dividing_line(cells), 0, cells)
    assert fallen_apart(cells, apart) == vanished(cells, apart) == 0


def test_of_two_objects_of_one_pixel_one_stays() -> None:
    assert sorted(dividing_line(np.array([[0, 3, 5, 0]], np.int32))[0].tolist()) == [False, False, False, True]


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (13, 22)])
def test_one_object_or_none_has_no_line(shape: tuple[int, int]) -> None:
    assert not dividing_line(np.zeros(shape, np.int32)).any()
    assert not dividing_line(np.full(shape, 4, np.int32)).any()


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "uint32", "int64", "uint64"])
def test_numbers_have_no_gaps_and_part_the_same_objects(dtype: str) -> None:
    highest = 1 if dtype == "bool" else np.iinfo(dtype).max
    labels = np.array([[highest, 0, 1], [0, highest - (dtype != "bool"), 1]], dtype)
    found = numbered(labels)
    assert found.dtype == np.int32
    assert np.array_equal(found == 0, labels == 0)
    assert sorted(np.unique(found)) == list(range(len(np.unique(labels))))
    assert len(
        np.unique(np.stack([found.ravel(), np.unique(labels, return_inverse=True)[1].ravel()]), axis=1).T
    ) == len(np.unique(labels))


@pytest.mark.parametrize(
    ("file", "every", "cells", "lost", "broken"),
    [
        ("phc_psc/01-labels.tif", 1, 6034, 0, 1),
        ("dic_hela/01-labels.tif", 8, 142, 0, 0),
        ("dsb2018/labels.tif", 1, 7113, 0, 0),
    ],
    ids=["PSC", "HeLa", "DSB"],
)
def test_real_cells_never_merge_and_hardly_any_is_lost(
    data: Path, file: str, every: int, cells: int, lost: int, broken: int
) -> None:
    """Taking all pixels that touch breaks 26 of the first and 31 of the last, and loses one of those."""
    found = np.zeros(3, int)
    for labels in tifffile.imread(data / file)[::every]:
        before = numbered(labels)
        after = np.where(dividing_line(before), 0, before)
        assert merged(after, None) == merged(after, CORNERS) == 0
        found += (before.max(), vanished(before, after), fallen_apart(before, after))
    assert found.tolist() == [cells, lost, broken]
