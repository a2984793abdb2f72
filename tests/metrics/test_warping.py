from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from scipy import ndimage

from unetcli.metrics.warping import (
    ErrorCounts,
    ErrorKind,
    Warped,
    WarpingErrors,
    classify,
    simple_point_table,
    warp,
    warping_errors,
)

EIGHT = np.ones((3, 3))
CLOCKWISE = [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0)]
SHAPES = arrays.array_shapes(min_dims=2, max_dims=2, max_side=7)
MAPS = SHAPES.flatmap(
    lambda shape: st.tuples(
        arrays.arrays(bool, shape), arrays.arrays(np.float32, shape, elements=st.sampled_from(GREYS))
    )
)
GREYS = [0.0, 0.125, 0.3, 0.5, 0.6, 0.75, 1.0]
LEVEL = 0.5
Mask = NDArray[np.bool_]


def topology(mask: Mask) -> tuple[int, int]:
    """Number of cells, and of connected parts of the membrane including the outside (holes + 1)."""
    framed = np.pad(mask, 1)
    return ndimage.label(framed)[1], ndimage.label(~framed, EIGHT)[1]


def warped_by_hand(probability: NDArray[np.float32], interior: Mask) -> Mask:
    """Flip one pixel after the other wherever the numbers of cells and holes stay the same."""
    result, proposal = interior.copy(), probability > LEVEL
    while True:
        before = result.copy()
        differ = [(x, y) for y, x in np.argwhere(result != proposal)]
        far = {(x, y): np.float32(abs(float(probability[y, x]) - LEVEL)) for x, y in differ}
        for x, y in sorted(sorted(differ), key=lambda place: -far[place]):
            flipped = result.copy()
            flipped[y, x] ^= True
            if topology(flipped) == topology(result):
                result = flipped
        if (result == before).all():
            return result


def kind_by_hand(interior: Mask, y: int, x: int, radius: int) -> ErrorKind:
    """The table of ``classify``, evaluated with scipy."""
    cells = np.pad(ndimage.label(interior)[0], 1, constant_values=-1)
    around = set(np.delete(cells[y : y + 3, x : x + 3], 4).tolist()) - {-1}
    if around <= {0}:
        return ErrorKind.OBJECT_DELETION if interior[y, x] else ErrorKind.OBJECT_ADDITION
    if len(around) == 1:
        return ErrorKind.HOLE_ADDITION if interior[y, x] else ErrorKind.HOLE_DELETION
    if len(around) > 2:
        return ErrorKind.SPLIT if interior[y, x] else ErrorKind.MERGE
    if not interior[y, x]:
        return ErrorKind.HOLE_ADDITION
    radius = max(interior.shape) if radius > min(interior.shape) else radius
    window = np.pad(interior, radius)[y : y + 2 * radius + 1, x : x + 2 * radius + 1].copy()
    window[radius, radius] = False
    pieces = ndimage.label(window)[0][radius - 1 : radius + 2, radius - 1 : radius + 2]
    return ErrorKind.SPLIT if len(np.unique(pieces)) > 2 else ErrorKind.HOLE_DELETION


def errors(reference: Any, proposal: Any) -> WarpingErrors:
    """Warping errors of two binary images, drawn as rows of '#' (interior) and '.'."""
    a, b = (np.array([[c == "#" for c in row] for row in image]) for image in (reference, proposal))
    return warping_errors(b.astype(np.float32), a, b, LEVEL)


def test_232_of_512_patterns_are_simple() -> None:
    assert 2 * simple_point_table().sum() == 232  # the value of the pixel itself does not matter


@pytest.mark.parametrize("pattern", range(256))
def test_a_pixel_is_simple_if_flipping_it_leaves_cells_and_holes(pattern: int) -> None:
    patch = np.zeros((3, 3), bool)
    for bit, place in enumerate(CLOCKWISE):
        patch[place] = pattern >> bit & 1
    flipped = patch.copy()
    flipped[1, 1] = True
    # neighbours that are connected further away count as separate here
    assert simple_point_table()[pattern] == (topology(patch) == topology(flipped))


@settings(deadline=None, max_examples=200)
@given(MAPS)
def test_warping_is_flipping_what_changes_no_number_of_cells_or_holes(maps: tuple[Mask, NDArray[np.float32]]) -> None:
    interior, probability = maps
    found = warp(probability, interior, probability > LEVEL, LEVEL)
    assert np.array_equal(found.interior, warped_by_hand(probability, interior))


@settings(deadline=None, max_examples=200)
@given(MAPS)
def test_the_warped_reference_keeps_its_cells_and_holes_and_differs_where_said(
    maps: tuple[Mask, NDArray[np.float32]],
) -> None:
    interior, probability = maps
    found = warp(probability, interior, probability > LEVEL, LEVEL)
    assert topology(found.interior) == topology(interior)
    assert sorted(found.indices) == np.flatnonzero(found.interior != (probability > LEVEL)).tolist()


def test_large_maps_keep_their_cells_and_holes_too() -> None:
    random = np.random.default_rng(3)
    interior = ndimage.gaussian_filter(random.normal(size=(67, 90)), 3) > 0
    probability = ndimage.gaussian_filter(random.random((67, 90)), 1).astype(np.float32)
    found = warp(probability, interior, probability > LEVEL, LEVEL)
    assert topology(found.interior) == topology(interior)
    assert 0 < found.indices.size < 0.2 * (interior != (probability > LEVEL)).sum()


@settings(deadline=None)
@given(MAPS, st.integers(0, 7))
def test_identical_images_have_no_error_turned_or_mirrored(maps: tuple[Mask, NDArray[np.float32]], turn: int) -> None:
    mask = np.rot90(maps[0], turn % 4)
    mask = mask[:, ::-1] if turn > 3 else mask
    assert warping_errors(mask.astype(np.float32), mask, mask, LEVEL).counts.total == 0


@settings(deadline=None, max_examples=300)
@given(arrays.arrays(bool, SHAPES), st.integers(1, 9))
def test_kinds_are_those_of_the_table(interior: Mask, radius: int) -> None:
    indices = np.arange(interior.size)
    expected = [kind_by_hand(interior, y, x, radius) for y, x in np.ndindex(interior.shape[0], interior.shape[1])]
    assert classify(Warped(interior, indices), radius).tolist() == expected


def test_a_cell_cut_in_two_is_a_split_where_it_was_cut() -> None:
    found = errors(
        ["......", ".####.", ".####.", ".####.", "......"], ["......", ".#.##.", ".#.##.", ".#.##.", "......"]
    )
    assert found.of(ErrorKind.SPLIT).tolist() == found.positions.tolist() != []
    assert (found.positions[:, 1] == 2).all()


def test_two_cells_that_flow_together_are_a_merge_where_they_meet() -> None:
    apart = [".......", ".##.##.", ".##.##.", ".##.##.", "......."]
    found = errors(apart, [*apart[:2], ".#####.", *apart[3:]])
    assert found.of(ErrorKind.MERGE).tolist() == [[2, 3]]
    assert found.counts == ErrorCounts(0, 1, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("reference", "proposal", "kind", "count"),
    [
        ([".....", ".....", "....."], [".....", "..#..", "....."], ErrorKind.OBJECT_ADDITION, 1),
        ([".....", ".##..", "....."], [".....", ".....", "....."], ErrorKind.OBJECT_DELETION, 1),
        (["#####"] * 5, ["#####", "#####", "##.##", "#####", "#####"], ErrorKind.HOLE_ADDITION, 1),
        (["#####", "#####", "##.##", "#####", "#####"], ["#####"] * 5, ErrorKind.HOLE_DELETION, 1),
    ],
    ids=["a new cell", "a cell gone", "a new hole", "a hole gone"],
)
def test_cells_and_holes_that_come_and_go(
    reference: list[str], proposal: list[str], kind: ErrorKind, count: int
) -> None:
    assert errors(reference, proposal).kinds.tolist() == [kind] * count


@pytest.mark.parametrize("columns", [[5], [3, 4], [4, 5, 6]], ids=["moved", "thicker", "thicker and moved"])
def test_membrane_moved_by_a_pixel_or_thicker_is_no_error(columns: list[int]) -> None:
    reference, proposal = np.ones((9, 11), bool), np.ones((9, 11), bool)
    reference[:, 4] = proposal[:, columns] = False
    assert warping_errors(proposal.astype(np.float32), reference, proposal, LEVEL).counts.total == 0


def test_a_ring_cut_once_is_a_split_only_if_the_window_does_not_see_it_whole() -> None:
    ring = np.zeros((61, 61), bool)
    ring[10:51, 10:51] = True
    ring[11:50, 11:50] = False
    pixel = np.array([10 * 61 + 30])  # the far side is 40 away
    assert classify(Warped(ring, pixel)).tolist() == [ErrorKind.SPLIT]
    assert classify(Warped(ring, pixel), radius=40).tolist() == [ErrorKind.HOLE_DELETION]


def test_pixels_that_are_not_valid_are_neither_flipped_nor_counted() -> None:
    interior = np.ones((5, 6), bool)
    proposal, valid = np.zeros((5, 6), bool), np.zeros((5, 6), bool)
    valid[:, 3:] = True
    found = warp(proposal.astype(np.float32), interior, proposal, LEVEL, valid)
    assert found.interior[:, :3].all()
    assert not found.interior[:, 3:].any()
    assert found.indices.size == 0
