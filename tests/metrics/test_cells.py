from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from unetcli.metrics.cells import SCORES, THRESHOLDS, CellSums, scores, seg_sums
from unetcli.metrics.contingency import Contingency

Labels = NDArray[np.integer]
IMAGES = st.integers(1, 30).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(0, 4), min_size=n, max_size=n).map(np.array)] * 2)
)
CURVES = tuple(f"{name}_by_threshold" for name in ("precision", "recall", "f1", "ap"))


def of(reference: Labels, result: Labels, ignore: int | None = None) -> CellSums:
    return CellSums.of(Contingency.of(reference, result, ignore=ignore))


def objects(labels: Labels) -> list[set[int]]:
    return [set(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels[labels > 0])]


def seg_by_hand(reference: Labels, result: Labels) -> tuple[float, int]:
    """Sums of SEG, object by object, on sets of pixels."""
    total = 0.0
    for cell in objects(reference):
        total += sum(
            len(cell & found) / len(cell | found) for found in objects(result) if 2 * len(cell & found) > len(cell)
        )
    return total, len(objects(reference))


def det_by_hand(reference: Labels, result: Labels) -> float:
    """DET from the operations that correct the detection, weighted as in the challenge."""
    covers = [sum(2 * len(cell & found) > len(cell) for cell in objects(reference)) for found in objects(result)]
    cells = len(objects(reference))
    cost = 10 * (cells - sum(covers)) + 5 * sum(k - 1 for k in covers if k > 1) + covers.count(0)
    return 1 - min(cost, 10 * cells) / (10 * cells)


def matches_by_hand(reference: Labels, result: Labels, threshold: Fraction) -> int:
    return sum(
        Fraction(len(cell & found), len(cell | found)) > threshold
        for cell in objects(reference)
        for found in objects(result)
    )


@given(IMAGES)
def test_seg_follows_the_rule_object_by_object(images: tuple[Labels, Labels]) -> None:
    total, cells = seg_by_hand(*images)
    assert seg_sums(*images) == (pytest.approx(total), cells)


@pytest.mark.parametrize(
    ("reference", "result", "expected"),
    [
        ([7, 7, 7, 7], [3, 3, 0, 0], (0, 1)),
        ([7, 7, 7, 0], [3, 3, 0, 0], (2 / 3, 1)),
        ([5, 5, 6, 6], [1, 1, 1, 1], (0.5 + 0.5, 2)),
        ([5, 5, 5, 5], [1, 1, 1, 2], (3 / 4, 1)),
        ([5, 5, 0, 0], [1, 1, 2, 2], (1, 1)),
        ([5, 0, 0, 5], [9, 0, 0, 9], (1, 1)),
        ([5, 5, 6, 6], [0, 0, 0, 0], (0, 2)),
        ([0, 0, 0, 0], [1, 1, 0, 2], (0, 0)),
    ],
    ids=["half", "more than half", "merged", "split", "false positive", "in two pieces", "nothing found", "no object"],
)
def test_seg_of_small_images(reference: list[int], result: list[int], expected: tuple[float, int]) -> None:
    assert seg_sums(np.array([reference], np.uint16), np.array([result], np.uint16)) == expected


@given(IMAGES)
def test_det_weights_missed_merged_and_spurious_objects(images: tuple[Labels, Labels]) -> None:
    det = scores([of(*images)])["det"]
    if all(image.any() for image in images):
        assert det == pytest.approx(det_by_hand(*images))
    else:
        assert det is None


@given(IMAGES)
def test_matching_is_that_of_sets_of_pixels_at_every_threshold(images: tuple[Labels, Labels]) -> None:
    found, cells, others = scores([of(*images)]), len(objects(images[0])), len(objects(images[1]))
    assert found["iou_thresholds"] == [float(Fraction(k, 20)) for k in range(10, 20)]
    for place, k in enumerate(range(10, 20)):
        tp = matches_by_hand(*images, Fraction(k, 20))
        counts = (tp, others), (tp, cells), (2 * tp, cells + others), (tp, cells + others - tp)
        expected = [over / under if under else None for over, under in counts]
        assert [found[name][place] for name in CURVES] == pytest.approx(expected), k
    assert [found[name] for name in ("precision", "recall", "f1")] == [found[name][0] for name in CURVES[:3]]
    assert found["ap"] == (pytest.approx(np.mean(found["ap_by_threshold"])) if cells + others else None)


@given(IMAGES)
def test_panoptic_quality_is_the_mean_overlap_times_f1(images: tuple[Labels, Labels]) -> None:
    overlaps = [len(a & b) / len(a | b) for a in objects(images[0]) for b in objects(images[1])]
    matched = [overlap for overlap in overlaps if overlap > 0.5]
    found = scores([of(*images)])
    if matched:
        assert found["pq"] == pytest.approx(np.mean(matched) * found["f1"])
    else:
        assert found["pq"] == found["f1"]


def test_an_overlap_on_a_threshold_is_not_above_it() -> None:
    """0.6 is exactly 12 / 20 with integers, but not with thresholds accumulated as floats."""
    reference = np.array([1, 1, 1, 1, 0])
    found = scores([of(reference, np.array([1, 1, 1, 0, 1]))])  # 3 of 5 pixels
    assert dict(zip(found["iou_thresholds"], found["recall_by_threshold"], strict=True)) == {
        threshold: float(threshold < 0.6) for threshold in THRESHOLDS
    }


@given(IMAGES)
def test_a_perfect_result_scores_1_whatever_its_labels_are(images: tuple[Labels, Labels]) -> None:
    reference = np.append(images[0], 3)
    found = scores([of(reference, (np.array([0, 9, 4, 2**40, 1]))[reference])])
    assert [found[name] for name in SCORES] == [1] * len(SCORES)
    assert found["ap_frame_mean"] == 1


@given(IMAGES, st.permutations(range(1, 5)), st.permutations(range(1, 5)))
def test_names_of_labels_do_not_matter(images: tuple[Labels, Labels], new: list[int], other: list[int]) -> None:
    renamed = [np.array([0, *names])[image] for names, image in zip((new, other), images, strict=True)]
    found, expected = scores([of(*renamed)]), scores([of(*images)])
    assert {name: found[name] for name in SCORES} == pytest.approx({name: expected[name] for name in SCORES})


@given(st.lists(IMAGES, min_size=1, max_size=4))
def test_frames_are_pooled_and_a_label_is_another_object_in_each(frames: list[tuple[Labels, Labels]]) -> None:
    whole = [
        np.concatenate([image[side] + 10 * n * (image[side] > 0) for n, image in enumerate(frames)]) for side in (0, 1)
    ]
    found, expected = scores([of(*frame) for frame in frames]), scores([of(*whole)])
    names = set(SCORES) - {"det"}  # which depends on empty frames
    assert {name: found[name] for name in names} == pytest.approx({name: expected[name] for name in names})


@given(IMAGES, st.integers(0, 30))
def test_blocks_of_a_frame_add_up(images: tuple[Labels, Labels], cut: int) -> None:
    blocks = [Contingency.of(*(image[part] for image in images)) for part in (slice(cut), slice(cut, None))]
    assert scores([CellSums.of(blocks[0] + blocks[1])]) == scores([of(*images)])


@given(IMAGES)
def test_the_objects_of_a_frame_add_up_to_the_frame(images: tuple[Labels, Labels]) -> None:
    table = Contingency.of(*images)
    each, frame = CellSums.of_objects(table), CellSums.of(table)
    for name, value in frame.to_dict().items():
        assert each.total().to_dict()[name] == pytest.approx(value), name
    assert (each.references + each.results >= 1).all()


def test_the_mean_of_the_frames_ap_weighs_each_frame_alike() -> None:
    good, bad = np.array([1, 1, 2, 2, 3, 3]), np.array([0, 0, 0, 0, 3, 3])
    empty = np.zeros(6, int)
    found = scores([of(good, good), of(bad, empty), of(empty, empty)])
    assert (found["ap"], found["ap_frame_mean"]) == (pytest.approx(3 / 4), pytest.approx(1 / 2))


def test_ignored_pixels_belong_to_no_object() -> None:
    reference, result = np.array([5, 5, 9, 9, 0]), np.array([1, 1, 1, 1, 0])
    found = scores([of(reference, result, ignore=9)])
    assert (found["seg"], found["reference_objects"], found["precision"]) == (1, 1, 1)
    assert scores([of(np.full(5, 9), result, ignore=9)])["seg"] is None


def test_a_partial_reference_gives_only_scores_that_extra_objects_do_not_touch() -> None:
    frame = of(np.array([5, 5, 0, 0]), np.array([1, 1, 2, 2]))
    whole, found = scores([frame]), scores([frame], partial=True)
    assert {name: found[name] for name in ("seg", "det", "recall")} == {"seg": 1, "det": 0.9, "recall": 1}
    assert (whole["precision"], whole["ap"]) == (0.5, 0.5)
    for name in ("precision", "f1", "ap", "pq", "ap_frame_mean"):
        assert (found[name], "partial" in found[f"{name}_reason"]) == (None, True), name
    assert (found["precision_by_threshold"], found["recall_by_threshold"]) == (None, [1.0] * 10)


def test_det_is_taken_from_the_markers_where_there_are_some() -> None:
    frame, markers = of(np.array([5, 5, 0]), np.array([1, 1, 2])), of(np.array([5, 0, 6]), np.array([1, 1, 2]))
    assert (scores([frame])["det"], scores([frame], markers=[markers])["det"]) == (0.9, 1)


@pytest.mark.parametrize(
    ("reference", "result", "undefined"),
    [
        ([0, 0], [0, 0], {"seg", "det", "precision", "recall", "f1", "ap", "pq"}),
        ([0, 0], [1, 0], {"seg", "det", "recall"}),
        ([3, 0], [0, 0], {"det", "precision"}),
    ],
    ids=["no object at all", "nothing to find", "nothing found"],
)
def test_an_undefined_score_is_none_with_a_reason(reference: list[int], result: list[int], undefined: set[str]) -> None:
    found = scores([of(np.array(reference), np.array(result))])
    assert {name for name in SCORES if found[name] is None} == undefined
    assert all(
        "no object" in found[f"{name}_reason"] or "without objects" in found[f"{name}_reason"] for name in undefined
    )
    assert all(found[name] == 0 for name in set(SCORES) - undefined)


def test_det_is_withheld_for_an_empty_frame_and_its_reason_has_the_value() -> None:
    full, empty = np.array([1, 0, 2]), np.zeros(3, int)
    found = scores([of(full, full), of(full, empty), of(empty, empty)])
    assert found["det"] is None
    assert found["det_reason"].startswith("frames without objects: 2 of the result and 1 of the reference;")
    assert "(0.500000 with them)" in found["det_reason"]


def test_no_frame_at_all_has_no_score() -> None:
    assert all(scores([])[name] is None for name in SCORES)
