"""Letters of axes from names and shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr

from unetcli.core.errors import UnetcliError, collected_warnings
from unetcli.volumes.axes import DEFAULT_AXES, axes_from_names, given_names
from unetcli.volumes.opening import open_volume


@pytest.mark.parametrize(
    ("names", "shape", "letters"),
    [
        (None, (13, 22), DEFAULT_AXES[2]),
        (["", "", ""], (1, 13, 22), DEFAULT_AXES[3]),
        (["Time", "Channel", "Z", "Y", "X"], (1, 1, 4, 13, 22), "tczyx"),
        (["y", "x", "c"], (13, 22, 3), "yxc"),
        (["depth", "height", "width"], (4, 13, 22), "zyx"),
        (["frame", "row", "column"], (4, 13, 22), "tyx"),
        (None, (1, 1, 4, 13, 22), "tczyx"),
        (None, (1, 4, 13, 22), "tzyx"),
        (None, (4, 1, 13, 22), "ztyx"),
    ],
)
def test_axis_names_become_letters(names: list[str] | None, shape: tuple[int, ...], letters: str) -> None:
    assert axes_from_names("a", names, shape) == letters


@pytest.mark.parametrize(
    ("names", "shape"),
    [
        (None, (2, 4, 13, 22)),
        (None, (13,)),
        (["z", "x"], (13, 22)),
        (["x", "x"], (13, 22)),
        (["y", "x"], (4, 13, 22)),
        (["a", "y", "x"], (4, 13, 22)),
        (["", "y", "x"], (4, 13, 22)),
    ],
)
def test_axes_other_than_those_of_an_image_are_refused(names: list[str] | None, shape: tuple[int, ...]) -> None:
    with pytest.raises(UnetcliError, match=r"^in\.zarr: .*(expected y, x|axes without names).*--axes"):
        axes_from_names("in.zarr", names, shape)


@pytest.mark.parametrize(("chosen", "letters"), [("zcyx", "zcyx"), ("TZYX", "tzyx")])
def test_letters_of_the_user_name_the_axes(tmp_path: Path, chosen: str, letters: str) -> None:
    values = np.arange(2 * 3 * 13 * 22, dtype="u2").reshape(2, 3, 13, 22)
    zarr.create_array(tmp_path / "a.zarr", data=values)
    volume = open_volume(f"{tmp_path}/a.zarr:axes={chosen}")
    assert (volume.stored_axes, volume.assumed) == (letters, "")
    assert np.array_equal(np.asarray(volume.array[...]), values)


def test_letters_of_the_user_may_leave_out_axes_of_extent_1() -> None:
    assert axes_from_names("a", None, (1, 5, 1, 13, 22), "cyx") == "tczyx"
    with pytest.raises(UnetcliError, match=r"axes zyx name 3 axes, but the array has 4 \(2 x 5 x 13 x 22\)"):
        axes_from_names("a", None, (2, 5, 13, 22), "zyx")


def test_names_that_count_the_axes_are_no_names() -> None:
    assert given_names(["dim_0", "dim_1"]) is None
    assert given_names([None, None]) is None
    assert given_names(["dim_0", "y", "x"]) == ["dim_0", "y", "x"]


@pytest.mark.parametrize(("shape", "warned"), [((13, 22, 3), True), ((13, 22, 22), False), ((2, 22, 3), False)])
def test_channels_last_without_names_are_warned_of(shape: tuple[int, ...], warned: bool) -> None:
    with collected_warnings() as warnings:
        assert axes_from_names("a", None, shape) == "zyx"
    assert ["--axes yxc" in text for text in warnings] == [True] * warned
