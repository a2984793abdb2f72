from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaozarrs
import zarr
from helpers import SETTINGS, Output, grey, plan_of
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError, UnreadableBlock
from unetcli.core.geometry import Box
from unetcli.planning.plan import Plan
from unetcli.planning.planner import output_files
from unetcli.volumes.image import marker, remove_output, require_own_output
from unetcli.volumes.opening import open_volume
from unetcli.volumes.volume import Volume

REGION = Box((1, 3, 5), (4, 40, 50))


def source(plan: Plan, **details: Any) -> Volume:
    return Volume(path="in", array=np.zeros(plan.extent, np.uint8), stored_axes=plan.axes, **details)


KINDS: dict[str, dict[str, Any]] = {"zarr 3": {}, "shards": {"side": 4}, "zarr 2": {"zarr_format": 2}}
"""Ways to store the same voxels."""


def created(
    path: Path,
    region: Box = REGION,
    dtype: str = "uint8",
    outputs: int = 1,
    side: int = 8,
    zarr_format: int = 3,
    **details: Any,
) -> Output:
    chunks = (1,) * (len(region.shape) - 2) + (side, 8)
    settings = replace(SETTINGS, dtype=dtype, outputs=outputs)
    plan = plan_of(region, settings=settings, chunks=chunks, zarr_format=zarr_format)
    output = Output(path, plan)
    output.create(source(plan, **details))
    return output


def write_all(output: Output, values: NDArray[Any]) -> None:
    """Write ``values``, (outputs, *region.shape), block by block as a worker does."""
    array = output.open()
    for number in range(output.plan.blocks):
        box = output.plan.output_box(output.plan.block(number))
        output.write(array, box, values[(slice(None), *box.slices)])


def test_chunks_of_zarr_2_have_a_checksum_of_which_the_metadata_say_nothing(tmp_path: Path) -> None:
    output = created(tmp_path / "a.zarr", zarr_format=2)
    write_all(output, grey(1, *REGION.shape))
    metadata = json.loads((tmp_path / "a.zarr/0/.zarray").read_text())
    assert metadata["compressor"] == {"id": "zstd", "level": 3}  # others refuse arrays with more keys
    for chunk in chunk_files(output):
        assert chunk.read_bytes()[4] & 4, "frame header descriptor, RFC 8878: Content_Checksum_flag"


def chunk_files(output: Output) -> set[Path]:
    """All files of level 0 except its metadata."""
    files = {path for path in (Path(output.path) / "0").rglob("*") if path.is_file()}
    return {path for path in files if path.name not in ("zarr.json", ".zarray", ".zattrs")}


REGIONS = {
    "yx": Box((3, 5), (40, 50)),
    "zyx": REGION,
    "tzyx": Box((1, 0, 3, 5), (3, 2, 40, 50)),
    "one voxel": Box((0, 0), (1, 1)),
}


@pytest.mark.by_default("tzyx-3-shards", "yx-1", "one voxel")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("region", REGIONS.values(), ids=REGIONS)
def test_outputs_are_valid_ome_zarr(tmp_path: Path, kind: str, region: Box, outputs: int) -> None:
    units = {"y": "nanometer", "x": "nanometer"}
    output = created(tmp_path / "a.zarr", region, outputs=outputs, units=units, **KINDS[kind])
    write_all(output, grey(outputs, *region.shape))
    output.mark_complete()
    assert yaozarrs.validate_zarr_store(str(output.path)).ome_version() == ("0.4" if kind == "zarr 2" else "0.5")


@pytest.mark.by_default("zyx-1-zarr 3", "yx-3-zarr 2", "one voxel")
@pytest.mark.parametrize(("kind", "dtype"), list(zip(KINDS, ["uint8", "float16", "float32"], strict=True)))
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("region", REGIONS.values(), ids=REGIONS)
def test_an_output_is_read_back_as_a_volume(tmp_path: Path, kind: str, region: Box, dtype: str, outputs: int) -> None:
    output = created(tmp_path / "a.zarr", region, dtype, outputs, **KINDS[kind])
    values = (grey(outputs, *region.shape) / np.float32(255)).astype(dtype)
    write_all(output, values)
    volume = open_volume(output.path)
    assert volume.axes == output.plan.axes
    assert (volume.dtype, volume.channels) == (np.dtype(dtype), outputs)
    assert np.array_equal(volume.read(volume.whole()), values)


def test_classes_get_an_axis_before_the_spatial_ones(tmp_path: Path) -> None:
    output = created(tmp_path / "a.zarr", REGIONS["tzyx"], outputs=3)
    assert zarr.open_array(Path(output.path) / "0").metadata.dimension_names == ("t", "c", "z", "y", "x")  # type: ignore[union-attr]
    assert (output.open().shape, output.open().chunks) == ((2, 3, 2, 37, 45), (1, 1, 1, 8, 8))


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_has_the_voxel_size_and_position_of_its_region(tmp_path: Path, kind: str) -> None:
    output = created(
        tmp_path / "a.zarr",
        outputs=2,
        voxel_size={"z": 50, "y": 4, "x": 4.5},
        translation={"z": 10, "y": -8, "x": 0.5},
        units=dict.fromkeys("zyx", "nanometer"),
        **KINDS[kind],
    )
    volume = open_volume(output.path)
    assert volume.voxel_size == {"c": 1, "z": 50, "y": 4, "x": 4.5}
    assert volume.translation == {"c": 0, "z": 60, "y": 4, "x": 23}
    assert volume.units == dict.fromkeys("zyx", "nanometer")


@pytest.mark.by_default("zyx-3-shards", "yx-1", "one voxel")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("region", REGIONS.values(), ids=REGIONS)
def test_files_lists_exactly_the_files_that_a_block_writes(
    tmp_path: Path, kind: str, region: Box, outputs: int
) -> None:
    output = created(tmp_path / "a.zarr", region, outputs=outputs, **KINDS[kind])
    array, before = output.open(), chunk_files(output)
    for number in range(output.plan.blocks):
        box = output.plan.output_box(output.plan.block(number))
        output.write(array, box, np.full((outputs, *box.shape), 7, np.uint8))
        listed = list(output.files(box))
        assert set(listed) == chunk_files(output) - before
        assert len(listed) == len(set(listed))
        before = chunk_files(output)


def test_a_chunk_of_zeros_leaves_no_file_and_reads_as_zeros(tmp_path: Path) -> None:
    output = created(tmp_path / "a.zarr")
    values = np.zeros((1, *REGION.shape), np.uint8)
    values[0, 1, 20, 30] = 9
    write_all(output, values)
    assert chunk_files(output) == {Path(output.path) / "0" / "c" / "1" / "2" / "3"}
    assert np.array_equal(open_volume(output.path).read(Box.of_shape(REGION.shape)), values)


@pytest.mark.parametrize("kind", KINDS)
def test_writing_a_block_again_replaces_it(tmp_path: Path, kind: str) -> None:
    output = created(tmp_path / "a.zarr", **KINDS[kind])
    write_all(output, grey(1, *REGION.shape))
    write_all(output, np.zeros((1, *REGION.shape), np.uint8))
    assert not open_volume(output.path).read(Box.of_shape(REGION.shape)).any()


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_is_incomplete_until_it_is_marked(tmp_path: Path, kind: str) -> None:
    output = created(tmp_path / "a.zarr", **KINDS[kind])
    before = marker(output.path)
    assert before is not None
    assert before["complete"] is False
    output.mark_complete()
    assert marker(output.path) == {**before, "complete": True}
    assert before["region"] == [[1, 4], [3, 40], [5, 50]]
    assert before["extent"] == [4, 40, 50]


def test_creation_leaves_no_other_file(tmp_path: Path) -> None:
    output = created(tmp_path / "a.zarr")
    assert list(tmp_path.iterdir()) == [output.path]


def test_an_output_of_another_launcher_is_kept(tmp_path: Path) -> None:
    first = created(tmp_path / "a.zarr")
    values = grey(1, *REGION.shape)
    write_all(first, values)
    again = created(tmp_path / "a.zarr")
    assert np.array_equal(open_volume(again.path).read(Box.of_shape(REGION.shape)), values)
    assert list(tmp_path.iterdir()) == [again.path]


def foreign(path: Path, kind: str) -> None:
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder":
        path.mkdir()
        (path / "thesis.txt").write_text("mine")
    elif kind == "zarr":
        zarr.create_array(path, data=grey(4, 4))
    else:
        zarr.open_group(path, mode="w", attributes={"ome": {"version": "0.5"}})


@pytest.mark.parametrize("kind", ["file", "folder", "zarr", "group"])
def test_files_of_other_programs_are_refused_and_kept(tmp_path: Path, kind: str) -> None:
    foreign(path := tmp_path / "a.zarr", kind)
    before = sorted(path.rglob("*"))
    with pytest.raises(UnetcliError, match=r"a\.zarr: exists and was not written by unetcli"):
        require_own_output(path, "predict", "--output names another place")
    with pytest.raises(OSError, match=r"a\.zarr"):
        created(path)
    assert sorted(path.rglob("*")) == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_free_place_an_empty_folder_and_an_own_output_are_accepted(tmp_path: Path) -> None:
    require_own_output(tmp_path / "free", "predict", "")
    (tmp_path / "empty").mkdir()
    require_own_output(tmp_path / "empty", "predict", "")
    created(tmp_path / "empty")
    require_own_output(tmp_path / "empty", "predict", "")
    assert marker(tmp_path / "empty") is not None


def damage(path: Path, how: str) -> None:
    """Damage a file as crashes, full disks and old disks do."""
    data = bytearray(path.read_bytes())
    if how == "bit":
        data[len(data) // 3] ^= 16
    path.write_bytes({"half": data[: len(data) // 2], "empty": b"", "zeros": bytes(len(data)), "bit": data}[how])


DAMAGES = ["half", "empty", "zeros", "bit"]
PIPELINES = [
    f"zarr.core.codec_pipeline.{name}"
    for name in ("BatchedCodecPipeline", "FusedCodecPipeline")
    if hasattr(zarr.core.codec_pipeline, name)
]
"""Codec pipelines of the installed zarr-python; the fused one exists since version 3.4."""


@pytest.mark.by_default("shards-empty", "shards-zeros", "zarr 3-half", "zarr 2-bit")
@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_chunk_or_shard_is_replaced_to_the_same_bytes(
    tmp_path: Path, kind: str, how: str, pipeline: str
) -> None:
    with zarr.config.set({"codec_pipeline.path": pipeline}):
        require_replaced(tmp_path, kind, how)


def require_replaced(tmp_path: Path, kind: str, how: str) -> None:
    output, values = created(tmp_path / "a.zarr", outputs=2, **KINDS[kind]), grey(2, *REGION.shape)
    write_all(output, values)
    sound = {path: path.read_bytes() for path in chunk_files(output)}
    for path in sound:
        damage(path, how)
    write_all(output, values)
    assert {path: path.read_bytes() for path in chunk_files(output)} == sound
    for path in sound:
        damage(path, how)
    write_all(output, np.zeros_like(values))
    assert chunk_files(output) == set()


@pytest.mark.by_default("shards-bit", "zarr 3-zeros", "zarr 2-half")
@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_error_for_damaged_data_names_the_region(tmp_path: Path, kind: str, how: str) -> None:
    output, values = created(tmp_path / "a.zarr", outputs=2, **KINDS[kind]), grey(2, *REGION.shape)
    write_all(output, values)
    boxes = [output.plan.output_box(output.plan.block(number)) for number in range(output.plan.blocks)]
    damaged, sound = boxes[2], [box for box in boxes if box is not boxes[2]]
    for path in output.files(damaged):
        damage(path, how)
    assert all(np.array_equal(output.read(box), values[(slice(None), *box.slices)]) for box in sound)
    with pytest.raises(UnreadableBlock, match=r"a\.zarr/0: cannot read z 0:1, y 24:37, x 0:40: \S"):
        output.read(damaged)


def test_a_killed_writer_leaves_the_old_shard_and_a_draft(tmp_path: Path) -> None:
    output, values = created(tmp_path / "a.zarr", side=4), grey(1, *REGION.shape)
    write_all(output, values)
    before = {path: path.read_bytes() for path in chunk_files(output)}
    program = (
        "import os, sys, zarr; from pathlib import Path; from unetcli.volumes.store import WriteOnlyStore, store_at\n"
        "array = zarr.open_array(WriteOnlyStore(store_at(sys.argv[1]).zarr()), path='0', mode='r+')\n"
        "Path.replace = lambda self, target: os._exit(9)\n"
        "array[0:1, 0:24, 0:40] = 5\n"
    )
    assert subprocess.run([sys.executable, "-c", program, output.path], check=False).returncode == 9
    assert output.store.sweep() > 0
    assert {path: path.read_bytes() for path in chunk_files(output)} == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outputs", [1, 3])
def test_an_output_has_the_files_that_were_planned(tmp_path: Path, kind: str, outputs: int) -> None:
    output = created(tmp_path / "a.zarr", outputs=outputs, **KINDS[kind])
    write_all(output, np.full((outputs, *REGION.shape), 7, np.uint8))
    assert output_files(output.plan) == sum(path.is_file() for path in Path(output.path).rglob("*"))


@pytest.mark.parametrize("kind", KINDS)
def test_only_outputs_of_unetcli_are_removed(tmp_path: Path, kind: str) -> None:
    output = created(tmp_path / "a.zarr", **KINDS[kind])
    zarr.create_array(tmp_path / "b.zarr", data=grey(4, 4))
    before = sorted((tmp_path / "b.zarr").rglob("*"))
    for name in ("a.zarr", "b.zarr", "missing.zarr"):
        remove_output(tmp_path / name)
    assert not Path(output.path).exists()
    assert sorted((tmp_path / "b.zarr").rglob("*")) == before
    assert [path.name for path in tmp_path.iterdir()] == ["b.zarr"]
