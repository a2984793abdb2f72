"""Runs of label: stages with receipts, continued to the same bytes, on any executor."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaozarrs
import zarr
from helpers import grey, read_receipts, write_prediction, write_zarr
from label.maps import blobs
from label.store import (
    FOLDER,
    LABELS,
    SHAPE,
    STORE,
    TABLE,
    by_scipy,
    files,
    label,
    rows,
    stop_after,
    stored,
    tables,
)
from numpy.typing import NDArray
from places import site
from scipy import ndimage

from unetcli.core.errors import UnetcliError
from unetcli.core.ranges import numbers
from unetcli.engine.runfolder import RunFolder
from unetcli.engine.worker import StepTask
from unetcli.executors.options import ClusterOptions
from unetcli.label.objects import in_order, neighbourhood
from unetcli.label.plan import FORMAT
from unetcli.label.step import LabelStep

pytestmark = pytest.mark.usefixtures("here")


def test_labels_table_and_summary_are_those_of_the_whole_array(values: NDArray[np.uint8]) -> None:
    summary = label()
    expected = by_scipy(values)
    assert np.array_equal(stored(), expected)
    assert stored().dtype == np.min_scalar_type(expected.max())
    assert (summary.complete, summary.objects, summary.dtype) == (True, expected.max(), str(stored().dtype))
    assert [int(row["id"]) for row in rows()] == list(range(1, expected.max() + 1))
    row, voxels = rows()[4], np.argwhere(expected == 5)
    assert [int(row[f"{axis}_start"]) for axis in "zyx"] == voxels.min(0).tolist()
    assert [int(row[f"{axis}_stop"]) for axis in "zyx"] == (voxels.max(0) + 1).tolist()
    assert [float(row[f"{axis}_centre"]) for axis in "zyx"] == pytest.approx(voxels.mean(0), abs=0.006)
    assert int(row["voxels"]) == len(voxels)
    assert float(row["mean"]) == pytest.approx((values[expected == 5] / 255).mean(), rel=1e-5)
    assert summary.sizes is not None
    assert summary.sizes["max"] == np.bincount(expected.ravel())[1:].max()


@pytest.mark.parametrize(
    ("method", "dtype"),
    [
        ("components", "uint8"),
        ("watershed", "float32"),
        pytest.param("components", "float32", marks=pytest.mark.slow),
        pytest.param("watershed", "uint8", marks=pytest.mark.slow),
    ],
)
def test_the_bytes_do_not_depend_on_the_block(method: str, dtype: str) -> None:
    made = blobs(SHAPE, 2, seed=7)
    write_prediction(STORE, made if dtype == "uint8" else (made / np.float32(255)), (1, 16, 16))
    label(method=method)
    first = files()
    for size in (1, 10**9):
        label(method=method, block_voxels=size, overwrite=True)
        assert files() == first


KINDS: dict[str, dict[str, Any]] = {"zarr 3": {}, "shards": {"shards": (1, 32, 32)}, "zarr 2": {"zarr_format": 2}}


@pytest.mark.by_default("zarr 3", "shards")
@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_ome_zarr_like_their_image(kind: str) -> None:
    made = blobs(SHAPE, 2, seed=7)
    write_prediction(STORE, made, (1, 16, 16), levels=3, **KINDS[kind])
    label()
    version = "0.4" if kind == "zarr 2" else "0.5"
    assert yaozarrs.validate_zarr_store(str(STORE)).ome_version() == version
    assert yaozarrs.validate_zarr_store(str(LABELS)).ome_version() == version
    image, labels = zarr.open_group(STORE, mode="r"), zarr.open_group(LABELS, mode="r")
    levels = [group.attrs.get("ome", group.attrs)["multiscales"][0]["datasets"] for group in (image, labels)]
    assert levels[0] == levels[1]
    assert len(levels[0]) == 3
    for level in ("0", "1", "2"):
        made_level, image_level = labels[level], image[level]
        assert isinstance(made_level, zarr.Array)
        assert isinstance(image_level, zarr.Array)
        assert (made_level.shape, made_level.chunks) == (image_level.shape, image_level.chunks)
        assert made_level.shards == image_level.shards
    expected = by_scipy(made)
    assert np.array_equal(stored(1), expected[:, ::2, ::2])
    assert np.array_equal(stored(2), expected[:, ::4, ::4])
    assert labels.attrs["unetcli"]["complete"] is True
    listed = zarr.open_group(STORE / "labels", mode="r").attrs
    assert listed.get("ome", listed)["labels"] == ["instances"]


SHAPES = {
    "a voxel": (1, 1),
    "a line": (1, 300),
    "an image": (37, 41),
    "a stack of one": (1, 20, 9),
    "times": (2, 3, 20, 9),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("method", ["components", "watershed"])
def test_awkward_shapes(shape: tuple[int, ...], method: str) -> None:
    made = blobs(shape, 1.5, seed=3) | np.uint8(4)
    write_prediction(STORE, made, (*(1,) * (len(shape) - 2), 8, 8))
    summary = label(method=method, block_voxels=70)
    assert summary.complete
    assert np.array_equal(stored() > 0, made >= 128)
    if method == "components":
        assert np.array_equal(stored(), by_scipy(made))


def test_objects_go_through_sections_where_wanted_but_never_through_time() -> None:
    made = blobs((2, 9, 20, 21), 1.5, seed=4)
    write_prediction(STORE, made, (1, 1, 16, 16))
    label(three_d=True, connectivity=26)
    expected = ndimage.label(made >= 128, neighbourhood("tzyx", 26, three_d=True))[0]
    assert np.array_equal(stored(), in_order(expected))


def test_small_objects_are_those_that_are_small_once_merged(values: NDArray[np.uint8]) -> None:
    summary = label(min_size=30)
    labels, sizes = by_scipy(values), np.bincount(by_scipy(values).ravel())
    assert summary.removed == np.count_nonzero(sizes[1:] < 30) > 0
    assert np.array_equal(stored(), in_order(labels, 30))
    assert min(int(row["voxels"]) for row in rows()) >= 30


def test_no_object_is_a_result_too() -> None:
    write_prediction(STORE, np.full((2, 20, 20), 9, np.uint8), (1, 16, 16))
    summary = label()
    assert (summary.complete, summary.objects, summary.sizes) == (True, 0, None)
    assert not stored().any()
    assert rows() == []


def test_one_class_of_several_is_named() -> None:
    made = np.stack([blobs(SHAPE, 2, seed=number) for number in range(3)])
    write_prediction(STORE, made, (1, 16, 16))
    with pytest.raises(UnetcliError, match=r"channels 0 to 2, .*--channel N"):
        label()
    with pytest.raises(UnetcliError, match=r"--channel 3: big\.pred\.zarr has channels 0 to 2"):
        label(channel=3)
    label(channel=2)
    assert np.array_equal(stored(), by_scipy(made[2]))
    assert zarr.open_array(LABELS / "0").ndim == 3


def test_grey_values_of_another_volume_are_measured(values: NDArray[np.uint8]) -> None:
    raw = grey(*SHAPE)
    write_zarr(Path("raw.zarr"), raw)
    label(intensity="raw.zarr")
    labels = by_scipy(values)
    for row in rows()[:9]:
        assert float(row["mean"]) == pytest.approx(raw[labels == int(row["id"])].mean(), rel=1e-5)
    write_zarr(Path("other.zarr"), grey(3, 75, 91))
    with pytest.raises(UnetcliError, match=r"other\.zarr is z 3, y 75, x 91; expected z 3, y 75, x 90"):
        label(intensity="other.zarr", name="more")


@pytest.mark.parametrize("method", ["components", pytest.param("watershed", marks=pytest.mark.slow)])
def test_stopped_again_and_again_it_comes_out_the_same_and_nothing_is_made_twice(
    values: NDArray[np.uint8], method: str
) -> None:
    label(method=method)
    whole = files()
    label(method=method, overwrite=True, stopping=lambda: True)
    assert not LABELS.exists()
    assert not TABLE.exists()
    calls, made = 0, 0
    while True:
        answers = iter([False] * 4)  # the fifth query says stop
        summary = label(method=method, stopping=lambda: next(answers, True))  # noqa: B023 - called at once
        calls, made = calls + 1, made + summary.made
        if summary.complete:
            break
    assert calls > 10
    assert made == summary.blocks == len(list(read_receipts(FOLDER / "receipts")))
    assert files() == whole


def test_the_same_command_again_changes_nothing(labels: None) -> None:
    before = {path: path.stat().st_mtime_ns for path in LABELS.rglob("*")}
    summary = label(block_voxels=None)
    assert (summary.complete, summary.made) == (True, 0)
    assert "already complete" in summary.sentence
    assert {path: path.stat().st_mtime_ns for path in LABELS.rglob("*")} == before


def test_nothing_but_the_result_is_left(labels: None) -> None:
    assert not (FOLDER / "blocks").exists()
    assert {path.name for path in FOLDER.glob("*.npy")} == {"numbers.npy", "offsets.npy"}  # for repairs
    assert not list(Path().rglob("*.partial"))


def test_deleted_labels_are_made_again(labels: None) -> None:
    whole = files()
    shutil.rmtree(LABELS)
    summary = label()
    assert summary.made == summary.blocks
    assert files() == whole


@pytest.mark.by_default("torn-merge", "gone-number")
@pytest.mark.parametrize("stage", ["merge", "number"])
@pytest.mark.parametrize("how", ["torn", "gone"])
def test_what_a_block_found_is_found_again_where_it_is_damaged(labels: None, stage: str, how: str) -> None:
    whole = files()
    label(
        overwrite=True, stopping=lambda: len(tables()) == 27 and (stage == "merge" or (FOLDER / "merged.json").exists())
    )
    path = sorted(FOLDER.rglob("*.tables"))[3]
    path.write_bytes(path.read_bytes()[:-9])
    if how == "gone":
        path.unlink()
    assert label().complete
    assert files() == whole


def test_a_damaged_chunk_is_refused_with_its_place_and_labelled_once_it_is_whole(values: NDArray[np.uint8]) -> None:
    chunk = STORE / "0/c/1/2/3"
    content = chunk.read_bytes()
    chunk.write_bytes(content[:-5])
    with pytest.raises(
        UnetcliError, match=r"cannot read z 1:2, .*; labels need every voxel; restore the file"
    ) as caught:
        label()
    assert "\n" not in str(caught.value)
    assert not LABELS.exists()
    chunk.write_bytes(content)
    again = label()
    assert again.complete
    assert again.found_done > 20  # what was computed before is kept


@pytest.mark.slow
def test_blocks_set_aside_by_other_processes_are_logged_here(
    values: NDArray[np.uint8], caplog: pytest.LogCaptureFixture
) -> None:
    chunk = STORE / "0/c/1/2/3"
    chunk.write_bytes(chunk.read_bytes()[:-5])
    with pytest.raises(UnetcliError, match="labels need every voxel"):
        label(where=ClusterOptions(workers=2))
    assert "(find: z 1:2, y 32:64, x 32:64) set aside: " in caplog.text


def test_other_settings_are_refused_by_name(values: NDArray[np.uint8]) -> None:
    label(threshold=0.4)
    with pytest.raises(UnetcliError, match=r"threshold 0\.5 \(was 0\.4\); .*--overwrite"):
        label()
    with pytest.raises(UnetcliError, match=r"connectivity 8 \(was 4\)"):
        label(threshold=0.4, connectivity=8)
    assert label(overwrite=True).complete


def test_labels_without_their_run_folder_are_not_written_over(labels: None) -> None:
    before = files()
    shutil.rmtree(FOLDER)
    with pytest.raises(UnetcliError, match=r"exists, but .*plan\.json"):
        label()
    assert files() == before


def test_another_prediction_at_the_same_place_is_noticed(labels: None) -> None:
    array = zarr.open_array(STORE / "0", mode="r+")
    array[0, :16, :16] = 255
    with pytest.raises(UnetcliError, match="the prediction has changed"):
        label()


def test_several_labels_lie_beside_each_other(values: NDArray[np.uint8]) -> None:
    zarr.open_group(STORE / "labels", mode="w", attributes={"ome": {"version": "0.5", "labels": ["other"]}, "x": 1})
    label()
    label(name="strict", threshold=0.7)
    attributes = zarr.open_group(STORE / "labels", mode="r").attrs
    assert attributes["ome"]["labels"] == ["other", "instances", "strict"]
    assert attributes["x"] == 1
    label(name="strict", overwrite=True, stopping=lambda: True)
    assert zarr.open_group(STORE / "labels", mode="r").attrs["ome"]["labels"] == ["other", "instances"]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["two processes", "a scheduler of others"])
def test_every_executor_gives_the_same_bytes(labels: None, tmp_path: Path, place: str) -> None:
    here = files()
    if place == "two processes":
        label(overwrite=True, where=ClusterOptions(workers=2))
    else:
        with site(tmp_path, workers=2) as there:
            where = ClusterOptions(cluster="dask", scheduler=there.address, tls=there.tls)
            label(overwrite=True, where=where)
    assert files() == here
    receipts = list(read_receipts(FOLDER / "receipts"))
    assert len({receipt.block for receipt in receipts}) == len(receipts)


def test_two_workers_with_the_same_blocks_do_no_harm(values: NDArray[np.uint8]) -> None:
    """A worker that was presumed dead, but is alive, writes the same as its replacement."""
    label(stopping=stop_after(20))
    plan = json.loads((FOLDER / "plan.json").read_text())
    assert plan["format"] == FORMAT
    first = tables()
    (FOLDER / "receipts").rename(FOLDER / "old")
    (FOLDER / "receipts").mkdir()
    task, blocks = StepTask(LabelStep), ((0, len(first)),)
    assert task(str(FOLDER), blocks) == len(list(numbers(blocks)))
    assert tables() == first
    assert task(str(FOLDER), blocks) == 0


def test_tables_that_are_gone_are_found_again_in_one_call_on_another_host_too(
    labels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = files()
    label(overwrite=True, stopping=stop_after(LabelStep.open(RunFolder(FOLDER)).plan.pieces + 3))
    shutil.rmtree(FOLDER / "blocks")
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    assert label().complete
    assert files() == whole
