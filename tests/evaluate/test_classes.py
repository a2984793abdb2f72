"""Truth whose classes have values of their own: mapped as in training or as the user says; others are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray
from pairs import evaluated, stored

from unetcli.core.errors import UnetcliError, collected_warnings

CLASSES = np.kron(np.array([[[0, 1, 2], [2, 0, 1]]]), np.ones((2, 8, 9), int))  # (2, 16, 27)
PREDICTED = np.kron(np.array([[[0, 1, 2], [2, 1, 1]]]), np.ones((2, 8, 9), int))
AXES = {"dimension_names": ["z", "y", "x"]}


def probabilities(folder: Path, values: list[int] | None, name: str = "p.zarr") -> str:
    """Probabilities of three classes, with the marker of a model with these values of the classes."""
    stack = np.stack([np.uint8(255) * (k == PREDICTED) for k in range(3)])
    marker: dict[str, Any] = {"complete": True, "kind": "probabilities"}
    group = zarr.create_group(
        folder / name, attributes={"unetcli": marker | ({"label_values": {"classes": values}} if values else {})}
    )
    group.create_array("0", data=stack, chunks=(3, 1, 16, 27), dimension_names=["c", "z", "y", "x"])
    return str(folder / name / "0")


def truth(folder: Path, values: list[int], name: str = "t.zarr", classes: NDArray[Any] = CLASSES) -> str:
    return stored(folder, np.choose(classes, values).astype(np.uint8), name, **AXES)


def test_values_of_the_training_are_those_of_the_truth(tmp_path: Path) -> None:
    plain = evaluated(probabilities(tmp_path, None), truth(tmp_path, [0, 1, 2], "plain.zarr"))
    mapped = evaluated(probabilities(tmp_path, [1, 0, 128], "q.zarr"), truth(tmp_path, [1, 0, 128]))
    assert mapped.scores == plain.scores
    assert plain.scores["pixels"]["accuracy"] == pytest.approx(5 / 6)
    assert "values of the truth, as in training" in " ".join(mapped.notes)
    assert "1 is class 0 (background), 0 is class 1, 128 is class 2" in " ".join(mapped.notes)


def test_other_values_are_refused_with_what_would_work(tmp_path: Path) -> None:
    prediction, reference = probabilities(tmp_path, [0, 1, 3]), truth(tmp_path, [0, 1, 7])
    with pytest.raises(
        UnetcliError, match=r"t\.zarr: .*label 7 is none of the classes 0, 1, 3; --ignore 7 leaves it out"
    ):
        evaluated(prediction, reference)
    assert evaluated(prediction, reference, ignore=7).scores["pixels"]["accuracy"] == pytest.approx(3 / 4)
    assert evaluated(prediction, reference, classes=(0, 1, 7)).scores["pixels"]["accuracy"] == pytest.approx(5 / 6)
    assert evaluated(prediction, truth(tmp_path, [0, 1, 2], "n.zarr"), classes=()).scores["pixels"]["accuracy"] > 0.8


def test_the_background_of_the_truth_is_stated_or_that_of_the_training(tmp_path: Path) -> None:
    probability = np.uint8(255) * (CLASSES > 0)
    inverted = truth(tmp_path, [255, 0, 0], "i.zarr")
    for number, values in enumerate([None, {"background": 255}]):
        marker: dict[str, Any] = {"complete": True, "kind": "probabilities"} | (
            {"label_values": values} if values else {}
        )
        group = zarr.create_group(tmp_path / f"b{number}.zarr", attributes={"unetcli": marker})
        group.create_array("0", data=probability, chunks=(1, 16, 27), dimension_names=["z", "y", "x"])
        found = evaluated(f"{tmp_path}/b{number}.zarr/0", inverted, background=None if values else 255)
        assert found.scores["pixels"]["iou"] == 1
        assert ("as in training" in " ".join(found.notes)) == bool(values)
        assert "255 is background" in " ".join(found.notes)


def test_a_fringe_of_the_truth_is_warned_of_and_removed(tmp_path: Path) -> None:
    mask = np.uint8(255) * (CLASSES > 0)
    fringe = np.clip(mask + np.random.default_rng(0).integers(-9, 10, mask.shape), 0, 255).astype(np.uint8)
    prediction, reference = stored(tmp_path, mask, **AXES), stored(tmp_path, fringe, "f.zarr", **AXES)
    with collected_warnings() as warnings:
        assert evaluated(prediction, reference, "pixels").scores["pixels"]["iou"] < 0.8
    assert "--label-threshold 128 removes them" in " ".join(warnings)
    with collected_warnings() as warnings:
        found = evaluated(prediction, reference, "pixels", label_threshold=128, run_folder=tmp_path / "run")
    assert found.scores["pixels"]["iou"] == 1
    assert not warnings


def test_workers_map_the_values_as_the_launcher_does(tmp_path: Path) -> None:
    found = evaluated(probabilities(tmp_path, [0, 1, 3]), truth(tmp_path, [0, 1, 3]), run_folder=tmp_path / "run")
    assert found.scores["pixels"]["accuracy"] == pytest.approx(5 / 6)


def test_class_maps_of_other_programs_have_the_values_of_the_truth(tmp_path: Path) -> None:
    colours = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0)], np.uint8)
    for name, classes in {"p.tif": PREDICTED, "t.tif": CLASSES}.items():
        tifffile.imwrite(tmp_path / name, colours[classes[0]], photometric="rgb")
    prediction, reference = str(tmp_path / "p.tif"), str(tmp_path / "t.tif")
    red, green = 2**24 + 0xFF0000, 2**24 + 0x00FF00
    found = evaluated(prediction, reference, kind="classes", classes=(0, red, green))
    assert found.scores["pixels"]["accuracy"] == pytest.approx(5 / 6)
    with pytest.raises(UnetcliError, match=r"expected 0 to 254; --classes V,V,\.\. states the values"):
        evaluated(prediction, reference, kind="classes")


def test_an_option_states_one_value_and_the_training_the_others(tmp_path: Path) -> None:
    mask = np.uint8(255) * (CLASSES == 0)
    marker = {"complete": True, "kind": "probabilities", "label_values": {"background": 255, "threshold": 200}}
    group = zarr.create_group(tmp_path / "q.zarr", attributes={"unetcli": marker})
    group.create_array("0", data=255 - mask, chunks=(1, 16, 27), dimension_names=["z", "y", "x"])
    found = evaluated(f"{tmp_path}/q.zarr/0", stored(tmp_path, mask, **AXES), label_threshold=100)
    assert found.scores["pixels"]["iou"] == 1


@pytest.mark.parametrize("option", [{"background": 255}, {"label_threshold": 128}])
def test_background_and_threshold_are_those_of_the_truth_only(tmp_path: Path, option: dict[str, int]) -> None:
    classes = np.uint8(CLASSES > 0)
    mask = np.where(classes, 1, 255).astype(np.uint8) if "background" in option else classes * np.uint8(255)
    prediction, reference = stored(tmp_path, classes, "c.zarr", **AXES), stored(tmp_path, mask, **AXES)
    found = evaluated(prediction, reference, kind="classes", **option)
    assert found.scores["pixels"]["accuracy"] == 1
