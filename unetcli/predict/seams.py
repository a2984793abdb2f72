"""Promise 1 on the user's own data: windows across borders, computed anew in other tiles, equal what is stored."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from unetcli.core.footprint import AxisFootprint
from unetcli.core.geometry import Box
from unetcli.planning.plan import Plan
from unetcli.predict.canary import Predicting, tolerance
from unetcli.volumes.volume import describe

log = logging.getLogger(__name__)

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
