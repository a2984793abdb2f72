"""Views of arrays that are read lazily: other axes, some of the channels, inverted or other values, classes.

A view has what :class:`unetcli.volumes.volume.Volume` uses of an array: ``shape``, ``dtype``, ``chunks``, and slices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Selection = tuple[slice, ...]


def chunks_of(array: Any) -> tuple[int, ...]:
    """Shape of the chunks of any array; an array without chunks is one chunk."""
    return tuple(getattr(array, "chunks", None) or array.shape)


class Filled:
    """Array of floating point numbers whose NaN and infinities are replaced.

    Parameters
    ----------
    array
        Array with shape, dtype and slicing.
    values
        Values that replace them, which broadcast against the array.
    """

    def __init__(self, array: Any, values: NDArray[Any]) -> None:
        self._array, self.shape, self.dtype, self.chunks = array, array.shape, array.dtype, chunks_of(array)
        self._values = np.broadcast_to(values.astype(array.dtype), array.shape)

    def __getitem__(self, selection: Selection) -> NDArray[Any]:
        voxels = np.asarray(self._array[selection])
        return np.where(np.isfinite(voxels), voxels, self._values[selection])


class Rearranged:
    """Array with some axes fixed at an index, some cut to their first entries, and new axes of extent 1.

    Parameters
    ----------
    array
        Array with shape, dtype and slicing.
    axes
        One entry per axis: an index that is fixed, a ``slice`` of the first entries that are kept, or None for a new
        axis, which has no counterpart in the array.
    """

    def __init__(self, array: Any, axes: Sequence[int | slice | None]) -> None:
        self._array, self._axes, self.dtype = array, tuple(axes), array.dtype
        own = [entry for entry in axes if entry is not None]
        full = dict(enumerate(zip(array.shape, chunks_of(array), own, strict=True)))
        place = iter(full.values())
        sizes = [next(place) if entry is not None else (1, 1, slice(None)) for entry in axes]
        kept = [(len(range(n)[entry]), chunk) for n, chunk, entry in sizes if isinstance(entry, slice)]
        self.shape = tuple(n for n, _ in kept)
        self.chunks = tuple(min(n, chunk) for n, chunk in kept)

    def __getitem__(self, selection: Selection) -> NDArray[Any]:
        array, full = self.viewed(selection)
        fixed = tuple(0 if isinstance(entry, int) else slice(None) for entry in self._axes if entry is not None)
        voxels = np.asarray(array[full])[fixed]
        remaining = [entry for entry in self._axes if not isinstance(entry, int)]
        new = tuple(np.newaxis if entry is None else slice(None) for entry in remaining)
        asked = zip(remaining, selection, strict=True)
        return np.asarray(voxels[new][tuple(part if entry is None else slice(None) for entry, part in asked)])

    def viewed(self, selection: Selection) -> tuple[Any, Selection]:
        """The array behind this view, and the same selection in it."""
        chosen = iter(selection)
        asked = [(entry, slice(None) if isinstance(entry, int) else next(chosen)) for entry in self._axes]
        return self._array, tuple(
            slice(entry, entry + 1) if isinstance(entry, int) else _within(part, entry)
            for entry, part in asked
            if entry is not None
        )


def _within(part: slice, kept: slice) -> slice:
    """Slice of an axis for a slice of its first entries."""
    if kept.stop is None:
        return part
    first, stop, step = part.indices(kept.stop)
    return slice(first, max(first, stop), step)


class Inverted:
    """Array of unsigned integers, or booleans, in which the largest value becomes 0, as in ``WhiteIsZero``."""

    def __init__(self, array: Any, largest: int) -> None:
        self._array, self._largest = array, largest
        self.shape, self.dtype, self.chunks = array.shape, array.dtype, chunks_of(array)

    def __getitem__(self, selection: Selection) -> NDArray[Any]:
        voxels = np.asarray(self._array[selection])
        if voxels.dtype.kind == "b":
            return ~voxels
        return np.asarray(np.subtract(self._largest, voxels, dtype=voxels.dtype))


class Fractions:
    """Array of unsigned integers as fractions of the largest value of their type, float32."""

    def __init__(self, array: Any) -> None:
        self._array, self._largest = array, np.float32(np.iinfo(array.dtype).max)
        self.shape, self.dtype, self.chunks = array.shape, np.dtype(np.float32), chunks_of(array)

    def __getitem__(self, selection: Selection) -> NDArray[Any]:
        return np.asarray(np.asarray(self._array[selection]).astype(np.float32) / self._largest)

    def viewed(self, selection: Selection) -> tuple[Any, Selection]:
        """The array behind this view, and the same selection in it."""
        return self._array, selection


class OneClass:
    """Boolean array that is True where an array of classes has a value."""

    def __init__(self, array: Any, value: int) -> None:
        self._array, self._value, self.dtype = array, value, np.dtype(np.bool_)
        self.shape, self.chunks = array.shape, chunks_of(array)

    def __getitem__(self, selection: Selection) -> NDArray[Any]:
        return np.asarray(np.asarray(self._array[selection]) == self._value)

    def viewed(self, selection: Selection) -> tuple[Any, Selection]:
        """The array behind this view, and the same selection in it."""
        return self._array, selection


class Picked:
    """Array of some of the positions along one axis, in any order."""

    def __init__(self, array: Any, axis: int, positions: Sequence[int]) -> None:
        self._array, self._axis, self._positions, self.dtype = array, axis, tuple(positions), array.dtype
        chunks = chunks_of(array)
        self.shape = (*array.shape[:axis], len(positions), *array.shape[axis + 1 :])
        self.chunks = (*chunks[:axis], 1, *chunks[axis + 1 :])

    def __getitem__(self, selection: Selection) -> NDArray[Any]:
        before, after = selection[: self._axis], selection[self._axis + 1 :]
        places = self._positions[selection[self._axis]]
        parts = [np.asarray(self._array[(*before, slice(p, p + 1), *after)]) for p in places]
        if not parts:
            return np.asarray(self._array[(*before, slice(0, 0), *after)])
        return np.concatenate(parts, axis=self._axis)


class PickedSections:
    """Array of single sections of frames: positions along two axes, of which the first one stays.

    Parameters
    ----------
    axes
        The axis that stays and counts the sections, and the one that goes.
    places
        Index along both axes, one pair per section.
    """

    def __init__(self, array: Any, axes: tuple[int, int], places: Sequence[tuple[int, int]]) -> None:
        self._array, self._axes, self._places, self.dtype = array, axes, tuple(places), array.dtype
        self.shape = self._left((len(places) if axis == axes[0] else n) for axis, n in enumerate(array.shape))
        self.chunks = self._left((1 if axis == axes[0] else n) for axis, n in enumerate(chunks_of(array)))

    def __getitem__(self, selection: Selection) -> NDArray[Any]:
        stays, goes = self._axes
        parts = list(selection)
        parts.insert(goes, slice(None))
        found = []
        places = self._places[parts[stays]]
        for first, second in places or self._places[:1]:
            parts[stays], parts[goes] = slice(first, first + 1), slice(second, second + 1)
            found.append(np.asarray(self._array[tuple(parts)]).squeeze(axis=goes))
        place = stays - (goes < stays)
        return np.concatenate(found, axis=place) if places else found[0].take([], axis=place)

    def _left(self, per_axis: Iterable[int]) -> tuple[int, ...]:
        return tuple(n for axis, n in enumerate(per_axis) if axis != self._axes[1])


class Converted:
    """Array whose values are converted one by one.

    Parameters
    ----------
    convert
        Function from an array to one of the same shape; a function of a module or a dataclass, to be sent to processes.
    dtype
        Data type of its results.
    """

    def __init__(self, array: Any, convert: Callable[[NDArray[Any]], NDArray[Any]], dtype: Any) -> None:
        self._array, self._convert, self.dtype = array, convert, np.dtype(dtype)
        self.shape, self.chunks = tuple(array.shape), chunks_of(array)

    def __getitem__(self, selection: Selection) -> NDArray[Any]:
        return self._convert(np.asarray(self._array[selection]))

    def viewed(self, selection: Selection) -> tuple[Any, Selection]:
        """The array behind this view, and the same selection in it."""
        return self._array, selection


class Merged:
    """Array whose entries along one axis are merged, so that the axis goes.

    Parameters
    ----------
    axis
        The axis that goes.
    merge
        Function from an array whose first axis is this one to an array without it; see :class:`Converted`.
    dtype
        Data type of its results.
    """

    def __init__(self, array: Any, axis: int, merge: Callable[[NDArray[Any]], NDArray[Any]], dtype: Any) -> None:
        self._array, self._axis, self._merge, self.dtype = array, axis, merge, np.dtype(dtype)
        self.shape, self.chunks = (tuple(n)[:axis] + tuple(n)[axis + 1 :] for n in (array.shape, chunks_of(array)))

    def __getitem__(self, selection: Selection) -> NDArray[Any]:
        array, full = self.viewed(selection)
        return self._merge(np.moveaxis(np.asarray(array[full]), self._axis, 0))

    def viewed(self, selection: Selection) -> tuple[Any, Selection]:
        """The array behind this view, and the same selection in it."""
        every = slice(0, self._array.shape[self._axis])
        return self._array, (*selection[: self._axis], every, *selection[self._axis :])
