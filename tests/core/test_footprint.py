from __future__ import annotations

import itertools

import pytest

from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Architecture, AxisFootprint, Footprint, Kind, Layer

DEPTHS = range(7)


def axis_of(depth: int) -> AxisFootprint:
    return Architecture(depth=depth).footprint().axes[0]


def side_after(depth: int, side: int) -> int | None:
    """Output side by the paper's figure: two convolutions and pooling down, up-sampling and two convolutions up."""
    for _ in range(depth):
        side -= 4
        if side < 1 or side % 2:
            return None
        side //= 2
    for _ in range(depth):
        side = 2 * (side - 4)
        if side < 1:
            return None
    return side - 4 if side > 4 else None


@pytest.mark.parametrize("depth", DEPTHS)
def test_context_and_alignment_have_the_closed_form(depth: int) -> None:
    assert axis_of(depth).context == 6 * 2**depth - 4
    assert axis_of(depth).alignment == 2**depth


@pytest.mark.parametrize("depth", range(6))
def test_a_side_is_valid_where_every_layer_of_the_figure_fits(depth: int) -> None:
    axis = axis_of(depth)
    for side in range(1, 14 * 2**depth + 40):
        after = side_after(depth, side)
        assert axis.is_valid(side) == (after is not None), side
        assert after in (None, axis.output(side))


@pytest.mark.parametrize("depth", DEPTHS)
def test_valid_sides_are_minus_4_modulo_the_alignment(depth: int) -> None:
    axis, step = axis_of(depth), 2**depth
    first = next(n for n in itertools.count(12 * step - 7) if (n + 4) % step == 0)
    assert axis.smallest == first
    assert [n for n in range(first + 4 * step) if axis.is_valid(n)] == [first + k * step for k in range(4)]


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_side_is_usable_where_its_output_covers_a_step(depth: int) -> None:
    axis = axis_of(depth)
    for side in range(1, axis.smallest + 5 * 2**depth):
        assert axis.is_usable(side) == (axis.is_valid(side) and axis.output(side) >= 2**depth)
        assert not axis.is_usable(side) or axis.step(side) >= 2**depth


@pytest.mark.parametrize(("depth", "valid", "usable"), [(3, 92, 100), (4, 188, 204)])
def test_the_first_sides_of_the_usual_depths(depth: int, valid: int, usable: int) -> None:
    axis = axis_of(depth)
    assert axis.smallest == valid
    assert next(n for n in itertools.count(1) if axis.is_usable(n)) == usable


@pytest.mark.parametrize(("side", "output", "step"), [(572, 388, 384), (700, 516, 512), (2236, 2052, 2048)])
def test_the_paper_s_sides(side: int, output: int, step: int) -> None:
    assert axis_of(4).is_usable(side)
    assert (axis_of(4).output(side), axis_of(4).step(side)) == (output, step)


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_side_for_an_output_is_the_smallest_usable_one(depth: int) -> None:
    axis = axis_of(depth)
    for output in [1, 2, 3, 7, 16, 17, 100, 388, 389]:
        side = axis.side_for(output)
        wanted = (n for n in itertools.count(1) if axis.is_usable(n) and axis.output(n) >= output)
        assert side == next(wanted)


@pytest.mark.parametrize(
    ("tile", "named"),
    [(512, "508 and 524"), (188, "usable: 204"), (1, "usable: 204"), (203, "usable: 204"), (205, "204 and 220")],
)
def test_an_unusable_tile_is_refused_naming_the_ones_beside_it(tile: int, named: str) -> None:
    with pytest.raises(UnetcliError, match=f"--tile {tile}: .*{named}$"):
        Architecture().footprint().require_usable((tile, tile))


def test_any_unusable_axis_refuses_the_tile() -> None:
    footprint = Architecture().footprint().expanded_to(3)
    footprint.require_usable((1, 204, 572))
    with pytest.raises(UnetcliError, match="--roi 500"):
        footprint.require_usable((7, 572, 500), name="--roi")


def test_a_2d_network_takes_no_context_from_other_sections() -> None:
    expanded = Architecture(depth=4).footprint().expanded_to(4)
    assert expanded.context == (0, 0, 92, 92)
    assert expanded.alignment == (1, 1, 16, 16)
    assert expanded.output((3, 1, 572, 700)) == (3, 1, 388, 516)
    assert expanded.step((3, 1, 572, 700)) == (3, 1, 384, 512)


def layers_3d(depth: int, z_conv: int, z_pool: int) -> list[Layer]:
    double = [Layer("conv", (z_conv, 3, 3))] * 2
    down = [*double, Layer("pool", (z_pool, 2, 2))] * depth
    return [*down, *double, *([Layer("up", (z_pool, 2, 2)), *double] * depth)]


@pytest.mark.parametrize(
    ("z_conv", "z_pool", "context", "alignment"),
    [(3, 2, 44, 8), (3, 1, 14, 1), (1, 2, 0, 8), (1, 1, 0, 1), (5, 1, 28, 1)],
    ids=["isotropic", "no pooling in z", "only pooling in z", "2-D", "wide in z"],
)
def test_the_footprint_of_a_3d_network_has_other_numbers_along_z(
    z_conv: int, z_pool: int, context: int, alignment: int
) -> None:
    footprint = Footprint.from_layers(layers_3d(3, z_conv, z_pool))
    assert footprint.context == (context, 44, 44)
    assert footprint.alignment == (alignment, 8, 8)
    assert footprint.axes[0].smallest == (92 if (z_conv, z_pool) == (3, 2) else max(2 * context + 1, alignment))


@pytest.mark.parametrize(
    ("steps", "smallest"),
    [([("pool", 2), ("up", 2)], 2), ([("conv", 3), ("pool", 4), ("up", 4)], 6), ([("conv", 1)], 1)],
    ids=["pooling alone", "pooling by 4", "nothing"],
)
def test_the_first_valid_side_is_found_however_far_off(steps: list[tuple[Kind, int]], smallest: int) -> None:
    assert AxisFootprint.from_layers(steps).smallest == smallest
