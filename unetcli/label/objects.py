"""Objects: connected components, what is measured of each, and their table."""

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
"""By dimensions (2, 3) and number of neighbours: along how many axes at once a neighbour may lie."""


def neighbourhood(axes: str, connectivity: int | None = None, *, three_d: bool = False) -> NDArray[np.bool_]:
    """Which voxels around one touch it, (3,) * len(axes): within a section, or along z as well; never along t.

    >>> neighbourhood("zyx", 4)[0].any(), int(neighbourhood("zyx", 18, three_d=True).sum())
    (np.False_, 19)
    """
    ranks = RANKS[three_d]
    if three_d and "z" not in axes:
        raise UnetcliError(f"--three-d: there is no axis z, only {', '.join(axes)}")
    if connectivity is not None and connectivity not in ranks:
        known = ", ".join(map(str, ranks))
        other = "with" if not three_d else "without"
        raise UnetcliError(f"--connectivity {connectivity}: expected {known}; others go {other} --three-d")
    rank = ranks[connectivity] if connectivity else 1
    steps = np.abs(np.indices((3,) * len(axes)) - 1)
    joined = np.array([axis in ("zyx" if three_d else "yx") for axis in axes])
    reach = steps.sum(axis=0)
    apart = steps[~joined].any(axis=0)
    found: NDArray[np.bool_] = (reach <= rank) & ~apart
    return found


def is_foreground(stored: NDArray[Any], threshold: float) -> NDArray[np.bool_]:
    """Where the probability is strictly greater than the threshold; uint8 stands for value / 255.

    >>> is_foreground(np.array([127, 128], np.uint8), 0.5).tolist()
    [False, True]
    """
    if stored.dtype == np.uint8:
        levels = np.arange(256, dtype=np.float32) / np.float32(255)
        return stored >= int(np.count_nonzero(levels <= threshold))
    found: NDArray[np.bool_] = stored > threshold
    return found


def connected(foreground: NDArray[np.bool_], touching: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """Components of a mask by a :func:`neighbourhood`, 1.. in no order that anyone may rely on, and their number."""
    from scipy import ndimage  # slow to import; status does without

    labels = np.empty(foreground.shape, np.int32)
    count = ndimage.label(foreground, touching, output=labels)
    return labels, int(count)


def label_section(
    probability: NDArray[Any], threshold: float = 0.5, *, connectivity: int = 4, min_size: int = 0
) -> NDArray[np.int32]:
    """Instances of one section: components of what is above the threshold.

    Parameters
    ----------
    probability : (y, x), float or bool; or uint8 for value / 255
        Of foreground.
    connectivity : 4 or 8
        Whether voxels that meet at a corner belong together.
    min_size : voxels
        Smaller objects become background.

    Returns
    -------
    (y, x), int32
        0 is background; objects are numbered 1, 2 .. by their first voxel in C order.
    """
    labels, _ = connected(is_foreground(probability, threshold), neighbourhood("yx", connectivity))
    return in_order(labels, min_size)


def in_order(labels: NDArray[Any], min_size: int = 0) -> NDArray[np.int32]:
    """Labels renumbered 1, 2 .. by each object's first voxel in C order, without those of fewer than ``min_size``.

    >>> in_order(np.array([[0, 7, 7], [3, 0, 7], [3, 9, 0]]), min_size=2).tolist()
    [[0, 1, 1], [2, 0, 1], [2, 0, 0]]
    """
    found, places = distinct(labels)
    flat = places.ravel()
    first = np.empty(len(found), np.intp)
    first[flat[::-1]] = np.arange(flat.size - 1, -1, -1)  # of several, the last assigned stays: the first voxel
    kept = (found != 0) & (np.bincount(flat, minlength=len(found)) >= min_size)
    numbers = np.zeros(len(found), np.int32)
    numbers[kept] = np.argsort(np.argsort(first[kept])) + 1
    return numbers[places]


def first_voxels(labels: NDArray[np.int32], count: int) -> NDArray[np.int64]:
    """Flat index of the first voxel of each label 1 .. ``count``."""
    places = np.flatnonzero(labels)
    found = np.zeros(count + 1, np.int64)
    found[labels.ravel()[places[::-1]]] = places[::-1]  # of several, the last assigned stays: the first voxel
    return found[1:]


def smallest_dtype(count: int) -> str:
    """The smallest unsigned integer that holds that many labels.

    >>> smallest_dtype(255), smallest_dtype(65536)
    ('uint8', 'uint32')
    """
    return str(np.min_scalar_type(count))


def neighbours(touching: NDArray[np.bool_]) -> Sequence[tuple[int, ...]]:
    """Steps to half of the neighbours, each pair of voxels once: those that come later in C order."""
    steps = [tuple(int(v) - 1 for v in place) for place in np.argwhere(touching)]
    return [step for step in steps if step > (0,) * touching.ndim]


FRACTION = 2**24
"""Probabilities in float are summed as integers of so many parts: then the sum does not depend on the order."""


@dataclass(frozen=True, slots=True)
class Measures:
    """Of ``n`` objects, or of the parts of them in one block; coordinates are the volume's."""

    size: NDArray[np.int64]
    """(n,) voxels."""
    first: NDArray[np.int64]
    """(n,) place of the first voxel in C order, counted in the volume."""
    start: NDArray[np.int64]
    """(n, axes) of the bounding box."""
    stop: NDArray[np.int64]
    """(n, axes), not included."""
    places: NDArray[np.int64]
    """(n, axes) sums of the coordinates of all voxels."""
    bright: NDArray[np.float64]
    """(n,) sums of intensities, in units of :func:`unit`."""

    @classmethod
    def none(cls, count: int, axes: int) -> Self:
        """Of objects that have no voxels yet."""
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
        """Take in parts of objects; ``to`` says of which."""
        np.add.at(self.size, to, part.size)
        np.minimum.at(self.first, to, part.first)
        np.add.at(self.bright, to, part.bright)
        for axis in range(self.start.shape[1]):
            np.minimum.at(self.start[:, axis], to, part.start[:, axis])
            np.maximum.at(self.stop[:, axis], to, part.stop[:, axis])
            np.add.at(self.places[:, axis], to, part.places[:, axis])

    def picked(self, which: NDArray[Any] | slice) -> Measures:
        """Of some of the objects, in a given order."""
        return Measures(*(getattr(self, field.name)[which] for field in fields(self)))


NAMES = tuple(field.name for field in fields(Measures))


def measure(
    labels: NDArray[np.int32], count: int, box: Box, shape: Iterable[int], brightness: NDArray[Any]
) -> Measures:
    """Of the objects 1 .. ``count``, some of which may have no voxels, in a block that is ``box`` of a volume."""
    places = np.flatnonzero(labels)
    which = labels.ravel()[places] - 1
    size = np.bincount(which, minlength=count)
    result = Measures.none(count, len(box.start))
    first = np.unravel_index(first_voxels(labels, count)[size > 0], labels.shape)
    moved = tuple(index + a for index, a in zip(first, box.start, strict=True))
    result.first[size > 0] = np.ravel_multi_index(moved, tuple(shape))
    result.size[:] = size
    result.bright[:] = np.bincount(which, amounts(brightness).ravel()[places], count)
    for axis, (extent, offset) in enumerate(zip(labels.shape, box.start, strict=True)):
        along = places // math.prod(labels.shape[axis + 1 :]) % extent
        np.minimum.at(result.start[:, axis], which, along + offset)
        np.maximum.at(result.stop[:, axis], which, along + offset + 1)
        # Below 2**53 sums of integers are exact in float64.
        result.places[:, axis] = np.bincount(which, along, count).astype(np.int64) + size * offset
    return result


def amounts(values: NDArray[Any]) -> NDArray[Any]:
    """Intensities as they are summed: float16 and float32 in integer parts, so that sums of probabilities are exact."""
    return np.rint(values * np.float64(FRACTION)) if values.dtype.kind == "f" else values


def unit(dtype: np.dtype[Any], *, probability: bool) -> float:
    """What a sum of :func:`amounts` has to be multiplied with."""
    if dtype.kind == "f":
        return 1 / FRACTION
    return 1 / 255 if probability and dtype == np.uint8 else 1.0


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
