from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaozarrs
import zarr
from helpers import SETTINGS, Output, grey, plan_of
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import unetcli.planning.pyramid_plan as sizes
from unetcli.core.errors import UnetcliError, UnreadableBlock
from unetcli.core.geometry import Box
from unetcli.engine.levels import Pyramid, halved
from unetcli.planning.pyramid_plan import PyramidBlock, PyramidPlan, auto_levels, pyramid_of
from unetcli.volumes.opening import open_volume
from unetcli.volumes.volume import Volume

KINDS: dict[str, dict[str, Any]] = {
    "zarr 3": {},
    "shards": {"chunks": (4, 8), "write_chunks": (8, 8)},
    "zarr 2": {"zarr_format": 2},
    "odd chunks": {"write_chunks": (5, 7), "block_shape": (15, 21)},
}
SHAPES = {"yx": (13, 22), "zyx": (3, 37, 45), "tzyx": (2, 3, 40, 17), "line": (1, 70), "two lines": (40, 2)}


def naive(values: NDArray[Any]) -> NDArray[Any]:
    """Compute the mean of each 2 x 2 voxels in a plain loop."""
    height, width = values.shape[-2:]
    result = np.empty((*values.shape[:-2], -(-height // 2), -(-width // 2)), values.dtype)
    for y, x in np.ndindex(result.shape[-2:]):
        cell = values[..., 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].astype(float)
        mean = cell.mean((-2, -1))
        result[..., y, x] = np.floor(mean + 0.5) if values.dtype.kind == "u" else mean
    return result


def finished(path: Path, values: NDArray[Any], kind: str = "zarr 3") -> Output:
    """Write a complete output with ``values`` of shape (outputs, *shape)."""
    outputs, *shape = values.shape
    lead = (1,) * (len(shape) - 2)
    sides = {k: lead + v if isinstance(v, tuple) else v for k, v in KINDS[kind].items()}
    settings = replace(SETTINGS, outputs=outputs, dtype=values.dtype.name)
    output = Output(path, plan_of(Box.of_shape(shape), settings=settings, **sides))
    size = {"z": 50.0, "y": 4.0, "x": 4.5}
    source = Volume(
        path="in",
        array=np.zeros(shape, np.uint8),
        stored_axes=output.plan.axes,
        voxel_size=size,
        translation={"y": -8.0},
        units=dict.fromkeys("zyx", "nanometer"),
    )
    output.create(source)
    output.write(output.open(), Box.of_shape(shape), values)
    output.mark_complete()
    return output


def built(output: Output, levels: int, order: random.Random | None = None) -> Pyramid:
    """Build all blocks, stage by stage, in random order within a stage."""
    pyramid = Pyramid(output.image, pyramid_of(replace(output.plan, levels=levels)))
    pyramid.create()
    for stage in pyramid.plan.stages:
        numbers = list(stage.blocks)
        (order or random.Random(0)).shuffle(numbers)
        for number in numbers:
            pyramid.build(number)
    return pyramid


def level_of(output: Output, level: int) -> NDArray[Any]:
    """Read a level with zarr directly, channels first."""
    found = np.asarray(zarr.open_array(f"{output.path}/{level}", mode="r")[...])
    lead = int("t" in output.plan.axes)
    return np.moveaxis(found, lead, 0) if output.plan.settings.outputs > 1 else found[np.newaxis]


def values_of(outputs: int, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    values = grey(outputs, *shape)
    return values if dtype == "uint8" else (values / np.float32(255)).astype(dtype)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shrink the blocks, so that a small volume has several stages of several blocks."""
    monkeypatch.setattr(sizes, "BLOCK_VOXELS", 100)
    monkeypatch.setattr(sizes, "BLOCK_CHUNKS", 1)
    monkeypatch.setattr(sizes, "SMALL_VOXELS", 100)


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (2, 2), (13, 22), (2, 3, 7, 8)], ids=str)
def test_halving_takes_the_mean_of_what_is_there(shape: tuple[int, ...], dtype: str) -> None:
    values = values_of(1, shape, dtype)[0]
    assert np.array_equal(halved(values), naive(values)) or dtype != "uint8"
    assert halved(values).dtype == dtype
    assert np.allclose(
        halved(values).astype(float), naive(values.astype(float)), atol=0.51 if dtype == "uint8" else 1e-3
    )


def test_integers_are_rounded_half_up_and_do_not_overflow() -> None:
    assert halved(np.array([[255, 255], [255, 255]], np.uint8)).tolist() == [[255]]
    assert halved(np.array([[0, 1], [1, 0]], np.uint8)).tolist() == [[1]]
    assert halved(np.array([[0, 0], [1, 0]], np.uint8)).tolist() == [[0]]
    assert halved(np.array([[0], [1]], np.uint8)).tolist() == [[1]]


@pytest.mark.by_default("zarr 3-1-uint8-tzyx", "zarr 2-2-float32-zyx", "odd chunks", "line", "zarr 3-1-uint8-yx")
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("kind", "outputs", "dtype", "name"),
    [
        pytest.param(*values, name, marks=() if name == "zyx" or values[0] == "zarr 3" else pytest.mark.slow)
        for values in (
            ("zarr 3", 1, "uint8"),
            ("shards", 3, "uint8"),
            ("zarr 2", 2, "float32"),
            ("odd chunks", 1, "float16"),
        )
        for name in SHAPES
    ],
)
def test_every_level_is_the_whole_array_halved_again(
    tmp_path: Path, kind: str, outputs: int, dtype: str, name: str
) -> None:
    values = values_of(outputs, SHAPES[name], dtype)
    output = finished(tmp_path / "a.zarr", values, kind)
    plan = pyramid_of(replace(output.plan, levels=4))
    before = {path: path.read_bytes() for path in (tmp_path / "a.zarr" / "0").rglob("*") if path.is_file()}
    pyramid = built(output, 4, random.Random(1))
    for level in range(1, 4):
        values = halved(values)
        assert values.shape[1:] == plan.shape_of(level)
        assert np.array_equal(level_of(output, level), values)
    assert {path: path.read_bytes() for path in before} == before
    assert pyramid.plan == plan


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kind", KINDS)
def test_levels_show_only_when_published_and_are_ome_zarr(tmp_path: Path, kind: str) -> None:
    output = finished(tmp_path / "a.zarr", grey(2, 2, 21, 29), kind)
    pyramid = built(output, 3)
    before = output.attributes()
    pyramid.publish()
    pyramid.publish()
    after = output.attributes()
    assert after["unetcli"] == before["unetcli"]
    found = yaozarrs.validate_zarr_store(str(output.path))
    assert found.ome_version() == ("0.4" if kind == "zarr 2" else "0.5")
    image = after.get("ome", after)["multiscales"][0]
    assert [dataset["path"] for dataset in image["datasets"]] == ["0", "1", "2"]
    assert len(before.get("ome", before)["multiscales"][0]["datasets"]) == 1
    assert open_volume(output.path).extent == (2, 21, 29)


def test_the_centres_of_coarse_voxels_lie_amid_those_they_are_the_mean_of(tmp_path: Path) -> None:
    output = finished(tmp_path / "a.zarr", grey(1, 3, 1, 45))
    built(output, 4).publish()
    datasets = output.attributes()["ome"]["multiscales"][0]["datasets"]
    found = [[t[t["type"]] for t in dataset["coordinateTransformations"]] for dataset in datasets]
    assert found == [
        [[50, 4, 4.5], [0, -8, 0]],
        [[50, 4, 9], [0, -8, 2.25]],
        [[50, 4, 18], [0, -8, 6.75]],
        [[50, 4, 36], [0, -8, 15.75]],
    ]


@pytest.mark.by_default("shards", "zarr 3")
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kind", KINDS)
def test_a_block_built_again_gives_the_same_files_whatever_was_there(tmp_path: Path, kind: str) -> None:
    output = finished(tmp_path / "a.zarr", grey(2, 2, 21, 29), kind)
    pyramid = built(output, 4)
    for number in range(pyramid.plan.blocks):
        once = pyramid.build(number)
        sound = {path: path.read_bytes() for path in once.files if path.exists()}
        assert pyramid.checksum(number) == once.checksum
        for path, data in sound.items():
            path.write_bytes(data[: len(data) // 2])
        if sound:
            with pytest.raises(UnreadableBlock, match=r"a\.zarr/\d: cannot read"):
                pyramid.checksum(number)
        assert pyramid.build(number) == once
        assert {path: path.read_bytes() for path in sound} == sound


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_write_every_file_of_the_coarser_levels_once(tmp_path: Path, kind: str) -> None:
    output = finished(tmp_path / "a.zarr", np.full((2, 2, 21, 29), 7, np.uint8), kind)
    pyramid = Pyramid(output.image, pyramid_of(replace(output.plan, levels=4)))
    pyramid.create()
    before = {path for path in (tmp_path / "a.zarr").rglob("*") if path.is_file()}
    written = [path for number in range(pyramid.plan.blocks) for path in pyramid.build(number).files]
    after = {path for path in (tmp_path / "a.zarr").rglob("*") if path.is_file()}
    assert len(written) == len(set(written)) == pyramid.plan.files
    assert set(written) == after - before


def test_creating_again_keeps_matching_levels_and_replaces_others(tmp_path: Path) -> None:
    output = finished(tmp_path / "a.zarr", grey(1, 37, 45))
    pyramid = built(output, 3)
    pyramid.publish()
    before = {path: path.read_bytes() for path in (tmp_path / "a.zarr").rglob("*") if path.is_file()}
    Pyramid(output.image, pyramid.plan).create()
    assert {path: path.read_bytes() for path in (tmp_path / "a.zarr").rglob("*") if path.is_file()} == before
    other = Pyramid(output.image, replace(pyramid.plan, chunks=(4, 4), write_chunks=(4, 4)))
    other.create()
    assert len(output.attributes()["ome"]["multiscales"][0]["datasets"]) == 1
    assert not level_of(output, 1).any()


@st.composite
def pyramids(draw: st.DrawFn) -> PyramidPlan:
    """Generate pyramids with awkward shapes, chunks and shards."""
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 70)), draw(st.integers(1, 70)))
    inner = (1, *(min(n, draw(st.integers(1, 20))) for n in shape[1:]))
    shards = tuple(draw(st.integers(1, 3)) * side for side in inner)
    most = 1 + (max(shape[1:]) - 1).bit_length()
    return PyramidPlan(
        axes="zyx",
        shape=shape,
        chunks=inner,
        write_chunks=shards,
        outputs=draw(st.integers(1, 2)),
        levels=draw(st.integers(1, most)),
    )


@given(pyramids(), st.sampled_from([1, 1000, 10**6]))
@settings(deadline=None)
def test_blocks_own_whole_chunks_and_read_only_what_earlier_stages_made(plan: PyramidPlan, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sizes, "BLOCK_VOXELS", size)
        patch.setattr(sizes, "SMALL_VOXELS", size)
        blocks = [plan.block(number) for number in range(plan.blocks)]
        stages = plan.stages
    assert [number for stage in stages for number in stage.blocks] == list(range(plan.blocks))
    assert [stage.base for stage in stages[1:]] == [stage.top for stage in stages[:-1]]
    times = [np.zeros(plan.shape_of(level), int) for level in range(plan.levels)]
    for block in blocks:
        for level, piece in plan.pieces(block):
            times[level][piece.slices] += 1
            assert_whole(plan, level, piece)
            assert_made_from_the_block(plan, block, level, piece)
    assert all((count == 1).all() for count in times[1:])


def assert_whole(plan: PyramidPlan, level: int, piece: Box) -> None:
    """Assert that a piece is one chunk (shard) of its level."""
    for a, b, side, n in zip(piece.start, piece.stop, plan.write_chunks_of(level), plan.shape_of(level), strict=True):
        assert a % side == 0
        assert b == min(a + side, n)


def assert_made_from_the_block(plan: PyramidPlan, block: PyramidBlock, level: int, piece: Box) -> None:
    """Assert that the parts of a piece cover it once and read the voxels below them, within the block."""
    times = np.zeros(piece.shape, int)
    for part, below in plan.parts(level, piece):
        times[part.relative_to(piece).slices] += 1
        assert plan.coarser(below, 1) == part
        assert below.clipped(plan.coarser(block.box, level - 1 - block.base)) == below
    assert (times == 1).all()


VAST = {
    "shards": ((1000, 200_000, 180_000), (16, 3072, 3072)),
    "one plane": ((1, 200_000, 180_000), (1, 512, 512)),
    "small sections": ((10**6, 600, 700), (1, 512, 512)),
}


@pytest.mark.parametrize(("shape", "shards"), VAST.values(), ids=VAST)
def test_blocks_of_vast_outputs_are_many_and_bounded(shape: tuple[int, ...], shards: tuple[int, ...]) -> None:
    levels = auto_levels(shape, "zyx")
    plan = PyramidPlan(axes="zyx", shape=shape, chunks=(1, 512, 512), write_chunks=shards, outputs=1, levels=levels)
    assert 256 < max(plan.shape_of(levels - 1)[1:]) <= 512
    assert len(plan.stages) <= 3
    assert len(plan.stages[0].blocks) > 30
    largest = max(plan.block(stage.blocks.start).box.size for stage in plan.stages)
    assert largest <= max(2**30, 16 * math.prod(shards))


@pytest.mark.parametrize("levels", [0, 8, -1])
def test_levels_that_cannot_be_are_refused(levels: int) -> None:
    with pytest.raises(UnetcliError, match=f"--levels {levels}: expected 1 to 7"):
        PyramidPlan(axes="yx", shape=(37, 45), chunks=(8, 8), write_chunks=(8, 8), outputs=1, levels=levels)
