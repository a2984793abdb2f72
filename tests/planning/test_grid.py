"""Blocks of a grid cover their region once, whatever the origin of their edges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unetcli.core.geometry import Box
from unetcli.planning.plan import BlockGrid


@st.composite
def grids(draw: st.DrawFn) -> BlockGrid:
    axes = draw(st.integers(1, 3))
    start = [draw(st.integers(0, 9)) for _ in range(axes)]
    stop = [a + draw(st.integers(1, 12)) for a in start]
    sides = tuple(draw(st.integers(1, 8)) for _ in range(axes))
    origin = draw(st.none() | st.just(tuple(draw(st.integers(0, a)) for a in start)))
    return BlockGrid(Box(tuple(start), tuple(stop)), sides, origin)


@given(grids())
@settings(deadline=None)
def test_every_voxel_is_in_one_block_and_no_block_is_empty(grid: BlockGrid) -> None:
    times = np.zeros(grid.region.shape, int)
    for number in range(grid.blocks):
        box = grid.box(number)
        assert box.size
        assert all(a <= side for a, side in zip(box.shape, grid.block_shape, strict=True)) or grid.blocks >= 1
        times[box.relative_to(grid.region).slices] += 1
        assert grid.number(grid.place(number)) == number
    assert (times == 1).all()


@given(grids(), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_voxels_of_selected_blocks_are_the_sum_of_their_boxes(grid: BlockGrid, seed: int) -> None:
    picked = np.random.default_rng(seed).random(grid.blocks) < 0.5
    assert grid.voxels(picked) == sum(grid.box(int(number)).size for number in np.flatnonzero(picked))


@given(grids(), st.data())
@settings(deadline=None)
def test_the_blocks_that_touch_a_box_are_those_that_share_voxels_with_it(grid: BlockGrid, data: st.DataObject) -> None:
    start = tuple(data.draw(st.integers(a, b - 1)) for a, b in zip(grid.region.start, grid.region.stop, strict=True))
    stop = tuple(data.draw(st.integers(a + 1, b)) for a, b in zip(start, grid.region.stop, strict=True))
    box = Box(start, stop)
    expected = [number for number in range(grid.blocks) if grid.box(number).clipped(box).size]
    assert grid.touching(box).tolist() == expected


def test_there_is_no_block_beyond_the_last() -> None:
    grid = BlockGrid(Box.of_shape((5, 5)), (2, 3))
    assert grid.shape == (3, 2)
    for number in (-1, 6):
        with pytest.raises(IndexError, match="of 6"):
            grid.box(number)
    assert grid.number((3, 0)) is None
