"""First stage of labelling: find the objects of one block, and what the merge needs to know about them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unetcli.core.geometry import Box
from unetcli.engine.levels import Arrays
from unetcli.label.objects import Measures, components, is_foreground, measure, neighbourhood
from unetcli.label.plan import LabelPlan

if TYPE_CHECKING:
    from unetcli.label.watershed import Landscape

FACES_ALONE = (4, 6)
"""Connectivities at which voxels that share only an edge or a corner are not neighbours."""
PASSES = ("names", "lowest", "ends", "height", "order")
"""Fields of :class:`unetcli.label.watershed.Basins` that are left to the merge."""
Read = Callable[[Box], NDArray[Any]]
"""Reads the voxels of a box of the volume."""


def find_objects(plan: LabelPlan, piece: int, probability: Read, brightness: Read) -> Arrays:
    """Find the objects of one block.

    Parameters
    ----------
    piece
        Number of the block in ``plan.grid``.
    probability, brightness
        Read the stored probabilities, and the intensities to be averaged, of a box.

    Returns
    -------
    dict of arrays
        ``labels``, int32 of the block's shape: 0 is background, objects are 1, 2, .. ; of size 0 if there are no
        objects. The fields of :class:`~unetcli.label.objects.Measures`, one entry per object. And the links to the
        objects of other blocks.
    """
    find = find_components if plan.settings.method == "components" else find_regions
    labels, count, links = find(plan, piece, probability)
    if not count:
        return {**without_objects(plan), **links}
    box = plan.box(piece)
    measured = measure(labels, count, box, plan.shape, brightness(box))
    return {"labels": labels, **measured.to_arrays(), **links}


def find_nothing(plan: LabelPlan, piece: int) -> Arrays:
    """Result of :func:`find_objects` for a block that has no foreground, neither in the layer of voxels after it."""
    if plan.settings.method == "components":
        links = faces(plan, piece, np.broadcast_to(np.int32(0), plan.extended(piece).shape))
    else:
        links = {name: np.zeros((0, 2) if name in ("ends", "order") else 0, np.int64) for name in PASSES}
    return {**without_objects(plan), **links}


def without_objects(plan: LabelPlan) -> Arrays:
    """Labels and measures of a block without objects, which take no space however large the block is."""
    axes = len(plan.axes)
    return {"labels": np.zeros((0,) * axes, np.int32), **Measures.empty(0, axes).to_arrays()}


def find_components(plan: LabelPlan, piece: int, probability: Read) -> tuple[NDArray[np.int32], int, Arrays]:
    """Connected components of a block, extended by one layer of voxels after it along each axis.

    Any two touching voxels lie together in at least one extended block, also across corners. A voxel of the extra
    layer is labelled twice: by the block that owns it and by the block that sees it in its extra layer. The merge pairs
    these labels. With edge or corner connectivity, objects that lie only in the extra layer are kept, because they may
    connect two objects across the corner of the block.
    """
    box, extended = plan.box(piece), plan.extended(piece)
    settings = plan.settings
    touching = neighbourhood(plan.axes, settings.connectivity, three_d=settings.three_d)
    foreground = is_foreground(probability(extended), settings.threshold)
    if not foreground.any():
        return np.zeros(box.shape, np.int32), 0, faces(plan, piece, np.broadcast_to(np.int32(0), extended.shape))
    labels, count = components(foreground, touching)
    own = box.relative_to(extended).slices
    if settings.connectivity in FACES_ALONE:
        inside = np.bincount(labels[own].ravel(), minlength=count + 1) > 0
        inside[0], count = False, int(inside[1:].sum())
        labels = (np.cumsum(inside) * inside).astype(np.int32)[labels]
    return labels[own], count, faces(plan, piece, labels)


def faces(plan: LabelPlan, piece: int, labels: NDArray[np.int32]) -> Arrays:
    """Labels of the layers just after a block (``behind..``) and of the block's first layers (``front..``), by step."""
    shape, found = plan.box(piece).shape, Arrays()
    for side, name in ((1, "behind"), (-1, "front")):
        for step, _ in plan.neighbours(piece, side):
            starts = [n if side > 0 else 0 for n in shape]
            layer = tuple(slice(a, a + 1) if d else slice(n) for d, n, a in zip(step, shape, starts, strict=True))
            found[name + step_key(step)] = np.ascontiguousarray(labels[layer]).ravel()
    return found


def step_key(step: tuple[int, ...]) -> str:
    """Step to a neighbouring block as part of a key; both directions give the same.

    >>> step_key((0, -1, -1))
    '011'
    """
    return "".join(str(abs(d)) for d in step)


def find_regions(plan: LabelPlan, piece: int, probability: Read) -> tuple[NDArray[np.int32], int, Arrays]:
    """Watershed regions of a block, and the passes left to the merge; see :mod:`unetcli.label.watershed`."""
    from unetcli.label.watershed import find_basins

    whole = Box.of_shape(plan.shape)
    found = find_basins(landscape_of(plan), plan.box(piece), plan.extended(piece), whole, probability)
    return found.labels, found.count, {name: getattr(found, name) for name in PASSES}


def landscape_of(plan: LabelPlan) -> Landscape:
    """Landscape that the watershed of a plan floods."""
    from unetcli.label.watershed import Landscape  # scipy, slow to import

    return Landscape(axes=plan.axes, voxel_size=plan.voxel_size, settings=plan.settings)


def working_bytes(plan: LabelPlan) -> int:
    """Approximate peak memory of finding the objects of a block, in bytes; see tests/benchmarks/labelling.py."""
    if plan.settings.method == "components":
        return 48 * math.prod(plan.block_shape)
    from unetcli.label.watershed import MARGIN

    land = landscape_of(plan)
    margin = tuple(MARGIN if i in land.joined else 0 for i in range(len(plan.axes)))
    block = Box.of_shape(plan.block_shape)
    window = block.grown(margin)
    outer = window.grown(land.support)
    sizes = (math.prod(map(min, box.shape, plan.shape)) for box in (block, window, outer))
    return sum(each * size for each, size in zip((50, 45, 10), sizes, strict=True))
