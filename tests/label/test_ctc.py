"""Export for the Cell Tracking Challenge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from helpers import write_prediction
from label.maps import blobs
from label.store import (
    FOLDER,
    STORE,
    by_scipy,
    label,
    stored,
)
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.label.objects import in_order

pytestmark = pytest.mark.usefixtures("here")


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
    with pytest.raises(UnetcliError, match=r"frame 0 of .* has 90000 objects; .* 65535; --min-size N"):
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
