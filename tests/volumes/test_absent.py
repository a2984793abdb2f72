"""Parts of an array of which nothing is stored are recognised without reading them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from unetcli.core.geometry import Box
from unetcli.volumes.absent import is_absent
from unetcli.volumes.opening import open_volume

LAYOUTS: dict[str, dict[str, Any]] = {
    "v3": {"chunks": (1, 8, 8)},
    "v2": {"chunks": (1, 8, 8), "zarr_format": 2},
    "nested v2": {"chunks": (1, 8, 8), "zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "/"}},
    "shards": {"chunks": (1, 4, 4), "shards": (1, 8, 8)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_absent_are_the_boxes_that_touch_no_stored_chunk(tmp_path: Path, layout: str) -> None:
    array = zarr.create_array(tmp_path / "a.zarr", shape=(2, 13, 22), dtype="u1", fill_value=7, **LAYOUTS[layout])
    array[1, 9, 17] = 3  # the last chunks of section 1
    volume = open_volume(tmp_path / "a.zarr")
    stored = Box((1, 8, 16), (2, 13, 22))
    sides = [[(0, 1), (1, 2), (0, 2)], [(0, 8), (7, 9), (8, 13)], [(0, 16), (15, 17), (16, 22)]]
    for ranges in itertools.product(*sides):
        box = Box(*(tuple(side[n] for side in ranges) for n in (0, 1)))
        touches = all(
            a < d and c < b for a, b, c, d in zip(box.start, box.stop, stored.start, stored.stop, strict=True)
        )
        assert volume.is_absent(box) == (not touches), box
        if volume.is_absent(box):
            assert (volume.read(box) == 7).all()


def test_channels_and_dropped_axes_are_considered(tmp_path: Path) -> None:
    names = ["c", "z", "y", "x"]
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(2, 1, 16, 16), chunks=(1, 1, 8, 8), dtype="u1", dimension_names=names
    )
    array[1, 0, 9, 9] = 3
    volume = open_volume(tmp_path / "a.zarr").without_single_axes()
    assert volume.axes == "yx"
    assert volume.is_absent(Box((0, 0), (8, 16)))
    assert not volume.is_absent(Box((8, 8), (16, 16)))


def test_what_stands_in_the_place_of_a_chunk_is_not_absent(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "a.zarr", shape=(16, 16), chunks=(8, 8), dtype="u1")
    (tmp_path / "a.zarr/c/0/0").mkdir(parents=True)
    (tmp_path / "a.zarr/c/0/1").symlink_to("nowhere")
    (tmp_path / "a.zarr/c/1").write_bytes(b"")
    places = [(0, 0), (0, 8), (8, 0)]
    assert not any(is_absent(array, (slice(y, y + 8), slice(x, x + 8))) for y, x in places)


def test_nothing_is_absent_in_other_files(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((2, 16, 16), np.uint8), photometric="minisblack")
    assert not open_volume(tmp_path / "a.tif").is_absent(Box((0, 0, 0), (1, 8, 8)))
    assert not is_absent(np.zeros((8, 8)), (slice(0, 8), slice(0, 8)))
