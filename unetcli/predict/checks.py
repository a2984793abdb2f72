"""Checks that recompute results: a block of another host, and windows across the borders of tiles and blocks."""

from __future__ import annotations

import functools
import itertools
import json
import logging
import math
import socket
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError, UnreadableBlock, counted
from unetcli.core.files import publish
from unetcli.core.geometry import AxisFootprint, Box
from unetcli.core.process import cpu_threads
from unetcli.core.ranges import spread_order
from unetcli.core.streams import ordered_map
from unetcli.engine.receipts import Ledger
from unetcli.engine.runfolder import RunFolder
from unetcli.planning.plan import Plan, Settings
from unetcli.volumes.volume import Volume, describe

if TYPE_CHECKING:
    from unetcli.predict.predictor import Predictor
    from unetcli.predict.skipping import Mask
    from unetcli.predict.windows import FinishedBlock

log = logging.getLogger(__name__)

CANDIDATES = 4
"""Maximum number of blocks from other hosts to try, until one can be compared."""
TOLERANCE = {"uint8": 1.0, "float16": 1e-3, "float32": 2e-5}
"""Largest difference between stored and recomputed values that a change of hardware can explain, by data type."""
OTHER_CLASS = {"float32": 2e-3, "bfloat16": 0.1}
"""Largest fraction of voxels whose two highest probabilities are so close that hardware decides between them."""
BFLOAT16_TOLERANCE = 0.05
"""Largest difference between probabilities for a network run in bfloat16, where every layer rounds to 8 bits."""


class StoredPrediction(Protocol):
    """A prediction whose blocks can be read back and computed again: the part of PredictStep that checks need."""

    @property
    def folder(self) -> RunFolder: ...
    @property
    def plan(self) -> Plan: ...
    @property
    def ledger(self) -> Ledger: ...
    @property
    def mask(self) -> Mask | None: ...
    @property
    def source(self) -> Volume: ...
    @property
    def predictor(self) -> Predictor: ...

    def predict(self, blocks: Iterable[int]) -> Generator[FinishedBlock]: ...
    def read(self, box: Box) -> NDArray[Any]: ...
    def is_absent(self, box: Box) -> bool: ...


def require_same_results(step: StoredPrediction) -> None:
    """Recompute a block that another host finished, once per host and run.

    Raises
    ------
    UnetcliError
        The results differ by more than hardware explains; this host must not write into the output.
    """
    host = socket.gethostname()
    record = step.folder.canaries / f"{host}.json"
    candidates = blocks_of_others(step, host)
    if not candidates or record.exists():
        return
    compared = ((block, largest_difference(step, block)) for block in candidates)
    block, difference = next((pair for pair in compared if pair[1] is not None), (-1, None))
    if difference is None:
        return
    other = step.ledger.hosts[step.ledger.host[block]]
    if not difference <= tolerance(step.plan.settings):  # so that NaN is refused too
        raise UnetcliError(
            f"host {host}: its result of block {block} differs from that of {other} by {difference:g} (at most "
            f"{tolerance(step.plan.settings):g} is allowed); it will compute nothing: check its libraries and device"
        )
    publish(record, json.dumps({"block": block, "host": other, "difference": difference}))
    log.debug("%s: result of block %d agrees with that of %s (difference %g)", host, block, other, difference)


def blocks_of_others(step: StoredPrediction, host: str) -> list[int]:
    """A few finished blocks of other hosts, far apart; several, because one may be damaged or skipped."""
    others = np.flatnonzero((step.ledger.done & ~step.ledger.computed_on(host))[: step.plan.blocks])
    places = np.unique(np.linspace(0, len(others) - 1, min(CANDIDATES, len(others)), dtype=np.intp))
    return [int(block) for block in others[places]]


def largest_difference(step: StoredPrediction, number: int) -> float | None:
    """Largest difference between the stored and the recomputed values of a block.

    It is None if the block cannot be read or computed, or if all of it is skipped.
    """
    with closing(step.predict([number])) as blocks:
        block = next(blocks)
    if block.values is None or block.tile == 0:
        return None
    try:
        stored = step.read(block.block.box)
    except Exception as error:  # codecs raise any type; a damaged block is no reason to refuse this host
        log.warning("block %d cannot be read back: %s; `unetcli verify` shows the details", number, error)
        return None
    apart = differences(step.plan.settings, stored, block.values)
    return float(apart.mean() if step.plan.settings.output_classes else apart.max())


def differences(settings: Settings, stored: NDArray[Any], computed: NDArray[Any]) -> NDArray[np.float64]:
    """Largest difference between the values of each voxel; of classes, 1 where they are not the same."""
    if settings.output_classes:
        return np.asarray(stored[0] != computed[0], np.float64)
    return np.asarray(np.abs(stored.astype(np.float64) - computed.astype(np.float64)).max(axis=0))


def tolerance(settings: Settings) -> float:
    """Largest difference between stored values that is allowed between hosts, in units of the output's dtype.

    Of classes, the largest fraction of the voxels that may be of another class.
    """
    if settings.output_classes:
        return OTHER_CLASS[settings.precision]
    if settings.precision == "bfloat16":
        return BFLOAT16_TOLERANCE * (255 if settings.dtype == "uint8" else 1)
    return TOLERANCE[settings.dtype]


SIDE = 96
"""Voxels per side of a window, along the axes that the network convolves; the border is in its middle."""
SEED = 2015
TRIES = 50
"""Attempts to place a window, as windows that overlap an unfinished block are skipped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeamMismatch:
    """A window whose recomputed values differ from the stored ones, or could not be compared."""

    place: str
    """Position of the largest difference."""
    difference: float | None
    """Largest difference, in units of the output's dtype, or fraction of voxels of another class; None if the window
    cannot be read or computed."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SeamReport:
    """Result of recomputing windows across borders."""

    windows: int
    """Number of windows that were compared."""
    largest_difference: float
    allowed: float
    """Largest difference that is accepted, in units of the output's dtype."""
    exceeded: list[SeamMismatch]


def check_seams(step: StoredPrediction, count: int) -> SeamReport:
    """Recompute windows across borders of tiles and blocks from the input, and compare them with the output.

    Each window is computed as a single tile, so that seams in the output show as differences.

    Parameters
    ----------
    step : StoredPrediction
        Only its finished blocks are checked.
    count : windows
        Fewer are compared if too many blocks are unfinished.
    """
    boxes = list(itertools.islice(windows(step.plan, step.ledger.refresh().done[: step.plan.blocks]), count))
    allowed, largest, exceeded = tolerance(step.plan.settings), 0.0, []
    log.info("recomputing %s across block borders", counted(len(boxes), "window"))
    for box in boxes:
        found = difference(step, box)
        if found.difference is None or found.difference > allowed:
            exceeded.append(found)
        largest = max(largest, found.difference or 0.0)
    return SeamReport(windows=len(boxes), largest_difference=largest, allowed=allowed, exceeded=exceeded)


def windows(plan: Plan, done: NDArray[np.bool_]) -> Iterator[Box]:
    """Windows around random borders and corners of tiles and blocks, in the same order each time.

    Parameters
    ----------
    plan : Plan
    done : (blocks,), bool
        True for each finished block; windows lie in finished blocks.

    Yields
    ------
    Box
        In voxels of the volume.
    """
    chance, finished = np.random.default_rng(SEED), np.flatnonzero(done)
    convolved = [axis for axis, footprint in enumerate(plan.footprint.axes) if footprint != AxisFootprint()]
    failed = 0
    for turn in itertools.count():
        if not len(finished) or failed >= TRIES:
            return
        tiles = list(plan.tiles(plan.block(int(chance.choice(finished)))))
        tile = plan.rescaling.affected(tiles[chance.integers(len(tiles))].write).clipped(plan.region)
        centre = [int(chance.integers(a, b)) for a, b in zip(tile.start, tile.stop, strict=True)]
        across = {convolved[turn % len(convolved)], *(axis for axis in convolved if chance.random() < 0.5)}
        for axis in across:
            borders = {tile.start[axis], tile.stop[axis]} - {plan.region.start[axis], plan.region.stop[axis]}
            centre[axis] = int(chance.choice(sorted(borders))) if borders else centre[axis]
        box = window_at(plan, centre, convolved)
        if done[plan.grid.touching(box)].all():
            failed = 0
            yield box
        else:
            failed += 1


def window_at(plan: Plan, centre: list[int], convolved: list[int]) -> Box:
    """Window around a voxel, moved into the region, with a size that needs another tile than the plan's."""
    start, stop = list(centre), [c + 1 for c in centre]
    for axis in convolved:
        low, high, footprint = plan.region.start[axis], plan.region.stop[axis], plan.footprint.axes[axis]
        start[axis] = max(low, min(centre[axis] - SIDE // 2, high - SIDE))
        stop[axis] = min(high, start[axis] + SIDE)
        origin = start[axis] // footprint.alignment * footprint.alignment
        if footprint.side_for(stop[axis] - origin) == plan.tile[axis]:
            stop[axis] = max(start[axis] + 1, stop[axis] - footprint.alignment)
    return Box(tuple(start), tuple(stop))


def difference(step: StoredPrediction, box: Box) -> SeamMismatch:
    """Compare the stored values of a window with recomputed ones."""
    from unetcli.predict.predictor import predict_blocks  # torch

    plan = step.plan
    alone = plan_of_window(plan, box)
    with closing(predict_blocks(alone, step.predictor, step.source, [0], mask=step.mask)) as blocks:
        block = next(blocks)
    try:
        if block.values is None:
            raise block.error or ValueError("no result")
        stored = step.read(box)
    except Exception as error:  # codecs raise any type
        return SeamMismatch(place=describe(box, plan.axes), difference=None, reason=f"cannot be compared: {error}")
    apart = differences(plan.settings, stored, block.values)
    worst = np.unravel_index(int(np.nanargmax(apart)), apart.shape)
    place = tuple(int(a + i) for a, i in zip(box.start, worst, strict=True))
    if plan.settings.output_classes:
        largest = float(apart.mean())
        reason = f"{100 * largest:.2g} % of the voxels are of another class than those computed with another tile"
    else:
        largest = float(apart[worst])
        reason = f"stored values differ by up to {largest:g} from those computed with another tile"
    where = describe(Box(place, tuple(p + 1 for p in place)), plan.axes)
    return SeamMismatch(place=where, difference=largest, reason=reason)


def plan_of_window(plan: Plan, box: Box) -> Plan:
    """Plan that computes a single window in one tile, whose origin and size differ from those of the plan's tiles."""
    seen = plan.rescaling.needed(box)
    tile = tuple(
        axis.side_for(stop - start // axis.alignment * axis.alignment)
        for axis, start, stop in zip(plan.footprint.axes, seen.start, seen.stop, strict=True)
    )
    shape = box.shape
    return replace(plan, region=box, tile=tile, chunks=shape, write_chunks=shape, block_shape=shape)


LOOKED_AT = 2**31
"""Voxels of a result that are read, at most, to find a second class."""
LOOKING_BYTES = 2**28
"""Memory for the blocks that are looked at together."""
SINGLE_ADVICE = "compare the volume with the training images (`unetcli show`), and the model with their labels"


def single_class(step: StoredPrediction) -> str | None:
    """Warning about a result in which every voxel is of the same class; None as soon as there are two.

    Blocks are read in an order that is spread over the volume, so that most results need one or two of them. Of a block
    of zeros, of which nothing is stored, one voxel is read.
    """
    plan, classes, highest, seen, count = step.plan, set[int](), 0.0, 0, 0
    threads = max(1, min(cpu_threads(), LOOKING_BYTES // (math.prod(plan.block_shape) * 4 * plan.settings.outputs)))
    boxes = map(plan.grid.box, spread_order(plan.blocks))
    for _, future in ordered_map(functools.partial(_classes_of, step), boxes, threads):
        try:
            found, most, voxels = future.result()
        except UnreadableBlock:  # verify reports it
            return None
        classes |= found
        highest, seen, count = max(highest, most), seen + voxels, count + 1
        if len(classes) > 1:
            return None
        if seen > LOOKED_AT:
            break
    where = "every voxel" if count == plan.blocks else f"every voxel of {count} of {plan.blocks} blocks"
    return f"{where} is {_class_text(plan.settings, classes.pop(), highest)}; {SINGLE_ADVICE}"


def _classes_of(step: StoredPrediction, box: Box) -> tuple[set[int], float, int]:
    """Classes in a box, the highest value of its first channel, and the number of voxels that were read."""
    values = step.read(Box(box.start, tuple(p + 1 for p in box.start)) if step.is_absent(box) else box)
    settings = step.plan.settings
    single = values[0] if settings.output_classes else values[0] > _half(settings)
    likeliest = single if len(values) == 1 else values.argmax(axis=0)
    return set(np.unique(likeliest).tolist()), float(values[0].max()), values[0].size


def _class_text(settings: Settings, number: int, highest: float) -> str:
    """Describe a class; ``highest`` is the largest stored value of the first channel."""
    if settings.outputs > 1 or settings.output_classes:
        return f"of class {number}"
    if number:
        return "foreground, with a probability above 0.5"
    return f"background; the highest probability is {highest / (255 if settings.dtype == 'uint8' else 1):.2g}"


def _half(settings: Settings) -> float:
    """Stored value above which a voxel is foreground."""
    return 127.5 if settings.dtype == "uint8" else 0.5
