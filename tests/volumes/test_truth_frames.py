"""Truth folders of the Cell Tracking Challenge as labels of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from helpers import grey

from unetcli.core.errors import UnetcliError, collected_warnings
from unetcli.train.data_checks import open_pair
from unetcli.volumes.opening import open_volume

VALUES = grey(6, 30, 37)


@pytest.fixture
def sequence(tmp_path: Path) -> Path:
    """Folder with six frames in 01, of which 1 and 4 have gold truth."""
    (tmp_path / "01").mkdir()
    (tmp_path / "01_GT/SEG").mkdir(parents=True)
    for number, frame in enumerate(VALUES):
        tifffile.imwrite(tmp_path / f"01/t{number:03}.tif", frame, photometric="minisblack")
    for number in (1, 4):
        tifffile.imwrite(tmp_path / f"01_GT/SEG/man_seg{number:03}.tif", VALUES[number].astype("u2") // 9)
    return tmp_path


def test_frames_without_truth_are_left_out_and_never_background(sequence: Path) -> None:
    with collected_warnings() as warnings:
        raw, labels = open_pair(f"{sequence}/01", f"{sequence}/01_GT")
    assert warnings == []
    assert (raw.axes, raw.extent, labels.extent) == ("tyx", (2, 30, 37), (2, 30, 37))
    assert np.array_equal(raw.read(raw.whole())[0], VALUES[[1, 4]])
    assert np.array_equal(labels.read(labels.whole())[0], VALUES[[1, 4]].astype("u2") // 9)


def test_frames_are_found_by_the_number_in_their_name(sequence: Path) -> None:
    (sequence / "01/t000.tif").unlink()
    raw, _ = open_pair(f"{sequence}/01", f"{sequence}/01_GT")
    assert np.array_equal(raw.read(raw.whole())[0], VALUES[[1, 4]])
    (sequence / "01/t004.tif").unlink()
    with pytest.raises(UnetcliError, match=r"01: frame 4 of the truth in \S+01_GT is missing; it has 4 frames"):
        open_pair(f"{sequence}/01", f"{sequence}/01_GT")


def test_frames_of_a_pattern_are_found_by_their_number_too(sequence: Path) -> None:
    raw, labels = open_pair(f"{sequence}/01/t00[1-5].tif", f"{sequence}/01_GT")
    assert np.array_equal(raw.read(raw.whole())[0], VALUES[[1, 4]])
    assert np.array_equal(labels.read(labels.whole())[0], VALUES[[1, 4]].astype("u2") // 9)


def test_images_may_be_a_stack_in_one_file(sequence: Path) -> None:
    tifffile.imwrite(sequence / "01.tif", VALUES, photometric="minisblack")
    raw, _ = open_pair(f"{sequence}/01.tif", f"{sequence}/01_GT")
    assert np.array_equal(raw.read(raw.whole())[0], VALUES[[1, 4]])


def test_one_frame_of_truth_is_a_volume_of_one_frame(sequence: Path) -> None:
    (sequence / "01_GT/SEG/man_seg004.tif").unlink()
    raw, labels = open_pair(f"{sequence}/01", f"{sequence}/01_GT")
    assert raw.extent == labels.extent
    assert np.array_equal(raw.read(raw.whole())[0].reshape(30, 37), VALUES[1])


def test_single_sections_of_frames_are_paired_with_their_section(tmp_path: Path) -> None:
    stack = grey(3, 4, 30, 37)
    (tmp_path / "01").mkdir()
    (tmp_path / "01_GT/SEG").mkdir(parents=True)
    for number, frame in enumerate(stack):
        tifffile.imwrite(tmp_path / f"01/t{number:03}.tif", frame, photometric="minisblack")
    for time, section in ((0, 3), (2, 1)):
        tifffile.imwrite(tmp_path / f"01_GT/SEG/man_seg_{time:03}_{section:03}.tif", stack[time, section].astype("u2"))
    raw, labels = open_pair(f"{tmp_path}/01", f"{tmp_path}/01_GT")
    assert (raw.axes, labels.axes) == ("tyx", "tyx")
    assert np.array_equal(raw.read(raw.whole()), labels.read(labels.whole()))


def test_markers_alone_are_no_labels(sequence: Path) -> None:
    (sequence / "02_GT/TRA").mkdir(parents=True)
    tifffile.imwrite(sequence / "02_GT/TRA/man_track000.tif", VALUES[0].astype("u2"))
    with pytest.raises(UnetcliError, match=r"02_GT: markers only; expected SEG"):
        open_volume(sequence / "02_GT")


@pytest.mark.parametrize(("lead", "labels"), [((1, 1), (4, 30, 37)), ((1, 1, 1), (30, 37))], ids=str)
def test_axes_of_extent_1_do_not_count_in_training(
    tmp_path: Path, lead: tuple[int, ...], labels: tuple[int, ...]
) -> None:
    values = grey(*labels)
    zarr.create_array(
        tmp_path / "raw.zarr",
        data=values.reshape(*lead, *labels),
        dimension_names=list("tczyx"),
        chunks=(1, 1, 1, 16, 16),
    )
    zarr.create_array(tmp_path / "labels.zarr", data=values // 99)
    raw, found = open_pair(f"{tmp_path}/raw.zarr", f"{tmp_path}/labels.zarr")
    assert raw.extent == found.extent == labels
    assert np.array_equal(raw.read(raw.whole())[0], values)
