"""Requests that are refused before anything is written; files of others stay."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from helpers import grey, write_prediction, write_zarr
from label.store import (
    FOLDER,
    LABELS,
    STORE,
    TABLE,
    files,
    label,
)
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError
from unetcli.evaluate.evaluate import evaluate_volume
from unetcli.evaluate.request import EvaluateRequest

pytestmark = pytest.mark.usefixtures("here")


def test_an_incomplete_prediction_is_refused_unless_allowed(values: NDArray[np.uint8]) -> None:
    text = (STORE / "zarr.json").read_text()
    (STORE / "zarr.json").write_text(text.replace('"complete": true', '"complete": false'))
    with pytest.raises(UnetcliError, match=r"big\.pred\.zarr: not complete; .*--allow-incomplete"):
        label()
    assert not FOLDER.exists()
    assert label(allow_incomplete=True).complete


def put(kind: str) -> Path:
    """Put somebody else's data in the place of the labels, or of their table."""
    if kind == "table":
        TABLE.write_text("id,name\n1,mine\n")
        return TABLE
    LABELS.mkdir(parents=True)
    if kind == "folder":
        (LABELS / "thesis.txt").write_text("mine")
    elif kind == "array":
        zarr.create_array(LABELS, data=grey(4, 4), overwrite=True)
    else:
        zarr.open_group(LABELS, mode="w", attributes={"ome": {"version": "0.5"}, "unetcli": {"kind": "probabilities"}})
    return LABELS


@pytest.mark.parametrize("kind", ["table", "folder", "array", "group"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_not_ours_is_refused_and_stays(values: NDArray[np.uint8], kind: str, overwrite: bool) -> None:
    place = put(kind)
    before = files()
    with pytest.raises(UnetcliError, match=r"exists and was not written by unetcli label"):
        label(overwrite=overwrite)
    assert files() == before
    assert place.exists()
    assert not FOLDER.exists()


def test_what_has_no_place_for_labels_is_refused() -> None:
    write_zarr(Path("plain.zarr"), grey(20, 20))
    tifffile.imwrite("stack.tif", grey(20, 20))
    for name in ("plain.zarr", "stack.tif"):
        with pytest.raises(UnetcliError, match=f"{name}: not an OME-Zarr image"):
            label(prediction=name)


@pytest.mark.parametrize("dtype", ["uint16", "int8"])
def test_integers_that_are_no_probabilities_are_refused(dtype: str) -> None:
    write_prediction(STORE, grey(20, 20), (8, 8))
    zarr.create_array(STORE / "0", shape=(20, 20), chunks=(8, 8), dtype=dtype, dimension_names="yx", overwrite=True)
    with pytest.raises(UnetcliError, match=f"{dtype}; expected probabilities as uint8"):
        label()


def test_a_mask_of_0_and_1_is_refused() -> None:
    write_prediction(STORE, grey(20, 20) // 128, (8, 8))
    summary = label(threshold=0)
    assert not summary.complete
    assert "0 and 1 as uint8 mean 0 and 1/255" in summary.set_aside[0]["reason"]


@pytest.mark.parametrize("value", [1.5, -0.1, np.nan])
def test_floats_that_are_no_probabilities_are_reported_with_their_place(value: float) -> None:
    made = np.full((20, 20), 0.7, np.float32)
    made[3, 13] = value
    write_prediction(STORE, made, (8, 8))
    said = rf"expected probabilities from 0 to 1, found .*{re.escape(f'{value:g}')}.* in y 0:9, x 8:17; labels need"
    with pytest.raises(UnetcliError, match=said):
        label(block_voxels=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "magic"}, "--method magic: expected components or watershed"),
        ({"threshold": 1.0}, "--threshold 1.0: expected 0 <= threshold < 1"),
        ({"threshold": float("nan")}, "--threshold nan"),
        ({"name": "predict"}, "--name predict"),
        ({"name": "evaluate"}, "--name evaluate"),
        ({"name": "../x"}, r"--name \.\./x"),
        ({"name": "zarr.json"}, r"--name zarr\.json: expected letters, digits, - or _"),
        ({"name": "labels.lock"}, r"--name labels\.lock: expected letters, digits, - or _"),
        ({"depth": -1.0}, "--depth -1.0: expected 0 or more"),
        ({"reach": 5000}, "--reach 5000: expected at most 1000"),
        ({"landscape": "moon"}, "--landscape moon: expected distance or probability"),
        ({"threshold": 0.4, "auto_threshold_from": "t.tif"}, "--threshold and --auto-threshold-from"),
        ({"block_voxels": 0}, "--block-voxels 0"),
        ({"connectivity": 6}, "--connectivity 6: expected 4 or 8"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    values: NDArray[np.uint8], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UnetcliError, match=said):
        label(**options)
    assert not FOLDER.parent.exists()


@pytest.mark.parametrize("kind", [{}, {"zarr_format": 2}], ids=str)
def test_labels_are_not_taken_for_probabilities(values: NDArray[np.uint8], kind: dict[str, Any]) -> None:
    shutil.rmtree(STORE)
    write_prediction(STORE, values, (1, 16, 16), **kind)
    label()
    with pytest.raises(UnetcliError, match=r"labels/instances: holds labels; expected probabilities"):
        label(prediction=str(LABELS))
    attributes = zarr.open_group(LABELS, mode="r+").attrs
    del attributes["unetcli"]  # labels of others are recognised by the OME-Zarr metadata
    with pytest.raises(UnetcliError, match=r"labels/instances: holds labels; expected probabilities"):
        label(prediction=str(LABELS))
    assert not (LABELS / "labels").exists()


def test_labels_of_a_prediction_that_was_not_complete_say_so(values: NDArray[np.uint8]) -> None:
    group = zarr.open_group(STORE, mode="r+")
    group.attrs["unetcli"] = {**group.attrs["unetcli"], "complete": False}  # type: ignore[dict-item]
    label(allow_incomplete=True)
    request = EvaluateRequest(prediction=str(LABELS), truth=str(LABELS), metrics=("voi",))
    with pytest.raises(UnetcliError, match=r"incomplete prediction.*--allow-incomplete"):
        evaluate_volume(request)
    assert evaluate_volume(replace(request, allow_incomplete=True)).scores["voi"]["split"] == 0
    group.attrs["unetcli"] = {**group.attrs["unetcli"], "complete": True}  # type: ignore[dict-item]
    with pytest.raises(UnetcliError, match=r"the prediction was incomplete and is complete now; .* --overwrite"):
        label()
    label(overwrite=True)
    assert evaluate_volume(request).scores["voi"]["split"] == 0
