"""Storage shared by steps: images with a completion marker, coarser levels, and tables of blocks for later stages."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numcodecs
import numpy as np
import zarr
from numpy.typing import NDArray

from unetcli.core.arrays import Checksum
from unetcli.core.files import draft_of, drafts, remove, remove_aside, sync_all
from unetcli.core.geometry import Box
from unetcli.engine.step import BlockResult, DamagedResult, Step
from unetcli.planning.pyramid_plan import PyramidPlan
from unetcli.volumes import ngff
from unetcli.volumes.image import Image, Level, marker, remove_output
from unetcli.volumes.volume import describe

ZSTD = numcodecs.Zstd(level=1, checksum=True)
FRAME_BYTES = 2**26
"""Bytes of an array that are compressed as one frame; codecs limit the size."""
FILES_PER_FOLDER = 1000

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Tables:
    """Arrays of each block, in one file per block below a folder."""

    folder: Path

    def path(self, piece: int) -> Path:
        return self.folder / f"{piece // FILES_PER_FOLDER:04d}" / f"{piece:07d}.tables"

    def save(self, piece: int, arrays: Mapping[str, NDArray[Any]]) -> Path:
        """Store a block's arrays, replacing earlier ones; the caller syncs the returned file.

        Raises
        ------
        FileNotFoundError
            The run folder was deleted at the end of the run; it must not be created again.
        """
        path = self.path(piece)
        for folder in (self.folder, path.parent):
            folder.mkdir(exist_ok=True)
        draft = draft_of(path)
        try:
            with draft.open("wb") as file:
                write_arrays(file, arrays)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        return path

    def load(self, piece: int, names: Collection[str] | None = None) -> Arrays:
        """Read the arrays of a block, or only those in ``names`` that it has.

        Raises
        ------
        DamagedResult
            The file is damaged or missing.
        """
        path = self.path(piece)
        try:
            with path.open("rb") as file:
                return read_arrays(file, names)
        except Exception as error:  # codecs raise errors of any class
            raise damaged(piece, path, error) from error

    def remove(self) -> None:
        remove_aside(self.folder)

    def sweep(self) -> None:
        """Delete unfinished files of killed workers; only valid while no worker is running."""
        for folder in self.folder.glob("[0-9]" * 4):
            for draft in drafts(folder, "*.tables"):
                remove(draft)


def damaged(piece: int, path: Path, why: object) -> DamagedResult:
    """Return the error for a damaged file of a block, which has to be recomputed."""
    return DamagedResult(piece, f"{path}: cannot be read ({why}); the same command recomputes it")


def write_arrays(file: BinaryIO, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a line of JSON that describes the arrays, then their compressed frames."""
    frames = {name: [bytes(ZSTD.encode(part)) for part in _parts(values)] for name, values in arrays.items()}
    head = {
        name: [str(values.dtype), values.shape, [len(frame) for frame in frames[name]]]
        for name, values in arrays.items()
    }
    file.write(json.dumps(head).encode() + b"\n")
    for several in frames.values():
        file.writelines(several)


def read_arrays(file: BinaryIO, names: Collection[str] | None = None) -> Arrays:
    """Read the arrays that :func:`write_arrays` wrote, or only those in ``names``."""
    found: Arrays = {}
    for name, (dtype, shape, lengths) in json.loads(file.readline()).items():
        if names is None or name in names:
            data = b"".join(bytes(ZSTD.decode(file.read(length))) for length in lengths)
            found[name] = np.frombuffer(data, dtype).reshape(shape)
        else:
            file.seek(sum(lengths), 1)
    return found


def _parts(values: NDArray[Any]) -> list[NDArray[Any]]:
    flat = np.ascontiguousarray(values).reshape(-1)
    step = max(1, FRAME_BYTES // max(flat.itemsize, 1))
    return [flat[i * step : (i + 1) * step] for i in range(math.ceil(len(flat) / step))]


class ImageStep(Step):
    """A step whose output is an image with a marker that records whether it is complete.

    The marker is read on first use, and again under the launcher's lock; changes by this process are cached.
    """

    @cached_property
    def _cache(self) -> dict[str, dict[str, Any] | None]:
        return {}

    def marker(self) -> dict[str, Any] | None:
        """Return the marker of the output; None if there is no output of unetcli."""
        if "marker" not in self._cache:
            self._cache["marker"] = marker(self.output)
        return self._cache["marker"]

    def cache_marker(self, found: dict[str, Any] | None) -> None:
        """Cache a marker that was just read or written."""
        self._cache["marker"] = found

    def clear_cache(self) -> None:
        self._cache.clear()

    def is_made(self) -> bool:
        return self.marker() is not None

    def is_complete(self) -> bool:
        return bool((self.marker() or {}).get("complete"))

    def mark(self, image: Image, *, complete: bool, **more: str) -> None:
        """Record in the image whether it is complete, and more."""
        image.mark(complete=complete, **more)
        self.cache_marker({**(self.marker() or {}), "complete": complete, **more})

    def discard(self) -> None:
        remove_output(self.output)
        self.clear_cache()


def halved(values: NDArray[Any]) -> NDArray[Any]:
    """Average 2 x 2 voxels along the last two axes; at odd ends, average the voxels that exist.

    Parameters
    ----------
    values : (..., y, x), unsigned integer or float
        Unsigned integers are rounded half up.

    Returns
    -------
    (..., ceil(y / 2), ceil(x / 2)), dtype of ``values``

    >>> halved(np.array([[0, 1, 7], [1, 1, 8]], np.uint8)).tolist()
    [[1, 8]]
    """
    integers = values.dtype.kind == "u"
    wide = np.dtype(f"u{2 * values.dtype.itemsize}") if integers else np.promote_types(values.dtype, np.float32)
    sums: NDArray[Any] = values[..., ::2, :].astype(wide)
    sums[..., : values.shape[-2] // 2, :] += values[..., 1::2, :]
    rows, sums = sums, sums[..., ::2].copy()
    sums[..., : rows.shape[-1] // 2] += rows[..., 1::2]
    heights, widths = (np.minimum(2, n - np.arange(0, n, 2)) for n in values.shape[-2:])
    counts = np.multiply.outer(heights, widths).astype(wide)
    means: NDArray[Any] = (sums + counts // 2) // counts if integers else sums / counts
    return means.astype(values.dtype)


def nearest(values: NDArray[Any]) -> NDArray[Any]:
    """Take the first of 2 x 2 voxels along the last two axes, because labels cannot be averaged.

    Parameters
    ----------
    values : (..., y, x)

    Returns
    -------
    (..., ceil(y / 2), ceil(x / 2)), view of ``values``

    >>> nearest(np.array([[0, 1, 7], [1, 1, 8]], np.uint8)).tolist()
    [[0, 7]]
    """
    return values[..., ::2, ::2]


def place(plan: PyramidPlan, number: int) -> str:
    """Describe the location of a block of coarser levels, for messages."""
    block = plan.block(number)
    return f"level {block.base}, {describe(block.box, plan.axes)}"


@dataclass(frozen=True)
class Pyramid:
    """The coarser levels of an image, built by a plan of their own."""

    image: Image
    plan: PyramidPlan
    coarser: Callable[[NDArray[Any]], NDArray[Any]] = halved
    """Function that reduces 2 x 2 voxels to one."""

    @property
    def is_made(self) -> bool:
        """Whether the arrays of all levels exist, empty or not."""
        return all(level.exists() for level in self._levels[1:])

    def create(self) -> None:
        """Create the empty arrays of levels that are missing or belong to another plan.

        All coarser levels are first removed from the image's metadata if any has to be created.
        """
        missing = [level for level in self._levels[1:] if not level.exists()]
        if missing:
            self.hide()
        for level in missing:
            level.create(self.image.store)
        made = [file for level in missing for file in self.image.store.files(level.metadata_key)]
        sync_all(made, Path(self.image.path))

    def build(self, number: int, first: int = 0) -> BlockResult:
        """Build a block's part of its levels from the stages before. Repeatable.

        ``first`` is the number of the pyramid's first block within its step.
        """
        files: list[Path] = []

        def make(level: int, piece: Box) -> NDArray[Any]:
            values = self._made(level, piece)
            files.extend(self.write(level, piece, values))
            return values

        checksum = self._checksum(number, make)
        voxels = self.plan.block(number).box.size
        return BlockResult(number=first + number, checksum=checksum, files=files, voxels=voxels)

    def checksum(self, number: int) -> str:
        """Return the checksum of a stored block, equal to that of :meth:`build`.

        Raises
        ------
        UnreadableBlock
            The stored data are damaged.
        """
        return self._checksum(number, lambda level, piece: self._levels[level].read(self._read[level], piece))

    def write(self, level: int, box: Box, values: NDArray[Any]) -> list[Path]:
        """Store ``(outputs, *box.shape)`` in whole chunks (shards) of a level; return the files written."""
        if self._is_absent(level, box) and not values.any():
            return []  # chunks of zeros are not stored
        self._levels[level].write(self._written[level], box, values)
        return list(self._levels[level].files(box))

    def publish(self) -> None:
        """List all levels in the image's metadata."""
        self._show(self.plan.levels)

    def hide(self) -> None:
        """List only level 0 in the image's metadata."""
        self._show(1)

    def _checksum(self, number: int, values: Callable[[int, Box], NDArray[Any]]) -> str:
        digest = Checksum()
        for level, piece in self.plan.pieces(self.plan.block(number)):
            digest.add(values(level, piece))
        return digest.hexdigest()

    def _made(self, level: int, piece: Box) -> NDArray[Any]:
        result = np.empty((self.plan.outputs, *piece.shape), self.image.level.dtype)
        for part, below in self.plan.parts(level, piece):
            place = (slice(None), *part.relative_to(piece).slices)
            if self._is_absent(level - 1, below):
                result[place] = 0
            else:
                result[place] = self.coarser(self._levels[level - 1].read(self._read[level - 1], below))
        return result

    def _is_absent(self, level: int, box: Box) -> bool:
        """Whether nothing is stored of a box of a level, so that all its values are 0; False if that is not known."""
        return self._levels[level].is_absent(self._read[level], box)

    def _show(self, levels: int) -> None:
        attributes = self.image.attributes()
        with ngff.explain(self.image.path):
            image = ngff.images(attributes)[0]
            finest = ngff.Grid.of(image)
        grids = [finest.downsampled(self.plan.factors(level)) for level in range(levels)]
        shown = {**image, "datasets": ngff.datasets(grids)}
        if shown != image:
            self.image.replace_attributes(ngff.with_metadata(attributes, multiscales=[shown]))

    @cached_property
    def _levels(self) -> list[Level]:
        finest, plan = self.image.level, self.plan
        coarser = [
            finest.like(str(n), shape=plan.shape_of(n), chunks=plan.chunks_of(n), write_chunks=plan.write_chunks_of(n))
            for n in range(1, plan.levels)
        ]
        return [finest, *coarser]

    @cached_property
    def _read(self) -> list[zarr.Array[Any]]:
        return [level.open_to_read() for level in self._levels]

    @cached_property
    def _written(self) -> list[zarr.Array[Any]]:
        return [level.open() for level in self._levels]
