from __future__ import annotations

import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from helpers import SETTINGS, SOURCES
from hypothesis import given, settings
from hypothesis import strategies as st

from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Architecture, Box, Footprint, Layer
from unetcli.planning.plan import Plan
from unetcli.planning.planner import (
    WINDOW_BYTES,
    Input,
    device_tile,
    forward_bytes,
    input_voxels,
    largest_tile,
    make_plan,
    output_chunks,
    output_files,
    require_files,
)

PAPER = Architecture()
GIB = 2**30


def plan_for(
    *extent: int,
    tile: int = 572,
    chunks: tuple[int, ...] | None = None,
    region: Box | None = None,
    depth: int = 4,
    outputs: int = 1,
    dtype: str = "uint8",
    **options: int,
) -> Plan:
    chunks = chunks or (1,) * (len(extent) - 2) + (64, 64)
    source = Input(axes="tzyx"[-len(extent) :], extent=extent, chunks=chunks, bytes_per_voxel=1)
    settings = replace(SETTINGS, outputs=outputs, dtype=dtype)
    region = region or Box.of_shape(extent)
    return make_plan(source, region, Architecture(depth=depth), tile, settings, SOURCES, **options)


def voxels_read(plan: Plan) -> int:
    return sum(tile.read.size for n in range(plan.blocks) for tile in plan.tiles(plan.block(n)))


def test_the_paper_s_tile_on_a_large_plane_takes_blocks_of_3072() -> None:
    plan = plan_for(50_000, 40_000)
    assert plan.block_shape == (3072, 3072)
    assert 3072 % plan.footprint.step(plan.tile)[0] == 0  # no tile inside the block is cut


@pytest.mark.parametrize("extent", [(5, 3), (1, 511), (513, 512), (777, 1031), (3, 4097, 90), (2, 2, 60, 9000)])
@pytest.mark.parametrize("tile", [204, 572, 2236])
def test_blocks_are_whole_chunks_of_one_section(extent: tuple[int, ...], tile: int) -> None:
    plan = plan_for(*extent, tile=tile)
    assert plan.write_chunks == (1,) * (len(extent) - 2) + tuple(min(512, n) for n in extent[-2:])
    assert all(block % chunk == 0 for block, chunk in zip(plan.block_shape, plan.write_chunks, strict=True))
    assert plan.tile == (1,) * (len(extent) - 2) + (tile, tile)


@settings(deadline=None, max_examples=60)
@given(
    start=st.tuples(st.integers(0, 90), st.integers(0, 90)),
    shape=st.tuples(st.integers(1, 3000), st.integers(1, 900)),
    tile=st.sampled_from([204, 316, 572]),
)
def test_input_voxels_are_what_the_real_tiles_read(start: tuple[int, int], shape: tuple[int, int], tile: int) -> None:
    stop = (start[0] + shape[0], start[1] + shape[1])
    plan = plan_for(3100, 1000, tile=tile, region=Box(start, stop))
    parts = zip(plan.footprint.axes, plan.tile, plan.block_shape, plan.region.start, plan.region.stop, strict=True)
    assert math.prod(input_voxels(*part) for part in parts) == voxels_read(plan)


@pytest.mark.parametrize("block", [16, 64, 384, 512, 1024])
@pytest.mark.parametrize(("start", "stop"), [(0, 1031), (7, 8), (33, 1024), (500, 2049)])
def test_work_is_what_one_row_of_tiles_reads(block: int, start: int, stop: int) -> None:
    axis, total = PAPER.footprint().axes[0], 0
    for first in range(start, stop, block):
        plan = plan_for(300, 3000, tile=572, region=Box((0, first), (1, min(first + block, stop))))
        total += sum(tile.read.shape[1] for tile in plan.tiles(plan.block(0)))
    assert input_voxels(axis, 572, block, start, stop) == total


@pytest.mark.parametrize("extent", [600, 1031, 2500, 5000, 9000])
@pytest.mark.parametrize("tile", [204, 572, 700])
def test_no_other_block_would_read_less(extent: int, tile: int) -> None:
    plan, axis = plan_for(64, extent, tile=tile), PAPER.footprint().axes[0]
    chosen = input_voxels(axis, tile, plan.block_shape[1], 0, extent)
    assert all(chosen <= input_voxels(axis, tile, block, 0, extent) for block in range(512, 4097, 512))


def test_sections_stored_together_are_read_together() -> None:
    assert plan_for(64, 700, 700, chunks=(16, 64, 64)).block_shape[0] == 16
    assert plan_for(64, 700, 700, chunks=(1, 64, 64)).block_shape[0] == 1
    assert plan_for(5, 700, 700, chunks=(16, 64, 64)).block_shape[0] == 5
    assert plan_for(3, 8, 700, 700, chunks=(2, 4, 64, 64)).block_shape[:2] == (2, 4)


@pytest.mark.parametrize("thickness", [1, 7, 64, 1000])
@pytest.mark.parametrize("plane", [300, 3000, 9000])
def test_the_window_of_a_block_fits_its_memory_limit(thickness: int, plane: int) -> None:
    plan = plan_for(1000, plane, plane, chunks=(thickness, 64, 64), tile=572)
    middle = plan.block(min(plan.blocks - 1, plan.blocks // 2))
    assert plan.window(middle).size <= WINDOW_BYTES
    assert plan.block_shape[0] <= thickness


def test_a_small_output_has_one_chunk() -> None:
    assert output_chunks((9, 100, 600), 2) == (1, 100, 512)
    assert output_chunks((9, 100, 600), 3) == (9, 100, 512)


@pytest.mark.parametrize(("limit", "side"), [(700, 700), (699, 684), (2236, 2236), (204, 204), (1, 204)])
def test_the_largest_tile_below_a_limit_is_usable(limit: int, side: int) -> None:
    assert largest_tile(PAPER.footprint(), limit) == side
    PAPER.footprint().require_usable((side, side))


def test_the_largest_tile_is_usable_along_every_axis() -> None:
    layers = [Layer("conv", (3, 3)), Layer("pool", (1, 2)), Layer("conv", (3, 3)), Layer("up", (1, 2))]
    footprint = Footprint.from_layers(layers)
    side = largest_tile(footprint, 101)
    footprint.require_usable((side, side))


def test_more_memory_never_gives_a_smaller_tile() -> None:
    sides = [device_tile(PAPER, GIB * n // 4) for n in range(1, 200)]
    assert sides == sorted(sides)
    assert len(set(sides)) > 10
    assert (sides[0] >= 204, sides[-1]) == (True, 2236)


@pytest.mark.parametrize("free", [GIB // 2, GIB, 3 * GIB, 5 * GIB])
def test_the_tile_is_the_largest_that_fits(free: int) -> None:
    side = device_tile(PAPER, free)
    assert forward_bytes(PAPER, side) <= free < forward_bytes(PAPER, side + 16)


def test_without_memory_the_smallest_tile_is_tried() -> None:
    assert device_tile(PAPER, 0) == 204


def test_memory_is_more_than_the_weights_and_the_widest_layer() -> None:
    weights, widest = 4 * 31_030_658, 4 * 64 * (568**2 + 570**2)
    assert forward_bytes(PAPER, 572) > max(weights, widest)
    assert math.isclose(forward_bytes(PAPER, 2236) / forward_bytes(PAPER, 1116), 4, rel_tol=0.15)


VAST = (1_000, 200_000, 180_000)
SIZES = {
    "few": (20, 3000, 3000),
    "many": (1000, 20_000, 20_000),
    "vast": VAST,
    "small sections": (1_000_000, 600, 700),
    "long film": (300_000, 2, 300, 300),
    "one plane": (3_000_000, 2_000_000),
}


@pytest.mark.parametrize("outputs", [1, 5])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("max_files", [300, 20_000, 250_000, 10**9])
@pytest.mark.parametrize("extent", SIZES.values(), ids=SIZES)
def test_shards_are_whole_chunks_and_blocks_whole_shards_that_fit_the_memory(
    extent: tuple[int, ...], max_files: int, dtype: str, outputs: int
) -> None:
    plan = plan_for(*extent, max_files=max_files, dtype=dtype, outputs=outputs)
    assert all(shard % chunk == 0 for shard, chunk in zip(plan.write_chunks, plan.chunks, strict=True))
    assert all(block % shard == 0 for block, shard in zip(plan.block_shape, plan.write_chunks, strict=True))
    assert plan.chunks == output_chunks(extent, 2)
    voxel_bytes = outputs * np.dtype(dtype).itemsize
    assert plan.window(plan.block(plan.blocks // 2)).size * voxel_bytes <= WINDOW_BYTES
    assert math.prod(plan.block_shape) * voxel_bytes <= WINDOW_BYTES


@pytest.mark.parametrize("extent", SIZES.values(), ids=SIZES)
def test_shards_are_used_only_if_there_would_be_too_many_chunks_and_then_suffice(extent: tuple[int, ...]) -> None:
    chunked = plan_for(*extent, max_files=10**15)
    assert not chunked.sharded
    assert output_files(chunked) == 2 + math.prod(math.ceil(n / c) for n, c in zip(extent, chunked.chunks, strict=True))
    assert not plan_for(*extent, max_files=output_files(chunked)).sharded
    fewer = plan_for(*extent, max_files=output_files(chunked) - 1)
    assert fewer.sharded
    require_files(fewer, output_files(chunked) - 1)


def test_a_lower_limit_gives_fewer_files_until_a_block_fills_the_memory() -> None:
    files = [output_files(plan_for(*VAST, max_files=limit)) for limit in (10**9, 10**8, 10**7, 10**6, 10**5, 10**4, 1)]
    assert files == sorted(files, reverse=True)
    assert files[-1] == files[-2] > 10**5
    with pytest.raises(UnetcliError, match=f"would have {files[-1]} files, more than --max-files 100000: no larger"):
        require_files(plan_for(*VAST, max_files=10**5), 10**5)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("max_files", [1, 5000, 250_000])
@pytest.mark.parametrize("extent", SIZES.values(), ids=SIZES)
def test_the_number_of_files_as_limit_gives_the_same_shards(
    extent: tuple[int, ...], max_files: int, outputs: int
) -> None:
    """A rerun without the option must take the shards of the frozen plan."""
    plan = plan_for(*extent, max_files=max_files, outputs=outputs)
    assert plan_for(*extent, max_files=output_files(plan), outputs=outputs) == plan


def test_zarr_2_has_no_shards_and_too_many_files_are_refused_with_a_remedy() -> None:
    plan = plan_for(*VAST, zarr_format=2)
    assert not plan.sharded
    with pytest.raises(UnetcliError, match=r"more than --max-files 250000: Zarr 2 has no shards; --zarr-format 3 .*"):
        require_files(plan, 250_000)
    require_files(plan, output_files(plan))


def test_sections_stored_together_are_read_together_with_shards_too() -> None:
    plan = plan_for(640, 700, 700, chunks=(16, 64, 64), max_files=400)
    assert plan.sharded
    assert plan.block_shape[0] == 16


def test_ten_million_blocks_are_planned_and_counted_in_little_memory() -> None:
    extent = (100_000, 30_720, 30_720)
    picked = np.zeros(10_000_000, bool)
    tracemalloc.start()
    plan = plan_for(*extent, max_files=10**9)
    assert plan.blocks == 10_000_000
    picked[-1] = True
    assert plan.grid.voxels(picked) == plan.block(plan.blocks - 1).box.size
    assert plan.grid.voxels(~picked) == plan.region.size - plan.block(plan.blocks - 1).box.size
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30 * 2**20  # ~picked alone takes 10 million bytes
