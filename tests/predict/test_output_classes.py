"""--output-classes: the most probable class of each voxel, which show, label and evaluate read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from helpers import SETTINGS, Output, grey, plan_of, write_model, write_zarr
from matplotlib.image import imread
from numpy.typing import NDArray
from pairs import evaluated

from unetcli import lazy
from unetcli.core.errors import UnetcliError
from unetcli.core.geometry import Box
from unetcli.engine.runfolder import RunFolder
from unetcli.label.objects import label_section
from unetcli.label.request import LabelRequest
from unetcli.label.run import label_volume
from unetcli.planning import planner
from unetcli.predict.checks import check_seams, largest_difference, tolerance
from unetcli.predict.request import PredictRequest
from unetcli.predict.run import predict_volume
from unetcli.predict.step import PredictStep
from unetcli.predict.stores import attributes_of
from unetcli.viz.request import ShowRequest
from unetcli.viz.show import show
from unetcli.volumes.image import marker
from unetcli.volumes.opening import open_volume
from unetcli.volumes.volume import Volume

CPU: dict[str, Any] = {"device": "cpu", "tile": 60}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNETCLI_MODEL", raising=False)
    monkeypatch.setattr(planner, "CHUNK", 40)
    write_zarr(Path("big.zarr"), grey(2, 70, 90), chunks=(1, 32, 48))


def stored(path: str) -> NDArray[Any]:
    return np.asarray(zarr.open_array(path, mode="r")[...])


def predicted(classes: int, **options: Any) -> NDArray[Any]:
    """The map of classes in classes.zarr, by a network with random weights."""
    write_model(Path("model"), classes=classes)
    request = PredictRequest(volume="big.zarr", output=Path("classes.zarr"), output_classes=True, **CPU, **options)
    assert predict_volume(request).complete
    return stored("classes.zarr/0")


def write_classes(path: str, classes: int) -> NDArray[Any]:
    """Write a map of random classes as predict does, but without a network."""
    values = np.random.default_rng(3).integers(0, classes, (2, 35, 45), dtype=np.uint8)
    settings = replace(SETTINGS, output_classes=True)
    output = Output(path, plan_of(Box.of_shape(values.shape), settings=settings))
    source = Volume(path="raw", array=values, stored_axes="zyx")
    names = [f"class {number}" for number in range(classes)]
    output.image.create(attributes_of(output.plan, Path(path), source, class_names=names))
    output.write(output.open(), Box.of_shape(values.shape), values[np.newaxis])
    output.image.mark(complete=True)
    return values


@pytest.mark.by_default("[4]")
@pytest.mark.parametrize("classes", [2, 4])
def test_the_most_probable_class_is_written_with_names_and_colours(classes: int) -> None:
    found = predicted(classes, levels=2)
    probabilities = lazy.predict("big.zarr", dtype="float32", **CPU).compute()
    expected = probabilities > 0.5 if classes == 2 else probabilities.argmax(axis=0)
    assert (found.shape, found.dtype) == ((2, 70, 90), np.uint8)
    assert np.array_equal(found, expected)
    assert len(np.unique(found)) > 1
    assert np.array_equal(stored("classes.zarr/1"), found[:, ::2, ::2])
    attributes = zarr.open_group("classes.zarr", mode="r").attrs["ome"]
    named = attributes["image-label"]
    assert named["properties"][1] == {"label-value": 1, "name": "class 1"}
    assert [colour["rgba"][3] for colour in named["colors"]] == [0] + [255] * (classes - 1)
    assert len({tuple(colour["rgba"]) for colour in named["colors"]}) == classes
    own = marker(Path("classes.zarr"))
    assert own is not None
    assert (own["kind"], own["classes"], own["outputs"]) == ("classes", [f"class {k}" for k in range(classes)], 1)
    assert np.array_equal(lazy.predict("big.zarr", output_classes=True, **CPU).compute(), found)


def test_classes_are_part_of_the_plan_and_have_one_data_type() -> None:
    write_model(Path("model"), classes=3)
    request = PredictRequest(volume="big.zarr", roi=((0, 1), (0, 30), (0, 30)), **CPU)
    predict_volume(request)
    with pytest.raises(UnetcliError, match=r"output_classes True \(was False\)"):
        predict_volume(replace(request, output_classes=True))
    with pytest.raises(UnetcliError, match=r"--dtype float32: --output-classes writes whole numbers as uint8"):
        predict_volume(replace(request, output_classes=True, dtype="float32"))


def test_skipped_voxels_are_of_the_first_class_and_no_seam_shows() -> None:
    mask = np.zeros((2, 70, 90), np.uint8)
    mask[:, :64, :64] = 1
    write_zarr(Path("mask.zarr"), mask)
    found = predicted(3, mask="mask.zarr")
    assert not found[:, 64:].any()
    assert not found[:, :, 64:].any()
    assert found.any()
    step = PredictStep.open(RunFolder(Path("classes.zarr.run/predict")))
    assert check_seams(step, 4).exceeded == []
    assert largest_difference(step, 0) == 0
    array = zarr.open_array("classes.zarr/0", mode="r+")
    array[...] = (found + 1) % 3
    assert largest_difference(step, 0) == 1  # all of its voxels; a host is refused above tolerance
    assert tolerance(step.plan.settings) == 2e-3
    exceeded = check_seams(step, 4).exceeded
    assert exceeded[0].reason == "1e+02 % of the voxels are of another class than those computed with another tile"


@pytest.mark.parametrize(("classes", "kind"), [(2, "probability"), (4, "classes")])
def test_a_map_of_classes_is_evaluated_by_class_and_one_of_two_as_a_foreground(classes: int, kind: str) -> None:
    found = write_classes("classes.zarr", classes)
    truth = np.random.default_rng(0).integers(0, classes, found.shape, dtype=np.uint8)
    write_zarr(Path("truth.zarr"), truth * np.uint8(255 if classes == 2 else 1))
    result = evaluated("classes.zarr", "truth.zarr", "pixels")
    assert result.kind == kind
    assert result.scores["pixels"]["accuracy"] == pytest.approx(np.mean(found == truth))


@pytest.mark.by_default("[4-2]")
@pytest.mark.parametrize(("classes", "channel"), [(2, None), (4, 2)])
def test_objects_of_a_class_are_those_of_its_mask(classes: int, channel: int | None) -> None:
    found = write_classes("classes.zarr", classes)
    assert label_volume(LabelRequest(prediction="classes.zarr", channel=channel, min_size=3)).complete
    labels = np.asarray(open_volume("classes.zarr/labels/instances").array[...])
    last = 0
    for section, own in zip(found, labels, strict=True):
        expected = label_section(section == (channel or 1), min_size=3)
        assert np.array_equal(own, np.where(expected > 0, expected + last, 0))
        last += int(expected.max())
    assert last > 9


def test_a_map_of_classes_is_shown_in_a_colour_for_each(tmp_path: Path) -> None:
    found = write_classes("classes.zarr", 4)
    show(ShowRequest(volume="classes.zarr", output=tmp_path / "shown.png", section=0))
    dots = imread(tmp_path / "shown.png")[..., :3]
    zoom = len(dots) // found.shape[1]
    colours = [np.unique(dots[::zoom, ::zoom][found[0] == value], axis=0) for value in range(4)]
    assert [len(each) for each in colours] == [1, 1, 1, 1]
    assert len(np.unique(np.concatenate(colours), axis=0)) == 4


def test_the_class_to_label_is_chosen_by_its_number() -> None:
    write_classes("classes.zarr", 4)
    with pytest.raises(UnetcliError, match=r"classes 0 \(class 0\), 1 \(class 1\), .*; --channel N chooses one"):
        label_volume(LabelRequest(prediction="classes.zarr"))
    with pytest.raises(UnetcliError, match=r"--channel 4: classes.zarr has the classes 0 \(class 0\)"):
        label_volume(LabelRequest(prediction="classes.zarr", channel=4))
