"""label as a run: stages with receipts, continued to the same bytes, on any executor; nothing foreign is touched."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaozarrs
import zarr
from helpers import grey, write_prediction, write_zarr
from labelling.maps import blobs
from numpy.typing import NDArray
from places import site
from scipy import ndimage

from unetcli.config import Where
from unetcli.errors import UnetcliError
from unetcli.labelling.components import in_order, neighbourhood
from unetcli.labelling.request import LabelRequest
from unetcli.labelling.run import LabelSummary, label_volume
from unetcli.labelling.work import label_blocks
from unetcli.ranges import numbers
from unetcli.runs.receipts import read_receipts

STORE = Path("big.pred.zarr")
LABELS = STORE / "labels/instances"
FOLDER = Path("big.pred.zarr.run/instances")
TABLE = Path("big.pred.zarr.instances.csv")
SHAPE = (3, 75, 90)
SMALL = 1500
"""Voxels of a block: 27 of them."""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def values() -> NDArray[np.uint8]:
    """What is predicted, and stored at ``STORE``."""
    made = blobs(SHAPE, 2, seed=7)
    write_prediction(STORE, made, (1, 16, 16), levels=3)
    return made


def label(**options: Any) -> LabelSummary:
    where = options.pop("where", None)
    stopping = options.pop("stopping", bool)
    return label_volume(
        LabelRequest(**{"prediction": str(STORE), "block_voxels": SMALL, **options}), stopping=stopping, where=where
    )


def files(folder: Path = LABELS) -> dict[str, bytes]:
    """All of the labels but what tells how they were made, and the table."""
    found = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return found | ({str(TABLE): TABLE.read_bytes()} if TABLE.exists() else {})


def stored(level: int = 0, place: Path = LABELS) -> NDArray[Any]:
    return np.asarray(zarr.open_array(place / str(level), mode="r")[...])


def by_scipy(values: NDArray[np.uint8], threshold: int = 128) -> NDArray[np.int32]:
    axes = "tzyx"[-values.ndim :]
    return in_order(ndimage.label(values >= threshold, neighbourhood(axes, 4))[0])


def rows() -> list[dict[str, str]]:
    with TABLE.open() as file:
        return list(csv.DictReader(file))


# -- what comes out


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


@pytest.mark.parametrize("method", ["components", "watershed"])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_the_bytes_do_not_depend_on_the_block(method: str, dtype: str) -> None:
    made = blobs(SHAPE, 2, seed=7)
    write_prediction(STORE, made if dtype == "uint8" else (made / np.float32(255)), (1, 16, 16))
    label(method=method)
    first = files()
    for size in (1, 10**9):
        label(method=method, block_voxels=size, overwrite=True)
        assert files() == first


KINDS: dict[str, dict[str, Any]] = {"zarr 3": {}, "shards": {"shards": (1, 32, 32)}, "zarr 2": {"zarr_format": 2}}


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_ome_zarr_like_their_image(kind: str) -> None:
    made = blobs(SHAPE, 2, seed=7)
    write_prediction(STORE, made, (1, 16, 16), levels=3, **KINDS[kind])
    label()
    version = "0.4" if kind == "zarr 2" else "0.5"
    assert yaozarrs.validate_zarr_store(str(STORE)).ome_version() == version
    assert yaozarrs.validate_zarr_store(str(LABELS)).ome_version() == version
    image, labels = zarr.open_group(STORE, mode="r"), zarr.open_group(LABELS, mode="r")
    told = [group.attrs.get("ome", group.attrs)["multiscales"][0]["datasets"] for group in (image, labels)]
    assert told[0] == told[1]
    assert len(told[0]) == 3
    for level in ("0", "1", "2"):
        ours, theirs = labels[level], image[level]
        assert isinstance(ours, zarr.Array)
        assert isinstance(theirs, zarr.Array)
        assert (ours.shape, ours.chunks, ours.shards) == (theirs.shape, theirs.chunks, theirs.shards)
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
    with pytest.raises(UnetcliError, match="channels 0 to 2, one per class; --channel N"):
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
    with pytest.raises(UnetcliError, match=r"other\.zarr is z 3, y 75, x 91, but big\.pred\.zarr is z 3, y 75, x 90"):
        label(intensity="other.zarr", name="more")


# -- the threshold that fits a truth


def write_truth(values: NDArray[Any]) -> None:
    tifffile.imwrite("truth.tif", values, photometric="minisblack")


def test_the_threshold_is_the_one_whose_objects_fit_best(values: NDArray[np.uint8]) -> None:
    write_truth(by_scipy(values, threshold=int(255 * 0.65) + 1).astype(np.uint16))
    summary = label(auto_threshold_from="truth.tif")
    assert summary.threshold == 0.65
    Path("truth.tif").unlink()
    write_truth(np.ones(SHAPE, np.uint8))
    assert label(auto_threshold_from="truth.tif").threshold == 0.65  # frozen
    write_truth(np.zeros(SHAPE, np.uint8))
    with pytest.raises(UnetcliError, match=r"truth\.tif: holds no object"):
        label(auto_threshold_from="truth.tif", overwrite=True)


def test_a_truth_of_one_value_is_what_is_connected(values: NDArray[np.uint8]) -> None:
    write_truth(np.where(values > 255 * 0.35, 255, 0).astype(np.uint8))
    assert label(auto_threshold_from="truth.tif").threshold == 0.35


# -- for the cell tracking challenge


def test_frames_are_exported_each_numbered_from_one(values: NDArray[np.uint8]) -> None:
    summary = label(ctc=Path("01_RES"))
    assert summary.ctc_frames == 3
    assert sorted(path.name for path in Path("01_RES").iterdir()) == [f"mask{n:03d}.tif" for n in range(3)]
    for number, section in enumerate(by_scipy(values)):
        frame = tifffile.imread(f"01_RES/mask{number:03d}.tif")
        assert frame.dtype == np.uint16
        assert np.array_equal(frame, in_order(section))
    assert label(ctc=Path("01_RES")).ctc_frames == 3  # again, in place of the first


def test_volumes_in_time_are_exported_as_stacks() -> None:
    made = blobs((2, 4, 20, 21), 1.5, seed=4)
    write_prediction(STORE, made, (1, 1, 16, 16))
    label(three_d=True, ctc=Path("RES"))
    assert tifffile.imread("RES/mask001.tif").shape == (4, 20, 21)
    assert len(list(Path("RES").iterdir())) == 2


def test_more_objects_than_a_frame_holds_are_refused_and_the_labels_stay() -> None:
    made = np.zeros((600, 600), np.uint8)
    made[::2, ::2] = 255
    write_prediction(STORE, made, (512, 512))
    with pytest.raises(UnetcliError, match=r"frame 0 of .* has 90000 objects, its files hold 65535; --min-size N"):
        label(block_voxels=10**6, ctc=Path("RES"))
    assert not Path("RES").exists()
    assert stored().max() == 90000
    assert stored().dtype == np.uint32


def test_a_folder_with_other_files_is_no_place_for_an_export(values: NDArray[np.uint8]) -> None:
    Path("RES").mkdir()
    tifffile.imwrite("RES/mask000.tif", np.zeros((4, 4), np.uint16))
    with pytest.raises(UnetcliError, match="--ctc RES: exists and holds other files"):
        label(ctc=Path("RES"))
    assert not FOLDER.exists()
    assert np.array_equal(tifffile.imread("RES/mask000.tif"), np.zeros((4, 4)))


# -- stopped and continued


@pytest.mark.parametrize("method", ["components", "watershed"])
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
        answers = iter([False] * 4)  # a few looks, then it is time to stop
        summary = label(method=method, stopping=lambda: next(answers, True))  # noqa: B023 - called at once
        calls, made = calls + 1, made + summary.made
        if summary.complete:
            break
    assert calls > 10
    assert made == summary.blocks == len(list(read_receipts(FOLDER / "receipts")))
    assert files() == whole


def test_the_same_command_again_changes_nothing(values: NDArray[np.uint8]) -> None:
    label()
    before = {path: path.stat().st_mtime_ns for path in LABELS.rglob("*")}
    summary = label(block_voxels=None)
    assert (summary.complete, summary.made) == (True, 0)
    assert "complete already" in summary.sentence
    assert {path: path.stat().st_mtime_ns for path in LABELS.rglob("*")} == before


def test_nothing_but_the_result_is_left(values: NDArray[np.uint8]) -> None:
    label()
    assert not (FOLDER / "blocks").exists()
    assert not list(FOLDER.glob("*.npy"))
    assert not list(Path().rglob("*.partial"))


def test_labels_that_were_deleted_are_made_anew(values: NDArray[np.uint8]) -> None:
    label()
    whole = files()
    shutil.rmtree(LABELS)
    summary = label()
    assert summary.made == summary.blocks
    assert files() == whole


def test_a_table_of_a_block_that_is_damaged_or_gone_is_told_and_overwriting_helps(values: NDArray[np.uint8]) -> None:
    label(stopping=lambda: len(tables()) == 27)
    path = sorted(FOLDER.rglob("*.tables"))[3]
    path.write_bytes(path.read_bytes()[:-9])
    summary = label()
    assert not summary.complete
    assert "0000003.tables: cannot be read" in summary.set_aside[0]["reason"]
    assert label(overwrite=True).complete


def test_a_damaged_chunk_sets_its_block_aside_and_is_told(values: NDArray[np.uint8]) -> None:
    chunk = STORE / "0/c/1/2/3"
    chunk.write_bytes(chunk.read_bytes()[:-5])
    summary = label()
    assert not summary.complete
    assert {aside["place"].split(",")[0] for aside in summary.set_aside} == {"z 1:2"}
    assert "cannot read z 1:2" in summary.set_aside[0]["reason"]
    assert "the same command continues" in summary.sentence
    assert not LABELS.exists()


def test_other_settings_are_refused_by_name(values: NDArray[np.uint8]) -> None:
    label(threshold=0.4)
    with pytest.raises(UnetcliError, match=r"threshold 0\.5 \(was 0\.4\); use those again, --overwrite starts anew"):
        label()
    with pytest.raises(UnetcliError, match=r"connectivity 8 \(was 4\)"):
        label(threshold=0.4, connectivity=8)
    assert label(overwrite=True).complete


def test_another_prediction_at_the_same_place_is_noticed(values: NDArray[np.uint8]) -> None:
    label()
    array = zarr.open_array(STORE / "0", mode="r+")
    array[0, :16, :16] = 255
    with pytest.raises(UnetcliError, match="the prediction is another"):
        label()


def test_several_labels_lie_beside_each_other(values: NDArray[np.uint8]) -> None:
    zarr.open_group(STORE / "labels", mode="w", attributes={"ome": {"version": "0.5", "labels": ["theirs"]}, "x": 1})
    label()
    label(name="strict", threshold=0.7)
    attributes = zarr.open_group(STORE / "labels", mode="r").attrs
    assert attributes["ome"]["labels"] == ["theirs", "instances", "strict"]
    assert attributes["x"] == 1
    label(name="strict", overwrite=True, stopping=lambda: True)
    assert zarr.open_group(STORE / "labels", mode="r").attrs["ome"]["labels"] == ["theirs", "instances"]


# -- what is refused


def test_an_incomplete_prediction_is_refused_unless_told_otherwise(values: NDArray[np.uint8]) -> None:
    text = (STORE / "zarr.json").read_text()
    (STORE / "zarr.json").write_text(text.replace('"complete": true', '"complete": false'))
    with pytest.raises(UnetcliError, match=r"big\.pred\.zarr: not complete; .* or --allow-incomplete"):
        label()
    assert not FOLDER.exists()
    assert label(allow_incomplete=True).complete


def put(kind: str) -> Path:
    """Something of somebody else in the place of the labels, or of their table."""
    if kind == "table":
        TABLE.write_text("id,name\n1,mine\n")
        return TABLE
    LABELS.mkdir(parents=True)
    if kind == "folder":
        (LABELS / "thesis.txt").write_text("mine")
    elif kind == "array":
        zarr.create_array(LABELS, data=grey(4, 4), overwrite=True)
    else:
        zarr.open_group(LABELS, mode="w", attributes={"ome": {"version": "0.5"}, "unetcli": {"kind": "probabilities"}})
    return LABELS


@pytest.mark.parametrize("kind", ["table", "folder", "array", "group"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_not_ours_is_refused_and_stays(values: NDArray[np.uint8], kind: str, overwrite: bool) -> None:
    place = put(kind)
    before = files()
    with pytest.raises(UnetcliError, match=r"exists and (was not written by|is no table of) unetcli label"):
        label(overwrite=overwrite)
    assert files() == before
    assert place.exists()
    assert not FOLDER.exists()


def test_what_has_no_place_for_labels_is_refused() -> None:
    write_zarr(Path("plain.zarr"), grey(20, 20))
    tifffile.imwrite("stack.tif", grey(20, 20))
    for name in ("plain.zarr", "stack.tif"):
        with pytest.raises(UnetcliError, match=f"{name}: no OME-Zarr image, which labels could go into"):
            label(prediction=name)


@pytest.mark.parametrize("dtype", ["uint16", "int8"])
def test_integers_that_are_no_probabilities_are_refused(dtype: str) -> None:
    write_prediction(STORE, grey(20, 20).astype(dtype), (8, 8))
    with pytest.raises(UnetcliError, match=f"{dtype}; expected probabilities as uint8"):
        label()


def test_a_mask_of_0_and_1_is_refused() -> None:
    write_prediction(STORE, grey(20, 20) // 128, (8, 8))
    summary = label(threshold=0)
    assert not summary.complete
    assert "0 and 1 as uint8 mean 0 and 1/255" in summary.set_aside[0]["reason"]


@pytest.mark.parametrize("value", [1.5, -0.1, np.nan])
def test_floats_that_are_no_probabilities_are_told_with_their_place(value: float) -> None:
    made = np.full((20, 20), 0.7, np.float32)
    made[3, 13] = value
    write_prediction(STORE, made, (8, 8))
    summary = label(block_voxels=1)
    assert [aside["place"] for aside in summary.set_aside] == ["y 0:8, x 8:16"]
    assert "no probabilities 0 to 1" in summary.set_aside[0]["reason"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "magic"}, "--method magic: expected components or watershed"),
        ({"threshold": 1.0}, "--threshold 1.0: expected a probability from 0 up to, not with, 1"),
        ({"threshold": float("nan")}, "--threshold nan"),
        ({"name": "predict"}, "--name predict"),
        ({"name": "../x"}, r"--name \.\./x"),
        ({"depth": -1.0}, "--depth -1.0: expected 0 or more"),
        ({"reach": 5000}, "--reach 5000: expected at most 1000"),
        ({"landscape": "moon"}, "--landscape moon: expected distance or probability"),
        ({"threshold": 0.4, "auto_threshold_from": "t.tif"}, "--threshold and --auto-threshold-from: one of them"),
        ({"block_voxels": 0}, "--block-voxels 0"),
        ({"connectivity": 6}, "--connectivity 6: expected 4, 8"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    values: NDArray[np.uint8], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UnetcliError, match=said):
        label(**options)
    assert not FOLDER.parent.exists()


# -- where it runs


@pytest.mark.parametrize("place", ["two processes", "a scheduler of others"])
def test_every_executor_gives_the_same_bytes(values: NDArray[np.uint8], tmp_path: Path, place: str) -> None:
    label()
    here = files()
    if place == "two processes":
        label(overwrite=True, where=Where(workers=2))
    else:
        with site(tmp_path, workers=2) as there:
            where = Where(cluster="dask", scheduler=there.address, tls=there.tls)
            label(overwrite=True, where=where)
    assert files() == here
    receipts = list(read_receipts(FOLDER / "receipts"))
    assert len({receipt.block for receipt in receipts}) == len(receipts)


def test_two_workers_with_the_same_blocks_do_no_harm(values: NDArray[np.uint8]) -> None:
    """A worker that was thought dead, and is not, writes what the other does."""
    label(stopping=_after(20))
    plan = json.loads((FOLDER / "plan.json").read_text())
    assert plan["unetcli_labels"] == 1
    first = tables()
    (FOLDER / "receipts").rename(FOLDER / "old")
    (FOLDER / "receipts").mkdir()
    blocks = ((0, len(first)),)
    assert label_blocks(str(FOLDER), blocks) == len(list(numbers(blocks)))
    assert tables() == first
    assert label_blocks(str(FOLDER), blocks) == 0


def tables() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in FOLDER.rglob("*.tables")}


def _after(calls: int) -> Callable[[], bool]:
    answers = iter([False] * calls)
    return lambda: next(answers, True)
