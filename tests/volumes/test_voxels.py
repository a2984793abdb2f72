from __future__ import annotations

import numpy as np
import pytest

from unetcli.core.errors import UnetcliError
from unetcli.volumes.volume import Volume
from unetcli.volumes.voxels import require_same_voxels, stated_sizes

Size = tuple[float, str]


def volume(path: str, **sizes: Size) -> Volume:
    return Volume(
        path=path,
        array=np.zeros((2, 3, 4), np.uint8),
        stored_axes="zyx",
        voxel_size={axis: size for axis, (size, _) in sizes.items()},
        units={axis: unit for axis, (_, unit) in sizes.items() if unit},
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((500.0, "nanometer"), (0.5, "micrometer")),
        ((0.5, "µm"), (500.0, "nm")),
        ((0.5, "\u03bcm"), (0.5, "\u00b5m")),
        ((4.0, "nanometer"), (40.0, "angstrom")),
        ((4.0, "nanometer"), (4.0, "")),
        ((4.0, "pixel"), (5.0, "nanometer")),
        ((4.0, "nanometer"), (4.003, "nanometer")),
        ((1.0, ""), (5.0, "")),
        ((0.0, "nanometer"), (0.0, "nanometer")),
    ],
    ids=lambda size: f"{size[0]:g} {size[1]}",
)
def test_sizes_that_agree_in_other_units_or_cannot_be_compared_are_taken(one: Size, other: Size) -> None:
    require_same_voxels(volume("a", x=one), volume("b", x=other), "no")
    require_same_voxels(volume("b", x=other), volume("a", x=one), "no")


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ((1.0, "micrometer"), (500.0, "nanometer"), "a has voxels of 1 micrometer, but b of 500 nanometer: no"),
        ((500.0, "nanometer"), (500.0, "micrometer"), "a has voxels of 500 nanometer, but b of 500 micrometer: no"),
        ((4.0, "pixel"), (5.0, "pixel"), "a has voxels of 4 pixel, but b of 5 pixel: no"),
        ((4.0, ""), (5.0, ""), "a has voxels of 4, but b of 5: no"),
        ((0.0, "nm"), (5.0, "nm"), "a has voxels of 0 nm, but b of 5 nm: no"),
    ],
    ids=["micrometer and nanometer", "unit", "unknown unit", "no unit", "zero"],
)
def test_sizes_that_differ_are_refused_naming_both(one: Size, other: Size, said: str) -> None:
    with pytest.raises(UnetcliError, match=f"^{said}$"):
        require_same_voxels(volume("a", x=one), volume("b", x=other), "no")


def test_one_axis_is_enough_and_all_are_named_with_their_units() -> None:
    fine = volume("a", z=(0.05, "um"), y=(4.0, "nm"), x=(4.0, "nm"))
    require_same_voxels(fine, volume("b", y=(4.0, "nm")), "no")
    said = "a has voxels of 0.05 um x 4 nm x 4 nm, but b of 40 x 4 x 4 nm: no"
    with pytest.raises(UnetcliError, match=f"^{said}$"):
        require_same_voxels(fine, volume("b", z=(40.0, "nm"), y=(4.0, "nm"), x=(4.0, "nm")), "no")


def test_ones_without_a_unit_state_nothing() -> None:
    assert stated_sizes(volume("a", y=(1.0, ""), x=(1.0, ""))) == {}
    assert stated_sizes(volume("a", y=(1.0, ""), x=(2.0, ""))) == {"y": (1.0, ""), "x": (2.0, "")}
