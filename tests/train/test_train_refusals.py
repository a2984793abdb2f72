"""Requests that ``train_model`` refuses in one line before it writes or changes anything."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from helpers import grey, write_placed, write_zarr
from train.scenes import discs, log_rows, same, state

from unetcli.core.errors import UnetcliError
from unetcli.train.request import TrainRequest
from unetcli.train.train import train_model


@pytest.mark.parametrize("schedule", ["cosine", "poly"])
def test_another_number_of_steps_of_a_decaying_rate_is_refused_by_name(request_: TrainRequest, schedule: str) -> None:
    request = replace(request_, steps=10, schedule=schedule)
    assert train_model(request).finished
    for steps in (5, 25):
        with pytest.raises(UnetcliError, match=rf"steps {steps} \(was 10, .*learning rate.*\).*--overwrite"):
            train_model(replace(request, steps=steps))
    again = train_model(request)
    assert again.found_finished
    assert "--overwrite" in again.sentence
    assert "--steps" not in again.sentence
    assert log_rows()[-1]["learning_rate"] > 0


def test_a_missing_tensorboard_is_reported_before_anything_is_written(
    request_: TrainRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UnetcliError, match=r"--tensorboard: .*not installed; pip install 'unetcli\[tensorboard\]'"):
        train_model(replace(request_, tensorboard=True))
    assert not Path("model").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"depth": 2, "tile": None}, r"depth 2 \(was 1\)"),
        ({"base_channels": 4}, r"base_channels 4 \(was 8\)"),
        ({"seed": 3}, "seed 3"),
        ({"lr": 0.5}, "learning_rate 0.5"),
        ({"optimizer": "sgd"}, "optimizer sgd"),
        ({"sections": (0, 6)}, "sections"),
        ({"validation_fraction": 0.5}, "validation"),
        ({"truth": "instances"}, "truth instances"),
        ({"schedule": "cosine"}, r"schedule cosine \(was constant\)"),
        ({"ema": 0.5}, "ema 0.5"),
        ({"batch_norm": True}, "batch_norm True"),
        ({"precision": "bfloat16"}, r"precision bfloat16 \(was float32\)"),
        ({"select": "iou"}, r"select iou \(was pixel_disagreement\)"),
        ({"rotation": 10.0}, r"rotation 10.0"),
        ({"nonfinite": 0.0}, r"nonfinite 0.0 \(was None\)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_configuration_is_refused_by_name(trained: TrainRequest, change: dict[str, object], named: str) -> None:
    other = replace(trained, **change)  # type: ignore[arg-type]
    with pytest.raises(UnetcliError, match=named) as caught:
        train_model(other)
    assert "--overwrite" in str(caught.value)


def test_other_images_are_refused_and_overwrite_starts_over(request_: TrainRequest) -> None:
    train_model(replace(request_, steps=2))
    write_zarr(Path("other.zarr"), grey(8, 64, 72))
    other = replace(request_, pair=(("other.zarr", "labels.zarr"),), steps=2)
    with pytest.raises(UnetcliError, match="images or labels have changed"):
        train_model(other)
    before = state()
    assert train_model(replace(other, overwrite=True)).finished
    assert not same(before, state())


def test_a_foreign_folder_is_not_touched(request_: TrainRequest) -> None:
    Path("thesis").mkdir()
    Path("thesis/chapter1.tex").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UnetcliError, match="--output"):
            train_model(replace(request_, output=Path("thesis"), overwrite=overwrite))
    with pytest.raises(UnetcliError, match="input"):
        train_model(replace(request_, output=Path("raw.zarr/model")))
    assert [f.name for f in Path("thesis").iterdir()] == ["chapter1.tex"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tile": 45}, "nearest"),
        ({"steps": 0}, "at least 1"),
        ({"optimizer": "lbfgs"}, "sgd, adam or adamw"),
        ({"truth": "maybe"}, "auto, binary, instances or classes"),
        ({"validation_fraction": 1.0}, "validation-fraction"),
        ({"sections": (5, 20)}, "0:8"),
        ({"pair": (("labels.tif", "labels.zarr"),)}, "no such file"),
        ({"depth": -1}, "depth"),
        ({"lr": -1.0}, "above 0"),
        ({"channel": 1}, "channels 0 to 0"),
    ],
)
def test_bad_requests_write_nothing(request_: TrainRequest, change: dict[str, object], message: str) -> None:
    with pytest.raises(UnetcliError, match=message):
        train_model(replace(request_, **change))  # type: ignore[arg-type]
    assert not Path("model").exists()


def test_labels_of_another_shape_or_many_values_are_refused(request_: TrainRequest) -> None:
    write_zarr(Path("small.zarr"), grey(8, 64, 71) // 128)
    with pytest.raises(UnetcliError, match=r"8x64x72.*8x64x71"):
        train_model(replace(request_, pair=(("raw.zarr", "small.zarr"),)))
    write_zarr(Path("many.zarr"), grey(8, 64, 72) // 16)
    with pytest.raises(UnetcliError, match=r"16 different values.*instances.*classes.*binary"):
        train_model(replace(request_, pair=(("raw.zarr", "many.zarr"),)))


def test_labels_of_another_voxel_size_are_refused_naming_both(request_: TrainRequest) -> None:
    raw, labels = discs()
    for name, values, size in (("a", raw, 4.0), ("b", labels, 8.0)):
        group = zarr.create_group(f"{name}.zarr")
        array = group.create_array("0", shape=values.shape, dtype=values.dtype)
        array[...] = values
        scale = [{"type": "scale", "scale": [50.0, size, size]}]
        axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
        multiscales = [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}]
        group.attrs["ome"] = {"version": "0.5", "multiscales": multiscales}
    with pytest.raises(UnetcliError, match=r"a\.zarr.* 50 x 4 x 4 nanometer, but .*b\.zarr.* of 50 x 8 x 8 nanometer"):
        train_model(replace(request_, pair=(("a.zarr", "b.zarr"),)))
    assert not Path("model").exists()


def test_a_loss_that_diverges_ends_with_one_line_and_keeps_no_model(request_: TrainRequest) -> None:
    with pytest.raises(UnetcliError, match="smaller --lr"):
        train_model(replace(request_, optimizer="sgd", lr=1e30))
    assert not Path("model/model.safetensors").exists()


def test_labels_with_another_number_of_axes_or_damaged_data_get_one_line(request_: TrainRequest) -> None:
    write_zarr(Path("flat.zarr"), grey(64, 72) // 128)
    with pytest.raises(UnetcliError, match="same voxels"):
        train_model(replace(request_, pair=(("raw.zarr", "flat.zarr"),)))
    for chunk in Path("raw.zarr/c").rglob("0"):
        if chunk.is_file():
            chunk.write_bytes(b"damaged")
    with pytest.raises(UnetcliError, match=r"cannot read z 0:8"):
        train_model(request_)


def test_labels_of_another_place_are_refused(request_: TrainRequest) -> None:
    raw, labels = (np.asarray(zarr.open_array(path)[...]) for path in ("raw.zarr", "labels.zarr"))
    request = replace(request_, raw="r.zarr", labels="l.zarr", pair=(), steps=1)
    write_placed(Path("r.zarr"), raw, (0.0, 400.0, 400.0))
    for origin in ((0.0, 400.0, 403.0), (0.0, 0.0, 0.0), (50.0, 400.0, 400.0)):
        write_placed(Path("l.zarr"), labels, origin)
        with pytest.raises(UnetcliError, match=r"r\.zarr begins at z 0 .* but l\.zarr at z .*--same-place pairs"):
            train_model(request)
        assert not Path("model").exists()
    for origin in ((20.0, 400.0, 401.5), None):  # less than half a voxel, and not known
        write_placed(Path("l.zarr"), labels, origin)
        assert train_model(replace(request, overwrite=True)).finished
    write_placed(Path("l.zarr"), labels, (50.0, 0.0, 0.0))
    assert train_model(replace(request, overwrite=True, same_place=True)).finished


def test_sections_along_t_pair_with_sections_along_z(request_: TrainRequest, caplog: pytest.LogCaptureFixture) -> None:
    for name, axis in (("raw", "z"), ("labels", "t")):
        values = np.asarray(zarr.open_array(f"{name}.zarr")[...])
        write_zarr(Path(f"{name}2.zarr"), values, dimension_names=[axis, "y", "x"])
    caplog.set_level("INFO", logger="unetcli")
    assert train_model(replace(request_, raw="raw2.zarr", labels="labels2.zarr", pair=(), steps=1)).finished
    assert "sections of raw2.zarr along z were paired with those of labels2.zarr along t; each is" in caplog.text
