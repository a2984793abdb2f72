"""Estimates equal the counts of real blocks and tiles, and take a time that does not grow with their number."""

from __future__ import annotations

import math
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import zarr
from helpers import PEAK, SETTINGS, grey, plan_of, write_model, write_zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from unetcli.core.geometry import Architecture, Box, mirror_indices
from unetcli.planning import estimate as module
from unetcli.planning.estimate import StoredInput, device_bytes, estimate, multiply_adds, work_per_voxel
from unetcli.planning.plan import Plan, axis_spans
from unetcli.predict.preview import plan_volume, stored_input
from unetcli.predict.request import PredictRequest
from unetcli.predict.run import predict_volume
from unetcli.volumes.opening import open_volume

TINY = Architecture(depth=2, base_channels=4)
STORED = StoredInput(chunks=(2, 16, 11), bytes_per_voxel=2, chunk_bytes=2 * 2 * 16 * 11)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Plans of a 2-D network on z, y, x with awkward regions and blocks that are not aligned."""
    extent = [draw(st.integers(1, n)) for n in (4, 150, 150)]
    start = [draw(st.integers(0, n - 1)) for n in extent]
    stop = [draw(st.integers(a + 1, n)) for a, n in zip(start, extent, strict=True)]
    chunks = (1, draw(st.integers(1, 20)), draw(st.integers(1, 20)))
    times = [draw(st.integers(1, 3)) for _ in range(3)]
    tile = TINY.footprint().axes[0].side_for(draw(st.integers(1, 60)))
    return plan_of(
        Box(tuple(start), tuple(stop)),
        extent=tuple(extent),
        tile=(1, tile, tile),
        write_chunks=chunks,
        block_shape=tuple(c * n for c, n in zip(chunks, times, strict=True)),
    )


def touched(window: Box, extent: tuple[int, ...], chunks: tuple[int, ...]) -> int:
    """Chunks under a window: reading decodes the whole span of the mirrored indices."""
    count = 1
    for start, stop, n, chunk in zip(window.start, window.stop, extent, chunks, strict=True):
        indices = mirror_indices(start, stop, n)
        count *= int(indices.max()) // chunk - int(indices.min()) // chunk + 1
    return count


@given(plans())
@settings(deadline=None)
def test_every_count_is_that_of_the_real_blocks_and_tiles(plan: Plan) -> None:
    found = estimate(plan, TINY, STORED)
    blocks = [plan.block(number) for number in range(plan.blocks)]
    tiles = [tile for block in blocks for tile in plan.tiles(block)]
    assert (found.blocks, found.tiles) == (len(blocks), len(tiles))
    without_end = plan.region.size * work_per_voxel(TINY)
    assert found.wasted_work == pytest.approx(found.multiply_adds / without_end - 1)
    assert found.multiply_adds == sum(multiply_adds(TINY, tile.read.shape[1:]) for tile in tiles)  # type: ignore[arg-type]
    assert found.input_chunks == sum(touched(plan.window(block), plan.extent, STORED.chunks) for block in blocks)
    assert found.input_bytes == found.input_chunks * STORED.chunk_bytes


@given(plans())
@settings(deadline=None, max_examples=20)
def test_the_longest_window_is_that_of_the_real_blocks(plan: Plan) -> None:
    work = module.plan_work(plan, STORED.chunks)
    windows = [plan.window(plan.block(number)).shape for number in range(plan.blocks)]
    assert tuple(axis.longest_window for axis in work) == tuple(map(max, zip(*windows, strict=True)))


@pytest.mark.parametrize("depth", [1, 3, 4])
@pytest.mark.parametrize("classes", [2, 5])
def test_multiply_adds_and_parameters_are_those_of_the_network(depth: int, classes: int) -> None:
    import torch
    from torch import Tensor, nn

    from unetcli.model.network import UNet

    architecture = Architecture(depth=depth, base_channels=2, in_channels=3, classes=classes)
    network, counted = UNet(architecture), []

    def count(layer: nn.Module, _: object, result: Tensor) -> None:
        taps = 1 if isinstance(layer, nn.ConvTranspose2d) else math.prod(layer.kernel_size)  # type: ignore[arg-type]
        counted.append(result[0].numel() * layer.in_channels * taps)  # type: ignore[operator]

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(count)
    side = architecture.footprint().axes[0].side_for(1)
    alignment = architecture.footprint().alignment[0]
    with torch.inference_mode():
        network(torch.zeros(1, 3, side, side + 2 * alignment))
    assert multiply_adds(architecture, (side, side + 2 * alignment)) == sum(counted)
    assert len(counted) == 5 * depth + 3  # 23 for the paper's
    assert architecture.parameters == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(("side", "more"), [(572, 0.390), (700, 0.282), (1212, 0.133), (2236, 0.065)])
def test_what_a_tile_costs_more_than_one_without_end(side: int, more: float) -> None:
    """The figures of the paper's network, at the step of the tile."""
    architecture = Architecture()
    step = side - 2 * 92 - 4  # the output, down to a multiple of 16
    found = multiply_adds(architecture, (side, side)) / step**2 / work_per_voxel(architecture) - 1
    assert found == pytest.approx(more, abs=0.0005)


@pytest.mark.parametrize("grid", [(10**7, 1, 1), (10, 1000, 1000)], ids=["tall", "wide"])
def test_ten_million_blocks_take_little_memory_and_no_more_steps_than_a_few(grid: tuple[int, int, int]) -> None:
    few, many = (plan_of(Box.of_shape((n, 24 * ny, 40 * nx))) for n, ny, nx in ((10, 4, 4), grid))
    with patch.object(module, "axis_spans", wraps=axis_spans) as spans:
        estimate(few, TINY, STORED)
        calls = spans.call_count
        tracemalloc.start()
        found = estimate(many, TINY, STORED)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert spans.call_count <= 2 * calls
    assert peak < 16 * 2**20
    assert found.blocks == 10**7
    assert found.output_files == 10**7 * 3 * 5
    assert found.receipts_bytes == 110 * 10**7


def test_output_is_counted_by_class_and_item() -> None:
    plan = plan_of(Box.of_shape((3, 20, 17)))
    one = estimate(plan, TINY, STORED)
    five = estimate(replace(plan, settings=replace(SETTINGS, outputs=5, dtype="float32")), TINY, STORED)
    assert (one.output_bytes, one.output_files) == (3 * 20 * 17, 3 * 3 * 3)
    assert (five.output_bytes, five.output_files) == (20 * one.output_bytes, 5 * one.output_files)
    assert five.host_bytes > one.host_bytes


def test_half_the_precision_needs_less_memory_but_not_half() -> None:
    full, half = (device_bytes(Architecture(), 2236, "cuda", p) for p in ("float32", "bfloat16"))
    assert 0.5 * full < half < 0.7 * full
    sides = [device_bytes(Architecture(), side, "cuda", "float32") for side in range(204, 2237, 16)]
    assert sides == sorted(sides)


@pytest.mark.parametrize(("channel", "files", "bytes_per_voxel"), [(None, 2, 6), (1, 1, 2)], ids=["all", "one"])
def test_channels_stored_together_are_decoded_together(
    tmp_path: Path, channel: int | None, files: int, bytes_per_voxel: int
) -> None:
    """Three channels of two bytes in chunks of two channels: the last chunk is padded to full size."""
    write_zarr(tmp_path / "c.zarr", np.zeros((3, 5, 40, 40), np.uint16), (2, 1, 16, 8), dimension_names=list("czyx"))
    plan = plan_of(Box.of_shape((5, 40, 40)), settings=replace(SETTINGS, channel=channel))
    stored = stored_input(plan, open_volume(tmp_path / "c.zarr"))
    assert (stored.chunks, stored.files_per_place, stored.bytes_per_voxel) == ((1, 16, 8), files, bytes_per_voxel)
    assert stored.chunk_bytes == files * 2 * 16 * 8 * 2


FORWARD = """
import sys
import numpy as np
from unetcli.core.process import prepare
prepare()
import torch
from unetcli.core.geometry import Architecture
from unetcli.predict.predictor import Predictor
from unetcli.model.network import UNet
from unetcli.planning.plan import Settings
depth, base, tile, precision = *map(int, sys.argv[1:4]), sys.argv[4]
torch.set_num_threads(1)
settings = Settings(dtype="uint8", outputs=1, channel=None, normalise="model", mean=0.0, std=1.0, nonfinite=None,
                  device="cpu", precision=precision, threads=1)
before = peak()
Predictor(UNet(Architecture(depth=depth, base_channels=base)), settings, torch.device("cpu"))(
    np.zeros((1, tile, tile), np.uint8))
print(peak() - before)
"""


@pytest.mark.parametrize(
    ("depth", "base", "tile", "precision"),
    [
        (3, 16, 700, "float32"),
        pytest.param(3, 16, 1100, "bfloat16", marks=pytest.mark.slow),
        pytest.param(4, 32, 572, "float32", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_memory_of_a_forward_pass_is_estimated(depth: int, base: int, tile: int, precision: str) -> None:
    import torch

    from unetcli.model.network import has_bfloat16

    if precision == "bfloat16" and not has_bfloat16(torch.device("cpu")):
        pytest.skip("the processor has no instructions for bfloat16")
    words = [sys.executable, "-c", PEAK + FORWARD, *map(str, (depth, base, tile, precision))]
    measured = int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    foreseen = device_bytes(Architecture(depth=depth, base_channels=base), tile, "cpu", precision)
    print(f"{measured >> 20} MiB, {foreseen >> 20} estimated")
    assert measured < foreseen < 1.6 * measured


PREDICT = """
import sys
from pathlib import Path
from unetcli.core.process import prepare
prepare()
from unetcli.predict.request import PredictRequest
from unetcli.predict.run import predict_volume
assert predict_volume(PredictRequest(volume=sys.argv[1], model=Path("model"), device="cpu", dtype=sys.argv[2])).complete
print(peak())
"""


@pytest.mark.slow
@pytest.mark.parametrize(("stored", "dtype"), [("float32", "float32"), ("float32", "uint8")])
def test_the_memory_of_a_worker_is_estimated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str, dtype: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "model", depth=1, base_channels=1, dtype=stored)
    array = zarr.create_array(
        tmp_path / "big.zarr", shape=(5, 2048, 2048), chunks=(1, 512, 512), dtype=stored, compressors=None
    )
    plane = grey(2048, 2048).astype(stored)
    for z in range(5):
        array[z] = np.roll(plane, z)
    foreseen = plan_volume(
        PredictRequest(volume="big.zarr", model=Path("model"), device="cpu", dtype=dtype)
    ).estimate.host_bytes
    words = [sys.executable, "-c", PEAK + PREDICT, "big.zarr", dtype]
    measured = int(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])
    print(f"{measured >> 20} MiB, {foreseen >> 20} estimated")
    assert measured < foreseen < 1.5 * measured


def test_files_and_blocks_are_those_that_predict_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "model")
    write_zarr(tmp_path / "big.zarr", grey(3, 600, 70), chunks=(1, 64, 64))
    request = PredictRequest(volume="big.zarr", device="cpu")
    report = plan_volume(request)
    assert predict_volume(request).blocks == report.estimate.blocks
    chunks = [file for file in (tmp_path / "big.pred.zarr" / "0" / "c").rglob("*") if file.is_file()]
    assert len(chunks) == report.estimate.output_files == 6
