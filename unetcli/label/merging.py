"""The second stage: objects of all blocks made one and numbered, and the files that keep the result."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.arrays import Checksum, distinct
from unetcli.core.files import replacing
from unetcli.engine.levels import Arrays, Tables
from unetcli.label.finding import landscape, name
from unetcli.label.objects import NAMES, Measures, sizes, smallest_dtype, write_table
from unetcli.label.plan import LabelPlan

Load = Callable[[int, Collection[str] | None], Arrays]
"""Arrays of a block by names; of all names, where it is None."""

Pairs = NDArray[np.int64]
"""(n, 2) provisional objects that are one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """Every object of the volume."""

    numbers: NDArray[Any]
    """Final number of each provisional object, block by block; 0: removed. As small a type as holds them."""
    offsets: NDArray[np.int64]
    """(blocks + 1,) where each block's part of ``numbers`` starts."""
    measures: Measures
    """Of the objects 1 .. in their order."""
    removed: int
    """Objects smaller than the least size."""

    @property
    def count(self) -> int:
        return len(self.measures.size)

    @property
    def dtype(self) -> str:
        """Of the labels."""
        return smallest_dtype(self.count)


def merge(plan: LabelPlan, load: Load) -> Merged:
    """Merge what all blocks found."""
    offsets, groups = (merge_components if plan.settings.method == "components" else merge_basins)(plan, load)
    count = int(groups.max()) + 1 if len(groups) else 0
    total = Measures.none(count, len(plan.axes))
    for piece in range(plan.pieces):
        part = Measures.from_arrays(load(piece, NAMES))
        total.add(part, groups[offsets[piece] : offsets[piece + 1]])
    return number(plan, offsets, groups, total)


def number(plan: LabelPlan, offsets: NDArray[np.int64], groups: NDArray[np.int64], total: Measures) -> Merged:
    """Give numbers to objects that are large enough, by their first voxels."""
    kept = np.flatnonzero(total.size >= max(plan.settings.min_size, 1))
    order = kept[np.argsort(total.first[kept])]
    numbers = np.zeros(len(total.size), smallest_dtype(len(order)))
    numbers[order] = np.arange(1, len(order) + 1, dtype=numbers.dtype)
    return Merged(
        numbers=numbers[groups], offsets=offsets, measures=total.picked(order), removed=len(total.size) - len(order)
    )


# -- components


def merge_components(plan: LabelPlan, load: Load) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each block's objects start, and for each object the group it belongs to."""
    offsets, pairs = np.zeros(plan.pieces + 1, np.int64), [np.zeros((0, 2), np.int64)]
    waiting: dict[tuple[int, str], NDArray[np.int64]] = {}
    steps = [name(step) for step in np.ndindex(*(2 if axis in plan.joined else 1 for axis in plan.axes))]
    wanted = ["size", *(f"{side}{step}" for step in steps for side in ("front", "behind"))]
    for piece in range(plan.pieces):
        arrays, offset = load(piece, wanted), offsets[piece]
        offsets[piece + 1] = offset + len(arrays["size"])
        for step, _ in plan.neighbours(piece, -1):
            seen = waiting.pop((piece, name(step)))
            pairs.append(same(seen, globally(arrays[f"front{name(step)}"], offset)))
        for step, later in plan.neighbours(piece, 1):
            waiting[later, name(step)] = globally(arrays[f"behind{name(step)}"], offset)
    return offsets, grouped(int(offsets[-1]), np.concatenate(pairs))


def globally(labels: NDArray[np.int32], offset: np.int64) -> NDArray[np.int64]:
    """Labels of a block as provisional objects of the volume; -1 for background."""
    return np.where(labels > 0, labels.astype(np.int64) + (offset - 1), -1)


def same(seen: NDArray[np.int64], own: NDArray[np.int64]) -> Pairs:
    """Objects that two blocks have at the same voxels, each pair about once."""
    pairs = np.stack([seen, own], axis=1)
    pairs = pairs[(seen >= 0) & (own >= 0)]
    if len(pairs) > 1:
        pairs = pairs[np.concatenate([[True], (pairs[1:] != pairs[:-1]).any(axis=1)])]  # most repeat the one before
    return np.unique(pairs, axis=0) if len(pairs) > 1 else pairs


def grouped(count: int, pairs: Pairs) -> NDArray[np.int64]:
    """A group 0.. for each of ``count`` objects; paired ones are in one.

    >>> grouped(4, np.array([[3, 1]])).tolist()
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
    """Where each block's regions start, and for each region the group it belongs to."""
    from unetcli.label.kernels import joined

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
    region, _ = joined(
        np.searchsorted(known, ends)[sequence],
        height[sequence],
        lowest[first],
        np.zeros(len(known), np.bool_),
        landscape(plan).depth,
    )
    mine = region[np.searchsorted(known, np.concatenate(own))]
    return offsets, distinct(mine)[1].astype(np.int64)


def _passes(arrays: Arrays) -> tuple[NDArray[np.int64], ...]:
    """Names and heights of all minima of a block, and its passes with names for ends."""
    names = arrays["names"]
    return names, arrays["lowest"], names[arrays["ends"]], arrays["height"], arrays["order"]


BYTES_AT_ONCE = 2**22


@dataclass(frozen=True, slots=True)
class LabelFiles:
    """The files of one labelling in its run folder, beside the engine's."""

    path: Path

    @property
    def tables(self) -> Tables:
        """What was found in each block, with its voxels' labels; deleted at the end."""
        return Tables(self.path / "blocks")

    @property
    def numbers(self) -> Path:
        """The final number of each object of each block; it stays, for repairs."""
        return self.path / "numbers.npy"

    @property
    def offsets(self) -> Path:
        """Where in ``numbers`` each block's objects start; it stays."""
        return self.path / "offsets.npy"

    @property
    def table(self) -> Path:
        """Of all objects; it stays."""
        return self.path / "objects.csv"

    @property
    def summary_file(self) -> Path:
        """What the merging told; it stays."""
        return self.path / "merged.json"

    @property
    def of_merging(self) -> list[Path]:
        """All files that the merging makes."""
        return [self.numbers, self.offsets, self.table, self.summary_file]

    def merged_checksum(self) -> str:
        """Of all that the merging made, as its receipt has it."""
        digest = Checksum()
        for path in self.of_merging:
            with path.open("rb") as file:
                while part := file.read(BYTES_AT_ONCE):
                    digest.add(part)
        return digest.hexdigest()

    def save_merged(self, merged: Merged, axes: str, unit: float) -> None:
        """Keep what a merging gave."""
        for path, values in ((self.numbers, merged.numbers), (self.offsets, merged.offsets)):
            with replacing(path) as draft, draft.open("wb") as file:
                np.save(file, values)
        write_table(self.table, axes, merged.measures, unit)
        told = {
            "objects": merged.count,
            "removed": merged.removed,
            "provisional": len(merged.numbers),
            "dtype": merged.dtype,
            "sizes": sizes(merged.measures.size),
        }
        with replacing(self.summary_file) as draft:
            draft.write_text(json.dumps(told, indent=1))

    def merged(self) -> Mapping[str, Any]:
        """What the merging told."""
        found: dict[str, Any] = json.loads(self.summary_file.read_text())
        return found

    def numbers_of(self, piece: int) -> NDArray[Any]:
        """The final number of each object of a block, after a 0 for the background."""
        start, stop = np.load(self.offsets, mmap_mode="r")[piece : piece + 2]
        numbers = np.load(self.numbers, mmap_mode="r")
        return np.concatenate([np.zeros(1, numbers.dtype), numbers[start:stop]])
