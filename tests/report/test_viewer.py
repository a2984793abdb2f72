from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from helpers import grey, write_zarr
from numpy.typing import NDArray
from report.evaluations import (
    cell_image,
    cells_evaluation,
    classes_evaluation,
    doubtful,
    em_evaluation,
    evaluate,
    labels_evaluation,
    membranes,
)

from unetcli.core.errors import UnetcliError
from unetcli.metrics.em_counts import errors_at
from unetcli.metrics.warping import ErrorKind
from unetcli.report import viewer
from unetcli.report.viewer import gallery, no_image, ranked, source_image


def test_sections_are_ranked_worst_first(tmp_path: Path) -> None:
    truth = np.stack([membranes(seed=n) for n in range(4)])
    noise = (0.1, 0.5, 0.3, 0.2)
    found = np.stack([doubtful(s, seed=n, noise=noise[n]) for n, s in enumerate(truth)])
    evaluation = evaluate(tmp_path, found, truth)
    errors = [section.scores["em"]["rand_error"] for section in ranked(evaluation)]
    assert errors == sorted(errors, reverse=True)
    assert len(set(errors)) == 4


def test_high_scores_are_not_the_worst(tmp_path: Path) -> None:
    segs = [section.scores["cells"]["seg"] for section in ranked(cells_evaluation(tmp_path))]
    assert segs == sorted(segs)


def test_sections_without_a_score_come_last(tmp_path: Path) -> None:
    truth = np.stack([np.zeros((83, 120), np.uint16), cell_image()])
    found = np.stack([cell_image(seed=3), cell_image(seed=4)])
    evaluation = evaluate(tmp_path, found, truth, metrics=("cells",), three_d=False)
    assert [section.number for section in ranked(evaluation)] == [1, 0]


def test_only_so_many_sections_are_shown_the_worst_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer, "MOST_PICTURES", 2)
    evaluation = cells_evaluation(tmp_path)
    shown = gallery(evaluation, no_image)
    assert [picture["section"] for picture in shown.pictures] == [s.number for s in ranked(evaluation)[:2]]
    assert {row.section.number for row in shown.objects} == {0, 1, 2}


def test_pictures_end_before_the_page_gets_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer, "MOST_BYTES", 1)
    assert len(gallery(em_evaluation(tmp_path), no_image).pictures) == 1


def test_of_a_large_volume_only_the_sections_shown_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer, "MOST_VOXELS", 1)
    monkeypatch.setattr(viewer, "MOST_PICTURES", 1)
    evaluation = cells_evaluation(tmp_path)
    progress: list[tuple[int, int]] = []
    shown = gallery(evaluation, no_image, lambda done, total: progress.append((done, total)))
    assert progress == [(1, 1)]
    assert shown.sections_read == 1
    assert {row.section.number for row in shown.objects} == {ranked(evaluation)[0].number}


def test_the_outcomes_of_cells_agree_with_the_scores(tmp_path: Path) -> None:
    evaluation = cells_evaluation(tmp_path)
    rows, scores = gallery(evaluation, no_image).objects, evaluation.scores["cells"]
    true = [row for row in rows if row.label]
    assert len(true) == scores["reference_objects"]
    assert np.mean([row.overlap for row in true]) == pytest.approx(scores["seg"])
    assert [row.overlap for row in true] == sorted(row.overlap for row in true)
    assert {row.outcome for row in rows[len(true) :]} <= {"extra"}


def test_marks_lie_on_the_pixels_of_splits_and_merges(tmp_path: Path) -> None:
    evaluation = em_evaluation(tmp_path)
    for picture in gallery(evaluation, no_image).pictures:
        section = evaluation.sections[picture["section"]]
        images = evaluation.images(section)
        assert images.probability is not None
        level = evaluation.scores["em"]["warping_error_threshold"]
        errors = errors_at(images.probability[0], images.reference != 0, level)
        split_and_merge = [errors.of(kind) for kind in (ErrorKind.SPLIT, ErrorKind.MERGE)]
        assert sum(mark["size"] for mark in picture["marks"]) == sum(map(len, split_and_merge))
        for mark in picture["marks"]:
            there = errors.of(ErrorKind[mark["kind"].upper()])
            away = np.abs(there - (mark["y"], mark["x"])).max(axis=1)
            assert (away <= mark["radius"] + 0.5).sum() >= mark["size"]


def test_large_sections_are_downsampled_and_their_marks_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = em_evaluation(tmp_path, count=1)
    full = gallery(evaluation, no_image).pictures[0]
    monkeypatch.setattr(viewer, "MOST_PIXELS", 60)
    thin = gallery(evaluation, no_image).pictures[0]
    assert (full["width"], full["factor"]) == (110, 1)
    assert (thin["width"], thin["height"], thin["factor"]) == (55, 48, 2)
    assert [mark["x"] for mark in thin["marks"]] == pytest.approx([m["x"] / 2 for m in full["marks"]], abs=0.06)


def test_the_largest_errors_of_a_downsampled_section_are_shown_at_full_resolution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = em_evaluation(tmp_path, count=1)
    full = gallery(evaluation, no_image).pictures[0]
    monkeypatch.setattr(viewer, "MOST_PIXELS", 60)
    monkeypatch.setattr(viewer, "WINDOW", 40)
    whole, *close = gallery(evaluation, grey_image).pictures
    assert whole["corner"] is None
    assert 1 <= len(close) <= viewer.CLOSE_UPS
    largest = full["marks"][0]
    top, left = close[0]["corner"]
    assert (close[0]["height"], close[0]["width"], close[0]["factor"]) == (40, 40, 1)
    assert (top + close[0]["marks"][0]["y"], left + close[0]["marks"][0]["x"]) == (largest["y"], largest["x"])
    assert all(0 <= mark["y"] < 40 and 0 <= mark["x"] < 40 for picture in close for mark in picture["marks"])
    assert f"near y {top}, x {left}" in close[0]["name"]


def grey_image(section: object) -> NDArray[np.uint8]:
    return grey(1, 96, 110)


def test_misclassified_patches_are_marked(tmp_path: Path) -> None:
    pictured = gallery(classes_evaluation(tmp_path), no_image).pictures
    assert {mark["kind"] for picture in pictured for mark in picture["marks"]} == {"wrong"}


def test_ignored_objects_have_no_marks(tmp_path: Path) -> None:
    truth = np.stack([cell_image(seed=n) for n in range(2)])
    evaluation = evaluate(tmp_path, np.zeros_like(truth), truth, ignore=5, metrics=("cells",), three_d=False)
    shown = gallery(evaluation, no_image)
    assert 5 not in {row.label for row in shown.objects}
    assert not any("true cell 5," in mark["text"] for picture in shown.pictures for mark in picture["marks"])
    assert all(picture["valid"] for picture in shown.pictures)


def test_the_image_of_a_section_covers_its_place_in_the_evaluated_region(tmp_path: Path) -> None:
    truth = np.stack([membranes()] * 3)
    raw = grey(*truth.shape)
    image = write_zarr(tmp_path / "raw.zarr", raw)
    evaluation = evaluate(tmp_path, truth > 0, truth, roi=((1, 3), (10, 60), (4, None)))
    read = source_image(evaluation, str(image))
    found = [read(section) for section in evaluation.sections]
    assert np.array_equal(found, raw[1:3, None, 10:60, 4:])


def test_channels_are_all_read(tmp_path: Path) -> None:
    evaluation = labels_evaluation(tmp_path)
    raw = grey(2, 3, 83, 120)
    image = write_zarr(tmp_path / "raw.zarr", raw, dimension_names=["z", "c", "y", "x"])
    assert np.array_equal(source_image(evaluation, str(image))(evaluation.sections[1]), raw[1])  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:<tifffile")
def test_three_sections_of_a_tiff_that_were_stored_as_colours_are_read_as_sections(tmp_path: Path) -> None:
    truth = np.stack([membranes()] * 3)
    raw = grey(*truth.shape)
    tifffile.imwrite(tmp_path / "raw.tif", raw)
    evaluation = evaluate(tmp_path, truth > 0, truth)
    found = source_image(evaluation, str(tmp_path / "raw.tif"))(evaluation.sections[1])
    assert np.array_equal(found, raw[1:2])  # type: ignore[arg-type]


def test_an_image_that_ends_before_the_truth_is_refused_with_both_places(tmp_path: Path) -> None:
    image = write_zarr(tmp_path / "raw.zarr", grey(1, 83, 120))
    with pytest.raises(UnetcliError, match=r"z 0:1, y 0:83, x 0:120.* z 1:2, y 0:83, x 0:120"):
        source_image(labels_evaluation(tmp_path), str(image))


def test_without_a_name_or_a_run_folder_there_is_no_image(tmp_path: Path) -> None:
    assert source_image(labels_evaluation(tmp_path), None) is no_image


def test_the_run_folder_of_a_prediction_knows_its_image(tmp_path: Path) -> None:
    raw = grey(2, 83, 120)
    image = write_zarr(tmp_path / "raw.zarr", raw)
    evaluation = labels_evaluation(tmp_path)
    folder = tmp_path / "prediction.zarr.run" / "predict"
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(f'{{"sources": {{"volume": "{image}"}}}}')
    found = source_image(evaluation, None)(evaluation.sections[1])
    assert np.array_equal(found, raw[1][None])  # type: ignore[arg-type]


@pytest.mark.parametrize("plan", ["{", "{}", '{"sources": {"volume": "/moved.zarr"}}'])
def test_a_run_folder_without_a_usable_plan_is_ignored(tmp_path: Path, plan: str) -> None:
    evaluation = labels_evaluation(tmp_path)
    folder = tmp_path / "prediction.zarr.run" / "predict"
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(plan)
    assert source_image(evaluation, None) is no_image
