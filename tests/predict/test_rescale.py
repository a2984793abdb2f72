"""--rescale: the network sees the pixel size of its training, and probabilities are mapped back to the volume."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from helpers import grey, write_model
from numpy.typing import NDArray
from scipy import ndimage

from unetcli import lazy
from unetcli.core.errors import UnetcliError
from unetcli.core.options import parse_roi
from unetcli.engine.runfolder import RunFolder
from unetcli.model.file import load_network, read_header, save_model
from unetcli.model.training_data import TrainingData
from unetcli.planning.plan import FORMAT, Plan
from unetcli.predict.checks import check_seams
from unetcli.predict.preview import plan_volume
from unetcli.predict.request import PredictRequest
from unetcli.predict.run import predict_volume, resolve_step
from unetcli.volumes.opening import open_volume
from unetcli.volumes.resampled import resampled

SHAPE = (2, 120, 150)


@pytest.fixture(autouse=True)
def _trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_trained("model")


def write_trained(folder: str, size: float | None = 8.0, unit: str = "nanometer", **options: Any) -> Path:
    """A small model whose training images had pixels of this size."""
    file = write_model(Path(folder), **options)
    data = TrainingData(voxel_size=dict.fromkeys("yx", size), units=dict.fromkeys("yx", unit)) if size else None
    save_model(file, load_network(file), replace(read_header(file), training_data=data))
    return file


def write_volume(values: NDArray[Any], y: float, x: float, unit: str = "nanometer", name: str = "in.zarr") -> None:
    """An image of voxels of 50 x y x x."""
    axes = [{"name": axis, "type": "space", "unit": unit} for axis in "zyx"]
    transforms = [{"type": "scale", "scale": [50.0, y, x]}]
    entry = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": transforms}]}
    group = zarr.create_group(name, attributes={"ome": {"version": "0.5", "multiscales": [entry]}}, overwrite=True)
    group.create_array("0", data=values, chunks=(1, 40, 64))


def predicted(output: str = "in.pred.zarr", **options: Any) -> NDArray[Any]:
    """What predict writes, float32 by default."""
    request = PredictRequest(**{"volume": "in.zarr", "output": output, "dtype": "float32", "device": "cpu", **options})
    assert predict_volume(request).complete
    return np.asarray(open_volume(output).array[...])


def on_grid(values: NDArray[Any], size: float, extent: tuple[int, int]) -> NDArray[np.float64]:
    """Linear interpolation in plane to another grid with the same corner, whose pixels have this size."""
    centres = [(np.arange(n) + 0.5) * size - 0.5 for n in extent]
    places = np.meshgrid(*centres, indexing="ij")
    planes = values.astype(np.float64)
    return np.array([ndimage.map_coordinates(plane, places, order=1, mode="nearest") for plane in planes])


def network_on(seen: NDArray[Any]) -> NDArray[np.float32]:
    """Probabilities of an image of real numbers at the pixel size of the training."""
    write_trained("reals", dtype="float32")
    options: dict[str, Any] = {"dtype": "float32", "device": "cpu", "precision": "float32"}
    return np.asarray(lazy.predict(seen.astype(np.float32), "reals", axes="zyx", **options).compute())


def test_a_volume_of_half_the_pixel_size_is_averaged_and_interpolated_back() -> None:
    values = grey(*SHAPE)
    write_volume(values, 4, 4)
    seen = network_on(values.reshape(2, 60, 2, 75, 2).mean((2, 4)))
    found = predicted(rescale=True)
    assert np.abs(found - on_grid(seen, 0.5, SHAPE[1:])).max() < 2e-5
    assert np.abs(found - predicted("plain.zarr")).max() > 0.01
    output = open_volume("in.pred.zarr")
    assert (output.extent, output.voxel_size) == (SHAPE, {"z": 50, "y": 4, "x": 4})


def test_a_volume_of_twice_the_pixel_size_is_interpolated_and_averaged_back() -> None:
    values = grey(2, 40, 50)
    write_volume(values, 0.016, 0.016, "micrometer")
    seen = network_on(on_grid(values, 0.5, (80, 100)))
    found = predicted(rescale=True)
    assert np.abs(found - seen.reshape(2, 40, 2, 50, 2).mean((2, 4))).max() < 2e-5
    assert np.abs(found - predicted("plain.zarr")).max() > 0.01


@pytest.mark.slow
def test_tiles_blocks_and_regions_do_not_show() -> None:
    values = grey(*SHAPE)
    write_volume(values, 6, 11)
    whole = predicted(rescale=True, tile=252)
    assert np.abs(predicted("small.zarr", rescale=True, tile=60) - whole).max() < 2e-5
    region = predicted("roi.zarr", rescale=True, tile=68, roi=parse_roi("1:2,33:90,41:107"))
    assert np.abs(region - whole[1:, 33:90, 41:107]).max() < 2e-5
    request = PredictRequest(volume="in.zarr", output="small.zarr", dtype="float32", device="cpu", rescale=True)
    report = check_seams(resolve_step(replace(request, tile=60)), 6)
    assert report.windows == 6
    assert not report.exceeded
    options: dict[str, Any] = {"dtype": "float32", "device": "cpu", "rescale": True, "tile": 60}
    assert np.array_equal(lazy.predict("in.zarr", **options).compute(), predicted("small.zarr", rescale=True, tile=60))


@pytest.mark.slow
def test_masks_dark_cells_and_nonfinite_voxels_are_those_of_the_volume() -> None:
    values = grey(1, 130, 150).astype(np.float32)
    values[:, :64, 64:128] = 0
    write_trained("model", dtype="float32")
    write_volume(values, 5, 5)
    whole = predicted("whole.zarr", rescale=True)
    dark = np.zeros(values.shape, bool)
    dark[:, :64, 64:128] = True
    assert np.abs(predicted("bright.zarr", rescale=True, skip_below=1) - np.where(dark, 0, whole)).max() < 2e-5
    zarr.create_array("mask.zarr", data=(~dark).astype(np.uint8))
    assert np.abs(predicted("masked.zarr", rescale=True, mask="mask.zarr") - np.where(dark, 0, whole)).max() < 2e-5
    values[0, 100, 21] = np.nan
    write_volume(values, 5, 5)
    summary = predict_volume(PredictRequest(volume="in.zarr", output="nan.zarr", device="cpu", rescale=True))
    assert "1 values are not finite, first at z 0:1, y 100:101, x 21:22" in summary.set_aside[0]["reason"]
    assert np.isfinite(predicted("zero.zarr", rescale=True, nonfinite=0.0)).all()


@pytest.mark.slow
def test_classes_and_levels_of_uint8_follow_from_the_probabilities_that_are_mapped_back() -> None:
    write_trained("model", classes=3)
    write_volume(grey(1, 60, 70), 5, 5)
    found = predicted(rescale=True, precision="float32")
    stored = predicted("levels.zarr", rescale=True, dtype="uint8", precision="float32")
    assert np.abs(stored - 255 * found).max() <= 0.5 + 1e-3
    classes = predicted("classes.zarr", rescale=True, dtype="uint8", output_classes=True, precision="float32")
    axis = open_volume("in.pred.zarr").stored_axes.index("c")
    assert np.array_equal(classes, found.argmax(axis))


@pytest.mark.parametrize(
    ("volume", "training", "message"),
    [
        ((4.0, "pixel"), (8.0, "nanometer"), r"in\.zarr has pixels of 4 x 4 pixel; expected lengths along y and x"),
        ((4.0, "nanometer"), (None, ""), r"--model .*model\.safetensors states no pixel size of the training images"),
        ((4.0, "nanometer"), (8.0, ""), r"has pixels of 8 x 8; expected lengths"),
        ((4.0, "nanometer"), (0.5, "micrometer"), r"trained on 0\.5 x 0\.5 micrometer; expected factors from 1/16"),
    ],
)
def test_pixel_sizes_that_do_not_say_how_to_resample_are_refused(
    volume: tuple[float, str], training: tuple[float | None, str], message: str
) -> None:
    write_volume(grey(1, 60, 70), volume[0], volume[0], volume[1])
    write_trained("model", *training)
    with pytest.raises(UnetcliError, match=f"--rescale: .*{message}"):
        predict_volume(PredictRequest(volume="in.zarr", rescale=True, device="cpu"))
    assert not Path("in.pred.zarr").exists()


def test_arrays_without_a_pixel_size_are_refused() -> None:
    with pytest.raises(UnetcliError, match="--rescale: ndarray states no pixel size; expected lengths"):
        lazy.predict(grey(60, 70), rescale=True)


def test_the_same_pixel_size_is_noted_and_without_effect(caplog: pytest.LogCaptureFixture) -> None:
    write_volume(grey(1, 60, 70), 8.05, 7.95)
    with caplog.at_level(logging.INFO):
        found = predicted(rescale=True)
    assert "--rescale has no effect: in.zarr has pixels of 8.05 x 7.95 nanometer, as in training" in caplog.text
    assert np.array_equal(found, predicted("plain.zarr"))


def test_the_sizes_are_part_of_the_plan() -> None:
    write_volume(grey(*SHAPE), 4, 8)
    request = PredictRequest(volume="in.zarr", rescale=True, device="cpu")
    report = plan_volume(request)
    assert report.plan.settings.rescale == (1.0, 2.0, 1.0)
    assert report.to_dict()["rescale"] == [1.0, 2.0, 1.0]
    assert predict_volume(request).complete
    frozen = RunFolder.of(request.output_path).read_plan(Plan, FORMAT)
    assert frozen is not None
    assert frozen.settings.rescale == (1.0, 2.0, 1.0)
    with pytest.raises(UnetcliError, match=r"rescale None \(was \(1\.0, 2\.0, 1\.0\)\)"):
        predict_volume(replace(request, rescale=False))


def test_a_resampled_volume_states_its_size_and_place() -> None:
    write_volume(grey(1, 60, 70), 4, 4)
    seen = resampled(open_volume("in.zarr"), (1.0, 2.0, 0.5))
    assert (seen.extent, seen.chunks) == ((1, 30, 140), (1, 20, 128))
    assert seen.voxel_size == {"z": 50, "y": 8, "x": 2}
    assert seen.translation == {"z": 0, "y": 2, "x": -1}
