"""Choosing the threshold that fits a truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from label.store import (
    SHAPE,
    by_scipy,
    label,
)
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError

pytestmark = pytest.mark.usefixtures("here")


def write_truth(values: NDArray[Any]) -> None:
    tifffile.imwrite("truth.tif", values, photometric="minisblack")


def test_the_threshold_is_the_one_whose_objects_fit_best(values: NDArray[np.uint8]) -> None:
    write_truth(by_scipy(values, threshold=int(255 * 0.65) + 1).astype(np.float32))
    summary = label(auto_threshold_from="truth.tif")
    assert summary.threshold == 0.65
    Path("truth.tif").unlink()
    write_truth(np.ones(SHAPE, np.uint8))
    assert label(auto_threshold_from="truth.tif").threshold == 0.65  # frozen
    write_truth(np.zeros(SHAPE, np.uint8))
    with pytest.raises(UnetcliError, match=r"truth\.tif: contains no objects"):
        label(auto_threshold_from="truth.tif", overwrite=True)


def test_a_truth_of_one_value_is_what_is_connected(values: NDArray[np.uint8]) -> None:
    write_truth(np.where(values > 255 * 0.35, 255, 0).astype(np.uint8))
    assert label(auto_threshold_from="truth.tif").threshold == 0.35
