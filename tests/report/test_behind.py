from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from helpers import grey, write_zarr
from report.evaluations import evaluate, labels_evaluation, membranes

from unetcli.core.errors import UnetcliError
from unetcli.report.behind import image_of, nothing


def test_the_image_of_a_section_is_the_one_below_it(tmp_path: Path) -> None:
    truth = np.stack([membranes()] * 3)
    raw = grey(*truth.shape)
    image = write_zarr(tmp_path / "raw.zarr", raw)
    evaluation = evaluate(tmp_path, truth > 0, truth, roi=((1, 3), (10, 60), (4, None)))
    read = image_of(evaluation, str(image))
    found = [read(section) for section in evaluation.sections]
    assert np.array_equal(found, raw[1:3, None, 10:60, 4:])


def test_channels_are_all_read(tmp_path: Path) -> None:
    evaluation = labels_evaluation(tmp_path)
    raw = grey(2, 3, 83, 120)
    image = write_zarr(tmp_path / "raw.zarr", raw, dimension_names=["z", "c", "y", "x"])
    assert np.array_equal(image_of(evaluation, str(image))(evaluation.sections[1]), raw[1])  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:<tifffile")
def test_three_sections_of_a_tiff_that_were_stored_like_colours_are_sections(tmp_path: Path) -> None:
    truth = np.stack([membranes()] * 3)
    raw = grey(*truth.shape)
    tifffile.imwrite(tmp_path / "raw.tif", raw)
    evaluation = evaluate(tmp_path, truth > 0, truth)
    found = image_of(evaluation, str(tmp_path / "raw.tif"))(evaluation.sections[1])
    assert np.array_equal(found, raw[1:2])  # type: ignore[arg-type]


def test_an_image_that_ends_before_the_truth_is_refused_with_both_places(tmp_path: Path) -> None:
    image = write_zarr(tmp_path / "raw.zarr", grey(1, 83, 120))
    with pytest.raises(UnetcliError, match=r"z 0:1, y 0:83, x 0:120, but z 1:2, y 0:83, x 0:120 was judged"):
        image_of(labels_evaluation(tmp_path), str(image))


def test_without_a_name_or_a_run_folder_there_is_no_image(tmp_path: Path) -> None:
    assert image_of(labels_evaluation(tmp_path), None) is nothing


def test_the_run_folder_of_a_prediction_knows_its_image(tmp_path: Path) -> None:
    raw = grey(2, 83, 120)
    image = write_zarr(tmp_path / "raw.zarr", raw)
    evaluation = labels_evaluation(tmp_path)
    folder = tmp_path / "prediction.zarr.run" / "predict"
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(f'{{"sources": {{"volume": "{image}"}}}}')
    found = image_of(evaluation, None)(evaluation.sections[1])
    assert np.array_equal(found, raw[1][None])  # type: ignore[arg-type]


@pytest.mark.parametrize("plan", ["{", "{}", '{"sources": {"volume": "/moved.zarr"}}'])
def test_a_run_folder_that_says_nothing_of_use_is_passed_over(tmp_path: Path, plan: str) -> None:
    evaluation = labels_evaluation(tmp_path)
    folder = tmp_path / "prediction.zarr.run" / "predict"
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(plan)
    assert image_of(evaluation, None) is nothing
