"""The watershed: its properties on a whole array, and its independence of the blocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from label.maps import blobs, labelled, life_like, plan_of, scenes
from numpy.typing import NDArray
from scipy import ndimage
from skimage.morphology import h_minima

from unetcli.core.geometry import Box
from unetcli.label import watershed
from unetcli.label.finding import landscape_of
from unetcli.label.objects import components, in_order, is_foreground, neighbourhood
from unetcli.label.plan import Settings
from unetcli.label.watershed import STEPS, Landscape, separate, separate_section

LANDSCAPES = st.one_of(
    st.fixed_dictionaries(
        {
            "landscape": st.just("distance"),
            "depth": st.sampled_from([0.0, 0.06, 0.5, 1.0, 2.0]),
            "reach": st.integers(1, 8),
        }
    ),
    st.fixed_dictionaries(
        {
            "landscape": st.just("probability"),
            "depth": st.sampled_from([0.0, 0.01, 0.05, 0.2]),
            "smoothing": st.sampled_from([0.0, 0.5, 1.0]),
        }
    ),
)


@given(scenes(), LANDSCAPES, st.tuples(*[st.sampled_from([1.0, 1.0, 1.3, 2.5])] * 4), st.sampled_from([1, 3, 32]))
@settings(max_examples=80, deadline=None)
def test_blocks_do_not_show(
    scene: tuple[NDArray[np.uint8], tuple[int, ...], dict[str, Any]],
    flooded: dict[str, Any],
    voxel_size: tuple[float, ...],
    margin: int,
) -> None:
    """Labels equal those of the whole array for any block, dimension, landscape, depth and first margin."""
    values, block, chosen = scene
    plan = plan_of(
        values.shape, block, method="watershed", voxel_size=voxel_size[: values.ndim], **{**chosen, **flooded}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watershed, "MARGIN", margin)
        labels, _ = labelled(plan, values)
    whole = in_order(separate(values, landscape_of(plan)), chosen["min_size"])
    assert np.array_equal(labels, whole)


def unlike_heights(shape: tuple[int, ...], seed: int) -> NDArray[np.float64]:
    """A landscape without ties, as probabilities that are stored exactly."""
    count = int(np.prod(shape))
    assert count < STEPS["probability"]
    order = np.argsort(np.argsort(ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), 1.5), axis=None))
    return 1 - (1 + order.reshape(shape)) / STEPS["probability"]


@pytest.mark.filterwarnings("ignore:Setting the shape:DeprecationWarning")  # scikit-image, with NumPy 2.5
@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("steps", [0, 3, 40, 400])
def test_objects_are_the_minima_of_that_depth_one_each(connectivity: int, steps: int) -> None:
    """scikit-image finds as many minima with dynamics of at least ``steps``; each is in a separate object."""
    probability = unlike_heights((50, 61), seed=steps)
    scene = Landscape(
        axes="yx",
        voxel_size=(1.0, 1.0),
        settings=Settings(
            method="watershed",
            threshold=0.0,
            connectivity=connectivity,
            landscape="probability",
            smoothing=0.0,
            depth=(steps - 0.5) / STEPS["probability"] if steps else 0.0,
        ),
    )
    labels = separate(probability, scene)
    heights = np.rint((1 - probability) * STEPS["probability"]).astype(np.int64)
    footprint = ndimage.generate_binary_structure(2, {4: 1, 8: 2}[connectivity])
    minima = h_minima(heights, max(steps, 1), footprint)
    seeds, count = ndimage.label(minima, footprint)
    assert (labels > 0).all()
    assert len(np.unique(labels)) == count
    assert len(np.unique(labels[seeds > 0])) == count


def test_objects_are_connected_and_cover_the_foreground() -> None:
    values = blobs((90, 80), 3, seed=5)
    labels = separate_section(values, 0.5, depth=0.5)
    assert np.array_equal(labels > 0, is_foreground(values, 0.5))
    pieces = [ndimage.label(labels == number)[1] for number in range(1, labels.max() + 1)]
    assert set(pieces) == {1}
    unseparated = components(labels > 0, neighbourhood("yx", 4))[1]
    assert unseparated < labels.max()  # some were separated


def discs(distance: int) -> NDArray[np.float32]:
    """Two discs of radius 10."""
    y, x = np.mgrid[:41, :80]
    return ((np.hypot(y - 20, x - 25) < 10) | (np.hypot(y - 20, x - 25 - distance) < 10)).astype(np.float32)


def test_touching_discs_are_set_apart_in_the_middle() -> None:
    labels = separate_section(discs(16))
    assert labels.max() == 2
    border = np.argwhere((labels[:, 1:] != labels[:, :-1]) & (labels[:, 1:] > 0) & (labels[:, :-1] > 0))
    assert np.abs(border[:, 1] + 0.5 - 33).max() <= 2
    assert separate_section(discs(6)).max() == 1  # hardly a waist
    assert separate_section(discs(16), depth=9).max() == 1


def test_the_distance_is_euclidean_in_voxel_sizes_and_ends_at_the_reach() -> None:
    foreground = is_foreground(blobs((13, 40, 37), 3, seed=1), 0.4)
    scene = Landscape(
        axes="zyx",
        voxel_size=(25.0, 10.0, 10.0),
        settings=Settings(method="watershed", three_d=True, connectivity=6, reach=5),
    )
    heights = scene.heights(foreground, foreground, Box((2, 0, 1), (13, 40, 30)))
    distance = ndimage.distance_transform_edt(foreground, (2.5, 1, 1))[2:, :, 1:30]
    assert np.array_equal(heights, 5 * 16 - np.rint(16 * np.minimum(distance, 5)))
    assert scene.support == (2, 5, 5)
    assert heights.min() == 0


def test_sections_do_not_see_each_other() -> None:
    values = blobs((4, 40, 40), 2, seed=2)
    scene = Landscape(axes="zyx", voxel_size=(1.0, 1.0, 1.0), settings=Settings(method="watershed"))
    together = separate(values, scene)
    for section, labels in zip(values, together, strict=True):
        assert np.array_equal(in_order(labels), separate_section(section))


@pytest.mark.parametrize("values", [np.zeros((9, 9), np.uint8), np.full((70, 70), 255, np.uint8)], ids=["none", "all"])
def test_nothing_and_everything_foreground(values: NDArray[np.uint8]) -> None:
    """A flat landscape is one object, although it has many minima."""
    assert np.array_equal(separate_section(values), (values > 0).astype(np.int32))
    labels, _ = labelled(plan_of(values.shape, (16, 9), method="watershed"), values)
    assert np.array_equal(labels, (values > 0).astype(np.int32))


@pytest.mark.parametrize(
    ("name", "softness"), [pytest.param("dic_hela", 2.5, marks=pytest.mark.slow), ("phc_psc", 1.2)]
)
@pytest.mark.parametrize(
    "flooded", [{"depth": 1.0}, {"landscape": "probability", "smoothing": 1.0, "depth": 0.02}], ids=["distance", "map"]
)
def test_real_cells_are_the_same_in_any_blocks(
    data: Path, name: str, softness: float, flooded: dict[str, Any], record_property: Callable[[str, object], None]
) -> None:
    truth = tifffile.imread(data / name / "01-labels.tif", key=20)
    values = life_like(truth, softness)
    whole = plan_of(values.shape, values.shape, method="watershed", **flooded)
    labels, _ = labelled(whole, values)
    unseparated = components(is_foreground(values, 0.5), neighbourhood("yx", 4))[1]
    assert labels.max() > unseparated
    for block in ((64, 64), (100, 37), (512, 16)):
        others, _ = labelled(plan_of(values.shape, block, method="watershed", **flooded), values)
        differ = float((others != labels).mean())
        record_property(f"differ in blocks of {block}", differ)
        assert differ == 0
