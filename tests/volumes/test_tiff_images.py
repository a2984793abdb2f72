"""TIFF files as programs write them: series, pyramids, thumbnails, alpha, WhiteIsZero, planes, voxel sizes."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from helpers import grey

from unetcli.core.errors import UnetcliError
from unetcli.volumes.ctc import read_labels
from unetcli.volumes.opening import open_volume
from unetcli.volumes.tiff_metadata import from_imagej, from_ome, from_resolution

VALUES = grey(4, 64, 70)
GREY = {"photometric": "minisblack"}


def write_positions(path: Path) -> None:
    with tifffile.TiffWriter(path, ome=True) as tif:
        for number in range(2):
            metadata = {"axes": "ZYX", "Name": f"Pos{number}", "PhysicalSizeX": 0.1 * (number + 1)}
            tif.write(VALUES[2 * number : 2 * number + 2], metadata=metadata, **GREY)


def test_one_of_several_series_is_chosen_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "two.ome.tif"
    write_positions(path)
    with pytest.raises(UnetcliError, match=r"holds 2 images; .*:series=0 \(zyx 2 x 64 x 70, 'Pos0'\), \S+:series=1 "):
        open_volume(path)
    volume = open_volume(f"{path}:series=1")
    assert volume.voxel_size == {"x": 0.2}
    assert np.array_equal(volume.read(volume.whole())[0], VALUES[2:])
    with pytest.raises(UnetcliError, match=r"no series 2; expected 0 <= series < 2"):
        open_volume(f"{path}:series=2")


def write_pyramid(path: Path, *, nested: bool) -> np.ndarray:
    slide = grey(256, 256)
    options: dict[str, Any] = {"tile": (64, 64), "metadata": None, **GREY}
    with tifffile.TiffWriter(path) as tif:
        tif.write(slide, subifds=2 if nested else None, **options, resolution=(40000, 40000), resolutionunit=3)
        for step in (2, 4):
            tif.write(slide[::step, ::step], subfiletype=1, **options)
        tif.write(slide[:50, :40], metadata=None, **GREY)
    return slide


@pytest.mark.parametrize("nested", [True, False])
def test_the_pyramid_of_a_slide_is_taken_and_its_levels_are_part_of_the_name(
    tmp_path: Path, nested: bool, caplog: pytest.LogCaptureFixture
) -> None:
    slide = write_pyramid(tmp_path / "slide.tif", nested=nested)
    with caplog.at_level(logging.INFO, logger="unetcli"):
        volume = open_volume(tmp_path / "slide.tif")
    assert np.array_equal(volume.read(volume.whole())[0], slide)
    assert ["of 2 images" in record.getMessage() for record in caplog.records] == [True]
    coarse = open_volume(f"{tmp_path}/slide.tif:level=2")
    assert (coarse.voxel_size, coarse.units) == ({"y": 1.0, "x": 1.0}, {"y": "micrometer", "x": "micrometer"})
    assert np.array_equal(coarse.read(coarse.whole())[0], slide[::4, ::4])
    assert open_volume(f"{tmp_path}/slide.tif:series=1").extent == (50, 40)
    with pytest.raises(UnetcliError, match=r"no level 3; expected 0 <= level < 3"):
        open_volume(f"{tmp_path}/slide.tif:level=3")


def test_a_thumbnail_beside_an_image_is_left_out(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        tif.write(VALUES[0, :20, :20], subfiletype=1, metadata=None, **GREY)
        tif.write(VALUES[0], metadata=None, **GREY)
    volume = open_volume(tmp_path / "a.tif")
    assert np.array_equal(volume.read(volume.whole())[0], VALUES[0])


@pytest.mark.parametrize("count", [3, 4])
def test_planes_as_tifffile_writes_stacks_are_sections(tmp_path: Path, count: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        tifffile.imwrite(tmp_path / "a.tif", VALUES[:count])
    volume = open_volume(tmp_path / "a.tif")
    assert (volume.axes, volume.channels, volume.assumed) == ("zyx", 1, "z")
    assert np.array_equal(volume.read(volume.whole())[0], VALUES[:count])
    colours = open_volume(f"{tmp_path}/a.tif:axes=cyx")
    assert (colours.axes, colours.channels) == ("yx", count)


def test_planes_without_a_description_are_colours(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", VALUES[:3], photometric="rgb", planarconfig="separate", metadata=None)
    assert open_volume(tmp_path / "a.tif").channels == 3


@pytest.mark.parametrize("extra", ["unassalpha", "assocalpha"])
@pytest.mark.parametrize(("samples", "photometric"), [(4, "rgb"), (2, "minisblack")])
def test_alpha_is_left_out(tmp_path: Path, extra: str, samples: int, photometric: str) -> None:
    values = np.ascontiguousarray(VALUES[:samples].transpose(1, 2, 0))
    options = {"photometric": photometric, "planarconfig": "contig", "extrasamples": [extra]}
    tifffile.imwrite(tmp_path / "a.tif", values, **options)
    volume = open_volume(tmp_path / "a.tif")
    assert (volume.axes, volume.channels) == ("yx", samples - 1)
    assert np.array_equal(volume.read(volume.whole()), VALUES[: samples - 1])


def test_samples_that_are_no_alpha_stay(tmp_path: Path) -> None:
    values = np.ascontiguousarray(VALUES.transpose(1, 2, 0))
    tifffile.imwrite(tmp_path / "a.tif", values, planarconfig="contig", extrasamples=["unspecified"] * 3, **GREY)
    assert open_volume(tmp_path / "a.tif").channels == 4


@pytest.mark.parametrize(
    ("stored", "right"),
    [(VALUES, 255 - VALUES), (VALUES.astype("u2") * 9, 65535 - VALUES.astype("u2") * 9), (VALUES > 99, VALUES <= 99)],
    ids=["uint8", "uint16", "bool"],
)
def test_grey_values_grow_with_brightness_also_in_white_is_zero(
    tmp_path: Path, stored: np.ndarray, right: np.ndarray
) -> None:
    tifffile.imwrite(tmp_path / "mask000.tif", stored, photometric="miniswhite")
    volume = open_volume(tmp_path / "mask000.tif")
    assert volume.dtype == right.dtype
    assert np.array_equal(volume.read(volume.sections(1, 3))[0], right[1:3])
    assert np.array_equal(read_labels(tmp_path / "mask000.tif"), right)


def test_masks_of_imagej_keep_their_values(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", VALUES, photometric="miniswhite", imagej=True)
    assert np.array_equal(open_volume(tmp_path / "a.tif").in_memory().array, VALUES)


def test_floats_are_never_inverted(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", VALUES.astype("f4"), photometric="miniswhite")
    assert np.array_equal(open_volume(tmp_path / "a.tif").in_memory().array, VALUES)


def test_the_voxel_size_of_an_ome_tiff_is_read(tmp_path: Path) -> None:
    sizes = {"PhysicalSizeX": 100.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.1, "PhysicalSizeZ": 0.5}
    metadata = {"axes": "CZYX", **sizes, "Channel": {"Name": ["DAPI", "GFP"]}}
    tifffile.imwrite(tmp_path / "a.ome.tif", VALUES.reshape(2, 2, 64, 70), ome=True, metadata=metadata, **GREY)
    volume = open_volume(tmp_path / "a.ome.tif")
    assert volume.voxel_size == {"z": 0.5, "y": 0.1, "x": 100.0}
    assert volume.units == {"z": "micrometer", "y": "micrometer", "x": "nanometer"}
    assert volume.channel_names == ("DAPI", "GFP")
    named = open_volume(f"{tmp_path}/a.ome.tif:channel=GFP")
    assert np.array_equal(named.read(named.whole())[0], VALUES[2:])


def test_the_voxel_size_of_imagej_is_read(tmp_path: Path) -> None:
    metadata = {"axes": "ZYX", "spacing": 0.5, "unit": "micron"}
    tifffile.imwrite(tmp_path / "a.tif", VALUES, imagej=True, metadata=metadata, resolution=(10, 5))
    volume = open_volume(tmp_path / "a.tif")
    assert volume.voxel_size == {"z": 0.5, "y": 0.2, "x": 0.1}
    assert volume.units == dict.fromkeys("zyx", "micrometer")


@pytest.mark.parametrize(
    ("resolution", "unit", "size"),
    [(20000, 3, 0.5), (25400, 2, 1.0), (72, 2, None), (300, 2, None), (118.11, 3, None), (1, 1, None), (1, 3, None)],
)
def test_resolution_tags_are_read_unless_they_are_of_a_screen_or_printer(
    tmp_path: Path, resolution: float, unit: int, size: float | None
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", VALUES, resolution=(resolution,) * 2, resolutionunit=unit, **GREY)
    expected = {} if size is None else {"y": pytest.approx(size), "x": pytest.approx(size)}
    assert open_volume(tmp_path / "a.tif").voxel_size == expected


@pytest.mark.parametrize("unit", ["pixel", "", "furlong"])
def test_units_that_are_no_length_give_no_size(unit: str) -> None:
    assert from_imagej({"unit": unit, "spacing": 2.0}, (10.0, 10.0)).voxel_size == {}
    xml = f'<OME><Image><Pixels PhysicalSizeX="2" PhysicalSizeXUnit="{unit}" SizeC="1"/></Image></OME>'
    assert from_ome(xml, 0).voxel_size == {}


def test_inches_become_micrometers_and_bad_numbers_nothing() -> None:
    found = from_imagej({"unit": "inch", "spacing": "x"}, (254.0, 254.0))
    assert (found.voxel_size, found.units["x"]) == ({"y": pytest.approx(100), "x": pytest.approx(100)}, "micrometer")
    assert from_ome('<OME><Image><Pixels PhysicalSizeX="nan" SizeC="1"/></Image></OME>', 0).voxel_size == {}
    assert from_resolution((0.0, 5.0), 3).voxel_size == {}
