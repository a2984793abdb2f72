"""Connected components, in memory and block by block: equal to scipy's on the whole array."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from label.maps import blobs, labelled, plan_of, scenes
from numpy.typing import NDArray
from scipy import ndimage

from unetcli.core.errors import UnetcliError
from unetcli.label.objects import (
    in_order,
    is_foreground,
    label_section,
    neighbourhood,
    neighbours,
    smallest_dtype,
)


def by_scipy(foreground: NDArray[np.bool_], touching: NDArray[np.bool_], min_size: int = 0) -> NDArray[np.int64]:
    """Components of a whole array, numbered by first voxel, without the small ones."""
    labels, count = ndimage.label(foreground, touching)
    kept = [label for label in range(1, count + 1) if np.count_nonzero(labels == label) >= min_size]
    kept.sort(key=lambda label: int(np.flatnonzero(labels == label)[0]))
    numbers = np.zeros(count + 1, np.int64)
    numbers[kept] = np.arange(1, len(kept) + 1)
    return numbers[labels]


@given(scenes())
@settings(max_examples=80, deadline=None)
def test_blocks_do_not_show(scene: tuple[NDArray[np.uint8], tuple[int, ...], dict[str, Any]]) -> None:
    """Labels equal those of the whole array for any block, dimension and connectivity."""
    values, block, chosen = scene
    plan = plan_of(values.shape, block, **chosen)
    touching = neighbourhood(plan.axes, chosen["connectivity"], three_d=chosen["three_d"])
    foreground = values.astype(np.float32) / np.float32(255) > chosen["threshold"]
    labels, _ = labelled(plan, values)
    assert np.array_equal(labels, by_scipy(foreground, touching, chosen["min_size"]))


def test_two_that_meet_behind_a_block_are_one() -> None:
    """Voxels that touch across a corner may belong to two blocks that are no direct neighbours."""
    values = np.zeros((4, 4), np.uint8)
    values[1, 2] = values[2, 1] = 255
    labels, _ = labelled(plan_of((4, 4), (2, 2), connectivity=8), values)
    assert labels.max() == 1
    labels, _ = labelled(plan_of((4, 4), (2, 2), connectivity=4), values)
    assert labels.max() == 2


def test_a_snake_through_all_blocks_is_one_object() -> None:
    values = np.zeros((31, 40), np.uint8)
    values[::2] = 255
    values[1::4, -1] = values[3::4, 0] = 255
    labels, merged = labelled(plan_of(values.shape, (3, 5)), values)
    assert np.array_equal(labels > 0, values > 0)
    assert merged.count == 1
    assert merged.measures.size.tolist() == [np.count_nonzero(values)]


def test_measures_are_those_of_each_object() -> None:
    values = blobs((3, 40, 33), 1.5, seed=3)
    labels, merged = labelled(plan_of(values.shape, (2, 8, 16), min_size=4), values)
    for number, (size, start, stop, places, bright) in enumerate(
        zip(
            merged.measures.size,
            merged.measures.start,
            merged.measures.stop,
            merged.measures.places,
            merged.measures.bright,
            strict=True,
        ),
        start=1,
    ):
        voxels = np.argwhere(labels == number)
        assert size == len(voxels) >= 4
        assert (start.tolist(), stop.tolist()) == (voxels.min(0).tolist(), (voxels.max(0) + 1).tolist())
        assert places.tolist() == voxels.sum(0).tolist()
        assert bright == values[labels == number].sum()


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "bool"])
def test_foreground_is_strictly_above_the_threshold(dtype: str) -> None:
    stored = {"uint8": [0, 51, 52, 127, 128, 255], "bool": [0, 1]}.get(dtype, [0, 0.2, 0.25, 0.5, 0.75, 1])
    values = np.array(stored, dtype)
    probability = values.astype(np.float64) / (255 if dtype == "uint8" else 1)
    for threshold in (0.0, 0.2, 0.25, 0.5, 0.99):
        assert is_foreground(values, threshold).tolist() == (probability > np.dtype("float32").type(threshold)).tolist()


def test_sections_are_labelled_in_order() -> None:
    probability = np.array([[0.9, 0.2, 0.9], [0.2, 0.9, 0.2], [0.9, 0.9, 0.2]])
    assert label_section(probability, 0.5).tolist() == [[1, 0, 2], [0, 3, 0], [3, 3, 0]]
    assert label_section(probability, 0.5, connectivity=8).tolist() == [[1, 0, 1], [0, 1, 0], [1, 1, 0]]
    assert label_section(probability, 0.5, min_size=2).tolist() == [[0, 0, 0], [0, 1, 0], [1, 1, 0]]
    assert not label_section(probability, 0.95).any()
    assert label_section((probability * 255).astype(np.uint8)).tolist() == label_section(probability).tolist()


def test_labels_in_order_are_whole_and_without_gaps() -> None:
    labels = np.random.default_rng(0).integers(0, 50, (17, 23))
    ordered = in_order(labels)
    pairs = np.unique(np.stack([labels.ravel(), ordered.ravel()]), axis=1)
    assert len(pairs[0]) == len(np.unique(labels)) == len(np.unique(ordered))
    firsts = [int(np.flatnonzero(ordered == number)[0]) for number in range(1, ordered.max() + 1)]
    assert firsts == sorted(firsts)


@pytest.mark.parametrize(("three_d", "count"), [(False, 4), (False, 8), (True, 6), (True, 18), (True, 26)])
def test_neighbourhoods_have_their_number_and_never_reach_along_t(three_d: bool, count: int) -> None:
    touching = neighbourhood("tzyx", count, three_d=three_d)
    assert int(touching.sum()) == count + 1
    assert not touching[[0, 2]].any()
    assert 2 * len(neighbours(touching)) == count


@pytest.mark.parametrize(
    ("axes", "connectivity", "three_d", "message"),
    [
        ("yx", None, True, "--three-d .* y, x"),
        ("zyx", 6, False, "--connectivity 6: .*4 or 8 without --three-d"),
        ("zyx", 8, True, "--connectivity 8: .*6 or 18 or 26 with --three-d"),
        ("zyx", 7, True, "--connectivity 7"),
    ],
)
def test_impossible_neighbourhoods_are_refused(
    axes: str, connectivity: int | None, three_d: bool, message: str
) -> None:
    with pytest.raises(UnetcliError, match=message):
        neighbourhood(axes, connectivity, three_d=three_d)


@pytest.mark.parametrize(("count", "dtype"), [(0, "uint8"), (255, "uint8"), (256, "uint16"), (2**32, "uint64")])
def test_labels_take_the_smallest_type_that_holds_them(count: int, dtype: str) -> None:
    assert smallest_dtype(count) == dtype
