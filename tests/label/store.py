"""A prediction in the current folder, its labels, and helpers to read them."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from scipy import ndimage

from unetcli.label.objects import in_order, neighbourhood
from unetcli.label.request import LabelRequest
from unetcli.label.run import LabelSummary, label_volume

STORE = Path("big.pred.zarr")
LABELS = STORE / "labels/instances"
FOLDER = Path("big.pred.zarr.run/instances")
TABLE = Path("big.pred.zarr.instances.csv")
SHAPE = (3, 75, 90)
SMALL = 1500
"""Voxels per block; the volume has 27 blocks."""


def label(**options: Any) -> LabelSummary:
    where = options.pop("where", None)
    stopping = options.pop("stopping", bool)
    return label_volume(
        LabelRequest(**{"prediction": str(STORE), "block_voxels": SMALL, **options}), stopping=stopping, where=where
    )


def files(folder: Path = LABELS) -> dict[str, bytes]:
    """Content of all files of the labels and of the table, by path."""
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


def tables() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in FOLDER.rglob("*.tables")}


def stop_after(calls: int) -> Callable[[], bool]:
    answers = iter([False] * calls)
    return lambda: next(answers, True)
