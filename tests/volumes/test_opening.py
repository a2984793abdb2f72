from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import tifffile
import zarr
from helpers import grey, write_zarr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Box
from unetcli.volumes.chunk_cache import cached
from unetcli.volumes.opening import open_volume
from unetcli.volumes.volume import Volume


def contents(volume: Volume) -> np.ndarray:
    return volume.read(volume.whole())


def write_image(path: Path, version: str, values: np.ndarray, letters: str = "zyx", **entries: Any) -> Path:
    """Write an OME-Zarr image with metadata as in the examples of the specification, without using unetcli."""
    zarr_format = 3 if version == "0.5" else 2
    units = {"z": "nanometer", "y": "nanometer", "x": "nanometer", "t": "second"}
    kinds = {"c": "channel", "t": "time"}
    named = [{"name": a, "type": kinds.get(a, "space")} | ({"unit": units[a]} if a in units else {}) for a in letters]
    transforms = entries.pop("transforms", [{"type": "scale", "scale": [1.0] * len(letters)}])
    dataset = {"path": "s0", "coordinateTransformations": transforms}
    image = {"axes": named, "datasets": [dataset], **entries}
    path.mkdir()
    write_zarr(path / "s0", values, zarr_format=zarr_format)
    if version == "0.5":
        attributes = {"ome": {"version": "0.5", "multiscales": [image]}}
        group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        (path / "zarr.json").write_text(json.dumps(group))
    else:
        (path / ".zgroup").write_text(json.dumps({"zarr_format": 2}))
        (path / ".zattrs").write_text(json.dumps({"multiscales": [{"version": "0.4", **image}]}))
    return path


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("shape", [(13, 22), (3, 13, 22), (1, 1)], ids=str)
@pytest.mark.parametrize("dtype", ["uint8", "int16", ">u2", "float32", "float64", "bool"])
def test_a_plain_array_is_y_x_or_z_y_x(tmp_path: Path, zarr_format: int, shape: tuple[int, ...], dtype: str) -> None:
    values = grey(*shape).astype(dtype)
    volume = open_volume(write_zarr(tmp_path / "a.zarr", values, zarr_format=zarr_format))
    assert volume.axes == "zyx"[-len(shape) :]
    assert np.array_equal(contents(volume)[0], values)


def test_axis_names_in_the_attribute_of_xarray_are_read(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "a.zarr", grey(2, 13, 22), zarr_format=2)
    (path / ".zattrs").write_text(json.dumps({"_ARRAY_DIMENSIONS": ["time", "y", "x"]}))
    assert open_volume(path).axes == "tyx"


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_axes_sizes_and_units_of_an_ome_zarr_image_are_read(tmp_path: Path, version: str) -> None:
    values = grey(2, 3, 13, 22)
    scale = {"type": "scale", "scale": [1, 50, 4, 4.5]}
    shift = {"type": "translation", "translation": [0, 100, -8, 0.5]}
    volume = open_volume(write_image(tmp_path / "a.zarr", version, values, "czyx", transforms=[scale, shift]))
    assert (volume.axes, volume.channels) == ("zyx", 2)
    assert {axis: volume.voxel_size[axis] for axis in "zyx"} == {"z": 50, "y": 4, "x": 4.5}
    assert {axis: volume.translation[axis] for axis in "zyx"} == {"z": 100, "y": -8, "x": 0.5}
    assert volume.units == dict.fromkeys("zyx", "nanometer")
    assert np.array_equal(contents(volume), values)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_transforms_of_the_whole_image_apply_after_those_of_the_level(tmp_path: Path, version: str) -> None:
    level = [{"type": "scale", "scale": [1, 2, 2]}, {"type": "translation", "translation": [0, 3, 1]}]
    whole = [{"type": "scale", "scale": [10, 4, 5]}]
    path = write_image(tmp_path / "a.zarr", version, grey(2, 13, 22), transforms=level, coordinateTransformations=whole)
    volume = open_volume(path)
    assert volume.voxel_size == {"z": 10, "y": 8, "x": 10}
    assert volume.translation == {"z": 0, "y": 12, "x": 5}


def test_an_array_inside_a_store_is_opened_by_its_path(tmp_path: Path) -> None:
    store, values = zarr.open_group(tmp_path / "a.zarr", mode="w"), grey(13, 22)
    store.create_array("raw/s0", data=values)
    store.create_array("labels", data=values[:5])
    assert np.array_equal(contents(open_volume(tmp_path / "a.zarr/raw/s0"))[0], values)
    assert np.array_equal(contents(open_volume(tmp_path / "a.zarr/raw"))[0], values)
    with pytest.raises(UnetcliError, match=r"several arrays; .*: \S+a\.zarr/labels, \S+a\.zarr/raw/s0$"):
        open_volume(tmp_path / "a.zarr")


def test_an_image_is_preferred_to_other_arrays_of_a_store(tmp_path: Path) -> None:
    zarr.open_group(tmp_path / "a.zarr", mode="w").create_array("table", data=np.zeros((3, 4)))
    write_image(tmp_path / "a.zarr/image", "0.5", values := grey(2, 13, 22))
    assert np.array_equal(contents(open_volume(tmp_path / "a.zarr"))[0], values)


@pytest.mark.parametrize(
    ("shape", "options", "axes", "channels"),
    [
        ((13, 22), {}, "yx", 1),
        ((3, 13, 22), {}, "zyx", 1),
        ((3, 64, 70), {"compression": "zlib", "predictor": True}, "zyx", 1),
        ((3, 64, 70), {"compression": "lzw"}, "zyx", 1),
        ((3, 64, 70), {"tile": (16, 32)}, "zyx", 1),
        ((3, 13, 22), {"imagej": True, "metadata": {"axes": "ZYX"}}, "zyx", 1),
        ((3, 13, 22), {"imagej": True, "metadata": {"axes": "TYX"}}, "tyx", 1),
        ((2, 3, 13, 22), {"imagej": True, "metadata": {"axes": "ZCYX"}}, "zyx", 3),
        ((3, 2, 13, 22), {"ome": True, "metadata": {"axes": "CZYX"}}, "zyx", 3),
        ((2, 3, 4, 13, 22), {"ome": True, "metadata": {"axes": "TCZYX"}}, "tzyx", 3),
        ((13, 22, 3), {"photometric": "rgb"}, "yx", 3),
        ((2, 3, 13, 22), {}, "tzyx", 1),
        ((3, 13, 22), {"photometric": "rgb", "planarconfig": "separate", "metadata": None}, "yx", 3),
        ((3, 13, 22), {"photometric": "rgb", "planarconfig": "separate"}, "zyx", 1),
    ],
    ids=str,
)
def test_a_tiff_stack_has_the_voxels_that_tifffile_reads(
    tmp_path: Path, shape: tuple[int, ...], options: dict[str, Any], axes: str, channels: int
) -> None:
    path, values = tmp_path / "stack.tif", grey(*shape)
    tifffile.imwrite(path, values, **{"photometric": "minisblack", **options})
    volume = open_volume(path)
    assert (volume.axes, volume.channels) == (axes, channels)
    assert volume.extent == tuple(n for n, axis in zip(shape, volume.stored_axes, strict=True) if axis != "c")
    ordered = values.transpose([volume.stored_axes.index(a) for a in f"c{axes}" if a in volume.stored_axes])
    assert np.array_equal(contents(volume).reshape(ordered.shape), ordered)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(("names", "axes", "assumed"), [("QYX", "zyx", "z"), ("TYX", "tyx", ""), ("YXS", "yxc", "")])
def test_a_tiff_is_read_through_both_kinds_of_view_that_tifffile_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zarr_format: Literal[2, 3], names: str, axes: str, assumed: str
) -> None:
    """Up to 2026.4 tifffile presents a file as Zarr v2, with the axes in an attribute; later as v3, with axis names."""
    tifffile.imwrite(tmp_path / "a.tif", grey(3, 13, 22), photometric="minisblack")
    view, values = zarr.storage.MemoryStore(), grey(3, 13, 22)
    named: dict[str, Any] = {"attributes": {"_ARRAY_DIMENSIONS": [*names]}} if zarr_format == 2 else {}
    named |= {"dimension_names": [*names]} if zarr_format == 3 else {}
    zarr.create_array(view, data=values, zarr_format=zarr_format, **named)
    monkeypatch.setattr(tifffile.TiffPageSeries, "aszarr", lambda series, **options: view)
    volume = open_volume(tmp_path / "a.tif")
    assert (volume.stored_axes, volume.assumed) == (axes, assumed)
    assert np.array_equal(volume.array[...], values)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_arrays_are_read_in_native_byte_order(tmp_path: Path, zarr_format: int) -> None:
    values = grey(3, 13, 22).astype(">u2") * 200
    volume = open_volume(write_zarr(tmp_path / "a.zarr", values, zarr_format=zarr_format))
    assert volume.dtype == contents(volume).dtype == np.dtype("uint16")
    assert np.array_equal(contents(volume)[0], values)


def test_tiff_files_are_read_in_native_byte_order(tmp_path: Path) -> None:
    values = grey(3, 13, 22).astype("uint16") * 200
    tifffile.imwrite(tmp_path / "a.tif", values, byteorder=">", photometric="minisblack")
    volume = open_volume(tmp_path / "a.tif")
    assert volume.dtype == contents(volume).dtype == np.dtype("uint16")
    assert np.array_equal(contents(volume)[0], values)


def refused(tmp_path: Path, name: str) -> Path:
    """Create a file or folder that is no volume, of the kind ``name``."""
    path = tmp_path / name
    if name == "text.tif":
        path.write_text("no tiff")
    elif name == "two.tif":
        with tifffile.TiffWriter(path) as tif:
            tif.write(grey(83, 92), metadata=None)
            tif.write(grey(75, 97), metadata=None)
    elif name == "group":
        zarr.open_group(path, mode="w")
    elif name == "folder":
        path.mkdir()
    elif name == "broken":
        path.mkdir()
        (path / "zarr.json").write_text("{")
    elif name == "level":
        write_image(path, "0.5", grey(2, 3, 4))
        (path / "s0" / "zarr.json").unlink()
    elif name == "string":
        zarr.create_array(path, data=np.array([["a", "bc"]], dtype="U2"), zarr_format=2)
    elif name == "object":
        (path / "x").mkdir(parents=True)
        entry = {"id": "vlen-utf8"}
        shape = {"shape": [2, 2], "chunks": [2, 2], "dtype": "|O", "order": "C", "fill_value": None}
        document = {"zarr_format": 2, "compressor": None, "filters": [entry], **shape}
        (path / ".zarray").write_text(json.dumps(document))
    elif name != "missing":
        values = {"complex": np.zeros((3, 4), complex), "empty": np.zeros((0, 4)), "5-D": np.zeros((2,) * 5)}[name]
        zarr.create_array(path, shape=values.shape, dtype=values.dtype, chunks=(1,) * values.ndim)
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "no such file"),
        ("text.tif", "not a readable TIFF file"),
        ("two.tif", r"holds 2 images; choose one as part of the name: \S+two\.tif:series=0 "),
        ("group", "group without arrays"),
        ("folder", "no Zarr array or group"),
        ("broken", "no Zarr array or group"),
        ("level", "no such array"),
        ("string", "expected integers, floats"),
        ("object", "expected integers, floats"),
        ("complex", "dtype complex128"),
        ("empty", "empty array"),
        ("5-D", "5 axes without names"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, name: str, message: str) -> None:
    path = refused(tmp_path, name)
    with pytest.raises(UnetcliError, match=message) as caught:
        open_volume(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_several_images_of_one_shape_are_listed(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif", ome=True) as tif:
        for seed in range(2):
            tif.write(grey(83, 92, seed=seed), metadata={"axes": "YX"})
    with pytest.raises(UnetcliError, match=r"a\.tif: holds 2 images; choose one as part of the name"):
        open_volume(tmp_path / "a.tif")


@pytest.mark.parametrize(
    "broken",
    [
        {"datasets": []},
        {"datasets": [{"coordinateTransformations": []}]},
        {"axes": [{"type": "space"}]},
        {"axes": 3},
        {"transforms": [{"type": "scale", "scale": [1.0, 1.0]}]},
        {"transforms": [{"type": "scale"}]},
    ],
    ids=str,
)
def test_incomplete_ome_metadata_are_refused_in_one_line(tmp_path: Path, broken: dict[str, Any]) -> None:
    path = write_image(tmp_path / "a.zarr", "0.5", grey(2, 13, 22), **broken)
    with pytest.raises(UnetcliError, match=r"a\.zarr: invalid metadata"):
        open_volume(path)


@pytest.mark.parametrize(
    ("file", "axes", "extent"),
    [
        ("isbi2012/train-volume.tif", "zyx", (25, 512, 512)),
        ("dic_hela/01-images.tif", "tyx", (84, 512, 512)),
        ("phc_psc/01-labels.tif", "tyx", (30, 576, 720)),
        ("flyem/bodies.tif", "zyx", (170, 250, 250)),
        ("dsb2018/images.tif", "zyx", (250, 256, 256)),
    ],
)
def test_real_stacks_open_with_their_axes(data: Path, file: str, axes: str, extent: tuple[int, ...]) -> None:
    import tifffile

    volume = open_volume(data / file)
    assert (volume.axes, volume.extent) == (axes, extent)
    section = volume.read(volume.sections(extent[0] - 1, extent[0]))
    assert np.array_equal(section[0, 0], tifffile.imread(data / file, key=extent[0] - 1))


SHAPE, CHUNKS = (5, 13, 22), (2, 5, 6)
VALUES = grey(*SHAPE)


class Stored:
    """Array that records which chunks are read."""

    def __init__(self, values: NDArray[Any], chunks: tuple[int, ...]) -> None:
        self.values, self.chunks = values, chunks
        self.shape, self.dtype, self.size = values.shape, values.dtype, values.size
        self.read: list[tuple[int, ...]] = []

    def __getitem__(self, selection: tuple[slice, ...]) -> NDArray[Any]:
        self.read.append(tuple(part.start // c for part, c in zip(selection, self.chunks, strict=True)))
        return self.values[selection]


def cached_volume(budget: int = 2**20, chunks: tuple[int, ...] = CHUNKS) -> tuple[Volume, Stored]:
    stored = Stored(VALUES, chunks)
    return cached(Volume(path="v.zarr", array=stored, stored_axes="zyx"), budget), stored


def slices(n: int) -> st.SearchStrategy[slice]:
    ends = st.none() | st.integers(-2 * n, 2 * n)
    return st.builds(slice, ends, ends)


@given(selection=st.tuples(*map(slices, SHAPE)), chunks=st.tuples(*(st.integers(1, n + 3) for n in SHAPE)))
def test_slices_of_a_cached_array_equal_those_of_the_array(
    selection: tuple[slice, ...], chunks: tuple[int, ...]
) -> None:
    volume, _ = cached_volume(chunks=chunks)
    found = volume.array[selection]
    assert found.dtype == VALUES.dtype
    assert np.array_equal(found, VALUES[selection])


def test_slices_with_a_step_are_refused() -> None:
    volume, _ = cached_volume()
    with pytest.raises(NotImplementedError):
        volume.array[::2, :, :]


def test_boxes_outside_of_a_cached_volume_are_mirrored_as_usual() -> None:
    volume, _ = cached_volume()
    plain = Volume(path="v.zarr", array=VALUES, stored_axes="zyx")
    for box in (Box((0, -30, -5), (1, 30, 40)), Box((4, 12, 21), (5, 13, 22)), Box((1, 0, 0), (4, 13, 22))):
        assert np.array_equal(volume.read(box), plain.read(box))
    assert (volume.chunks, volume.extent, volume.dtype) == (CHUNKS, SHAPE, VALUES.dtype)


def test_each_chunk_is_decoded_once_within_the_budget() -> None:
    volume, stored = cached_volume()
    for _ in range(3):
        volume.read(volume.whole())
        volume.read(Box((1, 3, 4), (4, 11, 20)))
    assert len(stored.read) == len(set(stored.read)) == 3 * 3 * 4


def test_the_cache_stays_within_the_budget_and_keeps_the_chunks_used_last() -> None:
    """Each chunk is a section, and the budget suffices for three of them."""
    section = VALUES[0].size
    volume, stored = cached_volume(budget=3 * section, chunks=(1, 13, 22))

    def read(*numbers: int) -> list[int]:
        before = len(stored.read)
        for z in numbers:
            assert np.array_equal(volume.read(Box((z, 0, 0), (z + 1, 13, 22)))[0, 0], VALUES[z])
            assert volume.array._bytes == sum(chunk.nbytes for chunk in volume.array._cached.values()) <= 3 * section
        return [place[0] for place in stored.read[before:]]

    assert read(0, 1, 2, 0) == [0, 1, 2]
    assert read(3, 0, 2, 3) == [3]  # chunk 1 was used least recently and is dropped
    assert read(1) == [1]


def test_a_chunk_larger_than_the_budget_is_kept_alone() -> None:
    volume, stored = cached_volume(budget=1)
    one = Box((0, 0, 0), (1, 2, 2))
    volume.read(one)
    volume.read(one)
    assert len(stored.read) == 1
    assert len(volume.array._cached) == 1


def test_threads_share_the_cache() -> None:
    volume, stored = cached_volume()
    wrong: list[int] = []

    def compare(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(200):
            start = [int(random.integers(n)) for n in SHAPE]
            stop = [int(random.integers(a + 1, n + 1)) for a, n in zip(start, SHAPE, strict=True)]
            box = Box(tuple(start), tuple(stop))
            if not np.array_equal(volume.read(box)[0], VALUES[box.slices]):
                wrong.append(seed)

    threads = [threading.Thread(target=compare, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(stored.read) == len(set(stored.read))


def test_chunks_without_voxels_are_refused(tmp_path: Path) -> None:
    file = write_zarr(tmp_path / "raw.zarr", grey(2, 9, 9), (1, 4, 4)) / "zarr.json"
    stored = json.loads(file.read_text())
    stored["chunk_grid"]["configuration"]["chunk_shape"][2] = 0
    file.write_text(json.dumps(stored))
    with pytest.raises(UnetcliError, match=r"raw.zarr: .*chunk.*(expected at least one voxel|at least 1)"):
        open_volume(tmp_path / "raw.zarr")


def test_a_group_whose_array_has_no_shape_is_refused_in_one_line(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "group.zarr")
    file = write_zarr(tmp_path / "group.zarr/0", grey(2, 9, 9)) / "zarr.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"shape": [2, "nine", 9]}))
    with pytest.raises(UnetcliError, match=r"group.zarr: what it contains cannot be opened \(.*nine"):
        open_volume(tmp_path / "group.zarr")
