"""The table of objects: a line of CSV for each, and what a summary says of all."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.core.files import Place, is_remote, replacing
from unetcli.label.measures import Measures

ROWS_AT_ONCE = 100_000


def columns(axes: str) -> list[str]:
    """Names of the columns; places are voxels of the prediction, from 0, the stop not included.

    >>> columns("yx")
    ['id', 'y_start', 'y_stop', 'x_start', 'x_stop', 'y_centre', 'x_centre', 'voxels', 'mean']
    """
    edges = [f"{axis}_{edge}" for axis in axes for edge in ("start", "stop")]
    return ["id", *edges, *(f"{axis}_centre" for axis in axes), "voxels", "mean"]


def table_place(store: Place, name: str, run_folder: Path) -> Path:
    """Where the table goes: beside the store, ``big.pred.zarr.instances.csv``; of a remote one, into the run folder."""
    if is_remote(store):
        return run_folder / f"{name}.csv"
    return Path(f"{str(store).rstrip('/')}.{name}.csv")


def write_table(path: Path, axes: str, objects: Measures, unit: float) -> None:
    """All objects, by number; ``unit`` times the sum of intensities is what the mean is made of."""
    with replacing(path) as draft, draft.open("w", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(columns(axes))
        for start in range(0, len(objects.size), ROWS_AT_ONCE):
            lines.writerows(_rows(start, objects.picked(slice(start, start + ROWS_AT_ONCE)), unit))


def _rows(before: int, objects: Measures, unit: float) -> Iterator[tuple[Any, ...]]:
    boxes = [side[:, axis] for axis in range(objects.start.shape[1]) for side in (objects.start, objects.stop)]
    centres = [_words(objects.places[:, axis] / objects.size, "%.2f") for axis in range(objects.places.shape[1])]
    means = _words(objects.bright * unit / objects.size, "%.6g")
    numbers = range(before + 1, before + 1 + len(objects.size))
    return zip(numbers, *(box.tolist() for box in boxes), *centres, objects.size.tolist(), means, strict=True)


def _words(values: NDArray[np.float64], form: str) -> list[str]:
    return [form % value for value in values.tolist()]


def require_our_table(path: Path, axes: str) -> None:
    """Raise where a file is in the place of the table that is none."""
    if not path.exists():
        return
    head = ",".join(columns(axes))
    try:
        with path.open() as file:
            found = file.read(len(head) + 1).rstrip("\n")
    except (OSError, UnicodeDecodeError):
        found = ""
    if found != head:
        raise UnetcliError(f"{path}: exists and is no table of unetcli label; move it, or --name names other labels")


def sizes(voxels: Sequence[int] | NDArray[np.int64]) -> dict[str, float | int] | None:
    """Smallest, middle, mean and largest size; None where there is no object.

    >>> sizes([4, 10, 1])
    {'min': 1, 'median': 4.0, 'mean': 5.0, 'max': 10}
    """
    if not len(voxels):
        return None
    return {
        "min": int(np.min(voxels)),
        "median": float(np.median(voxels)),
        "mean": round(float(np.mean(voxels)), 2),
        "max": int(np.max(voxels)),
    }
