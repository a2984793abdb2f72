from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from helpers import write_zarr
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.metrics.cells import CellSums, scores
from unetcli.volumes.ctc import (
    Challenge,
    is_challenge_result,
    open_challenge,
    read_labels,
)
from unetcli.volumes.truth_frames import FrameKey, files_by_frame, is_challenge_truth

CASES = ("ctc_mixed", "ctc_empty_frame")
Labels = NDArray[np.integer]


def scored(challenge: Challenge) -> dict[str, Any]:
    frames, markers = (
        [CellSums.of(pair.table()) for pair in pairs] for pairs in (challenge.pairs(), challenge.marker_pairs())
    )
    return scores(frames, markers=markers, partial=challenge.is_partial())


def squares(*labels: int, size: int = 4) -> Labels:
    """Labels of squares in a row, surrounded by background; label 0 omits a square."""
    image = np.zeros((size + 2, (size + 1) * len(labels) + 1), np.uint16)
    for place, label in enumerate(labels):
        image[1 : 1 + size, 1 + place * (size + 1) :][:, :size] = label
    return image


def write(folder: Path, images: dict[str, Labels]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        tifffile.imwrite(folder / name, image, photometric="minisblack")
    return folder


@pytest.fixture
def sequence(tmp_path: Path) -> Path:
    """Truth of two frames with three cells each, all segmented and marked, and a result that finds two, then all."""
    full, some = squares(1, 2, 3), squares(4, 0, 5)
    write(tmp_path / "01_GT" / "SEG", {"man_seg000.tif": full, "man_seg001.tif": full})
    write(tmp_path / "01_GT" / "TRA", {"man_track000.tif": full, "man_track001.tif": full})
    write(tmp_path / "01_RES", {"mask000.tif": some, "mask001.tif": squares(7, 8, 9)})
    return tmp_path


@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_the_official_program(data: Path, case: str) -> None:
    folder = data / "metrics_cases" / case
    expected = json.loads((folder.parent / "expected.json").read_text())["ctc"][case]
    found = scored(open_challenge(folder / "01_RES", folder / "01_GT"))
    assert found["seg"] == pytest.approx(expected["SEG"], abs=1e-9)
    assert found["det"] == (None if expected["DET"] is None else pytest.approx(expected["DET"], abs=1e-9))
    assert ("det_reason" in found) == (expected["DET"] is None)


def test_all_cases_of_the_official_program_are_tested(data: Path) -> None:
    assert set(CASES) == set(json.loads((data / "metrics_cases" / "expected.json").read_text())["ctc"])


def test_the_reason_for_no_det_gives_the_value_of_other_programs(data: Path) -> None:
    folder = data / "metrics_cases" / "ctc_empty_frame"
    assert "(0.500000 with them)" in scored(open_challenge(folder / "01_RES", folder / "01_GT"))["det_reason"]


def test_a_complete_truth_gives_every_score(sequence: Path) -> None:
    challenge = open_challenge(sequence / "01_RES", sequence / "01_GT")
    assert (challenge.unsegmented(), challenge.is_partial()) == (0, False)
    found = scored(challenge)
    assert (found["seg"], found["precision"], found["recall"]) == (pytest.approx(5 / 6), 1, pytest.approx(5 / 6))
    assert found["det"] == pytest.approx(1 - 10 / 60)


def test_ignored_values_of_the_truth_do_not_count(sequence: Path) -> None:
    pair, _ = open_challenge(sequence / "01_RES", sequence / "01_GT").pairs()
    assert scores([CellSums.of(pair.table())])["seg"] == pytest.approx(2 / 3)
    assert scores([CellSums.of(pair.table(ignore=2))])["seg"] == 1


def test_seg_counts_segmented_frames_only_and_det_all_marked_ones(sequence: Path) -> None:
    (sequence / "01_GT" / "SEG" / "man_seg000.tif").unlink()
    challenge = open_challenge(sequence / "01_RES", sequence / "01_GT")
    assert [pair.key for pair in challenge.pairs()] == [FrameKey(1)]
    assert [pair.key for pair in challenge.marker_pairs()] == [FrameKey(0), FrameKey(1)]
    assert scored(challenge)["seg"] == 1


def test_marked_objects_that_are_not_segmented_make_a_truth_partial(sequence: Path) -> None:
    write(sequence / "01_GT" / "SEG", {"man_seg001.tif": squares(1, 0, 3)})
    challenge = open_challenge(sequence / "01_RES", sequence / "01_GT")
    assert (challenge.unsegmented(), challenge.is_partial()) == (1, True)
    found = scored(challenge)
    assert (found["seg"], found["precision"]) == (pytest.approx(4 / 5), None)


def test_markers_of_another_shape_than_the_segmented_objects_are_refused(sequence: Path) -> None:
    file = sequence / "01_GT" / "SEG" / "man_seg000.tif"
    tifffile.imwrite(file, np.zeros((2, 9, 9), np.uint16), photometric="minisblack")
    challenge = open_challenge(sequence / "01_RES", sequence / "01_GT")
    with pytest.raises(UnetcliError, match=r"man_seg000\.tif is 2 x 9 x 9, but \S+man_track000\.tif is 6 x 16"):
        challenge.is_partial()


def test_gold_truth_without_markers_counts_as_partial(sequence: Path) -> None:
    for path in (sequence / "01_GT" / "TRA").iterdir():
        path.unlink()
    challenge = open_challenge(sequence / "01_RES", sequence / "01_GT")
    assert (challenge.unsegmented(), challenge.is_partial()) == (None, True)
    found = scored(challenge)
    assert (found["det"], found["det_reason"]) == (None, "the reference has no object")


def test_silver_truth_uses_the_markers_of_the_gold_truth_beside_it(sequence: Path) -> None:
    write(sequence / "01_ST" / "SEG", {"man_seg000.tif": squares(1, 0, 3)})
    challenge = open_challenge(sequence / "01_RES", sequence / "01_ST")
    assert (len(challenge.marked), challenge.unsegmented(), challenge.is_partial()) == (2, 1, False)
    assert (scored(challenge)["seg"], scored(challenge)["ap"]) == (1, 1)


def test_a_missing_result_frame_is_an_error_that_names_it(sequence: Path) -> None:
    (sequence / "01_RES" / "mask001.tif").unlink()
    with pytest.raises(UnetcliError, match=r"01_RES: frame 1 .*01_GT is missing"):
        open_challenge(sequence / "01_RES", sequence / "01_GT")
    write(sequence / "01_GT" / "TRA", {"man_track007.tif": squares(1)})
    with pytest.raises(UnetcliError, match=r"frame 1 \(and 1 more\) .*missing"):
        open_challenge(sequence / "01_RES", sequence / "01_GT")


def test_result_frames_that_the_truth_does_not_have_do_not_count(sequence: Path) -> None:
    before = scored(open_challenge(sequence / "01_RES", sequence / "01_GT"))
    write(sequence / "01_RES", {"mask002.tif": squares(1, 2)})
    assert scored(open_challenge(sequence / "01_RES", sequence / "01_GT")) == before


def test_one_section_of_a_frame_is_scored_against_that_section(tmp_path: Path) -> None:
    volume = np.stack([squares(1, 2), squares(1, 0), squares(0, 2)])
    write(tmp_path / "01_GT" / "SEG", {"man_seg_000_001.tif": squares(5, 0), "man_seg_000_002.tif": squares(5, 6)})
    write(tmp_path / "01_RES", {"mask000.tif": volume})
    challenge = open_challenge(tmp_path / "01_RES", tmp_path / "01_GT")
    assert [pair.key for pair in challenge.pairs()] == [FrameKey(0, 1), FrameKey(0, 2)]
    assert scored(challenge)["seg"] == pytest.approx(2 / 3)
    assert challenge.is_partial()


def test_frames_in_3d_are_objects_in_3d(tmp_path: Path) -> None:
    volume = np.stack([squares(1, 2), squares(1, 2)])
    write(tmp_path / "01_GT" / "SEG", {"man_seg000.tif": volume})
    write(tmp_path / "01_RES", {"mask000.tif": volume * (np.arange(2)[:, None, None] < 1)})
    assert (
        scored(open_challenge(tmp_path / "01_RES", tmp_path / "01_GT"))["seg"] == 0
    )  # half of each object is no match


@pytest.mark.parametrize("axes", [("t", "y", "x"), ("z", "y", "x"), ("t", "c", "y", "x")], ids="".join)
def test_a_label_volume_is_scored_as_its_frames(sequence: Path, axes: tuple[str, ...]) -> None:
    frames = np.stack([read_labels(sequence / "01_RES" / f"mask00{time}.tif") for time in (0, 1)])
    path = write_zarr(sequence / "labels.zarr", frames[:, None] if "c" in axes else frames, dimension_names=list(axes))
    challenge = open_challenge(path, sequence / "01_GT")
    assert scored(challenge) == scored(open_challenge(sequence / "01_RES", sequence / "01_GT"))
    write(sequence / "01_GT" / "TRA", {"man_track002.tif": squares(1)})
    with pytest.raises(UnetcliError, match=r"labels\.zarr: frame 2 .*missing"):
        open_challenge(path, sequence / "01_GT")


def test_a_single_image_is_frame_0(sequence: Path) -> None:
    for name in ("SEG/man_seg001.tif", "TRA/man_track001.tif"):
        (sequence / "01_GT" / name).unlink()
    assert scored(open_challenge(sequence / "01_RES" / "mask001.tif", sequence / "01_GT"))["seg"] == 1


def test_different_shapes_are_refused_naming_both(sequence: Path) -> None:
    write(sequence / "01_RES", {"mask001.tif": squares(1, 2)})
    challenge = open_challenge(sequence / "01_RES", sequence / "01_GT")
    with pytest.raises(UnetcliError, match=r"man_seg001\.tif is 6 x 16, but frame 1 of .*01_RES is 6 x 11"):
        list(challenge.pairs())


def test_a_section_that_the_result_does_not_have_is_refused(sequence: Path) -> None:
    write(sequence / "01_GT" / "SEG", {"man_seg_000_003.tif": squares(1, 2, 3)})
    with pytest.raises(UnetcliError, match=r"frame 0, section 3, .* is 6 x 16"):
        list(open_challenge(sequence / "01_RES", sequence / "01_GT").pairs())


def test_images_without_labels_are_refused(sequence: Path) -> None:
    write(sequence / "01_RES", {"mask000.tif": np.full((6, 16), 0.5, np.float32)})
    (sequence / "01_GT" / "SEG" / "man_seg001.tif").write_bytes(b"no TIFF")
    challenge = open_challenge(sequence / "01_RES", sequence / "01_GT")
    with pytest.raises(UnetcliError, match=r"mask000\.tif: 0\.5 is no whole number; expected labels, 0 for"):
        list(challenge.pairs())
    with pytest.raises(UnetcliError, match=r"man_seg001\.tif: not a readable TIFF file"):
        challenge.unsegmented()


def test_a_folder_without_truth_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnetcliError, match=r"neither SEG/man_segTTT\.tif nor TRA/man_trackTTT\.tif"):
        open_challenge(tmp_path, tmp_path / "01_GT")


@pytest.mark.parametrize("name", ["man_seg1.tif", "man_seg001_x.tif"])
def test_a_name_without_frame_number_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, {name: squares(1)})
    with pytest.raises(UnetcliError, match=rf"{name}: .*expected man_segTTT\.tif"):
        files_by_frame(tmp_path, "man_seg")


def test_frames_of_more_digits_and_both_spellings_are_read_in_order(tmp_path: Path) -> None:
    image = squares(1)
    names = ("man_seg1000.tif", "man_seg_002.tif", "man_seg003.tif", "man_seg_002_011.tif")
    write(tmp_path, dict.fromkeys(names, image))
    assert list(files_by_frame(tmp_path, "man_seg")) == [FrameKey(2), FrameKey(2, 11), FrameKey(3), FrameKey(1000)]
    write(tmp_path, {"man_seg0003.tif": image})
    with pytest.raises(UnetcliError, match="frame 3 is also in man_seg"):
        files_by_frame(tmp_path, "man_seg")


def test_challenge_folders_are_distinguished_from_other_folders(sequence: Path, tmp_path: Path) -> None:
    assert is_challenge_truth(sequence / "01_GT")
    assert is_challenge_result(sequence / "01_RES")
    for other in (sequence, sequence / "01_GT" / "SEG", tmp_path / "nowhere"):
        assert not is_challenge_truth(other)
        assert not is_challenge_result(other)
    assert not is_challenge_truth(sequence / "01_RES")
    assert not is_challenge_result(sequence / "01_GT")
