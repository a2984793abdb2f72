"""Sizes of the objects in the training truth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import write_zarr
from numpy.typing import NDArray
from train.scenes import TINY, annotated, dataset, leave_pictures_out

from unetcli.model.file import read_header
from unetcli.model.training_data import TrainingObjects
from unetcli.train.object_sizes import FEWEST, smallest, smallest_objects
from unetcli.train.train import train_model

SIDE = 120


def squares(sides: list[int], numbered: bool = True) -> NDArray[np.uint16]:
    """Section with squares of these sides, none at its edge, in a grid of cells of 12 pixels."""
    labels = np.zeros((1, SIDE, SIDE), np.uint16)
    for number, side in enumerate(sides):
        y, x = (2 + 12 * n for n in divmod(number, 9))
        labels[0, y : y + side, x : x + side] = number + 1 if numbered else 1
    return labels


def sizes_of(labels: NDArray[Any], classes: int = 2, **rules: Any) -> tuple[int, ...]:
    return smallest_objects(dataset(annotated(np.zeros(labels.shape, np.uint8), labels, **rules)), classes)


@pytest.mark.parametrize("truth", ["instances", "binary", "classes"])
def test_the_smallest_object_is_that_of_the_truth(truth: str) -> None:
    labels = squares([7] * 30 + [4] * 10, numbered=truth == "instances")
    assert sizes_of(labels, truth=truth) == (16,)


def test_one_stray_pixel_does_not_count() -> None:
    assert sizes_of(squares([7] * 40 + [1]), truth="instances") == (49,)
    assert sizes_of(squares([7] * 40 + [1, 1]), truth="instances") == (1,)


def test_objects_that_the_edge_cuts_off_do_not_count() -> None:
    labels = squares([7] * 30)
    labels[0, 0, ::3], labels[0, -1, ::3] = 100 + np.arange(40), 200 + np.arange(40)
    assert sizes_of(labels, truth="instances") == (49,)


def test_objects_beside_ignored_pixels_do_not_count() -> None:
    """Scribbles are parts of objects, with ignored pixels around them: no size is known."""
    labels = squares([7] * 30)
    labels[0, 2:9, 9] = 999  # beside the first square
    for corner in range(14, 110, 12):
        labels[0, 2:4, corner : corner + 7] = 999  # in all others of the first row
    assert sizes_of(labels, truth="instances", ignore=999) == (49,)
    scribbles = np.where(labels, 1, 255).astype(np.uint16)
    assert sizes_of(scribbles, truth="binary", ignore=255) == (0,)


def test_partial_annotation_has_whole_objects() -> None:
    assert sizes_of(squares([7] * 30), truth="instances", partial=1) == (49,)


def test_each_class_has_its_own_smallest_object() -> None:
    labels = squares([6] * 30, numbered=False) + 2 * np.roll(squares([3] * 30, numbered=False), 60, 1)
    assert sizes_of(labels, classes=3) == (0, 36, 9)  # the background is one object, and touches the edge


def test_few_objects_say_nothing() -> None:
    assert smallest(np.full(FEWEST - 1, 9)) == 0
    assert smallest(np.full(FEWEST, 9)) == 9
    assert sizes_of(squares([7] * 3), truth="instances") == (0,)


def test_the_model_keeps_the_smallest_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    leave_pictures_out(monkeypatch)
    labels = np.concatenate([squares([7] * 30 + [4])] * 2)
    write_zarr(Path("labels.zarr"), labels)
    write_zarr(Path("raw.zarr"), np.where(labels, 200, 50).astype(np.uint8))
    summary = train_model(replace(TINY, truth="instances", steps=2))
    assert read_header(Path(summary.model)).objects == TrainingObjects(truth="instances", smallest=(49,))


def test_parts_of_large_sections_count_whole_objects_only() -> None:
    """A section of 2100 pixels is measured in parts of 1024; objects across their edges are in no part as a whole."""
    labels = np.zeros((1, 40, 2100), np.uint16)
    for number, left in enumerate(range(4, 2080, 20)):
        labels[0, 10:20, left : left + 10] = number + 1
    assert sizes_of(labels, truth="instances") == (100,)
