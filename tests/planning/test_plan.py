from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers import SETTINGS, SOURCES, plan_of
from hypothesis import given, settings
from hypothesis import strategies as st

from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Architecture, Box, Footprint, Layer
from unetcli.core.records import from_json, to_json
from unetcli.planning.plan import FORMAT, Plan, differences

PLAN = plan_of(Box((1, 33, 5), (3, 133, 127)), extent=(4, 140, 150))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Plans of a 2-D network on z, y, x with awkward regions, chunks, blocks and tiles."""
    depth = draw(st.integers(0, 3))
    start = [draw(st.integers(0, n)) for n in (3, 70, 70)]
    length = [draw(st.integers(1, n)) for n in (3, 90, 90)]
    stop = [a + n for a, n in zip(start, length, strict=True)]
    inner = (1, draw(st.integers(1, 20)), draw(st.integers(1, 20)))
    chunks = tuple(n * draw(st.integers(1, 3)) for n in inner)
    times = [draw(st.integers(1, 3)) for _ in range(3)]
    axis = Architecture(depth=depth).footprint().axes[0]
    tile = axis.side_for(draw(st.integers(1, 60)))
    return plan_of(
        Box(tuple(start), tuple(stop)),
        extent=tuple(b + draw(st.integers(0, 9)) for b in stop),
        footprint=Architecture(depth=depth).footprint().expanded_to(3),
        tile=(1, tile, tile),
        chunks=inner,
        write_chunks=chunks,
        block_shape=tuple(c * n for c, n in zip(chunks, times, strict=True)),
    )


def counted(plan: Plan, boxes: list[Box]) -> np.ndarray:
    """Number of boxes that contain each voxel of the volume."""
    times = np.zeros(plan.extent, int)
    for box in boxes:
        times[box.slices] += 1
    return times


@given(plans())
@settings(deadline=None)
def test_blocks_cover_the_region_once_and_nothing_else(plan: Plan) -> None:
    times = counted(plan, [plan.block(n).box for n in range(plan.blocks)])
    assert (times[plan.region.slices] == 1).all()
    assert times.sum() == plan.region.size


@given(plans())
@settings(deadline=None)
def test_blocks_never_share_an_output_chunk(plan: Plan) -> None:
    owner: dict[tuple[int, ...], int] = {}
    for number in range(plan.blocks):
        box = plan.output_box(plan.block(number))
        low = [a // c for a, c in zip(box.start, plan.write_chunks, strict=True)]
        high = [-(-b // c) for b, c in zip(box.stop, plan.write_chunks, strict=True)]
        for place in np.ndindex(*(b - a for a, b in zip(low, high, strict=True))):
            chunk = tuple(a + i for a, i in zip(low, place, strict=True))
            assert owner.setdefault(chunk, number) == number


@given(plans())
@settings(deadline=None)
def test_tiles_cover_their_block_once_and_nothing_else(plan: Plan) -> None:
    for number in range(plan.blocks):
        block = plan.block(number)
        times = counted(plan, [tile.write for tile in plan.tiles(block)])
        assert (times[block.box.slices] == 1).all()
        assert times.sum() == block.box.size


@given(plans())
@settings(deadline=None)
def test_tiles_start_on_the_grid_of_the_volume_and_hold_all_their_context(plan: Plan) -> None:
    context, alignment = plan.footprint.context[-1], plan.footprint.alignment[-1]
    for number in range(plan.blocks):
        block = plan.block(number)
        window = plan.window(block)
        for tile in plan.tiles(block):
            plan.footprint.require_usable(tile.read.shape)
            assert all((a + context) % alignment == 0 for a in tile.read.start[1:])
            assert all(n <= side for n, side in zip(tile.read.shape, plan.tile, strict=True))
            output = tile.read.grown((0, -context, -context))
            assert tile.write.clipped(output) == tile.write
            assert tile.read.clipped(window) == tile.read


def again(plan: Plan) -> Plan:
    """The plan after a round trip through JSON."""
    return from_json(Plan, to_json(plan, FORMAT), FORMAT, "plan")


@given(plans())
@settings(deadline=None)
def test_a_plan_survives_json(plan: Plan) -> None:
    assert again(plan) == plan
    assert differences(again(plan), plan) == []


def test_statistics_of_each_channel_survive_json() -> None:
    each = replace(PLAN, settings=replace(SETTINGS, mean=(1.0, 200.5), std=(0.5, 1e3)))
    assert again(each) == each
    assert differences(each, PLAN)[0] == "mean 100.0 (was (1.0, 200.5))"


def test_an_anisotropic_footprint_survives_json_too() -> None:
    layers = [Layer("conv", (3, 3)), Layer("pool", (1, 2)), Layer("conv", (5, 3)), Layer("up", (1, 2))]
    plan = plan_of(Box((0, 0), (30, 30)), footprint=Footprint.from_layers(layers), tile=(27, 26))
    assert again(plan) == plan


def test_a_crop_finds_the_written_voxels_in_the_output_of_the_network() -> None:
    for tile in PLAN.tiles(PLAN.block(PLAN.blocks - 1)):
        places = np.stack(np.indices(tile.read.shape), -1) + tile.read.start
        output = places[:, 20:-20, 20:-20][tile.crop(PLAN.footprint.context)]
        assert output[0, 0, 0].tolist() == list(tile.write.start)
        assert (output[-1, -1, -1] + 1).tolist() == list(tile.write.stop)


@pytest.mark.parametrize(
    ("changes", "phrase"),
    [
        ({"extent": (4, 140, 151)}, "extent 4x140x151 (was 4x140x150)"),
        ({"region": Box((1, 33, 5), (3, 133, 126))}, "region 1:3,33:133,5:126 (was 1:3,33:133,5:127)"),
        ({"tile": (1, 64, 64)}, "tile 64 (was 60)"),
        ({"tile": (1, 64, 64), "block_shape": (1, 24, 48)}, "tile 64 (was 60)"),
        ({"chunks": (1, 4, 8), "write_chunks": (1, 4, 8)}, "write_chunks 1x4x8 (was 1x8x8)"),
        ({"chunks": (1, 4, 8)}, "chunks 1x4x8 (was 1x8x8)"),
        ({"zarr_format": 2}, "zarr_format 2 (was 3)"),
        ({"block_shape": (1, 24, 48)}, "block_shape 1x24x48 (was 1x24x40)"),
        ({"settings": replace(SETTINGS, threads=2)}, "threads 2 (was 1)"),
        ({"settings": replace(SETTINGS, dtype="float16")}, "dtype float16 (was uint8)"),
        ({"settings": replace(SETTINGS, nonfinite=0.0)}, "nonfinite 0.0 (was None)"),
        ({"sources": replace(SOURCES, volume_fingerprint="w")}, "volume /in.zarr (was /in.zarr, or other data)"),
        ({"sources": replace(SOURCES, model_fingerprint="n")}, "model"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_differences_name_the_one_thing_that_differs(changes: dict[str, object], phrase: str) -> None:
    found = differences(PLAN, replace(PLAN, **changes))  # type: ignore[arg-type]
    assert len(found) == 1
    assert found[0].startswith(phrase)


def test_another_path_of_the_same_input_is_no_difference() -> None:
    moved = replace(SOURCES, volume="/elsewhere.zarr", model="/other.safetensors")
    assert differences(PLAN, replace(PLAN, sources=moved)) == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"block_shape": (1, 20, 40)}, "block of 20 along y .* output chunk 8; 24 would work"),
        ({"chunks": (1, 3, 8)}, "shards 1x8x8 are not multiples of chunks 1x3x8"),
        ({"chunks": (1, 4, 8), "zarr_format": 2}, "no shards; .*--max-files"),
        ({"zarr_format": 1}, "--zarr-format 1: expected 3"),
        ({"tile": (1, 61, 60)}, "--tile 61"),
        ({"region": Box((0, 0, 0), (4, 141, 150))}, "not inside the volume"),
        ({"region": Box((0, -1, 0), (4, 100, 150))}, "not inside the volume"),
        ({"region": Box((2, 0, 0), (2, 140, 150))}, "empty"),
    ],
    ids=[
        "misaligned block",
        "misaligned shard",
        "shards in Zarr 2",
        "unknown format",
        "unusable tile",
        "region too large",
        "region before the start",
        "empty region",
    ],
)
def test_an_invalid_plan_is_refused(changes: dict[str, object], named: str) -> None:
    with pytest.raises(UnetcliError, match=named):
        replace(PLAN, **changes)  # type: ignore[arg-type]


def test_a_plan_of_another_version_is_refused() -> None:
    with pytest.raises(UnetcliError, match="version 99"):
        from_json(Plan, to_json(PLAN, 99), FORMAT, "plan")


def test_voxels_of_selected_blocks_are_the_sum_of_their_boxes() -> None:
    plan = plan_of(Box.of_shape((3, 70, 90)), write_chunks=(1, 32, 32), block_shape=(2, 32, 64))
    for seed in range(5):
        picked = np.random.default_rng(seed).random(plan.blocks) < 0.5
        expected = sum(plan.block(int(number)).box.size for number in np.flatnonzero(picked))
        assert plan.grid.voxels(picked) == expected
