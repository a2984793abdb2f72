"""From windows of a volume to finished blocks: read, forward, assemble, each a small stream."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unetcli.core.arrays import broadcast_channels
from unetcli.core.errors import UnreadableBlock, one_line
from unetcli.core.geometry import Box, hull
from unetcli.core.process import give_back_freed_memory
from unetcli.core.streams import prefetch
from unetcli.model.network import UNet, channelwise, on_device
from unetcli.planning.plan import Block, Plan, Settings, Tile
from unetcli.predict.skipping import ActiveCells, Mask, all_kept, background, bright, cell_sides, voxels_of
from unetcli.volumes.volume import Volume, describe

log = logging.getLogger(__name__)

WINDOWS_AHEAD, PIECES_AHEAD = 1, 4
OUT_OF_MEMORY = ("allocate memory", "bad_alloc", "could not create a primitive", "could not create a memory")
"""How torch and oneDNN tell that there is none left."""
DTYPES = {"uint8": torch.uint8, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """All input of one block, or why there is none."""

    block: Block
    box: Box
    voxels: NDArray[Any] | None
    """(c, *box.shape), the volume's dtype; None where nothing of the block is computed."""
    kept: ActiveCells | None
    """Which cells are computed; None: all."""
    error: Exception | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Piece:
    """One tile's share of a block, ``(outputs, *tile.write.shape)``, or why there is none."""

    window: Window
    tile: Tile | None
    values: NDArray[Any] | None
    seconds: float
    error: Exception | None = None
    side: int = 0
    """Of the plan's tile, or of the smaller one that memory allowed."""


@dataclass(frozen=True, slots=True)
class FinishedBlock:
    """A block's result, ``(outputs, *block.box.shape)`` in the output's dtype, or why there is none."""

    block: Block
    values: NDArray[Any] | None
    error: Exception | None
    tile: int
    """Side of the tile used: the plan's, or a smaller one that memory allowed; 0 where none was needed."""
    read_seconds: float
    forward_seconds: float


class Predictor:
    """Network, normalisation and quantisation: grey values of a tile in, stored values out."""

    def __init__(self, network: UNet, settings: Settings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.network = on_device(network, device).eval()
        self._mean, self._std = channelwise(settings.mean, device), channelwise(settings.std, device)
        self._tile: tuple[int, ...] | None = None

    def fitting(self, plan: Plan) -> Plan:
        """The plan, with the tile that this device's memory was found to hold."""
        return plan if self._tile is None else replace(plan, tile=self._tile)

    def shrink(self, plan: Plan) -> bool:
        """Take a tile of about half the side from now on; False where there is no smaller one."""
        tile = self.fitting(plan).tile
        axis = plan.footprint.axes[-1]
        smaller = axis.side_for(max(1, axis.output(tile[-1]) // 2))
        if smaller >= tile[-1]:
            return False
        self._tile = tuple(smaller if side > 1 else 1 for side in tile)
        return True

    @torch.inference_mode()
    def __call__(self, voxels: NDArray[Any]) -> NDArray[Any]:
        """Stored values of one tile.

        Parameters
        ----------
        voxels : (c, y, x), any real dtype

        Returns
        -------
        (outputs, y - 2*context, x - 2*context), the output's dtype
        """
        x = torch.from_numpy(np.ascontiguousarray(voxels, np.float32)).to(self.device)[np.newaxis]
        x = ((x - self._mean) / self._std).to(memory_format=torch.channels_last)
        bfloat16 = self.settings.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
            logits = self.network(x)[0].float()  # (classes, y, x)
        return self.quantise(torch.softmax(logits, dim=0)).cpu().numpy()

    def quantise(self, probabilities: Tensor) -> Tensor:
        """What is stored of (classes, y, x): the foreground's of two classes; as uint8 floor(255 p + 0.5)."""
        stored = probabilities[1:] if self.settings.outputs == 1 else probabilities
        if self.settings.dtype == "uint8":
            stored = torch.floor(255 * stored + 0.5)
        return stored.to(DTYPES[self.settings.dtype])


def predict_blocks(
    plan: Plan,
    predictor: Predictor,
    source: Volume,
    blocks: Iterable[int],
    stopping: Callable[[], bool] = bool,
    mask: Mask | None = None,
) -> Generator[FinishedBlock]:
    """Blocks one after the other, while the next are read and computed; ends early once ``stopping()`` is true."""
    if (mask is None) != (plan.settings.mask is None):
        raise ValueError("a plan is computed with the mask that it was made for, and no other")
    windows = prefetch(read_windows(plan, source, mask, blocks), ahead=WINDOWS_AHEAD)
    with closing(prefetch(compute(plan, predictor, windows, stopping), ahead=PIECES_AHEAD)) as pieces:
        yield from assemble(plan, pieces)


def read_windows(plan: Plan, source: Volume, mask: Mask | None, blocks: Iterable[int]) -> Iterator[Window]:
    """The input of each block."""
    for block in map(plan.block, blocks):
        started = time.perf_counter()
        try:
            window = read_window(plan, source, mask, block)
        except Exception as reason:  # one block's trouble; the rest goes on
            window = Window(block, block.box, None, None, reason, 0.0)
        yield replace(window, seconds=time.perf_counter() - started)


def read_window(plan: Plan, source: Volume, mask: Mask | None, block: Block) -> Window:
    """What the computed tiles of a block need, and which of its cells are computed: without the others, or less."""
    kept = None if mask is None else mask.kept(block.box)
    boxes = [tile.read for tile in kept_tiles(plan, block, kept)]
    if not boxes:
        return Window(block, block.box, None, kept, None, 0.0)
    if plan.settings.skip_below is None:
        box = hull(boxes)
        return Window(block, box, read_finite(source, box, plan.settings, mask), kept, None, 0.0)
    kept = all_kept(block.box, cell_sides(plan.footprint)) if kept is None else kept
    cells = voxels_of(kept.box, kept.sides, plan.extent)  # all of each cell decides, not just the block's part
    box = hull([*boxes, cells])
    voxels = read_finite(source, box, plan.settings, mask)
    inside = voxels[(slice(None), *cells.relative_to(box).slices)]
    kept = kept.but(bright(inside, cells, kept.sides, plan.settings.skip_below))
    return Window(block, box, voxels if kept else None, kept, None, 0.0)


def kept_tiles(plan: Plan, block: Block, kept: ActiveCells | None) -> list[Tile]:
    """The tiles of a block that give anything that is not skipped."""
    return [tile for tile in plan.tiles(block) if kept is None or kept.meets(tile.write)]


def read_finite(source: Volume, box: Box, settings: Settings, mask: Mask | None = None) -> NDArray[Any]:
    """The voxels of a box; NaN and infinity replaced where the user said by what, else refused with their place.

    Where a mask rules them out they are no error, and the mean stands in for them.
    """
    voxels = source.read(box, settings.channel)
    if voxels.dtype.kind != "f" or (finite := np.isfinite(voxels)).all():
        return voxels
    if settings.nonfinite is not None:
        return np.where(finite, voxels, voxels.dtype.type(settings.nonfinite))
    wrong = ~finite if mask is None else ~(finite | mask.rules_out(box))
    if not wrong.any():
        return np.where(finite, voxels, broadcast_channels(settings.mean, voxels.ndim).astype(voxels.dtype))
    first = np.argwhere(wrong)[0][1:]
    place = source.mirrored(tuple(int(a + i) for a, i in zip(box.start, first, strict=True)))
    voxel = Box(place, tuple(p + 1 for p in place))
    raise UnreadableBlock(
        f"{source.path}: {int(wrong.sum())} values that are not finite, first at {describe(voxel, source.axes)}; "
        "--nonfinite 0 would put 0 there"
    )


def compute(
    plan: Plan, predictor: Predictor, windows: Iterable[Window], stopping: Callable[[], bool]
) -> Iterator[Piece]:
    """The forward passes of each window."""
    torch.set_num_threads(plan.settings.threads)  # of the thread that runs this
    for window in windows:
        if stopping():
            return
        try:
            if window.error is not None:
                raise window.error
            if window.voxels is None:  # nothing of it is computed
                yield Piece(window, None, None, 0.0)
            else:
                yield from fitting_pieces(plan, predictor, window)
        except Exception as reason:
            yield Piece(window, None, None, 0.0, reason)


def fitting_pieces(plan: Plan, predictor: Predictor, window: Window) -> Iterator[Piece]:
    """Pieces of a block; anew with smaller tiles where the memory does not suffice, and with these from then on."""
    while True:
        try:
            yield from pieces(predictor.fitting(plan), predictor, window)
            return
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or not predictor.shrink(plan):
                raise
            give_back_freed_memory()
            log.warning(
                "out of memory (%s): tiles of %d from here on", one_line(error), predictor.fitting(plan).tile[-1]
            )


def pieces(plan: Plan, predictor: Predictor, window: Window) -> Iterator[Piece]:
    """Every tile of a block that is computed."""
    tiles = kept_tiles(plan, window.block, window.kept)
    box = hull([tile.read for tile in tiles])
    voxels = widened(window, box)
    for tile in tiles:
        started = time.perf_counter()
        values = forward(plan, predictor, tile, voxels, box)
        yield Piece(window, tile, values, time.perf_counter() - started, side=plan.tile[-1])


def widened(window: Window, box: Box) -> NDArray[Any]:
    """A window's voxels over ``box``, which smaller tiles than the plan's may reach a few voxels farther.

    What lies there shows only in outputs that are cut off, so anything may stand in for it.
    """
    assert window.voxels is not None
    if box == window.box:
        return window.voxels
    both = zip(window.box.start, window.box.stop, box.start, box.stop, strict=True)
    margins = [(max(0, a - first), max(0, stop - b)) for a, b, first, stop in both]
    padded = np.pad(window.voxels, [(0, 0), *margins], mode="edge")
    held = Box(tuple(a - m for a, (m, _) in zip(window.box.start, margins, strict=True)), window.box.stop)
    return padded[(slice(None), *box.relative_to(held).slices)]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a forward pass failed for want of memory, on a GPU or a CPU."""
    told = any(words in str(error) for words in OUT_OF_MEMORY)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or told


def forward(plan: Plan, predictor: Predictor, tile: Tile, voxels: NDArray[Any], box: Box) -> NDArray[Any]:
    """Values of ``tile.write``, (outputs, *write.shape), from the voxels (c, *box.shape) of a window around it."""
    read = voxels[(slice(None), *tile.read.relative_to(box).slices)]
    plane = predictor(read.reshape(read.shape[0], *read.shape[-2:]))  # leading axes of a tile are 1
    lead = (1,) * (len(plan.axes) - 2)
    values = plane.reshape(plane.shape[0], *lead, *plane.shape[-2:])
    return values[(slice(None), *tile.crop(plan.footprint.context))]


def assemble(plan: Plan, pieces: Iterable[Piece]) -> Iterator[FinishedBlock]:
    """Pieces put together, a block at a time, background where nothing is computed.

    A later piece of the same place counts.
    """
    blank = background(plan.settings).reshape(-1, *(1,) * len(plan.axes))
    for window, group in itertools.groupby(pieces, key=lambda piece: piece.window):
        box, seconds, error, side = window.block.box, 0.0, window.error, 0
        values = np.empty((plan.settings.outputs, *box.shape), plan.settings.dtype)
        if window.kept is not None:
            values[...] = blank
        for piece in group:
            seconds, error = seconds + piece.seconds, piece.error
            if piece.tile is not None and piece.values is not None:
                side, computed = piece.side, piece.values
                if window.kept is not None:
                    computed = np.where(window.kept.voxels(piece.tile.write), computed, blank)
                values[(slice(None), *piece.tile.write.relative_to(box).slices)] = computed
        yield FinishedBlock(window.block, None if error else values, error, side, window.seconds, seconds)
