"""Folders and patterns of image files as one volume."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import tifffile
from helpers import grey
from PIL import Image

from unetcli.core.errors import UnetcliError, collected_warnings
from unetcli.volumes.opening import open_volume
from unetcli.volumes.samples import fingerprint, same_data
from unetcli.volumes.stack import OPEN_FILES, natural, numbering

VALUES = grey(12, 30, 37)


def write(folder: Path, ending: str = ".tif", names: str = "s{}", values: np.ndarray = VALUES) -> Path:
    folder.mkdir()
    for number, section in enumerate(values):
        path = folder / f"{names.format(number)}{ending}"
        if ending == ".tif":
            tifffile.imwrite(path, section, photometric="minisblack")
        else:
            Image.fromarray(section).save(path)
    return folder


@pytest.mark.parametrize("ending", [".tif", ".png"])
@pytest.mark.parametrize("pattern", ["", "/*{}", "/s*"])
def test_files_are_sections_in_natural_order(tmp_path: Path, ending: str, pattern: str) -> None:
    folder = write(tmp_path / "slices", ending)
    (folder / "notes.txt").write_text("text")
    (folder / f".hidden{ending}").write_text("text")
    with collected_warnings() as warnings:
        volume = open_volume(f"{folder}{pattern.format(ending)}")
    assert (volume.axes, volume.assumed, volume.chunks, warnings) == ("zyx", "z", (1, 30, 37), [])
    assert np.array_equal(volume.read(volume.whole())[0], VALUES)
    part = volume.read(volume.sections(9, 11))[0]
    assert np.array_equal(part, VALUES[9:11])


def test_the_reading_of_a_folder_is_said_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="unetcli"):
        open_volume(write(tmp_path / "slices"))
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/slices: 12 files are read as one volume, zyx 12 x 30 x 37"
    ]


def test_frames_of_the_challenge_and_stacks_are_counted_along_t(tmp_path: Path) -> None:
    assert open_volume(write(tmp_path / "01", names="t{:03}")).axes == "tyx"
    volume = open_volume(write(tmp_path / "stacks", values=grey(3, 5, 13, 22)))
    assert (volume.axes, volume.extent) == ("tzyx", (3, 5, 13, 22))
    assert np.array_equal(volume.read(volume.whole())[0], grey(3, 5, 13, 22))


def test_letters_of_the_user_name_the_axes_of_a_stack(tmp_path: Path) -> None:
    folder = write(tmp_path / "slices")
    volume = open_volume(f"{folder}:axes=tyx")
    assert (volume.axes, volume.assumed) == ("tyx", "")
    assert open_volume(f"{folder}:axes=cyx").channels == 12


def test_colours_of_pictures_stay_channels(tmp_path: Path) -> None:
    volume = open_volume(write(tmp_path / "rgb", ".png", values=grey(4, 13, 22, 3)))
    assert (volume.axes, volume.channels) == ("zyx", 3)
    assert np.array_equal(volume.read(volume.whole()), grey(4, 13, 22, 3).transpose(3, 0, 1, 2))


def test_few_files_are_open_at_a_time_and_a_stack_can_be_sent_to_a_process(tmp_path: Path) -> None:
    volume = open_volume(write(tmp_path / "slices", ".png"))
    assert np.array_equal(volume.read(volume.whole())[0], VALUES)
    assert len(volume.array._held) == OPEN_FILES
    sent = pickle.loads(pickle.dumps(volume.array))
    assert np.array_equal(sent[0:2, 0:30, 0:37], VALUES[:2])


def test_files_of_other_shape_are_refused_by_name(tmp_path: Path) -> None:
    folder = write(tmp_path / "slices")
    tifffile.imwrite(folder / "s7.tif", VALUES[7, :20])
    with pytest.raises(UnetcliError, match=r"s7\.tif is 20 x 37 .*s0\.tif is 30 x 37 .*equal shape"):
        open_volume(folder)
    with pytest.raises(UnetcliError, match=r"s7\.tif is 20 x 37"):
        open_volume(folder, parts=True)


def test_a_file_that_is_cut_off_is_refused_or_its_section_is_unreadable(tmp_path: Path) -> None:
    folder = write(tmp_path / "slices")
    (folder / "s7.tif").write_bytes((folder / "s7.tif").read_bytes()[:600])
    with pytest.raises(UnetcliError, match=r"s7\.tif: not "):
        open_volume(folder)
    with collected_warnings() as warnings:
        volume = open_volume(folder, parts=True)
    assert ["s7.tif" in text for text in warnings] == [True]
    assert np.array_equal(volume.read(volume.sections(0, 7))[0], VALUES[:7])
    with pytest.raises(UnetcliError, match=r"cannot read z 7:8.*s7\.tif"):
        volume.read(volume.sections(7, 8))


def test_a_file_that_changes_its_shape_later_is_unreadable(tmp_path: Path) -> None:
    volume = open_volume(write(tmp_path / "slices"))
    tifffile.imwrite(tmp_path / "slices/s3.tif", VALUES[3, :20])
    with pytest.raises(UnetcliError, match=r"cannot read z 3:4.*equal shape"):
        volume.read(volume.sections(3, 4))


def test_missing_numbers_are_warned_of(tmp_path: Path) -> None:
    folder = write(tmp_path / "slices")
    (folder / "s4.tif").unlink()
    (folder / "s6.tif").unlink()
    with collected_warnings() as warnings:
        volume = open_volume(folder)
    assert volume.extent == (10, 30, 37)
    assert ["2 numbers of 0 to 11 missing" in text and "(4, 6)" in text for text in warnings] == [True]


def test_the_fingerprint_knows_every_file(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a"), write(tmp_path / "b")
    assert same_data(fingerprint(open_volume(one)), fingerprint(open_volume(other)))
    changed = VALUES[5].copy()
    changed[3, 4] += 1
    tifffile.imwrite(other / "s5.tif", changed, photometric="minisblack")
    assert not same_data(fingerprint(open_volume(one)), fingerprint(open_volume(other)))


def test_a_folder_with_files_of_several_kinds_is_refused_with_a_pattern(tmp_path: Path) -> None:
    folder = write(tmp_path / "slices")
    Image.fromarray(VALUES[0]).save(folder / "a.png")
    with pytest.raises(UnetcliError, match=r"several kinds \(1 PNG, 12 TIFF\); .*quoted pattern"):
        open_volume(folder)
    assert open_volume(f"{folder}/*.tif").extent == VALUES.shape


def test_a_pattern_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnetcliError, match=r"\*\.tif: no file matches"):
        open_volume(f"{tmp_path}/*.tif")


def test_one_file_is_an_image(tmp_path: Path) -> None:
    assert open_volume(write(tmp_path / "one", values=VALUES[:1])).axes == "yx"
    with pytest.raises(UnetcliError, match=r"no series 3; expected 0 <= series < 1"):
        open_volume(f"{tmp_path}/one:series=3")


@pytest.mark.parametrize("choice", ["series=1", "level=2"])
def test_files_that_are_one_volume_have_no_series_and_levels(tmp_path: Path, choice: str) -> None:
    folder = write(tmp_path / "slices")
    with pytest.raises(
        UnetcliError, match=rf"slices: no {choice.replace('=', ' ')}; files that are read as one volume"
    ):
        open_volume(f"{folder}:{choice}")
    assert open_volume(f"{folder}:{choice[:-1]}0").axes == "zyx"


def test_numbers_sort_as_people_count() -> None:
    names = [Path(f"a{n}_b{m}.tif") for n in (1, 2, 10) for m in (9, 10)]
    shuffled = names[::-1]
    assert sorted(shuffled, key=natural) == names


@pytest.mark.parametrize(
    ("names", "numbers"),
    [(["a1", "a2", "a5"], [1, 2, 5]), (["a1b1", "a2b2"], []), (["a", "b"], []), (["a1", "c2"], [])],
)
def test_a_numbering_is_found_if_only_one_number_differs(names: list[str], numbers: list[int]) -> None:
    assert numbering([Path(f"{name}.tif") for name in names]) == numbers
