"""Objects in label arrays: connected components, measures of each object, and the table of objects."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from unetcli.core.arrays import distinct
from unetcli.core.errors import UnetcliError
from unetcli.core.files import Place, is_remote, replacing
from unetcli.core.geometry import Box

RANKS = {False: {4: 1, 8: 2}, True: {6: 1, 18: 2, 26: 3}}
"""Number of neighbours, and along how many axes at once they may differ, in two (False) and three (True) dimensions."""


def neighbourhood(axes: str, connectivity: int | None = None, *, three_d: bool = False) -> NDArray[np.bool_]:
    """Structuring element of a connectivity, (3,) * len(axes): within sections, or also along z; never along t.

    >>> neighbourhood("zyx", 4)[0].any(), int(neighbourhood("zyx", 18, three_d=True).sum())
    (np.False_, 19)
    """
    ranks = RANKS[three_d]
    if three_d and "z" not in axes:
        raise UnetcliError(f"--three-d needs an axis z; the axes are {', '.join(axes)}")
    if connectivity is not None and connectivity not in ranks:
        known = " or ".join(map(str, ranks))
        use = "with" if three_d else "without"
        raise UnetcliError(f"--connectivity {connectivity}: expected {known} {use} --three-d")
    rank = ranks[connectivity] if connectivity else 1
    steps = np.abs(np.indices((3,) * len(axes)) - 1)
    joined = np.array([axis in ("zyx" if three_d else "yx") for axis in axes])
    reach = steps.sum(axis=0)
    apart = steps[~joined].any(axis=0)
    found: NDArray[np.bool_] = (reach <= rank) & ~apart
    return found


def is_foreground(stored: NDArray[Any], threshold: float) -> NDArray[np.bool_]:
    """Mask of the voxels whose probability is strictly above the threshold; uint8 is read as value / 255.

    >>> is_foreground(np.array([127, 128], np.uint8), 0.5).tolist()
    [False, True]
    """
    if stored.dtype == np.uint8:
        levels = np.arange(256, dtype=np.float32) / np.float32(255)
        return stored >= int(np.count_nonzero(levels <= threshold))
    found: NDArray[np.bool_] = stored > threshold
    return found


def components(foreground: NDArray[np.bool_], touching: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """Connected components of a mask for a :func:`neighbourhood`, 1, 2, .. in unspecified order, and their number."""
    from scipy import ndimage  # slow to import; status does without

    labels = np.empty(foreground.shape, np.int32)
    count = ndimage.label(foreground, touching, output=labels)
    return labels, int(count)


def label_section(
    probability: NDArray[Any], threshold: float = 0.5, *, connectivity: int = 4, min_size: int = 0
) -> NDArray[np.int32]:
    """Instances of one section: connected components of the pixels above the threshold.

    Parameters
    ----------
    probability : (y, x), float or bool; or uint8 for value / 255
        Probability of foreground.
    connectivity : 4 or 8
        With 8, pixels that meet at a corner are neighbours too.
    min_size : pixels
        Smaller objects become background.

    Returns
    -------
    (y, x), int32
        0 is background; objects are numbered 1, 2, .. by their first pixel in C order.
    """
    labels, _ = components(is_foreground(probability, threshold), neighbourhood("yx", connectivity))
    return in_order(labels, min_size)


def in_order(labels: NDArray[Any], min_size: int = 0) -> NDArray[np.int32]:
    """Renumber labels 1, 2, .. by first voxel in C order, and remove objects of fewer than ``min_size`` voxels.

    >>> in_order(np.array([[0, 7, 7], [3, 0, 7], [3, 9, 0]]), min_size=2).tolist()
    [[0, 1, 1], [2, 0, 1], [2, 0, 0]]
    """
    found, places = distinct(labels)
    flat = places.ravel()
    first = np.empty(len(found), np.intp)
    first[flat[::-1]] = np.arange(flat.size - 1, -1, -1)  # reversed, so that the first voxel is assigned last
    kept = (found != 0) & (np.bincount(flat, minlength=len(found)) >= min_size)
    numbers = np.zeros(len(found), np.int32)
    numbers[kept] = np.argsort(np.argsort(first[kept])) + 1
    return numbers[places]


def first_voxels(labels: NDArray[np.int32], count: int) -> NDArray[np.int64]:
    """Flat index of the first voxel of each label 1 .. ``count``."""
    places = np.flatnonzero(labels)
    found = np.zeros(count + 1, np.int64)
    found[labels.ravel()[places[::-1]]] = places[::-1]  # reversed, so that the first voxel is assigned last
    return found[1:]


def smallest_dtype(count: int) -> str:
    """Smallest unsigned integer type that holds ``count`` labels.

    >>> smallest_dtype(255), smallest_dtype(65536)
    ('uint8', 'uint32')
    """
    return str(np.min_scalar_type(count))


def neighbours(touching: NDArray[np.bool_]) -> Sequence[tuple[int, ...]]:
    """Steps to the neighbours that come later in C order, so that each pair of voxels occurs once."""
    steps = [tuple(int(v) - 1 for v in place) for place in np.argwhere(touching)]
    return [step for step in steps if step > (0,) * touching.ndim]


FRACTION = 2**24
"""Float probabilities are summed as integer multiples of 1 / FRACTION: then the sum does not depend on the order."""


@dataclass(frozen=True, slots=True)
class Measures:
    """Measures of ``n`` objects, or of their parts in one block; coordinates are those of the volume."""

    size: NDArray[np.int64]
    """(n,) number of voxels."""
    first: NDArray[np.int64]
    """(n,) flat index of the first voxel, in C order of the volume."""
    start: NDArray[np.int64]
    """(n, axes) start of the bounding box."""
    stop: NDArray[np.int64]
    """(n, axes) end of the bounding box, exclusive."""
    places: NDArray[np.int64]
    """(n, axes) sums of the coordinates of all voxels."""
    bright: NDArray[np.float64]
    """(n,) sums of intensities, in units of :func:`unit`."""

    @classmethod
    def empty(cls, count: int, axes: int) -> Self:
        """Measures of ``count`` objects without any voxels."""
        big = np.iinfo(np.int64).max
        return cls(
            size=np.zeros(count, np.int64),
            first=np.full(count, big),
            start=np.full((count, axes), big),
            stop=np.zeros((count, axes), np.int64),
            places=np.zeros((count, axes), np.int64),
            bright=np.zeros(count),
        )

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Self:
        return cls(**{field.name: arrays[field.name] for field in fields(cls)})

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def add(self, part: Measures, to: NDArray[np.int64]) -> None:
        """Add parts of objects; ``to`` holds the index of the object that each part belongs to."""
        np.add.at(self.size, to, part.size)
        np.minimum.at(self.first, to, part.first)
        np.add.at(self.bright, to, part.bright)
        for axis in range(self.start.shape[1]):
            np.minimum.at(self.start[:, axis], to, part.start[:, axis])
            np.maximum.at(self.stop[:, axis], to, part.stop[:, axis])
            np.add.at(self.places[:, axis], to, part.places[:, axis])

    def select(self, which: NDArray[Any] | slice) -> Measures:
        """Measures of some of the objects, in the given order."""
        return Measures(*(getattr(self, field.name)[which] for field in fields(self)))


NAMES = tuple(field.name for field in fields(Measures))


def measure(
    labels: NDArray[np.int32], count: int, box: Box, shape: Iterable[int], brightness: NDArray[Any]
) -> Measures:
    """Measure the objects 1 .. ``count`` in one block of a volume; some may have no voxels.

    Parameters
    ----------
    labels, brightness : box.shape
        Labels, and the intensities to sum.
    box
        Position of the block.
    shape
        Shape of the volume.
    """
    places = np.flatnonzero(labels)
    which = labels.ravel()[places] - 1
    size = np.bincount(which, minlength=count)
    result = Measures.empty(count, len(box.start))
    first = np.unravel_index(first_voxels(labels, count)[size > 0], labels.shape)
    moved = tuple(index + a for index, a in zip(first, box.start, strict=True))
    result.first[size > 0] = np.ravel_multi_index(moved, tuple(shape))
    result.size[:] = size
    result.bright[:] = np.bincount(which, summable(brightness).ravel()[places], count)
    for axis, (extent, offset) in enumerate(zip(labels.shape, box.start, strict=True)):
        along = places // math.prod(labels.shape[axis + 1 :]) % extent
        np.minimum.at(result.start[:, axis], which, along + offset)
        np.maximum.at(result.stop[:, axis], which, along + offset + 1)
        # Below 2**53 sums of integers are exact in float64.
        result.places[:, axis] = np.bincount(which, along, count).astype(np.int64) + size * offset
    return result


def summable(values: NDArray[Any]) -> NDArray[Any]:
    """Intensities as they are summed: floats as integer multiples of 1 / FRACTION, so that the sums are exact."""
    return np.rint(values * np.float64(FRACTION)) if values.dtype.kind == "f" else values


def unit(dtype: np.dtype[Any], *, probability: bool) -> float:
    """Factor that converts a sum of :func:`summable` to intensities, or to probabilities from 0 to 1."""
    if dtype.kind == "f":
        return 1 / FRACTION
    return 1 / 255 if probability and dtype == np.uint8 else 1.0


ROWS_AT_ONCE = 100_000
"""Rows of the table that are formatted at a time."""


def columns(axes: str) -> list[str]:
    """Column names of the table; coordinates are voxels of the prediction, from 0, and stops are exclusive.

    >>> columns("yx")
    ['id', 'y_start', 'y_stop', 'x_start', 'x_stop', 'y_centre', 'x_centre', 'voxels', 'mean']
    """
    edges = [f"{axis}_{edge}" for axis in axes for edge in ("start", "stop")]
    return ["id", *edges, *(f"{axis}_centre" for axis in axes), "voxels", "mean"]


def table_place(store: Place, name: str, run_folder: Path) -> Path:
    """Path of the table: beside the store, as ``big.pred.zarr.instances.csv``, or in the run folder if it is remote."""
    if is_remote(store):
        return run_folder / f"{name}.csv"
    return Path(f"{str(store).rstrip('/')}.{name}.csv")


def write_table(path: Path, axes: str, objects: Measures, unit: float) -> None:
    """Write one row per object; ``unit`` is the factor that :func:`unit` returns."""
    with replacing(path) as draft, draft.open("w", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(columns(axes))
        for start in range(0, len(objects.size), ROWS_AT_ONCE):
            lines.writerows(_rows(start, objects.select(slice(start, start + ROWS_AT_ONCE)), unit))


def _rows(before: int, objects: Measures, unit: float) -> Iterator[tuple[Any, ...]]:
    boxes = [side[:, axis] for axis in range(objects.start.shape[1]) for side in (objects.start, objects.stop)]
    centres = [_formatted(objects.places[:, axis] / objects.size, "%.2f") for axis in range(objects.places.shape[1])]
    means = _formatted(objects.bright * unit / objects.size, "%.6g")
    numbers = range(before + 1, before + 1 + len(objects.size))
    return zip(numbers, *(box.tolist() for box in boxes), *centres, objects.size.tolist(), means, strict=True)


def _formatted(values: NDArray[np.float64], form: str) -> list[str]:
    return [form % value for value in values.tolist()]


def require_own_table(path: Path, axes: str) -> None:
    """Raise if a file that is no such table is in its place."""
    if not path.exists():
        return
    head = ",".join(columns(axes))
    try:
        with path.open() as file:
            found = file.read(len(head) + 1).rstrip("\n")
    except (OSError, UnicodeDecodeError):
        found = ""
    if found != head:
        raise UnetcliError(f"{path}: exists and was not written by unetcli label; move it, or choose another --name")


def sizes(voxels: Sequence[int] | NDArray[np.int64]) -> dict[str, float | int] | None:
    """Minimum, median, mean and maximum size; None if there are no objects.

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
