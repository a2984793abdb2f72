"""--level: a coarser level of an OME-Zarr image is predicted, and a mask may have the voxels of another level."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from helpers import grey, write_zarr
from numpy.typing import NDArray

from unetcli import lazy
from unetcli.core.errors import UnetcliError
from unetcli.predict.request import PlanRequest, PredictRequest
from unetcli.predict.run import predict_volume
from unetcli.predict.skipping import Mask
from unetcli.volumes.opening import open_volume
from unetcli.volumes.volume import Volume

SHAPE = (2, 301, 400)


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def volume(array: NDArray[Any], size: float, unit: str = "nm") -> Volume:
    """Volume z, y, x, or y, x, whose voxels have this size in plane."""
    axes = "zyx"[-array.ndim :]
    sizes, units = {"z": 50.0, "y": size, "x": size}, {"z": "nm", "y": unit, "x": unit}
    return Volume(path="v", array=array, stored_axes=axes, voxel_size={a: sizes[a] for a in axes}, units=units)


def write_levels(path: str, values: NDArray[Any], levels: int = 3, *, size: float = 4.0) -> None:
    """Write an OME-Zarr image whose levels take every second voxel; the voxels of the first are 50 x 4 x 4 nm."""
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    datasets = []
    group = zarr.create_group(path)
    for level in range(levels):
        by = (1, 2**level, 2**level)
        scale = [step * f for step, f in zip((50, size, size), by, strict=True)]
        shift = [10 + (f - 1) / 2 * step for step, f in zip((50, size, size), by, strict=True)]
        transforms = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": shift}]
        datasets.append({"path": str(level), "coordinateTransformations": transforms})
        group.create_array(str(level), data=values[:: by[0], :: by[1], :: by[2]], chunks=(1, 32, 48))
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}


def test_a_level_is_predicted_with_its_voxel_size_and_place(model: Path) -> None:
    values = grey(*SHAPE)
    write_levels("big.zarr", values)
    request = PredictRequest(volume="big.zarr", level=2, tile=68, device="cpu")
    assert predict_volume(request).complete
    expected = lazy.predict(values[:, ::4, ::4], axes="zyx", tile=68, device="cpu").compute()
    found = open_volume("big.pred.zarr")
    assert np.array_equal(found.array[...], expected)
    assert (found.voxel_size, found.units["x"]) == ({"z": 50, "y": 16, "x": 16}, "nanometer")
    assert (found.translation, found.places) == ({"z": 10, "y": 16, "x": 16}, True)
    assert predict_volume(PredictRequest(volume="big.zarr:level=2", level=2, tile=68, device="cpu")).computed == 0
    assert np.array_equal(lazy.predict("big.zarr", level=2, tile=68, device="cpu").compute(), expected)


def test_levels_that_do_not_exist_or_contradict_the_name_are_refused(model: Path) -> None:
    write_levels("big.zarr", grey(1, 70, 90))
    with pytest.raises(UnetcliError, match=r"big\.zarr: no level 3; expected 0 <= level < 3"):
        predict_volume(PredictRequest(volume="big.zarr", level=3))
    with pytest.raises(UnetcliError, match=r"--level 1: big\.zarr:level=2 names level 2; expected only one"):
        PredictRequest(volume="big.zarr:level=2", level=1)
    with pytest.raises(UnetcliError, match="an array has no levels"):
        lazy.predict(grey(70, 90), level=1)


def test_a_plan_has_the_level_of_the_prediction() -> None:
    request = PredictRequest(volume="big.zarr", level=1)
    assert PlanRequest(volume="big.zarr", level=1).prediction.volume == "big.zarr:level=1"
    assert PlanRequest.of(request).volume == "big.zarr:level=1"


@pytest.mark.parametrize(("image", "mask"), [(0, 2), (2, 0), (1, 2), (2, 1)])
def test_a_mask_at_another_level_selects_the_cells_that_its_voxels_overlap(image: int, mask: int) -> None:
    drawn = np.random.default_rng(1).random((3, 81, 120)) < 0.002
    source, found = (volume(drawn[:, :: 2**n, :: 2**n], 4.0 * 2**n) for n in (image, mask))
    sides = (1, 8, 8)
    by = Fraction(2 ** max(mask - image, 0), 2 ** max(image - mask, 0))
    over = Mask.over(found, source, sides)
    assert over.factors == (1, by, by)
    fine = np.repeat(np.repeat(found.array, by.numerator, axis=1), by.numerator, axis=2)
    for axis, side in ((1, 8 * by.denominator), (2, 8 * by.denominator)):
        fine = np.add.reduceat(fine, np.arange(0, fine.shape[axis], side), axis=axis)
    assert np.array_equal(over.active_cells(source.whole()).cells, fine > 0)
    assert 0 < np.mean(fine > 0) < 1


def test_a_fine_mask_of_a_coarse_level_gives_the_result_of_one_at_that_level(model: Path) -> None:
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[1, 300, 8], drawn[0, 0, 399] = 1, 1  # in the last row of cells, and in the last column
    write_levels("big.zarr", grey(*SHAPE))
    write_levels("mask.zarr", drawn, 1)
    cells = np.zeros((2, 76, 100), np.uint8)
    cells[1, 70, 3], cells[0, 60, 70] = 1, 1
    write_zarr(Path("coarse.zarr"), cells)
    options: dict[str, Any] = {"volume": "big.zarr", "level": 2, "device": "cpu"}
    assert predict_volume(PredictRequest(mask="mask.zarr", **options)).complete
    values = np.asarray(zarr.open_array("big.pred.zarr/0", mode="r")[...])
    assert [values[0, :, :64].any(), values[1, 64:, :64].any(), values[1, :64].any()] == [False, True, False]
    assert predict_volume(PredictRequest(mask="coarse.zarr", **options)).computed == 0


@pytest.mark.parametrize(
    ("side", "size", "unit", "factor"),
    [
        (34, 0.012, "um", Fraction(3)),
        (201, 2.0, "nm", Fraction(1, 2)),
        (100, 4.0, "nm", Fraction(1)),
        (50, 8.0, "parsec", Fraction(2)),  # not comparable: as the extents are
        (50, 1.0, "", Fraction(2)),  # not stated
    ],
)
def test_factors_follow_from_stated_sizes(side: int, size: float, unit: str, factor: Fraction) -> None:
    mask, source = volume(np.zeros((side, side)), size, unit), volume(np.zeros((100, 100)), 4.0)
    assert Mask.over(mask, source, (1, 1)).factors == (factor, factor)


@pytest.mark.parametrize(("image", "mask"), [(1.0, 4.0), (4.0, 1.0)])
def test_levels_of_an_image_may_be_measured_in_pixels(image: float, mask: float) -> None:
    """The finest level then has voxels of 1 without unit, like files that state no size."""
    one, other = (volume(np.zeros((round(800 / size),) * 2), size, "") for size in (image, mask))
    assert Mask.over(other, one, (1, 1)).factors == (Fraction(mask / image),) * 2


@pytest.mark.parametrize(("side", "size"), [(50, 16.0), (50, 6.0), (67, 6.0), (180, 2.0), (30, 13.0)])
def test_a_mask_is_refused_whose_voxels_are_no_whole_factor_or_disagree_with_its_shape(side: int, size: float) -> None:
    mask, source = volume(np.zeros((side, side)), size), volume(np.zeros((100, 100)), 4.0)
    with pytest.raises(UnetcliError, match=rf"--mask v: shape {side} x {side} in voxels of {size:g} .* a whole factor"):
        Mask.over(mask, source, (1, 1))


def test_a_mask_of_equal_shape_but_other_voxels_is_refused_unless_it_is_of_the_same_place(model: Path) -> None:
    write_levels("big.zarr", grey(1, 70, 90), 1)
    write_levels("mask.zarr", grey(1, 70, 90), 1, size=8.0)
    request = PredictRequest(volume="big.zarr", mask="mask.zarr", device="cpu")
    with pytest.raises(UnetcliError, match=r"of 50 x 4 x 4 nanometer, but mask\.zarr of 50 x 8 x 8 .*--same-place"):
        predict_volume(request)
    assert predict_volume(PredictRequest(volume="big.zarr", mask="mask.zarr", device="cpu", same_place=True)).complete
