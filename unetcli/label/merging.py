"""Second stage of labelling: merge the objects of all blocks, number them, and store the result."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.arrays import Checksum, distinct
from unetcli.core.errors import UnetcliError
from unetcli.core.files import replacing
from unetcli.core.records import read_record, shown
from unetcli.engine.levels import Arrays, Tables
from unetcli.label.finding import landscape_of, step_key
from unetcli.label.objects import NAMES, Measures, sizes, smallest_dtype, write_table
from unetcli.label.plan import LabelPlan

Load = Callable[[int, Collection[str] | None], Arrays]
"""Loads the named arrays of a block; None loads all."""

Pairs = NDArray[np.int64]
"""(n, 2) provisional objects that belong together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """All objects of the volume."""

    numbers: NDArray[Any]
    """Final label of each provisional object, block by block; 0 if removed. Smallest integer type that fits."""
    offsets: NDArray[np.int64]
    """(blocks + 1,) index in ``numbers`` at which each block's objects start."""
    measures: Measures
    """Measures of the objects 1, 2, .. in this order."""
    removed: int
    """Number of objects below the minimum size."""

    @property
    def count(self) -> int:
        return len(self.measures.size)

    @property
    def dtype(self) -> str:
        """Data type of the labels."""
        return smallest_dtype(self.count)


def merge(plan: LabelPlan, load: Load) -> Merged:
    """Merge and number the objects of all blocks; ``load`` returns what :func:`find_objects` found in each."""
    offsets, groups = (merge_components if plan.settings.method == "components" else merge_basins)(plan, load)
    count = int(groups.max()) + 1 if len(groups) else 0
    total = Measures.empty(count, len(plan.axes))
    for piece in range(plan.pieces):
        part = Measures.from_arrays(load(piece, NAMES))
        total.add(part, groups[offsets[piece] : offsets[piece + 1]])
    return number_objects(plan, offsets, groups, total)


def number_objects(plan: LabelPlan, offsets: NDArray[np.int64], groups: NDArray[np.int64], total: Measures) -> Merged:
    """Number the objects that are large enough, in the order of their first voxels."""
    kept = np.flatnonzero(total.size >= max(plan.settings.min_size, 1))
    order = kept[np.argsort(total.first[kept])]
    numbers = np.zeros(len(total.size), smallest_dtype(len(order)))
    numbers[order] = np.arange(1, len(order) + 1, dtype=numbers.dtype)
    return Merged(
        numbers=numbers[groups], offsets=offsets, measures=total.select(order), removed=len(total.size) - len(order)
    )


# -- components


def merge_components(plan: LabelPlan, load: Load) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Offset of each block's objects, (blocks + 1,), and merged object of each provisional one, (objects,)."""
    offsets, pairs = np.zeros(plan.pieces + 1, np.int64), [np.zeros((0, 2), np.int64)]
    waiting: dict[tuple[int, str], NDArray[np.int64]] = {}
    steps = [step_key(step) for step in np.ndindex(*(2 if axis in plan.joined else 1 for axis in plan.axes))]
    wanted = ["size", *(f"{side}{step}" for step in steps for side in ("front", "behind"))]
    for piece in range(plan.pieces):
        arrays, offset = load(piece, wanted), offsets[piece]
        offsets[piece + 1] = offset + len(arrays["size"])
        for step, _ in plan.neighbours(piece, -1):
            seen = waiting.pop((piece, step_key(step)))
            pairs.append(matching_pairs(seen, to_provisional(arrays[f"front{step_key(step)}"], offset)))
        for step, later in plan.neighbours(piece, 1):
            waiting[later, step_key(step)] = to_provisional(arrays[f"behind{step_key(step)}"], offset)
    return offsets, group_pairs(int(offsets[-1]), np.concatenate(pairs))


def to_provisional(labels: NDArray[np.int32], offset: np.int64) -> NDArray[np.int64]:
    """Convert labels of a block to provisional objects of the volume; -1 is background."""
    return np.where(labels > 0, labels.astype(np.int64) + (offset - 1), -1)


def matching_pairs(seen: NDArray[np.int64], own: NDArray[np.int64]) -> Pairs:
    """Pairs of provisional objects that two blocks found at the same voxels, each pair once."""
    pairs = np.stack([seen, own], axis=1)
    pairs = pairs[(seen >= 0) & (own >= 0)]
    if len(pairs) > 1:
        pairs = pairs[np.concatenate([[True], (pairs[1:] != pairs[:-1]).any(axis=1)])]  # most repeat the previous
    return np.unique(pairs, axis=0) if len(pairs) > 1 else pairs


def group_pairs(count: int, pairs: Pairs) -> NDArray[np.int64]:
    """Group 0, 1, .. of each of ``count`` objects; paired objects share a group.

    >>> group_pairs(4, np.array([[3, 1]])).tolist()
    [0, 1, 2, 1]
    """
    if not len(pairs):
        return np.arange(count)
    from scipy.sparse import coo_array  # slow to import; status does without
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


# -- watershed


def merge_basins(plan: LabelPlan, load: Load) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Offset of each block's regions, (blocks + 1,), and merged object of each region, (regions,)."""
    from unetcli.label.kernels import regions_of

    offsets, own, several = np.zeros(plan.pieces + 1, np.int64), [], []
    for piece in range(plan.pieces):
        arrays = load(piece, ("size", "names", "lowest", "ends", "height", "order"))
        count = len(arrays["size"])
        offsets[piece + 1] = offsets[piece] + count
        own.append(arrays["names"][:count])
        several.append(_passes(arrays))
    names, lowest, ends, height, order = (np.concatenate(parts) for parts in zip(*several, strict=True))
    known, first = np.unique(names, return_index=True)
    sequence = np.lexsort((order[:, 1], order[:, 0], height))
    region, _ = regions_of(
        np.searchsorted(known, ends)[sequence],
        height[sequence],
        lowest[first],
        np.zeros(len(known), np.bool_),
        landscape_of(plan).depth,
    )
    mine = region[np.searchsorted(known, np.concatenate(own))]
    return offsets, distinct(mine)[1].astype(np.int64)


def _passes(arrays: Arrays) -> tuple[NDArray[np.int64], ...]:
    """Names and heights of the minima of a block, and its passes between named minima."""
    names = arrays["names"]
    return names, arrays["lowest"], names[arrays["ends"]], arrays["height"], arrays["order"]


BYTES_AT_ONCE = 2**22
"""Bytes read at a time for a checksum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeSummary:
    """Content of ``merged.json``: counts, sizes and data type of the labels."""

    objects: int
    removed: int
    provisional: int
    dtype: str
    sizes: dict[str, float] | None

    def __post_init__(self) -> None:
        if self.dtype not in ("uint8", "uint16", "uint32", "uint64"):
            raise UnetcliError(f"dtype is {shown(self.dtype)}; expected an unsigned integer type")


@dataclass(frozen=True, slots=True)
class LabelFiles:
    """Files of a labelling in its run folder, besides those of the engine."""

    path: Path

    @property
    def tables(self) -> Tables:
        """Tables of the blocks, with their labels; deleted once the labels are complete."""
        return Tables(self.path / "blocks")

    @property
    def numbers(self) -> Path:
        """Final label of each object of each block; kept for repairs."""
        return self.path / "numbers.npy"

    @property
    def offsets(self) -> Path:
        """Index in ``numbers`` at which each block's objects start; kept for repairs."""
        return self.path / "offsets.npy"

    @property
    def table(self) -> Path:
        """Table of all objects; kept for repairs."""
        return self.path / "objects.csv"

    @property
    def summary_file(self) -> Path:
        """Counts and sizes from the merge; kept for repairs."""
        return self.path / "merged.json"

    @property
    def merge_files(self) -> list[Path]:
        """All files written by the merge."""
        return [self.numbers, self.offsets, self.table, self.summary_file]

    def merged_checksum(self) -> str:
        """Checksum of all files of the merge, as recorded in its receipt."""
        digest = Checksum()
        for path in self.merge_files:
            with path.open("rb") as file:
                while part := file.read(BYTES_AT_ONCE):
                    digest.add(part)
        return digest.hexdigest()

    def save_merged(self, merged: Merged, axes: str, unit: float) -> None:
        """Write the files of a merge."""
        for path, values in ((self.numbers, merged.numbers), (self.offsets, merged.offsets)):
            with replacing(path) as draft, draft.open("wb") as file:
                np.save(file, values)
        write_table(self.table, axes, merged.measures, unit)
        summary = MergeSummary(
            objects=merged.count,
            removed=merged.removed,
            provisional=len(merged.numbers),
            dtype=merged.dtype,
            sizes=sizes(merged.measures.size),
        )
        with replacing(self.summary_file) as draft:
            draft.write_text(json.dumps(asdict(summary), indent=1))

    def merged(self) -> MergeSummary:
        """Read counts and sizes of the merge."""
        return read_record(self.summary_file, MergeSummary, "verify --repair merges again")

    def numbers_of(self, piece: int) -> NDArray[Any]:
        """Final labels of the objects of a block, after a 0 for the background."""
        start, stop = np.load(self.offsets, mmap_mode="r")[piece : piece + 2]
        numbers = np.load(self.numbers, mmap_mode="r")
        return np.concatenate([np.zeros(1, numbers.dtype), numbers[start:stop]])
