from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from train.scenes import border_of

from unetcli.train import border
from unetcli.train.border import cells_of, dividing_line, renumbered, touching
from unetcli.train.settings import IGNORED, NEGLIGIBLE, TRUTHS, TruthRules
from unetcli.train.targets import classes_of, weight_table

Labels = NDArray[np.integer]
SEED = st.integers(0, 2**32 - 1)


def crowd(seed: int, shape: tuple[int, int] = (41, 58), cells: int = 12) -> Labels:
    """Round cells with numbers up to ``cells``, some of which touch."""
    random = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint16)
    rows, columns = np.indices(shape)
    for number in range(1, cells + 1):
        y, x, radius = random.uniform(0, shape[0]), random.uniform(0, shape[1]), random.uniform(1, 7)
        labels[(rows - y) ** 2 + (columns - x) ** 2 <= radius**2] = number
    return labels


def plain(labels: Labels, rules: TruthRules) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Second term of eq. 2, and the exponential alone, from one distance transform per cell, sorted."""
    classes = classes_of(labels, rules)
    masks = plain_cells(labels, classes, rules)
    wanted = classes != IGNORED if rules.everywhere else classes == 0
    if len(masks) < 2:
        return np.zeros(labels.shape), np.zeros(labels.shape)
    distances = np.sort([ndimage.distance_transform_edt(~mask) for mask in masks], axis=0)
    faded = np.exp(-((distances[0] + distances[1]) ** 2) / (2 * rules.sigma**2))
    return np.where(wanted, rules.w0 * faded, 0), np.where(wanted, faded, 0)


def plain_cells(labels: Labels, classes: NDArray[np.uint8], rules: TruthRules) -> list[NDArray[np.bool_]]:
    if rules.truth == "instances":
        masks = [(labels == n) & (classes == 1) for n in np.unique(labels)]
        return [mask for mask in masks if mask.any()]
    found = []
    for number in range(1, IGNORED):
        components, count = ndimage.label(classes == number)
        found += [components == n for n in range(1, count + 1)]
    return found


def assert_equal_to_plain(labels: Labels, rules: TruthRules) -> None:
    weights = border_of(labels, classes_of(labels, rules), rules)
    expected, exponential = plain(labels, rules)
    assert weights.dtype == np.float32
    assert weights.shape == labels.shape
    np.testing.assert_allclose(weights, np.where(exponential > NEGLIGIBLE, expected, 0), atol=1e-4, rtol=0)


@given(SEED, st.sampled_from(TRUTHS), st.booleans(), st.floats(0.3, 9))
@settings(max_examples=50)
def test_border_weights_equal_those_of_a_distance_transform_per_cell(
    seed: int, truth: str, everywhere: bool, sigma: float
) -> None:
    labels = crowd(seed) % 4 if truth == "classes" else crowd(seed)
    assert_equal_to_plain(labels, TruthRules(truth=truth, sigma=sigma, everywhere=everywhere))


@given(SEED, st.integers(0, 3), st.integers(1, 12))
@settings(max_examples=50)
def test_this_holds_with_pixels_without_ground_truth(seed: int, ignore: int, partial: int) -> None:
    rules = TruthRules(truth="instances", ignore=ignore, partial=partial)
    assert_equal_to_plain(crowd(seed), rules)
    classes = classes_of(crowd(seed), rules)
    assert not border_of(crowd(seed), classes, rules)[classes == IGNORED].any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 3), (13, 300), (300, 13)], ids=str)
def test_images_of_any_size_will_do(shape: tuple[int, int]) -> None:
    labels = np.random.default_rng(0).integers(0, 3, shape)
    for truth in TRUTHS:
        assert_equal_to_plain(labels, TruthRules(truth=truth, everywhere=True))


def test_strips_and_slabs_of_rows_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, rules = crowd(3, (90, 31)), TruthRules(truth="instances", sigma=1.7)
    whole = border_of(labels, classes_of(labels, rules), rules)
    monkeypatch.setattr(border, "STRIP_ROWS", 17)
    monkeypatch.setattr(border, "SLAB_BYTES", 4 * 31 * 5)
    assert np.array_equal(border_of(labels, classes_of(labels, rules), rules), whole)


@pytest.mark.parametrize(
    ("file", "truth", "section"),
    [
        ("isbi2012/train-labels.tif", "binary", 3),
        ("dic_hela/01-labels.tif", "instances", 40),
        ("phc_psc/01-labels.tif", "instances", 0),
    ],
    ids=["ISBI", "HeLa", "PSC"],
)
@pytest.mark.parametrize("side", [200, pytest.param(10_000, marks=pytest.mark.slow)], ids=["part", "whole"])
def test_this_holds_on_real_sections(data: Path, file: str, truth: str, section: int, side: int) -> None:
    assert_equal_to_plain(tifffile.imread(data / file, key=section)[:side, :side], TruthRules(truth=truth))


def test_one_pixel_between_two_cells_weighs_almost_w0() -> None:
    labels = np.array([[1, 1, 0, 2, 2]])
    rules = TruthRules(truth="instances", w0=10, sigma=5)
    weights = border_of(labels, classes_of(labels, rules), rules)
    assert weights[0].tolist() == pytest.approx([0, 0, 10 * np.exp(-4 / 50), 0, 0])


def test_inside_a_cell_the_nearest_cell_is_its_own() -> None:
    labels = np.array([[1, 1, 0, 2, 2]])
    rules = TruthRules(truth="instances", everywhere=True)
    weights = border_of(labels, classes_of(labels, rules), rules)
    assert weights[0].tolist() == pytest.approx((10 * np.exp(-(np.array([3, 2, 2, 2, 3]) ** 2) / 50)).tolist())


@pytest.mark.parametrize("truth", TRUTHS)
def test_a_single_cell_has_no_border_weight(truth: str) -> None:
    labels = np.zeros((20, 23), np.uint8)
    labels[5:9, 6:20] = 1
    rules = TruthRules(truth=truth, everywhere=True)
    assert not border_of(labels, classes_of(labels, rules), rules).any()


def test_w0_of_0_gives_no_border_weight() -> None:
    rules = TruthRules(truth="instances", w0=0)
    assert not border_of(crowd(1), classes_of(crowd(1), rules), rules).any()


@given(SEED)
def test_w0_is_a_factor(seed: int) -> None:
    labels, one, seven = crowd(seed), *(TruthRules(truth="instances", w0=w0) for w0 in (1, 7))
    classes = classes_of(labels, one)
    expected = 7 * border_of(labels, classes, one)
    np.testing.assert_allclose(border_of(labels, classes, seven), expected, rtol=1e-5)


def test_cells_of_one_class_that_meet_at_a_corner_are_two() -> None:
    classes = np.array([[1, 0, 2], [0, 1, 2], [0, 0, 2]], np.uint8)
    found = cells_of(classes, classes, TruthRules(truth="classes"))
    assert found.tolist() == [[1, 0, 3], [0, 2, 3], [0, 0, 3]]


def test_an_object_in_two_places_is_one_cell() -> None:
    labels = np.array([[5, 0, 0, 5]])
    rules = TruthRules(truth="instances")
    assert not border_of(labels, classes_of(labels, rules), rules).any()


@given(SEED)
def test_distances_begin_where_the_line_ends(seed: int) -> None:
    """The weights are those of labels without the line, here all pixels that touch."""
    labels = np.kron(np.random.default_rng(seed).integers(0, 5, (5, 7)), np.ones((6, 8), int))
    rules = TruthRules(truth="instances")
    thinner = np.where(touching(labels), 0, labels)
    weights = border_of(labels, classes_of(labels, rules), rules)
    np.testing.assert_array_equal(weights, border_of(thinner, classes_of(thinner, rules), rules))


def test_weights_are_class_weight_plus_border_weight_and_0_without_ground_truth() -> None:
    classes = np.array([[0, 1, IGNORED, 2, 7]], np.uint8)
    weights = np.array([[4, 0.5, 0, 0, 0]], np.float32)
    found = weight_table(np.array([0.5, 2, 8], np.float32))[classes] + weights
    assert found.dtype == np.float32
    assert found.tolist() == [[4.5, 2.5, 0, 8, 0]]


CORNERS = np.ones((3, 3), int)


def speckled(seed: int, kinds: int = 6) -> NDArray[np.int32]:
    """Objects of one to three pixels across, most of which touch others; some pixels are background."""
    random = np.random.default_rng(seed)
    blocks = np.kron(random.integers(0, kinds, (5, 6)), np.ones((3, 2), int))
    specks = random.integers(0, kinds, blocks.shape)
    return np.where(random.random(blocks.shape) < 0.1, specks, blocks).astype(np.int32)


def merged(cells: NDArray[np.int32], connectivity: NDArray[np.integer] | None) -> int:
    """Number of objects that share a component of the foreground with another one."""
    components, count = ndimage.label(cells > 0, connectivity)
    inside = cells > 0
    pairs = np.unique(np.stack([components[inside], cells[inside]]), axis=1)
    return pairs.shape[1] - count


def vanished(before: NDArray[np.int32], after: NDArray[np.int32]) -> int:
    return len(set(np.unique(before)) - set(np.unique(after)))


def fallen_apart(before: NDArray[np.int32], after: NDArray[np.int32]) -> int:
    """Number of objects with more four-connected components than before."""
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
    cells = speckled(7)
    for place in np.argwhere(cells >= 0):
        around = cells[tuple(slice(max(n - 1, 0), n + 2) for n in place)]
        own = cells[tuple(place)]
        assert touching(cells)[tuple(place)] == (own > 0 and not set(np.unique(around)) <= {0, own})


@given(SEED)
def test_no_two_objects_stay_connected_not_even_at_a_corner(seed: int) -> None:
    cells = speckled(seed)
    apart = np.where(dividing_line(cells), 0, cells)
    assert merged(apart, None) == merged(apart, CORNERS) == 0


@given(SEED)
def test_the_line_takes_pixels_that_touch_and_no_others(seed: int) -> None:
    cells = speckled(seed)
    assert not (dividing_line(cells) & ~touching(cells)).any()


@given(SEED)
def test_no_more_objects_vanish_than_by_taking_all_that_touches(seed: int) -> None:
    cells = speckled(seed)
    careful, plain = (np.where(line, 0, cells) for line in (dividing_line(cells), touching(cells)))
    assert vanished(cells, careful) <= vanished(cells, plain)


@given(SEED)
def test_the_line_does_not_depend_on_the_numbers_of_objects(seed: int) -> None:
    cells = speckled(seed, kinds=60)  # many small objects, so that ranks by area and by position matter
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
    found = renumbered(labels)
    assert found.dtype == np.int32
    assert np.array_equal(found == 0, labels == 0)
    assert sorted(np.unique(found)) == list(range(len(np.unique(labels))))
    assert len(
        np.unique(np.stack([found.ravel(), np.unique(labels, return_inverse=True)[1].ravel()]), axis=1).T
    ) == len(np.unique(labels))


@pytest.mark.parametrize(
    ("file", "sections", "cells", "lost", "broken"),
    [
        ("phc_psc/01-labels.tif", [29], 650, 0, 1),
        ("dic_hela/01-labels.tif", [0, 64], 26, 0, 0),
        ("dsb2018/labels.tif", [17, 133, 175, 235], 183, 0, 0),
        pytest.param("phc_psc/01-labels.tif", slice(None), 6034, 0, 1, marks=pytest.mark.slow),
        pytest.param("dic_hela/01-labels.tif", slice(None, None, 8), 142, 0, 0, marks=pytest.mark.slow),
        pytest.param("dsb2018/labels.tif", slice(None), 7113, 0, 0, marks=pytest.mark.slow),
    ],
    ids=["some of PSC", "some of HeLa", "some of DSB", "PSC", "HeLa", "DSB"],
)
def test_real_cells_never_merge_and_hardly_any_is_lost(
    data: Path, file: str, sections: list[int] | slice, cells: int, lost: int, broken: int
) -> None:
    """Removing all pixels that touch would split 26 objects of PSC and 31 of DSB, and delete one of DSB.

    Of the few sections that are always tested, it would split 7, 3 and 12 objects, and delete one of DSB.
    """
    found = np.zeros(3, int)
    for labels in tifffile.imread(data / file)[sections]:
        before = renumbered(labels)
        after = np.where(dividing_line(before), 0, before)
        assert merged(after, None) == merged(after, CORNERS) == 0
        found += (before.max(), vanished(before, after), fallen_apart(before, after))
    assert found.tolist() == [cells, lost, broken]
