"""The central property of this project: the result does not depend on tiles, blocks and mirrored edges."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import helpers
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from unetcli.core.geometry import Architecture, Box
from unetcli.model.network import UNet
from unetcli.planning.plan import Plan
from unetcli.planning.planner import Input, make_plan
from unetcli.predict.predictor import Predictor, predict_blocks
from unetcli.volumes.axes import DEFAULT_AXES
from unetcli.volumes.volume import Volume

TOLERANCE = 2e-5
SHAPE = (401, 533)
SETTINGS = replace(helpers.SETTINGS, dtype="float32", mean=0.0, std=1.0, threads=2)


@pytest.fixture(scope="module")
def network() -> UNet:
    torch.manual_seed(3)
    return UNet(Architecture(depth=4, base_channels=4, dropout=0.0)).eval()


@pytest.fixture(scope="module")
def image() -> NDArray[np.float32]:
    return np.random.default_rng(5).normal(size=SHAPE).astype(np.float32)


@pytest.fixture(scope="module")
def whole(network: UNet, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Reference result: numpy's padding and a single forward pass, without the code under test."""
    return whole_image(network, image)


def whole_image(network: UNet, image: NDArray[np.float32]) -> NDArray[np.float32]:
    axis = network.architecture.footprint().axes[0]
    margins = [(axis.context, axis.side_for(n) - n - axis.context) for n in image.shape]
    padded = np.pad(image, margins, mode="reflect") if min(image.shape) > 1 else _pad_thin(image, margins)
    with torch.inference_mode():
        probabilities = torch.softmax(network(torch.from_numpy(padded)[None, None])[0], dim=0)
    return probabilities[1, : image.shape[0], : image.shape[1]].numpy()


def _pad_thin(image: NDArray[np.float32], margins: list[tuple[int, int]]) -> NDArray[np.float32]:
    """Reflect padding; an axis of one voxel is repeated, which ``numpy.pad`` with "reflect" refuses."""
    for axis, margin in enumerate(margins):
        width = [(0, 0)] * image.ndim
        width[axis] = margin
        image = np.pad(image, width, mode="edge" if image.shape[axis] == 1 else "reflect")
    return image


def plan_for(network: UNet, image: NDArray[Any], tile: int) -> Plan:
    source = Input(axes=DEFAULT_AXES[image.ndim], extent=image.shape, chunks=image.shape, bytes_per_voxel=4)
    return make_plan(source, Box.of_shape(image.shape), network.architecture, tile, SETTINGS, helpers.SOURCES)


def predict(network: UNet, plan: Plan, image: NDArray[Any]) -> NDArray[np.float32]:
    source = Volume(path="image", array=image, stored_axes=DEFAULT_AXES[image.ndim])
    result = np.full(plan.region.shape, np.nan, np.float32)
    for finished in predict_blocks(
        plan, Predictor(network, plan.settings, torch.device("cpu")), source, range(plan.blocks)
    ):
        assert finished.values is not None
        result[plan.output_box(finished.block).slices] = finished.values[0]
    return result


@pytest.mark.parametrize("tile", [pytest.param(204, marks=pytest.mark.slow), 316, 572, 700, 1228])
def test_the_result_does_not_depend_on_the_tile(
    network: UNet, image: NDArray[np.float32], whole: NDArray[np.float32], tile: int
) -> None:
    assert np.abs(predict(network, plan_for(network, image, tile), image) - whole).max() < TOLERANCE


def test_the_result_does_not_depend_on_the_smallest_tile_in_a_corner(
    network: UNet, image: NDArray[np.float32], whole: NDArray[np.float32]
) -> None:
    region = Box((310, 430), SHAPE)
    plan = replace(plan_for(network, image, 204), region=region, chunks=(1, 1), write_chunks=(1, 1))
    assert np.abs(predict(network, plan, image) - whole[region.slices]).max() < TOLERANCE


@pytest.mark.parametrize("block", [(100, 130), (64, 533), (401, 77), (300, 300)])
def test_the_result_does_not_depend_on_the_block(
    network: UNet, image: NDArray[np.float32], whole: NDArray[np.float32], block: tuple[int, int]
) -> None:
    plan = replace(plan_for(network, image, 572), chunks=(1, 1), write_chunks=(1, 1), block_shape=block)
    assert np.abs(predict(network, plan, image) - whole).max() < TOLERANCE


def test_a_region_of_odd_size_equals_the_crop_of_the_whole_result(
    network: UNet, image: NDArray[np.float32], whole: NDArray[np.float32]
) -> None:
    region = Box((33, 201), (400, 533))
    plan = replace(
        plan_for(network, image, 316), region=region, chunks=(64, 64), write_chunks=(64, 64), block_shape=(128, 192)
    )
    assert np.abs(predict(network, plan, image) - whole[region.slices]).max() < TOLERANCE


def test_the_paper_s_step_of_388_causes_seams(
    network: UNet, image: NDArray[np.float32], whole: NDArray[np.float32]
) -> None:
    """The reason for steps that are multiples of 2^depth: otherwise neighbouring tiles pool on different grids."""
    plan = plan_for(network, image, 572)
    plan = replace(plan, chunks=(1, 1), write_chunks=(1, 1), block_shape=(388, 388))
    pieces = np.empty(SHAPE, np.float32)
    for corner in itertools.product(range(0, SHAPE[0], 388), range(0, SHAPE[1], 388)):
        read = tuple(slice(a, a + 572) for a in corner)
        padded = np.pad(image, [(92, 572)] * 2, mode="reflect")[read]
        with torch.inference_mode():
            values = torch.softmax(network(torch.from_numpy(padded)[None, None])[0], dim=0)[1].numpy()
        target = pieces[corner[0] : corner[0] + 388, corner[1] : corner[1] + 388]
        target[...] = values[: target.shape[0], : target.shape[1]]
    assert np.abs(pieces - whole).max() > 0.01
    assert np.abs(pieces[:388, :388] - whole[:388, :388]).max() < TOLERANCE  # the first tile lies on the grid


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (5, 3), (13, 22), (90, 1), (200, 210)], ids=str)
def test_images_smaller_than_a_tile_are_predicted_correctly(network: UNet, shape: tuple[int, int]) -> None:
    small = np.random.default_rng(9).normal(size=shape).astype(np.float32)
    expected = whole_image(network, small)
    for tile in (204, 572):
        assert np.abs(predict(network, plan_for(network, small, tile), small) - expected).max() < TOLERANCE


def test_sections_of_a_stack_are_predicted_one_by_one(network: UNet) -> None:
    stack = np.random.default_rng(11).normal(size=(3, 60, 70)).astype(np.float32)
    result = predict(network, plan_for(network, stack, 204), stack)
    for section, values in zip(stack, result, strict=True):
        assert np.abs(values - whole_image(network, section)).max() < TOLERANCE


def test_uint8_is_within_one_level_for_any_tile(network: UNet, image: NDArray[np.float32]) -> None:
    results = []
    for tile in (300, 700):
        plan = plan_for(network, image[:260, :300], tile)
        predictor = Predictor(network, replace(plan.settings, dtype="uint8"), torch.device("cpu"))
        source = Volume(path="image", array=image[:260, :300], stored_axes="yx")
        first = next(iter(predict_blocks(plan, predictor, source, [0])))
        assert first.values is not None
        results.append(first.values[0].astype(int))
    assert np.abs(results[0] - results[1]).max() <= 1


def test_every_voxel_is_written_by_exactly_one_tile(network: UNet, image: NDArray[np.float32]) -> None:
    plan = replace(plan_for(network, image, 316), chunks=(1, 1), write_chunks=(1, 1), block_shape=(210, 350))
    times = np.zeros(SHAPE, int)
    for number in range(plan.blocks):
        for tile in plan.tiles(plan.block(number)):
            times[tile.write.slices] += 1
            assert all((a + 92) % 16 == 0 for a in tile.read.start)
    assert (times == 1).all()
