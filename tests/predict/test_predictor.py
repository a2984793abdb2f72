"""Blocks are put together from the results of their tiles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers import SETTINGS, SOURCES

from unetcli.core.errors import UnreadableBlock
from unetcli.core.geometry import Architecture, Box
from unetcli.planning.planner import Input, make_plan
from unetcli.predict.windows import TileResult, Window, assemble, read_finite
from unetcli.volumes.volume import Volume

SHAPE = (200, 200)


@pytest.mark.parametrize("failed", [0, 1, -1], ids=["first", "second", "last"])
def test_a_block_is_not_finished_if_any_of_its_tiles_failed(failed: int) -> None:
    """A GPU has begun the next tiles of the block by the time at which a tile fails."""
    source = Input(axes="yx", extent=SHAPE, chunks=SHAPE, bytes_per_voxel=1)
    settings = replace(SETTINGS, dtype="uint8")
    plan = make_plan(source, Box.of_shape(SHAPE), Architecture(depth=2, base_channels=4), 108, settings, SOURCES)
    block, reason = plan.block(0), RuntimeError("a kernel failed")
    window = Window(block, block.box, None, None, None, 0.0)
    results = [
        TileResult(window, tile, np.ones((1, *tile.write.shape), np.uint8), 0.0, side=108) for tile in plan.tiles(block)
    ]
    assert len(results) > 2
    (whole,) = assemble(plan, results)
    assert whole.error is None
    assert (whole.values == 1).all()
    results[failed] = TileResult(window, None, None, 0.0, reason)
    (found,) = assemble(plan, results)
    assert found.error is reason
    assert found.values is None


def test_values_that_are_not_finite_are_counted_once_and_placed_in_the_volume() -> None:
    """The window is mirrored beyond the volume, where the first value would show first, and several times."""
    values = np.zeros((3, 13, 22), np.float32)
    values[1, 2, 3], values[1, 12, 20], values[2, 0, 0] = np.nan, np.inf, np.nan
    source = Volume(path="raw.zarr", array=values, stored_axes="zyx")
    with pytest.raises(UnreadableBlock, match=r"raw.zarr: 2 values are not finite, first at z 1:2, y 2:3, x 3:4; "):
        read_finite(source, Box((1, -10, -30), (2, 23, 52)), SETTINGS)
