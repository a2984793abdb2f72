"""Chunks that were never stored cost nothing, and the labels are those of the same values stored in full."""

from __future__ import annotations

import shutil
import time
from typing import Any

import numpy as np
import pytest
import zarr
from helpers import write_prediction
from label.maps import blobs
from label.store import FOLDER, LABELS, SHAPE, STORE, by_scipy, files, label, stop_after, stored
from numpy.typing import NDArray

from unetcli.executors.options import VerifyRequest
from unetcli.registry import verify_output

pytestmark = pytest.mark.usefixtures("here")
CHUNKS = (1, 16, 16)


def scattered(fill: int) -> NDArray[np.uint8]:
    """Blobs in a few places, some across the edges of chunks and blocks, and one value elsewhere."""
    values = np.full(SHAPE, fill, np.uint8)
    made = blobs(SHAPE, 2, seed=7)
    for place in ((0, slice(3, 40), slice(20, 50)), (2, slice(60, 75), slice(70, 90))):
        values[place] = made[place]
    return values


def write(values: NDArray[np.uint8], *, fill: int, dense: bool) -> int:
    """Write a prediction at ``STORE``, with chunks of the fill value or without; return how many are stored."""
    write_prediction(STORE, values, CHUNKS)
    shutil.rmtree(STORE / "0")
    with zarr.config.set({"array.write_empty_chunks": dense}):
        array = zarr.create_array(
            STORE / "0", shape=SHAPE, chunks=CHUNKS, dtype="u1", fill_value=fill, dimension_names=list("zyx")
        )
        array[...] = values
    return len([path for path in (STORE / "0/c").rglob("*") if path.is_file()])


@pytest.mark.by_default("components-0", "watershed-200", "components-100")
@pytest.mark.parametrize("fill", [0, 100, 200])
@pytest.mark.parametrize("method", ["components", "watershed"])
def test_labels_are_those_of_the_values_stored_in_full(method: str, fill: int) -> None:
    values, found = scattered(fill), []
    for dense in (True, False):
        shutil.rmtree(STORE, ignore_errors=True)
        shutil.rmtree(FOLDER.parent, ignore_errors=True)
        chunks = write(values, fill=fill, dense=dense)
        assert (chunks == 3 * 5 * 6) == dense
        label(method=method)
        found.append(files())
    assert found[0] == found[1]
    if method == "components":
        assert np.array_equal(stored(), by_scipy(values))


def test_a_chunk_where_no_object_is_is_removed_by_a_repair() -> None:
    """A block without objects writes nothing where nothing is stored, but replaces what it finds."""
    write(scattered(0), fill=0, dense=False)
    label()
    whole = files()
    other = LABELS / "0/c/1/2/3"
    other.parent.mkdir(parents=True)
    shutil.copyfile(next(path for path in (LABELS / "0/c/0").rglob("*") if path.is_file()), other)
    assert files() != whole
    (found,) = verify_output(VerifyRequest(output=STORE, repair=True))
    assert found.repaired
    assert files() == whole


def test_a_stopped_run_continues_to_the_same_labels() -> None:
    write(scattered(0), fill=0, dense=False)
    label()
    whole = files()
    label(overwrite=True, stopping=stop_after(20))
    label()
    assert files() == whole


def test_an_absent_volume_takes_no_time() -> None:
    """32768 x 32768 voxels of which one chunk is stored; over a minute if all of them are searched."""
    scale = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1.0, 1.0]}]}
    axes = [{"name": axis, "type": "space"} for axis in "yx"]
    ome = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [scale]}]}
    image = zarr.create_group(STORE, zarr_format=3, attributes={"ome": ome})
    sides: dict[str, Any] = {"shape": (32768, 32768), "chunks": (1024, 1024), "dimension_names": ["y", "x"]}
    array = image.create_array("0", dtype="u1", fill_value=0, **sides)
    array[20000:20010, 5000:5010] = 255
    started = time.process_time()
    summary = label(block_voxels=None)
    assert time.process_time() - started < 15
    assert summary.objects == 1
    expected = np.zeros((30, 30), np.uint8)
    expected[10:20, 10:20] = 1
    assert np.array_equal(zarr.open_array(LABELS / "0", mode="r")[19990:20020, 4990:5020], expected)
