from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import grey
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from unetcli.train.augment import (
    INTERPOLATION_MARGIN,
    SIDE_STEP,
    Deformation,
    centre,
    interpolate,
    move_pixels,
    nearest_pixels,
    sampling_grids,
    spline_weights,
    take_pixels,
)
from unetcli.train.settings import Augmentation

CPU = torch.device("cpu")
FLIPS = [(False, False), (True, False), (False, True), (True, True)]


def bent(tile: int, number: int, elastic: float | None = None) -> Deformation:
    """Random rotation, scale and displacements, as in the paper."""
    random = np.random.default_rng([tile, number])
    strength = Augmentation().displacement(tile) if elastic is None else elastic
    return Deformation.of(
        tile,
        degrees=random.uniform(-180, 180),
        flips=FLIPS[number % 4],
        scale=random.uniform(0.8, 1.25),
        displacements=random.normal(0, strength, 18).tolist(),
    )


def grid_of(deformation: Deformation, side: int) -> torch.Tensor:
    return sampling_grids([deformation], [side], CPU)[0]


def ramps(side: int) -> torch.Tensor:
    """Coordinates y and x of each pixel from the centre of a window, (2, side, side)."""
    line = torch.arange(side) - (side - 1) / 2
    return torch.stack(torch.meshgrid(line, line, indexing="ij"))


@pytest.mark.parametrize("extent", [3, 4, 13, 316])
def test_the_weights_are_those_of_a_natural_cubic_spline(extent: int) -> None:
    values = np.random.default_rng(extent).normal(size=3)
    expected = CubicSpline([0, 1, 2], values, bc_type="natural")(np.linspace(0, 2, extent))
    assert np.allclose(spline_weights(extent) @ values, expected, atol=1e-12)


def test_displacements_at_the_grid_points_are_those_that_were_drawn() -> None:
    drawn = np.random.default_rng(0).normal(0, 10, (2, 3, 3))
    deformation = Deformation(101, displacements=tuple(drawn.ravel()))
    moved = deformation.source_positions() - ramps(101).numpy()
    assert np.allclose(moved[:, ::50, ::50], drawn)


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("tile", [13, 44, 101])
def test_pixels_come_from_where_the_map_says(tile: int, number: int) -> None:
    """Interpolated coordinates show the map; torch's bicubic kernel deviates from a ramp by at most 0.05 pixels."""
    deformation = bent(tile, number)
    side = deformation.window_side(tile)
    grid = grid_of(deformation, side)
    assert np.allclose(grid.flip(0).numpy() * side / 2, deformation.source_positions(), atol=1e-4)
    assert np.allclose(interpolate(ramps(side), grid).numpy(), deformation.source_positions(), atol=0.06)


@pytest.mark.parametrize("flips", FLIPS)
@pytest.mark.parametrize("quarter", range(-3, 5))
@pytest.mark.parametrize("tile", [6, 13])
def test_quarter_turns_and_flips_only_move_pixels(tile: int, quarter: int, flips: tuple[bool, bool]) -> None:
    deformation = Deformation.of(tile, degrees=90 * quarter, flips=flips)
    image = grey(2, tile, tile)
    flipped = np.flip(image, [axis for axis, flip in zip((1, 2), flips, strict=True) if flip])
    expected = np.rot90(flipped, quarter, axes=(1, 2))
    assert deformation.is_exact
    assert deformation.window_side(tile) == tile
    assert np.array_equal(move_pixels(torch.from_numpy(image), deformation), expected)


@pytest.mark.parametrize("flips", FLIPS)
@pytest.mark.parametrize("quarter", range(4))
def test_interpolation_goes_where_quarter_turns_go(quarter: int, flips: tuple[bool, bool]) -> None:
    tile, side = 44, 58
    exact = Deformation.of(tile, degrees=90 * quarter, flips=flips)
    almost = Deformation.of(tile, degrees=90 * quarter + 1e-6, flips=flips)
    image = torch.from_numpy(grey(1, side, side))
    assert not almost.is_exact
    assert torch.allclose(
        interpolate(image, grid_of(almost, side)), move_pixels(centre(image, tile), exact).float(), atol=0.02
    )


def test_a_sheared_or_enlarged_map_does_interpolate() -> None:
    assert not Deformation(13, (1.0, 1.0, 0.0, 1.0)).is_exact
    assert not Deformation(13, (1.0, 0.0, 0.0, 0.0)).is_exact
    assert not Deformation.of(13, scale=1.1).is_exact
    assert not Deformation(13, displacements=(0.0,) * 17 + (0.1,)).is_exact


def test_larger_images_show_less_of_the_source() -> None:
    corner = Deformation.of(101, scale=1.25).source_positions()[:, 0, 0]
    assert np.allclose(corner, -40)


@pytest.mark.parametrize("number", range(12))
@pytest.mark.parametrize(("tile", "extent"), [(13, 13), (13, 5), (100, 100), (100, 12), (188, 188), (316, 228)])
def test_windows_hold_all_that_is_read_and_little_more(tile: int, extent: int, number: int) -> None:
    """Beyond the window there are NaNs, which spread to the result even with a weight of 0."""
    deformation = bent(tile, number)
    side = deformation.window_side(extent)
    assert side % 2 == extent % 2
    assert side >= extent
    margin = 4
    window = torch.full((1, side + 2 * margin, side + 2 * margin), torch.nan)
    window[:, margin:-margin, margin:-margin] = 1
    grid = centre(grid_of(deformation, side + 2 * margin), extent)
    assert interpolate(window, grid).isfinite().all()
    farthest = float(centre(torch.from_numpy(deformation.source_positions()), extent).abs().max())
    assert side == extent or side - SIDE_STEP < 2 * (farthest + INTERPOLATION_MARGIN) + 1


def test_few_sizes_of_windows_occur() -> None:
    sides = {bent(316, number).window_side(316) for number in range(300)}
    assert len(sides) < 15


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize(("extent", "window"), [(44, 0), (20, 0), (20, 6)], ids=["all", "centre", "larger window"])
def test_labels_are_those_of_the_pixel_that_a_place_lies_in(number: int, extent: int, window: int) -> None:
    deformation = bent(44, number)
    side, seen = deformation.window_side(44), deformation.window_side(extent) + window
    places = centre(grid_of(deformation, side), extent)[None]
    found = take_pixels(ramps(seen)[0], nearest_pixels(places, [side], [seen])[0])
    exact = centre(torch.from_numpy(deformation.source_positions()), extent)[0] + (seen - 1) / 2
    expected = exact.round() - (seen - 1) / 2
    undecided = (exact % 1 - 0.5).abs() < 1e-3
    assert extent**2 * 0.01 > undecided.sum()
    assert torch.equal(found[~undecided], expected[~undecided].float())


def jacobian(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Jacobian determinant at each pixel: the signed area of its source."""
    (yy, yx), (xy, xx) = (np.gradient(values) for values in places)
    return yy * xx - yx * xy


@pytest.mark.parametrize("tile", [100, 156, 188, 316, 572])
def test_deformations_never_fold(tile: int) -> None:
    for number in range(50):
        areas = jacobian(bent(tile, number).source_positions())
        assert (areas > 0).all() or (areas < 0).all()


def test_without_the_limit_small_tiles_would_fold() -> None:
    areas = [jacobian(bent(100, number, elastic=10).source_positions()) for number in range(50)]
    assert any(area.min() < 0 < area.max() for area in areas)
