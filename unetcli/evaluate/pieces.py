"""Objects that are connected components of a section, found block by block and joined across the blocks' borders.

The result is that of the whole section, also in the numbering of the objects, but no process holds a whole section.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from unetcli.label.merging import group_pairs, matching_pairs, to_provisional
from unetcli.label.objects import first_voxels
from unetcli.metrics.contingency import Contingency

Arrays = dict[str, NDArray[Any]]
SIDES = ("reference", "result")


@dataclass(frozen=True, slots=True, eq=False)
class PartialObjects:
    """Connected components in the part of a section that one block covers, labelled 1, 2, .. there."""

    first: NDArray[np.int64]
    """(components,): flat index in the section of the first pixel of each component."""
    top: NDArray[np.int32]
    """(width,): labels of the first row."""
    bottom: NDArray[np.int32]
    """(width,): labels of the last row."""
    left: NDArray[np.int32]
    """(height,): labels of the first column."""
    right: NDArray[np.int32]
    """(height,): labels of the last column."""

    @classmethod
    def of(cls, labels: NDArray[np.int32], corner: tuple[int, int], width: int) -> Self:
        """Components of a part.

        Parameters
        ----------
        labels : (y, x), int32
            Labels of the part.
        corner
            Position (y, x) of the part in the section.
        width : pixels
            Width of the section.
        """
        y, x = np.divmod(first_voxels(labels, int(labels.max(initial=0))), labels.shape[1])
        edges = (labels[0], labels[-1], labels[:, 0], labels[:, -1])
        return cls((y + corner[0]) * width + x + corner[1], *(edge.copy() for edge in edges))


@dataclass(frozen=True, slots=True, eq=False)
class SectionPart:
    """Overlap of truth and prediction in the part of a section that one block covers."""

    table: Contingency
    """Its labels are those of the components of this part, or stored labels."""
    reference: PartialObjects | None
    """Components of the truth; None if its labels are stored ones."""
    result: PartialObjects | None
    """Components of the prediction; None if its labels are stored ones."""

    def to_arrays(self) -> Arrays:
        """Arrays by name, as a file stores them."""
        parts = {"table": self.table, **{side: part for side in SIDES if (part := getattr(self, side)) is not None}}
        return {f"{name}/{one.name}": getattr(part, one.name) for name, part in parts.items() for one in fields(part)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Restore a part from the result of :meth:`to_arrays`."""

        def restored(kind: type[Any], name: str) -> Any:
            found = [arrays.get(f"{name}/{one.name}") for one in fields(kind)]
            return None if found[0] is None else kind(*found)

        return cls(restored(Contingency, "table"), *(restored(PartialObjects, side) for side in SIDES))


def join_sections(parts: Mapping[int, SectionPart], grid: Sequence[int]) -> Iterator[tuple[int, Contingency]]:
    """Table of each section, with its number.

    Parameters
    ----------
    parts
        Complete sections; the part at ``(row, column)`` of a section has the key ``(section * rows + row) * columns +
        column``.
    grid
        Rows and columns of parts in a section.
    """
    each = grid[0] * grid[1]
    for section in sorted({key // each for key in parts}):
        yield section, join_parts([parts[section * each + place] for place in range(each)], grid[1])


def join_parts(parts: Sequence[SectionPart], columns: int) -> Contingency:
    """Table of a section from its parts, given in C order."""
    reference, result = (_final_labels([getattr(part, side) for part in parts], columns) for side in SIDES)
    tables = [
        Contingency(
            table.reference if reference is None else reference[place][table.reference.astype(np.intp)],
            table.result if result is None else result[place][table.result.astype(np.intp)],
            table.counts,
        )
        for place, table in enumerate(part.table for part in parts)
    ]
    return Contingency.total(tables)


def _final_labels(parts: Sequence[PartialObjects | None], columns: int) -> list[NDArray[np.uint64]] | None:
    """Labels in the section of the components of each part, after a 0 for the background; None for stored labels."""
    found = [part for part in parts if part is not None]
    if len(found) < len(parts):
        return None
    offsets = np.cumsum([0, *(len(part.first) for part in found)])
    groups = group_pairs(int(offsets[-1]), np.concatenate(list(_touching(found, offsets, columns))))
    numbers = number_by_first(groups, np.concatenate([part.first for part in found]))
    return [np.concatenate([np.zeros(1, np.uint64), numbers[a:b]]) for a, b in itertools.pairwise(offsets)]


def _touching(parts: Sequence[PartialObjects], offsets: NDArray[np.int64], columns: int) -> Iterator[NDArray[np.int64]]:
    """Pairs of components, (pairs, 2) each, that meet at the borders between parts."""
    yield np.zeros((0, 2), np.int64)
    for place, part in enumerate(parts):
        before = [(place - 1, "right", part.left)] if place % columns else []
        before += [(place - columns, "bottom", part.top)] if place >= columns else []
        for other, edge, own in before:
            seen = to_provisional(getattr(parts[other], edge), offsets[other])
            yield matching_pairs(seen, to_provisional(own, offsets[place]))


def number_by_first(groups: NDArray[np.int64], first: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Number joined objects 1, 2, .. by their first pixels, as in a section that is labelled as a whole.

    Parameters
    ----------
    groups : (components,)
        Joined object 0, 1, .. of each component.
    first : (components,)
        First pixel of each component.

    >>> number_by_first(np.array([0, 1, 0]), np.array([7, 5, 2])).tolist()
    [1, 2, 1]
    """
    lowest = np.full(int(groups.max(initial=-1)) + 1, np.iinfo(np.int64).max)
    np.minimum.at(lowest, groups, first)
    numbers: NDArray[np.uint64] = (np.argsort(np.argsort(lowest)) + 1).astype(np.uint64)[groups]
    return numbers
