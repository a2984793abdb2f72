"""Input windows of blocks, and blocks from the results of their tiles: what happens before and after the network."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.arrays import broadcast_channels
from unetcli.core.errors import UnreadableBlock
from unetcli.core.geometry import Box, hull
from unetcli.core.streams import ordered_map
from unetcli.planning.plan import Block, Plan, Settings, Tile
from unetcli.predict.skipping import ActiveCells, Mask, all_active, background, bright_cells, cell_sides, voxels_of
from unetcli.volumes.resampled import resampled
from unetcli.volumes.views import Selection
from unetcli.volumes.volume import Volume, describe


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Input of one block, or the error that occurred while reading it."""

    block: Block
    box: Box
    voxels: NDArray[Any] | None
    """(c, *box.shape), in the volume's dtype; None if nothing of the block is computed."""
    active: ActiveCells | None
    """Cells that are computed; None means all."""
    error: Exception | None
    seconds: float


@dataclass(frozen=True, slots=True)
class TileResult:
    """Result of one tile, or the error that occurred in its block; without both, the whole block is skipped."""

    window: Window
    tile: Tile | None
    values: NDArray[Any] | None
    """(outputs, *tile.write.shape), in the output's dtype; probabilities as float32 if they are mapped back."""
    seconds: float
    error: Exception | None = None
    side: int = 0
    """Input side of a full tile: that of the plan, or a smaller one that fits the memory."""


@dataclass(frozen=True, slots=True)
class FinishedBlock:
    """Result of a block, or the error that occurred."""

    block: Block
    values: NDArray[Any] | None
    """(outputs, *block.box.shape), in the output's dtype; None after an error."""
    error: Exception | None
    tile: int
    """Input side of a full tile: that of the plan, or a smaller one that fits the memory; 0 if all was skipped."""
    read_seconds: float
    forward_seconds: float


def read_windows(
    plan: Plan, source: Volume, mask: Mask | None, blocks: Iterable[int], threads: int = 1
) -> Iterator[Window]:
    """Read the input of each block, in order; an error is passed on with the block."""

    def read(number: int) -> Window:
        started, block = time.perf_counter(), plan.block(number)
        try:
            window = read_window(plan, source, mask, block)
        except Exception as reason:  # concerns this block only
            window = Window(block, block.box, None, None, reason, 0.0)
        return replace(window, seconds=time.perf_counter() - started)

    if threads == 1:
        return map(read, blocks)
    return (future.result() for _, future in ordered_map(read, blocks, threads))


def read_window(plan: Plan, source: Volume, mask: Mask | None, block: Block) -> Window:
    """Read the input of the tiles of a block that are computed, and find the cells that are computed."""
    active = None if mask is None else mask.active_cells(block.box)
    boxes = [tile.read for tile in active_tiles(plan, block, active)]
    if not boxes:
        return Window(block, block.box, None, active, None, 0.0)
    if plan.settings.skip_below is None:
        box = hull(boxes)
        return Window(block, box, read_seen(source, box, plan.settings, mask), active, None, 0.0)
    active = all_active(block.box, cell_sides(plan.footprint)) if active is None else active
    cells = voxels_of(active.box, active.sides, plan.extent)  # whole cells: voxels outside the block count as well
    rescaled = plan.settings.rescale is not None
    held = cells if rescaled else hull([*boxes, cells])
    voxels = read_finite(source, held, plan.settings, mask)
    inside = voxels[(slice(None), *cells.relative_to(held).slices)]
    active = active.intersection(bright_cells(inside, cells, active.sides, plan.settings.skip_below))
    if active and rescaled:
        held = hull([tile.read for tile in active_tiles(plan, block, active)])
        voxels = read_seen(source, held, plan.settings, mask)
    return Window(block, held, voxels if active else None, active, None, 0.0)


def active_tiles(plan: Plan, block: Block, active: ActiveCells | None) -> list[Tile]:
    """Tiles of a block on which an active cell depends; all tiles if ``active`` is None."""
    if active is None:
        return list(plan.tiles(block))
    affected = plan.rescaling.affected
    return [tile for tile in plan.tiles(block) if active.overlaps(affected(tile.write).clipped(block.box))]


def read_seen(source: Volume, box: Box, settings: Settings, mask: Mask | None = None) -> NDArray[Any]:
    """Read what the network sees of a box, on the grid of ``settings.rescale``; see :func:`read_finite`."""
    if settings.rescale is None:
        return read_finite(source, box, settings, mask)
    finite = Volume(path=source.path, array=_Finite(source, settings, mask), stored_axes=f"c{source.axes}")
    return resampled(finite, settings.rescale).read(box)


class _Finite:
    """Array (c, ..) of the voxels of a volume that :func:`read_finite` returns."""

    def __init__(self, source: Volume, settings: Settings, mask: Mask | None) -> None:
        self._source, self._settings, self._mask, self.dtype = source, settings, mask, source.dtype
        self.shape = (source.channels if settings.channel is None else 1, *source.extent)

    def __getitem__(self, selection: Selection) -> NDArray[Any]:
        box = Box(tuple(part.start for part in selection[1:]), tuple(part.stop for part in selection[1:]))
        return read_finite(self._source, box, self._settings, self._mask)


def read_finite(source: Volume, box: Box, settings: Settings, mask: Mask | None = None) -> NDArray[Any]:
    """Read the voxels of a box, with NaN and infinity replaced by ``settings.nonfinite``.

    Parameters
    ----------
    source : Volume
    box : Box
        In voxels of the volume; it is mirrored where it reaches outside.
    settings : Settings
    mask : Mask, optional
        Nonfinite values that it excludes are no error; the mean replaces them.

    Returns
    -------
    (c, *box.shape), the volume's dtype

    Raises
    ------
    UnreadableBlock
        A value is not finite and ``settings.nonfinite`` is None. The message names the first one.
    """
    voxels = source.read(box, settings.channel)
    if voxels.dtype.kind != "f" or (finite := np.isfinite(voxels)).all():
        return voxels
    if settings.nonfinite is not None:
        return np.where(finite, voxels, voxels.dtype.type(settings.nonfinite))
    wrong = ~finite if mask is None else ~(finite | mask.excluded(box))
    if not wrong.any():
        return np.where(finite, voxels, broadcast_channels(settings.mean, voxels.ndim).astype(voxels.dtype))
    inner = box.clipped(source.whole())  # what is mirrored beyond the volume lies in it too
    wrong = wrong[(slice(None), *inner.relative_to(box).slices)]
    if not wrong.any():  # what a smaller last tile reads beyond the volume affects no output that is kept
        return np.where(finite, voxels, broadcast_channels(settings.mean, voxels.ndim).astype(voxels.dtype))
    place = tuple(int(a + i) for a, i in zip(inner.start, np.argwhere(wrong.any(axis=0))[0], strict=True))
    voxel = Box(place, tuple(p + 1 for p in place))
    raise UnreadableBlock(
        f"{source.path}: {int(wrong.sum())} values are not finite, first at {describe(voxel, source.axes)}; "
        "--nonfinite 0 replaces them by 0"
    )


def padded_to(window: Window, box: Box) -> NDArray[Any]:
    """Voxels (c, *box.shape) of a window; tiles smaller than the plan's may read a few voxels beyond it.

    These voxels only affect outputs that are cropped, so the edge value replaces them.
    """
    assert window.voxels is not None
    if box == window.box:
        return window.voxels
    both = zip(window.box.start, window.box.stop, box.start, box.stop, strict=True)
    margins = [(max(0, a - first), max(0, stop - b)) for a, b, first, stop in both]
    padded = np.pad(window.voxels, [(0, 0), *margins], mode="edge")
    held = Box(tuple(a - m for a, (m, _) in zip(window.box.start, margins, strict=True)), window.box.stop)
    return padded[(slice(None), *box.relative_to(held).slices)]


def assemble(plan: Plan, results: Iterable[TileResult]) -> Iterator[FinishedBlock]:
    """Combine the results of tiles into blocks; cells that are not computed are background.

    If memory ran out, tiles may overlap; the later one counts.
    """
    for window, group in itertools.groupby(results, key=lambda result: result.window):
        box, seconds, error, side = window.block.box, 0.0, window.error, 0
        seen, values = plan.rescaling.needed(box), None
        for result in group:
            seconds, error = seconds + result.seconds, error or result.error  # later tiles of a GPU may still succeed
            if result.tile is not None and result.values is not None:
                side, computed = result.side, result.values
                if values is None:
                    values = np.zeros((len(computed), *seen.shape), computed.dtype)
                values[(slice(None), *result.tile.write.relative_to(seen).slices)] = computed
        stored = None if error else stored_block(plan, window, values)
        yield FinishedBlock(window.block, stored, error, side, window.seconds, seconds)


def stored_block(plan: Plan, window: Window, values: NDArray[Any] | None) -> NDArray[Any]:
    """Stored values (outputs, *box.shape) of a block, from those of its tiles; None if all of it is skipped."""
    box, settings = window.block.box, plan.settings
    if values is not None and settings.rescale is not None:
        values = quantised(plan.rescaling.mapped_back(values, box), settings)
    if values is not None and window.active is None:
        return values
    blank = background(settings).reshape(-1, *(1,) * len(plan.axes))
    if values is None or window.active is None:
        return np.broadcast_to(blank, (settings.outputs, *box.shape)).copy()
    return np.where(window.active.voxels(box), values, blank)


def quantised(probabilities: NDArray[np.float32], settings: Settings) -> NDArray[Any]:
    """Stored values (outputs, ..) of probabilities that were mapped back, as :meth:`Predictor.quantise` makes them.

    Parameters
    ----------
    probabilities : (classes, ..), float32
        Of the foreground alone, (1, ..), if there are two classes.
    settings : Settings
    """
    if settings.output_classes:
        single = len(probabilities) == 1
        classes = probabilities > 0.5 if single else probabilities.argmax(axis=0)[np.newaxis]
        return classes.astype(np.uint8)
    values = np.clip(probabilities, 0, 1)  # weights may add up to a little more than 1
    return (np.floor(255 * values + 0.5) if settings.dtype == "uint8" else values).astype(settings.dtype)
