"""The first stage: the objects of one block, and what the merging has to know of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.geometry import Box
from unetcli.engine.levels import Arrays
from unetcli.label.objects import connected, is_foreground, measure, neighbourhood
from unetcli.label.plan import LabelPlan

if TYPE_CHECKING:
    from unetcli.label.watershed import Landscape

FACES_ALONE = (4, 6)
"""Connectivities by which voxels that meet at an edge or corner do not touch."""
Read = Callable[[Box], NDArray[Any]]
"""Voxels of a box of the volume."""


def find_objects(plan: LabelPlan, piece: int, probability: Read, brightness: Read) -> Arrays:
    """The tables of a block: ``labels`` 1.. of its voxels, their measures, and what joins them to other blocks."""
    find = find_components if plan.settings.method == "components" else find_regions
    labels, count, joints = find(plan, piece, probability)
    box = plan.box(piece)
    measured = measure(labels, count, box, plan.shape, brightness(box))
    return {"labels": labels, **measured.to_arrays(), **joints}


def find_components(plan: LabelPlan, piece: int, probability: Read) -> tuple[NDArray[np.int32], int, Arrays]:
    """Components of a block and the voxels right behind it: of these, each block tells how it labels them.

    Whatever touches, touches within one block and what is right behind it, at corners too; so whoever owns such a
    voxel and whoever sees it from before have labels for one object. Objects that lie behind the block alone count
    where they may join two others: to the right of it and below, over the corner.
    """
    box, extended = plan.box(piece), plan.extended(piece)
    settings = plan.settings
    touching = neighbourhood(plan.axes, settings.connectivity, three_d=settings.three_d)
    labels, count = connected(is_foreground(probability(extended), settings.threshold), touching)
    own = box.relative_to(extended).slices
    if settings.connectivity in FACES_ALONE:
        inside = np.bincount(labels[own].ravel(), minlength=count + 1) > 0
        inside[0], count = False, int(inside[1:].sum())
        labels = (np.cumsum(inside) * inside).astype(np.int32)[labels]
    return labels[own], count, dict(faces(plan, piece, labels))


def faces(plan: LabelPlan, piece: int, labels: NDArray[np.int32]) -> list[tuple[str, NDArray[np.int32]]]:
    """Labels of the voxels right behind a block (``behind..``) and of its first layers (``front..``), by step."""
    shape = plan.box(piece).shape
    behind = [
        (
            f"behind{name(step)}",
            labels[tuple(slice(n, n + 1) if d else slice(n) for d, n in zip(step, shape, strict=True))],
        )
        for step, _ in plan.neighbours(piece, 1)
    ]
    front = [
        (f"front{name(step)}", labels[tuple(slice(1) if d else slice(n) for d, n in zip(step, shape, strict=True))])
        for step, _ in plan.neighbours(piece, -1)
    ]
    return [(key, np.ascontiguousarray(values).ravel()) for key, values in behind + front]


def name(step: tuple[int, ...]) -> str:
    """A step to a neighbour, or back, as part of a name.

    >>> name((0, -1, -1))
    '011'
    """
    return "".join(str(abs(d)) for d in step)


def find_regions(plan: LabelPlan, piece: int, probability: Read) -> tuple[NDArray[np.int32], int, Arrays]:
    """Regions of a block, and the passes that others decide on; see :mod:`unetcli.label.watershed`."""
    from unetcli.label.watershed import find_basins

    whole = Box.of_shape(plan.shape)
    found = find_basins(landscape(plan), plan.box(piece), plan.extended(piece), whole, probability)
    joints = {
        "names": found.names,
        "lowest": found.lowest,
        "ends": found.ends,
        "height": found.height,
        "order": found.order,
    }
    return found.labels, found.count, joints


def landscape(plan: LabelPlan) -> Landscape:
    """What the watershed of a plan floods."""
    from unetcli.label.watershed import Landscape  # scipy, slow to import

    return Landscape(axes=plan.axes, voxel_size=plan.voxel_size, settings=plan.settings)


def working_bytes(plan: LabelPlan) -> int:
    """About the most memory that finding the objects of a block takes, as tests/benchmarks/labelling.py measures."""
    if plan.settings.method == "components":
        return 48 * math.prod(plan.block_shape)
    from unetcli.label.watershed import MARGIN

    scene = landscape(plan)
    margin = tuple(MARGIN if i in scene.joined else 0 for i in range(len(plan.axes)))
    block = Box.of_shape(plan.block_shape)
    window = block.grown(margin)
    outer = window.grown(scene.support)
    sizes = (math.prod(map(min, box.shape, plan.shape)) for box in (block, window, outer))
    return sum(each * size for each, size in zip((50, 45, 10), sizes, strict=True))
