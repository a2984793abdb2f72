from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unetcli.evaluate.result import SectionImages
from unetcli.report.measure_texts import (
    EXTRA,
    MERGE,
    MISSED,
    SPLIT,
    Mark,
    object_errors,
    outcomes,
    places_of,
    splits_and_merges,
    wrong_patches,
)


def images_of(truth: NDArray[np.integer], labels: NDArray[np.integer]) -> SectionImages:
    return SectionImages(reference=truth, true_objects=truth, probability=None, labels=labels, valid=None)


def marks_of(truth: NDArray[np.integer], labels: NDArray[np.integer]) -> list[Mark]:
    images = images_of(truth, labels)
    return object_errors(images.objects(), (places_of(truth), places_of(labels)))


def test_each_error_of_a_cell_is_marked_where_it_is() -> None:
    truth, labels = np.zeros((40, 60), np.int32), np.zeros((40, 60), np.int32)
    truth[2:10, 2:10], labels[2:10, 2:6], labels[2:10, 6:10] = 1, 1, 2  # split: neither half is more than half
    truth[2:10, 20:30], truth[2:10, 30:40], labels[2:10, 20:40] = 2, 3, 3  # merged
    truth[20:30, 2:10] = 4  # missed
    labels[20:30, 40:50] = 4  # extra
    truth[32:38, 20:30], labels[32:38, 20:30] = 5, 5  # found
    found = {mark.kind: (mark.y, mark.x) for mark in marks_of(truth, labels)}
    assert found == {SPLIT: (5.5, 5.5), MERGE: (5.5, 29.5), MISSED: (24.5, 5.5), EXTRA: (24.5, 44.5)}


def test_each_true_cell_has_an_outcome() -> None:
    truth, labels = np.zeros((10, 40), np.int32), np.zeros((10, 40), np.int32)
    truth[:, 0:8], labels[:, 0:8] = 7, 1
    truth[:, 10:18] = 8
    truth[:, 20:28], truth[:, 28:36], labels[:, 20:36] = 9, 10, 2
    assert outcomes(images_of(truth, labels).objects()[0]) == ["found", MISSED, MERGE, MERGE]


def test_equal_labels_have_no_errors() -> None:
    truth = np.random.default_rng(0).integers(0, 5, (20, 30))
    assert marks_of(truth, truth) == []


def test_a_gap_in_a_membrane_is_a_merge_and_a_wall_in_a_cell_is_a_split() -> None:
    interior = np.ones((40, 60), bool)
    interior[:, 30] = False
    probability = interior.astype(np.float32)
    probability[20, 30] = 1  # the gap
    probability[:, 10] = 0  # the wall
    images = SectionImages(
        reference=interior.astype(np.uint8), true_objects=None, probability=probability[None], labels=None, valid=None
    )
    marks = splits_and_merges(images, 0.5)
    assert {mark.kind: round(mark.x) for mark in marks} == {SPLIT: 10, MERGE: 30}
    assert next(mark for mark in marks if mark.kind == MERGE).y == 20


def test_small_patches_are_left_out_and_the_largest_comes_first() -> None:
    wrong = np.zeros((30, 30), bool)
    wrong[2:6, 2:6], wrong[10:20, 10:20], wrong[25, 25] = True, True, True
    assert [mark.size for mark in wrong_patches(wrong)] == [100, 16]


def test_places_belong_to_their_labels_whatever_their_values() -> None:
    labels = np.zeros((13, 22), np.uint64)
    labels[3, 4:7], labels[12, 21] = 2**40, 5
    assert places_of(labels) == {5: (12.0, 21.0, 0.5), 2**40: (3.0, 5.0, 1.5)}
    assert places_of(np.zeros((4, 5), int)) == {}
    assert places_of(np.full((4, 5), 3)) == {3: (1.5, 2.0, 2.5)}


def test_a_mark_shrinks_with_its_picture() -> None:
    assert Mark(SPLIT, 10, 20, 5, 7, "").scaled(4) == {
        "kind": SPLIT, "y": 2.5, "x": 5.0, "radius": 1.2, "size": 7, "text": ""
    }  # fmt: skip
