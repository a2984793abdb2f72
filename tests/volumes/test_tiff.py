"""TIFF files that are not whole: what their header and description promise is compared with what is there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from helpers import grey

from unetcli.core.errors import UnetcliError, collected_warnings
from unetcli.volumes.ctc import read_labels
from unetcli.volumes.opening import open_volume
from unetcli.volumes.volume import Volume

VALUES = grey(4, 30, 37) // 2 + 1  # no voxel is 0, as which missing data would be read
SET = [f"s{n}.ome.tif" for n in range(4)]


def write_pages(path: Path, **options: object) -> None:
    with tifffile.TiffWriter(path, bigtiff=bool(options.pop("bigtiff", False))) as tif:
        for section in VALUES:
            tif.write(section, photometric="minisblack", metadata=None, contiguous=False, **options)


def write_stack(path: Path, values: np.ndarray = VALUES, **options: object) -> None:
    tifffile.imwrite(path, values, photometric="minisblack", **options)


KINDS: dict[str, Callable[[Path], None]] = {
    "one run of data": lambda path: write_stack(path, metadata=None),
    "described": write_stack,
    "described, axes": lambda path: write_stack(path, metadata={"axes": "ZYX"}),
    "described, compressed": lambda path: write_stack(path, compression="zlib"),
    "described, one page": lambda path: write_stack(path, metadata={"axes": "ZYX", "truncate": True}),
    "pages": write_pages,
    "BigTIFF": lambda path: write_pages(path, bigtiff=True),
    "strips": lambda path: write_pages(path, rowsperstrip=7),
    "tiles": lambda path: write_pages(path, tile=(16, 16)),
    "LZW": lambda path: write_pages(path, compression="lzw"),
    "ImageJ": lambda path: tifffile.imwrite(path, VALUES, imagej=True, metadata={"axes": "ZYX"}),
    "ImageJ, compressed": lambda path: tifffile.imwrite(path, VALUES, imagej=True, compression="zlib"),
    "OME": lambda path: write_stack(path, ome=True, metadata={"axes": "ZYX"}),
}


def read_sections(volume: Volume) -> Iterator[np.ndarray | None]:
    """Each section of a volume; None for one that cannot be read."""
    for z in range(len(VALUES)):
        try:
            yield volume.read(volume.sections(z, z + 1))[0, 0]
        except UnetcliError:
            yield None


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_cut_off_is_refused_or_its_missing_sections_are(tmp_path: Path, kind: str) -> None:
    """Wherever it is cut, no section is read as anything but what it was; without ``parts``, it is all or nothing."""
    KINDS[kind](tmp_path / "whole.tif")
    whole, refused = (tmp_path / "whole.tif").read_bytes(), 0
    path = tmp_path / "cut.tif"
    for length in np.linspace(5, len(whole) - 1, 24).astype(int):
        path.write_bytes(whole[:length])
        for parts in (False, True):
            try:
                volume = open_volume(path, parts=parts)
            except UnetcliError:
                refused += 1
                continue
            sections = list(read_sections(volume))
            assert parts or all(section is not None for section in sections)
            for found, right in zip(sections, VALUES, strict=True):
                assert found is None or np.array_equal(found, right)
    assert refused > 20
    assert np.array_equal(open_volume(tmp_path / "whole.tif").in_memory().array, VALUES)


def ome_xml(own: int, sections: int = 4) -> str:
    """OME-XML of file number ``own`` of a set with one section in each of its files."""
    places = "".join(
        f'<TiffData FirstZ="{n}" IFD="0" PlaneCount="1"><UUID FileName="{name}">urn:uuid:{n}</UUID></TiffData>'
        for n, name in enumerate(SET)
    )
    sizes = f'SizeX="37" SizeY="30" SizeZ="{sections}" SizeC="1" SizeT="1"'
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        f'UUID="urn:uuid:{own}"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" {sizes}>'
        f'<Channel ID="Channel:0" SamplesPerPixel="1"/>{places}</Pixels></Image></OME>'
    )


@pytest.fixture
def ome_set(tmp_path: Path) -> Path:
    """Folder with the four files of a multi-file OME-TIFF."""
    for n, name in enumerate(SET):
        write_stack(tmp_path / name, VALUES[n], description=ome_xml(n), metadata=None)
    return tmp_path


@pytest.mark.parametrize("first", SET)
def test_all_files_of_a_set_are_read_whichever_is_opened(ome_set: Path, first: str) -> None:
    assert np.array_equal(open_volume(ome_set / first).in_memory().array, VALUES)


@pytest.mark.parametrize("gone", [[1], [1, 2, 3], [0, 2]], ids=str)
def test_missing_files_of_a_set_are_named_and_never_read_as_zeros(ome_set: Path, gone: list[int]) -> None:
    for n in gone:
        (ome_set / SET[n]).unlink()
    path = ome_set / SET[next(n for n in range(4) if n not in gone)]
    message = rf"{len(gone)} of 4 images are missing .*names {SET[gone[0]]}.*, not found"
    with pytest.raises(UnetcliError, match=message):
        open_volume(path)
    with collected_warnings() as warnings:
        volume = open_volume(path, parts=True)
    assert [SET[gone[0]] in text for text in warnings] == [True]
    for n, found in enumerate(read_sections(volume)):
        assert found is None if n in gone else np.array_equal(found, VALUES[n])


@pytest.mark.parametrize("length", [1200, -1])
def test_a_file_of_a_set_that_is_cut_off_is_missing(ome_set: Path, length: int) -> None:
    (ome_set / SET[2]).write_bytes((ome_set / SET[2]).read_bytes()[:length])
    with pytest.raises(UnetcliError, match=r"1 of 4 images are missing \(image 2\)"):
        open_volume(ome_set / SET[0])
    volume = open_volume(ome_set / SET[0], parts=True)
    assert [found is None for found in read_sections(volume)] == [n == 2 for n in range(4)]


@pytest.mark.parametrize("length", [0, 5, 100])
def test_a_file_of_a_set_without_pages_is_refused(ome_set: Path, length: int) -> None:
    """Newer versions of tifffile count its image as missing, older ones read no file of the set."""
    (ome_set / SET[2]).write_bytes((ome_set / SET[2]).read_bytes()[:length])
    with pytest.raises(UnetcliError, match=r"1 of 4 images are missing \(image 2\)|not a readable TIFF file"):
        open_volume(ome_set / SET[0])


@pytest.mark.parametrize("values", [VALUES[2, :20], VALUES[2].astype("u2")], ids=["size", "dtype"])
def test_a_file_of_a_set_with_other_images_is_missing(ome_set: Path, values: np.ndarray) -> None:
    write_stack(ome_set / SET[2], values, metadata=None)
    with pytest.raises(UnetcliError, match=rf"1 of 4 images.*{SET[2]} has another size or data type"):
        open_volume(ome_set / SET[0])


def test_one_file_of_a_set_that_is_described_elsewhere_is_refused(tmp_path: Path) -> None:
    xml = ome_xml(0)
    head = xml[: xml.index("<Image")]
    described = head + '<BinaryOnly MetadataFile="set.companion.ome" UUID="urn:uuid:9"/></OME>'
    write_stack(tmp_path / SET[0], VALUES[0], description=described, metadata=None)
    with pytest.raises(UnetcliError, match=r"set that set\.companion\.ome describes"):
        open_volume(tmp_path / SET[0])


@pytest.mark.parametrize(
    ("description", "pages", "message"),
    [
        ("ImageJ=1.54f\nimages=4\nslices=4\n", 1, "promises 4 images, the file has 1"),
        ("ImageJ=1.54f\nimages=4\nslices=4\n", 3, "promises 4 images, the file has 3"),
        ("ImageJ=1.54f\nimages=4\n", 2, "promises 4 images, the file has 2"),
        ("ImageJ=1.54f\nimages=8\nslices=4\nframes=2\n", 4, "promises 8 images, the file has 4"),
        ("ImageJ=1.54f\nimages=4\nslices=0\n", 4, "ImageJ description does not fit its 4 pages"),
        ("ImageJ=1.54f\nimages=x\nslices=4\n", 4, "not a readable TIFF file"),
        ("ImageJ=1.54f\nimages=99999999999999999999\n", 4, "promises 99999999999999999999 images"),
        ('{"shape": [6, 30, 37]}', 4, r"2 of 6 images are missing \(images 4 to 5\)"),
        ('{"shape": [99999999, 30, 37]}', 4, "99999999 images; expected at most"),
        ('{"shape": [4, 31, 37]}', 4, "shape"),
        ('{"shape": "x"}', 4, "not a readable TIFF file"),
        (ome_xml(0, sections=6), 4, r"[2-5] of 6 images are missing"),
        (ome_xml(0)[:-40], 4, "OME-XML description does not fit"),
        (ome_xml(0).replace('SizeZ="4"', 'SizeZ="many"'), 4, "not a readable TIFF file"),
        (ome_xml(0).replace("DimensionOrder", "Order"), 4, "not a readable TIFF file"),
    ],
)
def test_a_description_that_the_pages_do_not_keep_is_refused(
    tmp_path: Path, description: str, pages: int, message: str
) -> None:
    write_stack(tmp_path / "a.tif", VALUES[:pages], description=description, metadata=None)
    with pytest.raises(UnetcliError, match=message):
        open_volume(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("description", "axes"),
    [("ImageJ=1.54f\nimages=4\nslices=4\n", "zyx"), ("ImageJ=1.54f\nimages=4\nslices=2\nframes=2\n", "tzyx")],
)
def test_a_description_that_fits_is_followed(tmp_path: Path, description: str, axes: str) -> None:
    write_stack(tmp_path / "a.tif", description=description, metadata=None)
    with collected_warnings() as warnings:
        volume = open_volume(tmp_path / "a.tif")
    assert (volume.axes, warnings) == (axes, [])
    assert np.array_equal(np.asarray(volume.in_memory().array).reshape(VALUES.shape), VALUES)


def test_pages_beyond_those_described_are_warned_of(tmp_path: Path) -> None:
    write_stack(tmp_path / "a.tif", description="ImageJ=1.54f\nimages=2\nslices=2\n", metadata=None)
    with collected_warnings() as warnings:
        volume = open_volume(tmp_path / "a.tif")
    assert volume.extent == (2, 30, 37)
    assert ["the other pages are not read" in text for text in warnings] == [True]


def test_tiles_that_a_sparse_file_does_not_store_are_zero(tmp_path: Path) -> None:
    write_pages(tmp_path / "a.tif", tile=(16, 16))
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as tif:
        page = tif.pages[1]
        for tag, stored in (("TileOffsets", page.dataoffsets), ("TileByteCounts", page.databytecounts)):
            page.tags[tag].overwrite((0, *stored[1:]))
    found = np.asarray(open_volume(tmp_path / "a.tif").in_memory().array)
    right = VALUES.copy()
    right[1, :16, :16] = 0
    assert np.array_equal(found, right)


@pytest.mark.parametrize("tag", ["TileOffsets", "TileByteCounts"])
def test_tiles_of_unknown_place_or_length_are_missing(tmp_path: Path, tag: str) -> None:
    write_pages(tmp_path / "a.tif", tile=(16, 16))
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as tif:
        page = tif.pages[1]
        stored = page.dataoffsets if tag == "TileOffsets" else page.databytecounts
        page.tags[tag].overwrite((0, *stored[1:]))
    with pytest.raises(UnetcliError, match=r"1 of 4 images are missing \(image 1\): the page does not say where"):
        open_volume(tmp_path / "a.tif")


def test_a_private_tag_that_cannot_be_read_is_a_warning_of_unetcli(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_stack(tmp_path / "a.tif", metadata=None, extratags=[(65001, 1, 9, b"x" * 9, True)])
    content = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        tag = tif.pages.first.tags[65001]
        content[tag.offset + 8 : tag.offset + 12] = (2**31).to_bytes(4, "little")
    (tmp_path / "a.tif").write_bytes(content)
    with collected_warnings() as warnings, caplog.at_level(logging.WARNING):
        assert np.array_equal(open_volume(tmp_path / "a.tif").in_memory().array, VALUES)
    assert ["tag 65001: " in text for text in warnings] == [True]
    assert {record.name for record in caplog.records} == {"unetcli.core.errors"}


def test_messages_of_tifffile_about_other_files_stay_as_they_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_stack(tmp_path / "a.tif")
    open_volume(tmp_path / "a.tif")
    logging.getLogger("tifffile").warning("of another program")
    assert [record.getMessage() for record in caplog.records] == ["of another program"]


@pytest.mark.parametrize("back_to", [0, 2])
def test_a_list_of_pages_that_leads_back_is_refused(tmp_path: Path, back_to: int) -> None:
    write_pages(tmp_path / "a.tif")
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        first, last = tif.pages[back_to].offset, tif.pages[3]
        end = last.offset + 2 + 12 * len(last.tags)
    content = bytearray((tmp_path / "a.tif").read_bytes())
    content[end : end + 4] = first.to_bytes(4, "little")
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(UnetcliError, match=rf"leads back to byte {first} after 4 pages"):
        open_volume(tmp_path / "a.tif")


def test_a_frame_of_a_challenge_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mask000.tif"
    write_stack(path, VALUES.astype("u2"))
    assert np.array_equal(read_labels(path), VALUES)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UnetcliError, match=rf"{path}: not "):
        read_labels(path)
