"""Results computed twice: a block of another host, and windows across borders in other tiles."""

from __future__ import annotations

import itertools
import json
import logging
import socket
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.core.files import publish
from unetcli.core.geometry import AxisFootprint, Box
from unetcli.engine.receipts import Ledger
from unetcli.engine.runfolder import RunFolder
from unetcli.planning.plan import Plan, Settings
from unetcli.volumes.volume import Volume, describe

if TYPE_CHECKING:
    from unetcli.predict.predictor import FinishedBlock, Predictor
    from unetcli.predict.skipping import Mask

log = logging.getLogger(__name__)

CANDIDATES = 4
"""Blocks of others that are tried, until one can be compared."""
TOLERANCE = {"uint8": 1.0, "float16": 1e-3, "float32": 2e-5}
"""Largest difference that other hardware may make in what is stored, by its type."""
BFLOAT16_TOLERANCE = 0.05
"""The same in probability for a network run in bfloat16, whose every layer rounds to 8 bits."""


class Predicting(Protocol):
    """A prediction whose blocks can be read back and computed again."""

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


def require_same_results(step: Predicting) -> None:
    """Recompute a block that another host finished; once per host and run.

    Raises
    ------
    UnetcliError
        This host's result differs by more than hardware explains: nothing of it may go into the output.
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
            f"host {host}: computes block {block} differently from {other} (by {difference:g}, "
            f"{tolerance(step.plan.settings):g} is allowed); other libraries or a broken device? its share is refused"
        )
    publish(record, json.dumps({"block": block, "host": other, "difference": difference}))
    log.debug("%s computes block %d as %s did (difference %g)", host, block, other, difference)


def blocks_of_others(step: Predicting, host: str) -> list[int]:
    """A few finished blocks that this host did not make, far apart: one may be damaged, or skipped."""
    others = np.flatnonzero((step.ledger.done & ~step.ledger.computed_on(host))[: step.plan.blocks])
    places = np.unique(np.linspace(0, len(others) - 1, min(CANDIDATES, len(others)), dtype=np.intp))
    return [int(block) for block in others[places]]


def largest_difference(step: Predicting, number: int) -> float | None:
    """Between what is stored of a block and what comes out here; None where one cannot be had, or all is skipped."""
    with closing(step.predict([number])) as blocks:
        block = next(blocks)
    if block.values is None or block.tile == 0:
        return None
    try:
        stored = step.read(block.block.box)
    except Exception as error:  # codecs raise what they like; a damaged block is not this host's fault
        log.warning("block %d cannot be read back: %s; verify tells more", number, error)
        return None
    return float(np.abs(stored.astype(np.float64) - block.values.astype(np.float64)).max())


def tolerance(settings: Settings) -> float:
    """Largest difference of stored values that is allowed between hosts."""
    if settings.precision == "bfloat16":
        return BFLOAT16_TOLERANCE * (255 if settings.dtype == "uint8" else 1)
    return TOLERANCE[settings.dtype]


SIDE = 96
"""Of a window, along the axes that the network sees: one forward pass, with the border in its middle."""
SEED = 2015
TRIES = 50
"""For each window: places that touch a block without result are passed over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seam:
    """A window that does not come out as it is stored."""

    place: str
    """Of the largest difference."""
    difference: float | None
    """Of stored values; None: it cannot be read or computed."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Seams:
    """What came out of computing windows anew."""

    windows: int
    largest_difference: float
    allowed: float
    exceeded: list[Seam]


def check_seams(step: Predicting, count: int) -> Seams:
    """Compute windows anew from the input, each as one tile of its own, and compare."""
    boxes = list(itertools.islice(windows(step.plan, step.ledger.refresh().done[: step.plan.blocks]), count))
    allowed, largest, exceeded = tolerance(step.plan.settings), 0.0, []
    log.info("%d windows across borders are computed anew", len(boxes))
    for box in boxes:
        found = difference(step, box)
        if found.difference is None or found.difference > allowed:
            exceeded.append(found)
        largest = max(largest, found.difference or 0.0)
    return Seams(windows=len(boxes), largest_difference=largest, allowed=allowed, exceeded=exceeded)


def windows(plan: Plan, done: NDArray[np.bool_]) -> Iterator[Box]:
    """Windows around borders of tiles and blocks and their corners, at random, the same ones each time."""
    chance, finished = np.random.default_rng(SEED), np.flatnonzero(done)
    seen = [axis for axis, footprint in enumerate(plan.footprint.axes) if footprint != AxisFootprint()]
    failed = 0
    for turn in itertools.count():
        if not len(finished) or failed >= TRIES:
            return
        tiles = list(plan.tiles(plan.block(int(chance.choice(finished)))))
        tile = tiles[chance.integers(len(tiles))].write
        centre = [int(chance.integers(a, b)) for a, b in zip(tile.start, tile.stop, strict=True)]
        across = {seen[turn % len(seen)], *(axis for axis in seen if chance.random() < 0.5)}
        for axis in across:
            borders = {tile.start[axis], tile.stop[axis]} - {plan.region.start[axis], plan.region.stop[axis]}
            centre[axis] = int(chance.choice(sorted(borders))) if borders else centre[axis]
        box = window_at(plan, centre, seen)
        if done[plan.grid.touching(box)].all():
            failed = 0
            yield box
        else:
            failed += 1


def window_at(plan: Plan, centre: list[int], seen: list[int]) -> Box:
    """A window around a voxel, moved to lie inside the region, whose tile is not as large as the plan's."""
    start, stop = list(centre), [c + 1 for c in centre]
    for axis in seen:
        low, high, footprint = plan.region.start[axis], plan.region.stop[axis], plan.footprint.axes[axis]
        start[axis] = max(low, min(centre[axis] - SIDE // 2, high - SIDE))
        stop[axis] = min(high, start[axis] + SIDE)
        origin = start[axis] // footprint.alignment * footprint.alignment
        if footprint.side_for(stop[axis] - origin) == plan.tile[axis]:
            stop[axis] = max(start[axis] + 1, stop[axis] - footprint.alignment)
    return Box(tuple(start), tuple(stop))


def difference(step: Predicting, box: Box) -> Seam:
    """The largest difference between what is stored in a window and what comes out now."""
    from unetcli.predict.predictor import predict_blocks  # torch

    plan, reason = step.plan, ""
    alone = plan_of_window(plan, box)
    with closing(predict_blocks(alone, step.predictor, step.source, [0], mask=step.mask)) as blocks:
        block = next(blocks)
    try:
        if block.values is None:
            raise block.error or ValueError("no result")
        stored = step.read(box)
    except Exception as error:  # codecs raise what they like
        reason = f"cannot be compared: {error}"
        return Seam(place=describe(box, plan.axes), difference=None, reason=reason)
    apart = np.abs(stored.astype(np.float64) - block.values.astype(np.float64)).max(axis=0)
    worst = np.unravel_index(int(np.nanargmax(apart)), apart.shape)
    place = tuple(int(a + i) for a, i in zip(box.start, worst, strict=True))
    largest = float(apart[worst])
    return Seam(
        place=describe(Box(place, tuple(p + 1 for p in place)), plan.axes),
        difference=largest,
        reason=f"stored values differ by up to {largest:g} from what other tiles give",
    )


def plan_of_window(plan: Plan, box: Box) -> Plan:
    """The same work for a window alone, in one tile: its origin and size are none of the plan's."""
    tile = tuple(
        axis.side_for(stop - start // axis.alignment * axis.alignment)
        for axis, start, stop in zip(plan.footprint.axes, box.start, box.stop, strict=True)
    )
    shape = box.shape
    return replace(plan, region=box, tile=tile, chunks=shape, write_chunks=shape, block_shape=shape)
