from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from helpers import grey, write_zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from unetcli.core.errors import UnetcliError, UnreadableBlock
from unetcli.core.geometry import Box
from unetcli.volumes.opening import open_volume
from unetcli.volumes.places import require_same_voxels, stated_sizes
from unetcli.volumes.volume import Volume, describe


def padded(values: NDArray[Any], box: Box) -> NDArray[Any]:
    """Voxels of a box, from the whole array padded by numpy axis by axis."""
    for axis, (a, b) in enumerate(zip(box.start, box.stop, strict=True)):
        width = [(0, 0)] * values.ndim
        width[axis] = (max(0, -a), max(0, b - values.shape[axis]))
        values = np.pad(values, width, mode="reflect")
        keep = [slice(None)] * values.ndim
        keep[axis] = slice(max(0, a), max(0, a) + b - a)
        values = values[tuple(keep)]
    return values


@pytest.mark.parametrize(
    "box",
    [
        Box((0, 0, 0), (3, 13, 22)),
        Box((1, 4, 5), (2, 9, 21)),
        Box((-1, -5, -8), (4, 20, 30)),
        Box((0, -70, 0), (3, 100, 22)),
        Box((2, 10, 20), (7, 15, 90)),
        Box((2, 13, 22), (3, 14, 23)),
        Box((0, -9, -9), (1, -2, -2)),
    ],
    ids=["whole", "inside", "around", "many bounces", "over one corner", "just outside", "before the start"],
)
@pytest.mark.parametrize("chunks", [(1, 5, 7), (3, 13, 22)], ids=str)
def test_a_box_equals_that_of_the_volume_padded_by_numpy(tmp_path: Path, box: Box, chunks: tuple[int, ...]) -> None:
    values = grey(3, 13, 22)
    volume = open_volume(write_zarr(tmp_path / "a.zarr", values, chunks=chunks))
    assert np.array_equal(volume.read(box), padded(values, box)[np.newaxis])


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (5, 1), (2, 3)], ids=str)
def test_thin_images_are_mirrored_too(shape: tuple[int, int]) -> None:
    values, box = grey(*shape), Box((-9, -11), (17, 30))
    volume = Volume(path="a", array=values, stored_axes="yx")
    assert np.array_equal(volume.read(box)[0], padded(values, box))


@pytest.mark.parametrize("stored", ["yxc", "czyx", "zcyx", "xyzct", "ctzyx", "xcy"])
def test_voxels_are_read_channels_first_from_any_stored_order(tmp_path: Path, stored: str) -> None:
    sizes = {"t": 2, "c": 3, "z": 4, "y": 13, "x": 22}
    ordered = "c" + "".join(axis for axis in "tzyx" if axis in stored)
    wanted = grey(*(sizes[axis] for axis in ordered))
    array = wanted.transpose([ordered.index(axis) for axis in stored])
    volume = open_volume(write_zarr(tmp_path / "a.zarr", array, dimension_names=list(stored)))
    assert (volume.axes, volume.channels) == (ordered[1:], 3)
    assert volume.extent == wanted.shape[1:]
    assert np.array_equal(volume.read(volume.whole()), wanted)
    box = Box(tuple(n - 1 for n in volume.extent), tuple(n + 4 for n in volume.extent))
    assert np.array_equal(volume.read(box, channel=1)[0], padded(wanted[1], box))


def test_chunks_have_the_order_of_the_extent(tmp_path: Path) -> None:
    path = write_zarr(
        tmp_path / "a.zarr", grey(22, 13, 2, 5), chunks=(11, 7, 1, 5), dimension_names=["x", "y", "c", "z"]
    )
    volume = open_volume(path)
    assert (volume.extent, volume.chunks) == ((5, 13, 22), (5, 7, 11))


@pytest.mark.parametrize(
    ("axes", "place", "shape"),
    [("yx", None, (13, 22)), ("zyx", 0, (2, 13, 22)), ("tyx", 0, (2, 13, 22)), ("tzyx", 1, (3, 2, 13, 22))],
)
def test_sections_are_counted_along_z_else_t(axes: str, place: int | None, shape: tuple[int, ...]) -> None:
    full = tuple({"t": 3 if "z" in axes else 5, "z": 5, "y": 13, "x": 22}[axis] for axis in axes)
    volume = Volume(path="a", array=np.zeros(full), stored_axes=axes)
    assert volume.section_axis == place
    assert volume.sections(2, 4).shape == shape


def test_leading_axes_of_extent_1_can_be_dropped(tmp_path: Path) -> None:
    values = grey(1, 2, 1, 13, 22)
    volume = open_volume(write_zarr(tmp_path / "a.zarr", values, dimension_names=list("tczyx"))).without_single_axes()
    assert (volume.axes, volume.extent, volume.channels) == ("yx", (13, 22), 2)
    assert np.array_equal(volume.read(Box((3, 4), (30, 9))), padded(values[0, :, 0], Box((0, 3, 4), (2, 30, 9))))


@pytest.mark.parametrize(
    ("stored", "assumed", "axes"),
    [
        ("cyx", "c", "zyx"),
        ("zcyx", "zc", "tzyx"),
        ("zcyx", "c", "zyx"),
        ("tcyx", "c", "tyx"),
        ("cyx", "", "yx"),
        ("yxc", "", "yx"),
        ("zyx", "z", "zyx"),
    ],
)
def test_guessed_channels_can_be_interpreted_as_sections(stored: str, assumed: str, axes: str) -> None:
    values = grey(*(2, 3, 13, 22)[-len(stored) :])
    volume = Volume(path="v", array=values, stored_axes=stored, assumed=assumed).channels_as_sections()
    assert volume.axes == axes
    if "c" not in volume.stored_axes:
        assert np.array_equal(volume.read(volume.whole())[0], values)


@pytest.mark.parametrize(
    ("axes", "assumed", "others", "found"),
    [("zyx", "zyx", "tyx", "tyx"), ("zyx", "", "tyx", "zyx"), ("yx", "yx", "tyx", "yx"), ("czyx", "zyx", "tyx", "tyx")],
)
def test_guessed_axes_can_take_the_letters_of_another_volume(axes: str, assumed: str, others: str, found: str) -> None:
    volume = Volume(path="v", array=grey(*(1, 2, 13, 22)[-len(axes) :]), stored_axes=axes, assumed=assumed)
    other = Volume(path="o", array=grey(*(2, 13, 22)[-len(others) :]), stored_axes=others)
    assert volume.with_axes_of(other).axes == found


def test_a_plane_of_one_row_keeps_its_axes() -> None:
    volume = Volume(path="a", array=grey(1, 1), stored_axes="yx")
    assert volume.without_single_axes().extent == (1, 1)


def test_a_volume_in_memory_reads_the_same(tmp_path: Path) -> None:
    volume = open_volume(write_zarr(tmp_path / "a.zarr", grey(13, 22), chunks=(5, 5)))
    box = Box((-3, 2), (15, 40))
    assert isinstance(volume.in_memory().array, np.ndarray)
    assert np.array_equal(volume.in_memory().read(box), volume.read(box))


def test_values_that_are_not_finite_are_replaced_by_one_value_for_each_channel() -> None:
    values = grey(2, 13, 22).astype(">f4")
    values[0, 3, 4], values[1, 5, 6] = np.nan, -np.inf
    found = Volume(path="raw.zarr", array=values, stored_axes="cyx").filled((1.5, 2.5))
    assert (found.read(Box((3, 4), (4, 5)))[0], found.read(Box((5, 6), (6, 7)), channel=1)) == (1.5, 2.5)
    whole = found.read(found.whole())
    assert np.isfinite(whole).all()
    assert np.array_equal(whole[np.isfinite(values)], values[np.isfinite(values)])
    numbers = Volume(path="raw.zarr", array=grey(13, 22), stored_axes="yx")
    assert numbers.filled(1.5) is numbers


def test_mirrored_gives_the_stored_voxel_of_any_place() -> None:
    values = np.arange(13 * 22).reshape(13, 22)
    volume = Volume(path="a", array=values, stored_axes="yx")
    for place in [(-1, 0), (13, 22), (40, -100), (5, 6)]:
        assert volume.read(Box(place, tuple(p + 1 for p in place))).item() == values[volume.mirrored(place)]


def test_a_damaged_chunk_is_unreadable_and_the_error_names_the_region(tmp_path: Path) -> None:
    codec = ZstdCodec(checksum=True)
    path = write_zarr(tmp_path / "a.zarr", grey(3, 16, 24), chunks=(1, 8, 8), compressors=codec)
    chunk = path / "c" / "1" / "0" / "2"
    damaged = bytearray(chunk.read_bytes())
    damaged[len(damaged) // 2] ^= 0x10
    chunk.write_bytes(damaged)
    volume = open_volume(path)
    with pytest.raises(UnreadableBlock, match=r"a\.zarr: cannot read z 1:2, y 3:8, x 20:24") as caught:
        volume.read(Box((1, 3, 20), (2, 8, 24)))
    assert "\n" not in str(caught.value)
    assert volume.read(Box((0, 0, 0), (1, 16, 24))).shape == (1, 1, 16, 24)


def test_a_truncated_chunk_is_unreadable(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "a.zarr", grey(16, 24), chunks=(8, 8))
    chunk = path / "c" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(UnreadableBlock, match="y 0:16, x 0:24"):
        open_volume(path).read(Box((0, 0), (16, 24)))


def test_missing_chunks_are_read_as_the_fill_value(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", shape=(13, 22), chunks=(5, 5), dtype="uint8", fill_value=3)
    assert (open_volume(tmp_path / "a.zarr").read(Box((0, 0), (13, 22))) == 3).all()


def test_a_box_is_described_axis_by_axis() -> None:
    assert describe(Box((0, 3, -1), (1, 4, 9)), "tyx") == "t 0:1, y 3:4, x -1:9"


def test_a_stack_of_one_section_keeps_its_chunks_as_an_image(tmp_path: Path) -> None:
    volume = open_volume(
        write_zarr(tmp_path / "a.zarr", grey(1, 1, 40, 50), (1, 1, 16, 32), dimension_names=list("tzyx"))
    )
    assert volume.without_single_axes().chunks == (16, 32)
    assert volume.without_single_axes(keep="z").chunks == (1, 16, 32)


Size = tuple[float, str]


def volume(path: str, **sizes: Size) -> Volume:
    return Volume(
        path=path,
        array=np.zeros((2, 3, 4), np.uint8),
        stored_axes="zyx",
        voxel_size={axis: size for axis, (size, _) in sizes.items()},
        units={axis: unit for axis, (_, unit) in sizes.items() if unit},
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((500.0, "nanometer"), (0.5, "micrometer")),
        ((0.5, "µm"), (500.0, "nm")),
        ((0.5, "\u03bcm"), (0.5, "\u00b5m")),
        ((4.0, "nanometer"), (40.0, "angstrom")),
        ((4.0, "nanometer"), (4.0, "")),
        ((4.0, "pixel"), (5.0, "nanometer")),
        ((4.0, "nanometer"), (4.003, "nanometer")),
        ((1.0, ""), (5.0, "")),
        ((0.0, "nanometer"), (0.0, "nanometer")),
    ],
    ids=lambda size: f"{size[0]:g} {size[1]}",
)
def test_equal_sizes_in_different_units_and_sizes_that_cannot_be_compared_are_accepted(one: Size, other: Size) -> None:
    require_same_voxels(volume("a", x=one), volume("b", x=other), "no")
    require_same_voxels(volume("b", x=other), volume("a", x=one), "no")


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ((1.0, "micrometer"), (500.0, "nanometer"), "a has voxels of 1 micrometer, but b of 500 nanometer: no"),
        ((500.0, "nanometer"), (500.0, "micrometer"), "a has voxels of 500 nanometer, but b of 500 micrometer: no"),
        ((4.0, "pixel"), (5.0, "pixel"), "a has voxels of 4 pixel, but b of 5 pixel: no"),
        ((4.0, ""), (5.0, ""), "a has voxels of 4, but b of 5: no"),
        ((0.0, "nm"), (5.0, "nm"), "a has voxels of 0 nm, but b of 5 nm: no"),
    ],
    ids=["micrometer and nanometer", "unit", "unknown unit", "no unit", "zero"],
)
def test_different_sizes_are_refused_naming_both(one: Size, other: Size, message: str) -> None:
    with pytest.raises(UnetcliError, match=f"^{message}$"):
        require_same_voxels(volume("a", x=one), volume("b", x=other), "no")


def test_a_difference_along_one_axis_is_refused_naming_the_sizes_of_all_axes() -> None:
    fine = volume("a", z=(0.05, "um"), y=(4.0, "nm"), x=(4.0, "nm"))
    require_same_voxels(fine, volume("b", y=(4.0, "nm")), "no")
    message = "a has voxels of 0.05 um x 4 nm x 4 nm, but b of 40 x 4 x 4 nm: no"
    with pytest.raises(UnetcliError, match=f"^{message}$"):
        require_same_voxels(fine, volume("b", z=(40.0, "nm"), y=(4.0, "nm"), x=(4.0, "nm")), "no")


def test_sizes_of_1_without_unit_count_as_not_stated() -> None:
    assert stated_sizes(volume("a", y=(1.0, ""), x=(1.0, ""))) == {}
    assert stated_sizes(volume("a", y=(1.0, ""), x=(2.0, ""))) == {"y": (1.0, ""), "x": (2.0, "")}
