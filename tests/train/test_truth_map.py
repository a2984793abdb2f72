"""Where a label volume has ground truth: in windows, and near squares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from scipy import ndimage
from train.scenes import volume

from unetcli.core.geometry import Box
from unetcli.train.settings import IGNORED, TruthRules
from unetcli.train.targets import TargetCache
from unetcli.train.truth_map import Boxes, has_truth, squares_near_truth
from unetcli.volumes.chunk_cache import cached
from unetcli.volumes.opening import open_volume

SHAPE = (2, 61, 83)
RULES = {
    "everywhere": TruthRules(truth="binary"),
    "ignored": TruthRules(truth="binary", ignore=9),
    "partial": TruthRules(truth="instances", partial=7),
    "both": TruthRules(truth="classes", partial=4, ignore=9),
}


def sparse() -> NDArray[np.uint8]:
    """Labels of 9 and 0 with a few pixels of 1 and 2, all in the first section, and 0 in a corner of the second."""
    labels = np.full(SHAPE, 9, np.uint8)
    labels[0, :30, :40] = 0
    labels[0, 20:24, 33:36], labels[0, 58, 70] = 1, 2
    labels[1, 50:, 60:] = 0
    return labels


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_windows_with_truth_are_those_in_which_a_class_is_known(rules: TruthRules) -> None:
    labels = volume(sparse())
    classes, random, answers = TargetCache(labels, rules), np.random.default_rng(0), set()
    for _ in range(300):
        z, y, x = (int(random.integers(-n, 2 * n)) if n > 2 else int(random.integers(n)) for n in SHAPE)
        window = Box((z, y, x), (z + 1, y + int(random.integers(1, 20)), x + int(random.integers(1, 20))))
        answers.add(known := bool((classes.classes(window) != IGNORED).any()))
        assert has_truth(labels, rules, window) == known, window
    assert answers == ({True} if rules is RULES["everywhere"] else {True, False})


@pytest.mark.parametrize("name", ["ignored", "partial", "both"])
def test_squares_hold_every_pixel_whose_window_has_truth_and_few_others(name: str) -> None:
    labels, rules, side, reach = volume(sparse()), RULES[name], 8, 5
    for z in range(2):
        section = Box((z, 0, 0), (z + 1, *SHAPE[1:]))
        squares = squares_near_truth(labels, rules, section, [section], side=side, reach=reach)
        found = np.zeros(SHAPE, bool)
        for start, stop in zip(squares.start.tolist(), squares.stop.tolist(), strict=True):
            found[Box(tuple(start), tuple(stop)).slices] = True
        assert squares.size == found.sum()  # no square twice
        known = TargetCache(labels, rules).classes(section) != IGNORED
        assert found[z][ndimage.maximum_filter(known, 2 * reach + 1)].all()
        if name != "both":  # where an object lies beside ignored pixels, squares around it count too
            assert not found[z][~ndimage.maximum_filter(known, 2 * (reach + 2 * side) + 1)].any()


def test_chunks_that_are_not_stored_are_not_read(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "labels.zarr", shape=(64, 96), chunks=(32, 32), dtype="u1", fill_value=9)
    array[40:44, 70:75] = 1
    labels = cached(open_volume(str(tmp_path / "labels.zarr")))
    section = Box((0, 0), (64, 96))
    pieces = [Box((y, x), (y + 32, x + 32)) for y in (0, 32) for x in (0, 32, 64)]
    assert [labels.is_absent(piece) for piece in pieces] == [True] * 5 + [False]
    squares = squares_near_truth(labels, RULES["ignored"], section, pieces, side=16, reach=0)
    assert (squares.start.tolist(), squares.stop.tolist()) == ([[32, 64]], [[48, 80]])


def test_voxels_are_drawn_uniformly_from_all_boxes() -> None:
    boxes = Boxes.joined([Boxes.of(Box((0, 0), (2, 3))), Boxes.of(Box((5, 5), (6, 9)))])
    random, counts = np.random.default_rng(0), np.zeros((6, 9))
    for _ in range(2000):
        counts[boxes.random_voxel(random)] += 1
    assert np.count_nonzero(counts) == boxes.size == 10
    assert counts[counts > 0] == pytest.approx(200, abs=60)


def test_boxes_are_clipped_and_empty_ones_left_out() -> None:
    boxes = Boxes.joined([Boxes.of(Box((0, 0), (2, 3))), Boxes.of(Box((5, 5), (6, 9)))])
    clipped = boxes.clipped(Box((1, 1), (4, 20)))
    assert (clipped.start.tolist(), clipped.stop.tolist()) == ([[1, 1]], [[2, 3]])
    assert boxes.clipped(Box((3, 0), (4, 4))).size == 0
