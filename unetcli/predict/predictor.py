"""Prediction of blocks in three stages that overlap: read input windows, compute tiles, assemble blocks.

The first and the last stage are in :mod:`unetcli.predict.windows`.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unetcli.core.errors import one_line
from unetcli.core.geometry import Box, hull
from unetcli.core.memory import out_of_memory
from unetcli.core.process import give_back_freed_memory, switch_threads_often, threads_beside
from unetcli.core.streams import prefetch
from unetcli.model.folding import folded
from unetcli.model.inference import InferenceUNet
from unetcli.model.network import UNet, channelwise, on_device
from unetcli.planning.estimate import GPU_IO_THREADS
from unetcli.planning.plan import Plan, Settings, Statistics, Tile
from unetcli.predict.gpu import Graphs, Transfers
from unetcli.predict.skipping import Mask
from unetcli.predict.turns import mean_of, turns
from unetcli.predict.windows import (
    FinishedBlock,
    TileResult,
    Window,
    active_tiles,
    assemble,
    padded_to,
    read_windows,
)
from unetcli.volumes.volume import Volume

log = logging.getLogger(__name__)

WINDOWS_AHEAD, TILES_AHEAD = 1, 4
"""Windows and computed tiles that may wait for the next stage."""
TILES_IN_FLIGHT = 2
"""Tiles that are begun on a GPU before the result of the first is waited for, so that it always has work."""
CORES_PER_IO_THREAD = 4
"""Cores of a GPU node for each thread that reads windows, and for each that writes blocks."""
OUT_OF_MEMORY = ("allocate memory", "could not create a primitive", "could not create a memory")
"""Parts of the messages with which oneDNN and the drivers of devices report that memory is exhausted."""
TORCH_DTYPES = {"uint8": torch.uint8, "float16": torch.float16, "float32": torch.float32}


class Member:
    """One of the networks whose probabilities are averaged, with its own statistics."""

    def __init__(self, network: Callable[[Tensor], Tensor], own: Statistics, device: torch.device) -> None:
        self.network = network
        self._mean, self._std = channelwise(own.mean, device), channelwise(own.std, device)

    def probabilities(self, voxels: Tensor) -> Tensor:
        """Class probabilities (classes, y, x) of grey values (1, c, y, x), float32."""
        x = ((voxels - self._mean) / self._std).contiguous(memory_format=torch.channels_last)
        return torch.softmax(self.network(x)[0].float(), dim=0)


class Predictor:
    """Network with normalisation, averaging and quantisation: maps the grey values of a tile to stored values.

    Parameters
    ----------
    networks : UNet or a sequence of them
        One for each of the statistics of the settings; moved to the device.
    settings : Settings
        Statistics, precision, turned copies and output dtype.
    device : torch.device
    """

    def __init__(self, networks: UNet | Sequence[UNet], settings: Settings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        several = [networks] if isinstance(networks, UNet) else networks
        self._members = [
            Member(inference_network(network, settings, device), own, device)
            for network, own in zip(several, settings.statistics, strict=True)
        ]
        self._tile: tuple[int, ...] | None = None
        self._turns = turns(settings.rotations)
        self._transfers = Transfers(device) if device.type == "cuda" else None
        if device.type == "cuda":
            switch_threads_often()
        self._graphs = Graphs()

    @property
    def tiles_in_flight(self) -> int:
        """Tiles that may be begun before the result of the first is waited for."""
        return 0 if self._transfers is None else TILES_IN_FLIGHT

    def with_fitting_tile(self, plan: Plan) -> Plan:
        """The plan, with a smaller tile if :meth:`shrink` has chosen one."""
        return plan if self._tile is None else replace(plan, tile=self._tile)

    def shrink(self, plan: Plan) -> bool:
        """Use a tile of about half the output side from now on; False if there is no smaller one."""
        tile = self.with_fitting_tile(plan).tile
        axis = plan.footprint.axes[-1]
        smaller = axis.side_for(max(1, axis.output(tile[-1]) // 2))
        if smaller >= tile[-1]:
            return False
        self._tile = tuple(smaller if side > 1 else 1 for side in tile)
        if self.device.type == "cuda":
            self._graphs = Graphs()  # recordings of the larger tile keep memory
            torch.cuda.empty_cache()
        return True

    def __call__(self, voxels: NDArray[Any]) -> NDArray[Any]:
        """Stored values of one tile, or its probabilities if they are mapped back.

        Parameters
        ----------
        voxels : (c, y, x), any real dtype
            Grey values; y and x must be valid sides.

        Returns
        -------
        (outputs, y - 2*context, x - 2*context), the output's dtype
        """
        return self.begin(voxels)()[0]

    def begin(self, voxels: NDArray[Any]) -> Callable[[], tuple[NDArray[Any], float]]:
        """Begin a tile, as :meth:`__call__`; the function returned waits for its values and seconds.

        With CUDA, the GPU is only given the work; any other device computes at once.
        """
        if self._transfers is None:
            started = time.perf_counter()
            values = self._stored(torch.from_numpy(np.ascontiguousarray(voxels, np.float32))).cpu().numpy()
            seconds = time.perf_counter() - started
            return lambda: (values, seconds)
        started_on_device = self._transfers.start()
        stored = self._graphs(self._stored, self._transfers.upload(voxels))
        return self._transfers.download(stored, started_on_device).wait

    @torch.inference_mode()
    def _stored(self, voxels: Tensor) -> Tensor:
        """Stored values of a tile (c, y, x) that is on the device."""
        x = voxels.to(self.device, torch.float32)[np.newaxis]
        pairs = itertools.product(self._members, self._turns)
        return self.quantise(mean_of(turn.undo(member.probabilities(turn.apply(x))) for member, turn in pairs))

    def quantise(self, probabilities: Tensor) -> Tensor:
        """Stored values of probabilities (classes, y, x): foreground alone if there are two classes.

        uint8 stores floor(255 p + 0.5), which is read back as value / 255. Of classes, the most probable one is stored.
        Probabilities that are mapped back to the volume before they are stored remain float32.
        """
        if self.settings.rescale is not None:
            return probabilities[1:] if len(probabilities) == 2 else probabilities
        if self.settings.output_classes:
            return probabilities.argmax(dim=0, keepdim=True).to(torch.uint8)
        stored = probabilities[1:] if self.settings.outputs == 1 else probabilities
        if self.settings.dtype == "uint8":
            stored = torch.floor(255 * stored + 0.5)
        return stored.to(TORCH_DTYPES[self.settings.dtype])


def predict_blocks(
    plan: Plan,
    predictor: Predictor,
    source: Volume,
    blocks: Iterable[int],
    stopping: Callable[[], bool] = bool,
    mask: Mask | None = None,
) -> Generator[FinishedBlock]:
    """Predict blocks one after the other; the next ones are read and computed meanwhile.

    Parameters
    ----------
    plan : Plan
    predictor : Predictor
    source : Volume
        The volume that was planned.
    blocks : block numbers
    stopping : callable
        Called before each block; once it returns True, no further block is begun.
    mask : Mask, optional
        Required if and only if the plan has one.

    Yields
    ------
    FinishedBlock
        In the order of ``blocks``. An error concerns one block only; the others follow.
    """
    if (mask is None) != (plan.settings.mask is None):
        raise ValueError("predict_blocks needs a mask exactly if the plan has one")
    windows = prefetch(read_windows(plan, source, mask, blocks, io_threads(predictor.device.type)), ahead=WINDOWS_AHEAD)
    with closing(prefetch(compute_tiles(plan, predictor, windows, stopping), ahead=TILES_AHEAD)) as results:
        yield from assemble(plan, results)


def inference_network(network: UNet, settings: Settings, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The network on its device, in the precision of a plan: maps (1, c, y, x) to logits (1, classes, y, x)."""
    bfloat16 = settings.precision == "bfloat16"
    if device.type == "cuda":
        return InferenceUNet(folded(network), torch.bfloat16 if bfloat16 else torch.float32, device)
    plain = on_device(network, device).eval()

    def forward(x: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            return plain(x)  # type: ignore[no-any-return]

    return forward


def io_threads(device: str) -> int:
    """Threads that read windows, and as many that write blocks."""
    return threads_beside(device, GPU_IO_THREADS, CORES_PER_IO_THREAD)


@dataclass(frozen=True, slots=True)
class BegunTile:
    """A tile that a device computes, or the error of its block; without both, the whole block is skipped."""

    window: Window
    tile: Tile | None = None
    values: Callable[[], tuple[NDArray[Any], float]] | None = None
    """Waits for the values (outputs, *tile.write.shape) and the seconds of the device."""
    error: Exception | None = None
    side: int = 0

    def result(self) -> TileResult:
        """Wait for the tile."""
        if self.values is None:
            return TileResult(self.window, None, None, 0.0, self.error)
        try:
            values, seconds = self.values()
        except Exception as reason:
            return TileResult(self.window, None, None, 0.0, reason)
        return TileResult(self.window, self.tile, values, seconds, side=self.side)


def compute_tiles(
    plan: Plan, predictor: Predictor, windows: Iterable[Window], stopping: Callable[[], bool]
) -> Iterator[TileResult]:
    """Compute the tiles of each window, in order; an error is passed on with its block."""
    torch.set_num_threads(plan.settings.threads)  # a setting per thread, so it is set in the one that computes
    begun: deque[BegunTile] = deque()
    for tile in begin_tiles(plan, predictor, windows, stopping):
        begun.append(tile)
        if len(begun) > predictor.tiles_in_flight:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


def begin_tiles(
    plan: Plan, predictor: Predictor, windows: Iterable[Window], stopping: Callable[[], bool]
) -> Iterator[BegunTile]:
    """Begin the tiles of each window until ``stopping`` returns True."""
    for window in windows:
        if stopping():
            return
        try:
            if window.error is not None:
                raise window.error
            if window.voxels is None:  # the whole block is skipped
                yield BegunTile(window)
            else:
                yield from begin_window(plan, predictor, window)
        except Exception as reason:
            yield BegunTile(window, error=reason)


def begin_window(plan: Plan, predictor: Predictor, window: Window) -> Iterator[BegunTile]:
    """Begin the tiles of a window; if memory runs out, start again with smaller tiles, and keep to these."""
    while True:
        try:
            yield from tiles_of_window(predictor.with_fitting_tile(plan), predictor, window)
            return
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or not predictor.shrink(plan):
                raise
            give_back_freed_memory()
            side = predictor.with_fitting_tile(plan).tile[-1]
            log.warning("out of memory (%s): continuing with tile %d", one_line(error), side)


def tiles_of_window(plan: Plan, predictor: Predictor, window: Window) -> Iterator[BegunTile]:
    """Begin the active tiles of a block."""
    tiles = active_tiles(plan, window.block, window.active)
    box = hull([tile.read for tile in tiles])
    voxels = padded_to(window, box)
    for tile in tiles:
        yield BegunTile(window, tile, begin_tile(plan, predictor, tile, voxels, box), side=plan.tile[-1])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a forward pass failed because the memory of the GPU or the host is exhausted."""
    reported = any(words in str(error) for words in OUT_OF_MEMORY)
    return isinstance(error, torch.OutOfMemoryError) or out_of_memory(error) is not None or reported


def begin_tile(
    plan: Plan, predictor: Predictor, tile: Tile, voxels: NDArray[Any], box: Box
) -> Callable[[], tuple[NDArray[Any], float]]:
    """Begin one tile.

    Parameters
    ----------
    plan : Plan
    predictor : Predictor
    tile : Tile
    voxels : (c, *box.shape)
        Grey values; ``box`` contains ``tile.read``.
    box : Box

    Returns
    -------
    callable
        Waits for the values (outputs, *tile.write.shape), in the output's dtype, and their seconds.
    """
    read = voxels[(slice(None), *tile.read.relative_to(box).slices)]
    plane = predictor.begin(read.reshape(read.shape[0], *read.shape[-2:]))  # leading axes of a tile are 1
    lead = (1,) * (len(plan.axes) - 2)

    def values() -> tuple[NDArray[Any], float]:
        computed, seconds = plane()
        computed = computed.reshape(computed.shape[0], *lead, *computed.shape[-2:])
        return computed[(slice(None), *tile.crop(plan.footprint.context))], seconds

    return values
