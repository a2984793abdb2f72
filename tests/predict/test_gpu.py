"""Prediction on a GPU: the same results as on a CPU, from any tile, in any memory. All but the last need a GPU."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from helpers import SETTINGS, SOURCES, write_model, write_zarr
from numpy.typing import NDArray

from unetcli import api
from unetcli.core.geometry import Architecture, Box
from unetcli.model.network import UNet, exact_float32
from unetcli.planning.planner import Input, make_plan
from unetcli.predict import predictor as stages
from unetcli.predict.gpu import CALLS_BEFORE_RECORDING, Graphs
from unetcli.predict.predictor import Predictor, predict_blocks
from unetcli.volumes.volume import Volume

SHAPE = (3, 700, 900)
SEAMS = {"float32": 2e-5, "bfloat16": 4 / 255}
"""Largest difference between tiles, of probabilities of a network with random weights; see docs/guarantees.md."""


@pytest.fixture(scope="module")
def network() -> UNet:
    """A network with the depth of the paper, whose probabilities are neither 0 nor 1."""
    torch.manual_seed(3)
    found = UNet(Architecture(depth=4, base_channels=16, dropout=0.0)).eval()
    with torch.no_grad():
        found.head.weight.mul_(0.1)
    return found


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, SHAPE).astype(np.uint8)


def predicted(
    network: UNet, image: NDArray[Any], tile: int, device: str = "cuda", **settings: Any
) -> NDArray[np.float32]:
    """Probabilities (z, y, x) of an image."""
    exact_float32()
    source = Input(axes="zyx", extent=image.shape, chunks=image.shape, bytes_per_voxel=image.dtype.itemsize)
    chosen = replace(SETTINGS, dtype="float32", device=device, **settings)
    plan = make_plan(source, Box.of_shape(image.shape), network.architecture, tile, chosen, SOURCES)
    volume = Volume(path="image", array=image, stored_axes="zyx")
    result = np.full(image.shape, np.nan, np.float32)
    predictor = Predictor(network, chosen, torch.device(device))
    for block in predict_blocks(plan, predictor, volume, range(plan.blocks)):
        assert block.values is not None, block.error
        result[block.block.box.slices] = block.values[0]
    return result


@pytest.mark.gpu
def test_float32_is_that_of_a_cpu(network: UNet, image: NDArray[np.uint8]) -> None:
    found, expected = (predicted(network, image, 572, device) for device in ("cuda", "cpu"))
    assert np.abs(found - expected).max() < 2e-5


@pytest.mark.gpu
@pytest.mark.parametrize("rotations", [4, 8])
def test_turned_copies_are_those_of_a_cpu(network: UNet, image: NDArray[np.uint8], rotations: int) -> None:
    section = image[:1]
    found, expected = (predicted(network, section, 316, device, rotations=rotations) for device in ("cuda", "cpu"))
    assert np.abs(found - expected).max() < 2e-5
    assert np.abs(found - predicted(network, section, 572, rotations=rotations)).max() < 2e-5


@pytest.mark.gpu
def test_the_mean_of_several_models_is_that_of_a_cpu(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    raw = write_zarr(tmp_path / "raw.zarr", image[:1], (1, 256, 256))
    models = tuple(str(write_model(tmp_path / f"{mean}", mean=mean)) for mean in (100.0, 140.0))
    found = []
    for device in ("cuda", "cpu"):
        output = tmp_path / f"{device}.zarr"
        given: dict[str, Any] = {"volume": str(raw), "model": models, "device": device, "tile": 316}
        api.predict(**given, output=str(output), dtype="float32", precision="float32")
        found.append(zarr.open_array(output / "0", mode="r")[:])
    assert np.abs(found[0] - found[1]).max() < 2e-5


@pytest.mark.gpu
@pytest.mark.parametrize("precision", SEAMS)
@pytest.mark.parametrize("tile", [204, 316, 700])
def test_the_tile_does_not_show(network: UNet, image: NDArray[np.uint8], precision: str, tile: int) -> None:
    found, expected = (predicted(network, image, side, precision=precision) for side in (tile, 1084))
    assert np.abs(found - expected).max() < SEAMS[precision]


@pytest.mark.gpu
def test_the_same_plan_gives_the_same_bytes(network: UNet, image: NDArray[np.uint8]) -> None:
    one, other = (predicted(network, image, 316, precision="bfloat16") for _ in range(2))
    assert np.array_equal(one, other)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["uint16", "int16", "int32", "float32", "float64", "float16", ">u2"])
def test_any_type_of_voxel_is_uploaded(network: UNet, image: NDArray[np.uint8], dtype: str) -> None:
    assert np.array_equal(predicted(network, image.astype(dtype), 316), predicted(network, image, 316))


@pytest.mark.gpu
def test_if_memory_runs_out_a_smaller_tile_gives_the_same(
    network: UNet, image: NDArray[np.uint8], caplog: pytest.LogCaptureFixture
) -> None:
    expected = predicted(network, image, 1084)
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 250e6) / total)
    try:
        found = predicted(network, image, 1084)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "continuing with tile" in caplog.text
    assert np.abs(found - expected).max() < 2e-5


@pytest.mark.gpu
def test_a_recorded_tile_gives_the_same_bytes(network: UNet) -> None:
    predictor = Predictor(network, replace(SETTINGS, device="cuda", precision="bfloat16"), torch.device("cuda"))
    graphs = Graphs()
    for number in range(CALLS_BEFORE_RECORDING + 3):
        voxels = torch.randint(0, 256, (1, 316, 316), dtype=torch.uint8, device="cuda")
        assert torch.equal(graphs(predictor._stored, voxels), predictor._stored(voxels)), number
    assert len(graphs._recorded) == 1


@pytest.mark.gpu
def test_the_command_resumes_to_the_same_bytes(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    raw, model = write_zarr(tmp_path / "raw.zarr", image, (1, 256, 256)), write_model(tmp_path, base_channels=8)
    given: dict[str, Any] = {"volume": str(raw), "model": str(model), "device": "cuda", "precision": "bfloat16"}
    whole = api.predict(**given, output=str(tmp_path / "whole.zarr"))
    assert whole.finished
    for share in ((0, 3), (2, 3), (1, 3)):
        api.predict(**given, output=str(tmp_path / "shares.zarr"), share=share)
    stored = [zarr.open_array(tmp_path / name / "0", mode="r")[:] for name in ("whole.zarr", "shares.zarr")]
    assert np.array_equal(*stored)


def test_several_threads_read_and_write_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(5).random((6, 600, 700)).astype(np.float32)
    image[2, 300, 300] = np.nan  # sets one block aside
    raw, model = write_zarr(tmp_path / "raw.zarr", image, (1, 256, 256)), write_model(tmp_path, dtype="float32")
    stored = []
    for threads in (1, 3):
        monkeypatch.setattr(stages, "io_threads", lambda device, threads=threads: threads)
        output = tmp_path / f"{threads}.zarr"
        summary = api.predict(volume=str(raw), model=str(model), output=str(output))
        assert not summary.finished
        stored.append({path.relative_to(output): path.read_bytes() for path in (output / "0").rglob("c/*/*/*")})
    assert stored[0] == stored[1]
