"""Containers of images, old versions of OME-Zarr, ZIP files and channels by name."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from helpers import grey
from zarr.storage import ZipStore

from unetcli.core.errors import UnetcliError
from unetcli.volumes.opening import open_volume

VALUES = grey(1, 2, 4, 30, 37)


def write_image(path: Path, values: np.ndarray = VALUES, version: str = "0.4", names: Any = "tczyx") -> Path:
    """Write an image as bioformats2raw does, with two levels and channels DAPI and GFP."""
    group = zarr.open_group(path, mode="w", zarr_format=2)
    for level in range(2):
        group.create_array(str(level), data=values[..., :: level + 1, :: level + 1], chunks=(1, 1, 1, 16, 16))
    scales = [[1, 1, 0.5, 0.1 * factor, 0.1 * factor] for factor in (1, 2)]
    transforms = [[{"type": "scale", "scale": scale}] for scale in scales]
    levels: list[dict[str, Any]] = [{"path": str(level)} for level in range(2)]
    entry: dict[str, Any] = {"version": version, "datasets": levels}
    if version == "0.4":
        entry["datasets"] = [
            each | {"coordinateTransformations": t} for each, t in zip(levels, transforms, strict=True)
        ]
        entry["axes"] = [{"name": name, "unit": "micrometer"} if name in "zyx" else {"name": name} for name in names]
    elif version == "0.3":
        entry["axes"] = list(names)
    group.attrs.update({"multiscales": [entry], "omero": {"channels": [{"label": "DAPI"}, {"label": "GFP"}]}})
    return path


def write_container(path: Path, images: int, *, listed: bool = True) -> Path:
    zarr.open_group(path, mode="w", zarr_format=2).attrs["bioformats2raw.layout"] = 3
    if listed:
        zarr.open_group(path / "OME", mode="w", zarr_format=2).attrs["series"] = [str(n) for n in range(images)]
    for number in range(images):
        write_image(path / str(number), np.roll(VALUES, number))
    return path


@pytest.mark.parametrize("listed", [True, False])
def test_a_series_of_a_container_is_chosen_by_its_number(tmp_path: Path, listed: bool) -> None:
    path = write_container(tmp_path / "a.zarr", 3, listed=listed)
    for name in (f"{path}:series=2", f"{path}/2"):
        volume = open_volume(name)
        assert volume.voxel_size | {"t": 1, "c": 1} == {"t": 1, "c": 1, "z": 0.5, "y": 0.1, "x": 0.1}
        assert np.array_equal(np.asarray(volume.array[...]), np.roll(VALUES, 2))
    with pytest.raises(UnetcliError, match=r"holds 3 images; choose .*:series=0 \(1 x 2 x 4 x 30 x 37\), :series=1"):
        open_volume(path)
    with pytest.raises(UnetcliError, match=r"no series 3; expected 0 <= series < 3"):
        open_volume(f"{path}:series=3")


def test_the_only_image_of_a_container_is_read(tmp_path: Path) -> None:
    volume = open_volume(write_container(tmp_path / "a.zarr", 1))
    assert np.array_equal(np.asarray(volume.array[...]), VALUES)


def write_plate(path: Path) -> Path:
    """Write a plate of two wells with two and one fields as ome-zarr does, which makes no group of a row."""
    wells = {"A/1": ["0", "1"], "B/12": ["0"], "B/13": []}
    plate = {"wells": [{"path": well} for well in (*wells, "C/1")]}
    zarr.open_group(path, mode="w", zarr_format=2).attrs["plate"] = plate
    for well, fields in wells.items():
        images = {"images": [{"path": field} for field in fields]}
        zarr.open_group(path / well, mode="w", zarr_format=2).attrs["well"] = images
        for field in fields:
            write_image(path / well / field, np.roll(VALUES, int(well[2:]) + int(field)))
    return path


@pytest.mark.parametrize(
    ("name", "shift"),
    [(":series=1", 2), (":series=2:level=0", 12), ("/A/1:series=1", 2), ("/A/1/1", 2), ("/B/12", 12)],
)
def test_a_field_of_a_plate_is_chosen_by_number_or_path(tmp_path: Path, name: str, shift: int) -> None:
    volume = open_volume(f"{write_plate(tmp_path / 'p.zarr')}{name}")
    assert np.array_equal(np.asarray(volume.array[...]), np.roll(VALUES, shift))
    assert volume.voxel_size["x"] == 0.1


def test_a_plate_of_several_fields_is_refused_with_their_names(tmp_path: Path) -> None:
    path = write_plate(tmp_path / "p.zarr")
    shape = "1 x 2 x 4 x 30 x 37"
    with pytest.raises(UnetcliError, match=rf"holds 3 images; .*:series=1 \(A/1/1, {shape}\), :series=2 \(B/12/0, "):
        open_volume(path)
    with pytest.raises(UnetcliError, match=rf"holds 2 images; choose .*A/1:series=0 \({shape}\), :series=1"):
        open_volume(path / "A/1")
    with pytest.raises(UnetcliError, match="no series 3; expected 0 <= series < 3"):
        open_volume(f"{path}:series=3")


def test_levels_are_part_of_the_name(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.zarr")
    volume = open_volume(f"{path}:level=1")
    assert (volume.extent, volume.voxel_size["x"]) == ((1, 4, 15, 19), 0.2)
    with pytest.raises(UnetcliError, match=r"no level 2; expected 0 <= level < 2"):
        open_volume(f"{path}:level=1", 1)


@pytest.mark.parametrize("version", ["0.1", "0.2", "0.3"])
def test_images_of_old_versions_have_five_axes(tmp_path: Path, version: str) -> None:
    volume = open_volume(write_image(tmp_path / "a.zarr", version=version))
    assert (volume.stored_axes, volume.assumed) == ("tczyx", "")
    assert np.array_equal(np.asarray(volume.array[...]), VALUES)


@pytest.mark.parametrize("wanted", ["GFP", "gfp", "1"])
def test_a_channel_is_read_by_its_name_or_number(tmp_path: Path, wanted: str) -> None:
    volume = open_volume(f"{write_image(tmp_path / 'a.zarr')}:channel={wanted}")
    assert (volume.axes, volume.channels, volume.channel_names) == ("tzyx", 1, ("GFP",))
    assert np.array_equal(volume.read(volume.whole()), VALUES[:, 1:].swapaxes(0, 1))


def test_an_unknown_channel_is_refused_with_the_names(tmp_path: Path) -> None:
    with pytest.raises(UnetcliError, match=r"--channel RFP: .*channels 'DAPI', 'GFP'; .*from 0 to 1"):
        open_volume(f"{write_image(tmp_path / 'a.zarr')}:channel=RFP")


@pytest.mark.parametrize("folder", ["", "a.zarr/"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_zip_file_is_read_in_place(tmp_path: Path, folder: str, zarr_format: int) -> None:
    zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=zarr_format).create_array(
        "raw", data=VALUES[0, 0], chunks=(1, 16, 16)
    )
    path = tmp_path / "a.zarr.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted((tmp_path / "a.zarr").rglob("*")):
            archive.write(file, f"{folder}{file.relative_to(tmp_path / 'a.zarr')}")
    for name in (path, path / "raw"):
        volume = open_volume(name)
        assert np.array_equal(volume.read(volume.whole())[0], VALUES[0, 0])


def test_a_zip_file_that_is_not_whole_is_never_read_as_zeros(tmp_path: Path) -> None:
    store = ZipStore(tmp_path / "a.zarr.zip", mode="w")
    zarr.create_array(store, data=VALUES[0, 0], chunks=(1, 16, 16), compressors=None)
    store.close()
    content = (tmp_path / "a.zarr.zip").read_bytes()
    (tmp_path / "cut.zarr.zip").write_bytes(content[: len(content) // 2])
    with pytest.raises(UnetcliError, match=r"cut\.zarr\.zip: not a whole ZIP file"):
        open_volume(tmp_path / "cut.zarr.zip")
    changed = bytearray(content)
    changed[content.index(VALUES[0, 0, 0, 0, :16].tobytes())] ^= 1
    (tmp_path / "bad.zarr.zip").write_bytes(changed)
    volume = open_volume(tmp_path / "bad.zarr.zip")
    with pytest.raises(UnetcliError, match=r"cannot read z 0:4.*CRC"):
        volume.read(volume.whole())


def test_a_zip_file_without_zarr_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", json.dumps(1))
    with pytest.raises(UnetcliError, match="a ZIP file with no Zarr array or group"):
        open_volume(tmp_path / "a.zip")


def test_a_long_list_of_arrays_is_cut(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    for number in range(30):
        group.create_array(f"a{number:02}", data=VALUES[0, 0, 0])
    with pytest.raises(UnetcliError, match=r"choose one: \S+a00, \S+a01, \S+a02, \S+a03, \.\. \(30 arrays\)$"):
        open_volume(tmp_path / "a.zarr")
