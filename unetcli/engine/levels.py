"""Coarser levels of an image: 2 x 2 voxels made one, block by block; they show once all are there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from unetcli.core.arrays import Checksum
from unetcli.core.files import sync_all
from unetcli.core.geometry import Box
from unetcli.engine.step import BlockResult
from unetcli.planning.pyramid_plan import PyramidPlan
from unetcli.volumes import ngff
from unetcli.volumes.image import Image
from unetcli.volumes.level import Level
from unetcli.volumes.volume import describe


def halved(values: NDArray[Any]) -> NDArray[Any]:
    """Means of 2 x 2 along the last two axes, integers rounded half up; at odd ends, of what is there.

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


def first_of(values: NDArray[Any]) -> NDArray[Any]:
    """The first of 2 x 2 along the last two axes: of labels there is no mean.

    >>> first_of(np.array([[0, 1, 7], [1, 1, 8]], np.uint8)).tolist()
    [[0, 7]]
    """
    return values[..., ::2, ::2]


def place(plan: PyramidPlan, number: int) -> str:
    """Where a block of coarser levels lies, for people."""
    block = plan.block(number)
    return f"level {block.base}, {describe(block.box, plan.axes)}"


@dataclass(frozen=True)
class Pyramid:
    """The coarser levels of an image, by their own plan."""

    image: Image
    plan: PyramidPlan
    coarser: Callable[[NDArray[Any]], NDArray[Any]] = halved
    """One voxel of 2 x 2."""

    @property
    def is_made(self) -> bool:
        """Whether the arrays of all levels are there, empty or not."""
        return all(level.exists() for level in self._levels[1:])

    def create(self) -> None:
        """Make the empty arrays of the levels that are not there yet, or are of another plan.

        Levels that show are hidden first where some are made anew.
        """
        missing = [level for level in self._levels[1:] if not level.exists()]
        if missing:
            self.hide()
        for level in missing:
            level.create(self.image.store)
        made = [file for level in missing for file in self.image.store.files(level.metadata_key)]
        sync_all(made, Path(self.image.path))

    def build(self, number: int, first: int = 0) -> BlockResult:
        """Make a block's part of its levels; may be repeated, and needs the stages before, nothing else.

        ``first`` is the number that the first of these blocks has in its step.
        """
        files: list[Path] = []

        def make(level: int, piece: Box) -> NDArray[Any]:
            values = self._made(level, piece)
            self._levels[level].write(self._written[level], piece, values)
            files.extend(self._levels[level].files(piece))
            return values

        checksum = self._checksum(number, make)
        voxels = self.plan.block(number).box.size
        return BlockResult(number=first + number, checksum=checksum, files=files, voxels=voxels)

    def checksum(self, number: int) -> str:
        """As :meth:`build` gave it, of what is stored; raises :class:`UnreadableBlock` where that is damaged."""
        return self._checksum(number, lambda level, piece: self._levels[level].read(self._read[level], piece))

    def publish(self) -> None:
        """Name all levels in the image's metadata."""
        self._show(self.plan.levels)

    def hide(self) -> None:
        """Name level 0 alone."""
        self._show(1)

    def _checksum(self, number: int, values: Callable[[int, Box], NDArray[Any]]) -> str:
        digest = Checksum()
        for level, piece in self.plan.pieces(self.plan.block(number)):
            digest.add(values(level, piece))
        return digest.hexdigest()

    def _made(self, level: int, piece: Box) -> NDArray[Any]:
        result = np.empty((self.plan.outputs, *piece.shape), self.image.level.dtype)
        for part, below in self.plan.parts(level, piece):
            finer = self._levels[level - 1].read(self._read[level - 1], below)
            result[(slice(None), *part.relative_to(piece).slices)] = self.coarser(finer)
        return result

    def _show(self, levels: int) -> None:
        attributes = self.image.attributes()
        image = ngff.images(attributes)[0]
        finest = ngff.Grid.of(image)
        grids = [finest.downsampled(self.plan.factors(level)) for level in range(levels)]
        shown = {**image, "datasets": ngff.datasets(grids)}
        if shown != image:
            self.image.replace_attributes(ngff.with_image(attributes, shown))

    @cached_property
    def _levels(self) -> list[Level]:
        coarser = [self.image.level.like(str(n), **self._sizes(n)) for n in range(1, self.plan.levels)]
        return [self.image.level, *coarser]

    def _sizes(self, level: int) -> dict[str, tuple[int, ...]]:
        plan = self.plan
        return {
            "shape": plan.shape_of(level),
            "chunks": plan.chunks_of(level),
            "write_chunks": plan.write_chunks_of(level),
        }

    @cached_property
    def _read(self) -> list[zarr.Array[Any]]:
        return [level.open_to_read() for level in self._levels]

    @cached_property
    def _written(self) -> list[zarr.Array[Any]]:
        return [level.open() for level in self._levels]
