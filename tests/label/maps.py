"""Synthetic probability maps, and labelling block by block in memory, without files."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from unetcli.label.finding import find_objects
from unetcli.label.merging import Merged, merge
from unetcli.label.plan import LabelPlan, Settings

NEIGHBOURS = {False: (4, 8), True: (6, 18, 26)}


def plan_of(shape: tuple[int, ...], block: tuple[int, ...], **changes: Any) -> LabelPlan:
    """A plan whose chunks are its blocks; options that are not fields of the plan are settings."""
    own = {name: changes.pop(name) for name in ("axes", "voxel_size", "levels", "write_chunks") if name in changes}
    values = {
        "axes": "tzyx"[-len(shape) :],
        "shape": shape,
        "chunks": own.get("write_chunks", block),
        "write_chunks": block,
        "block_shape": block,
        "zarr_format": 3,
        "levels": 1,
        "voxel_size": (1.0,) * len(shape),
        "settings": Settings(**changes),
        "automatic": False,
        "prediction": "",
        "intensity": None,
    }
    return LabelPlan(**{**values, **own})


def life_like(labels: NDArray[np.integer], softness: float, seed: int = 0) -> NDArray[np.uint8]:
    """A map like those of networks: low at the borders of objects, with smooth noise."""
    inside = np.zeros(labels.shape)
    for number, place in enumerate(ndimage.find_objects(labels.astype(np.int32)), start=1):
        if place is not None:
            mine = np.pad(labels[place] == number, 1)
            depth = ndimage.distance_transform_edt(mine)[1:-1, 1:-1]
            inside[place] = np.where(mine[1:-1, 1:-1], depth, inside[place])
    outside = ndimage.distance_transform_edt(labels == 0)
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(labels.shape), 4)
    return np.rint(255 / (1 + np.exp((outside - inside + 1.5) / softness - noise / noise.std()))).astype(np.uint8)


def blobs(shape: tuple[int, ...], sigma: float = 1.0, seed: int = 0) -> NDArray[np.uint8]:
    """A probability map of blobs, smooth along every axis of more than four voxels."""
    noise = np.random.default_rng(seed).random(shape)
    smooth = ndimage.gaussian_filter(noise, [sigma if n > 4 else 0 for n in shape])
    span = float(np.ptp(smooth)) or 1.0
    return np.rint(255 * (smooth - smooth.min()) / span).astype(np.uint8)


def labelled(plan: LabelPlan, probability: NDArray[Any]) -> tuple[NDArray[np.int64], Merged]:
    """Labels of all blocks in one array, and the result of the merge."""

    def read(box: Any) -> NDArray[Any]:
        found: NDArray[Any] = probability[box.slices]
        return found

    tables = [find_objects(plan, piece, read, read) for piece in range(plan.pieces)]
    merged = merge(plan, lambda piece, names: tables[piece])
    labels = np.zeros(plan.shape, np.int64)
    for piece, arrays in enumerate(tables):
        part = merged.numbers[merged.offsets[piece] : merged.offsets[piece + 1]]
        if arrays["labels"].size:
            labels[plan.box(piece).slices] = np.concatenate([[0], part])[arrays["labels"]]
    return labels, merged


@st.composite
def scenes(draw: st.DrawFn) -> tuple[NDArray[np.uint8], tuple[int, ...], dict[str, Any]]:
    """A map of two to four axes, a block, and settings that fit."""
    dimensions = draw(st.integers(2, 4))
    shape = tuple(draw(st.integers(1, {2: 24, 3: 12, 4: 7}[dimensions])) for _ in range(dimensions))
    block = tuple(draw(st.integers(1, 9)) for _ in range(dimensions))
    three_d = dimensions > 2 and draw(st.booleans())
    settings = {
        "three_d": three_d,
        "connectivity": draw(st.sampled_from(NEIGHBOURS[three_d])),
        "threshold": draw(st.sampled_from([0.0, 0.2, 0.4, 0.5, 0.7])),
        "min_size": draw(st.sampled_from([0, 0, 3])),
    }
    sigma = draw(st.sampled_from([0.0, 0.6, 1.5]))
    return blobs(shape, sigma, draw(st.integers(0, 2**16))), block, settings
