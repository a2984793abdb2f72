from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hn
from numpy.typing import NDArray
from pairs import TRUTH, VALUES, blobs, each_section, evaluated, stored

from unetcli.core.errors import UnetcliError
from unetcli.evaluate.baseline import read_baseline
from unetcli.evaluate.result import Evaluation
from unetcli.evaluate.scoring import pack, unpack

SECTIONS = 12


def kept(tmp_path: Path, found: Evaluation, name: str = "b.json") -> Path:
    path = tmp_path / name
    path.write_text(json.dumps(found.to_json(), allow_nan=False))
    return path


@pytest.fixture
def truth(tmp_path: Path) -> NDArray[Any]:
    return blobs(SECTIONS, 40, 50, seed=6)


def noisy(truth: NDArray[Any], noise: float, seed: int) -> NDArray[np.float32]:
    random = np.random.default_rng(seed).normal(0, noise, truth.shape)
    return np.clip(np.where(truth > 0, 0.8, 0.2) + random, 0, 1).astype(np.float32)


def test_a_clear_difference_is_more_than_noise_and_a_slight_one_is_not(tmp_path: Path, truth: NDArray[Any]) -> None:
    there = stored(tmp_path, truth, "t.zarr")
    baseline = kept(tmp_path, evaluated(stored(tmp_path, noisy(truth, 0.3, 1), "a.zarr"), there))
    worse = evaluated(stored(tmp_path, noisy(truth, 0.5, 2), "b.zarr"), there, baseline=baseline).comparison
    similar = evaluated(stored(tmp_path, noisy(truth, 0.3, 3), "c.zarr"), there, baseline=baseline).comparison
    assert worse is not None
    assert similar is not None
    for metric, name in (("pixels", "iou"), ("em", "pixel_error"), ("em", "v_info")):
        found = worse["scores"][metric][name]
        assert (found["more_than_noise"], found["gain"] < 0) == (True, True)
        assert found["words"].startswith(f"worse by {abs(found['gain']):.4f} (95 %: ")
        assert found["words"].endswith(", more than noise")
        assert found["interval"][0] <= found["difference"] <= found["interval"][1]
    assert similar["scores"]["pixels"]["iou"]["words"].endswith(", no more than noise")


def test_a_prediction_is_no_better_than_itself(tmp_path: Path) -> None:
    paths = stored(tmp_path, VALUES), stored(tmp_path, TRUTH, "t.zarr")
    found = evaluated(*paths, baseline=kept(tmp_path, evaluated(*paths))).comparison
    assert found is not None
    entries = [entry for scores in found["scores"].values() for entry in scores.values()]
    assert {(entry["difference"], entry["more_than_noise"]) for entry in entries} == {(0, False)}
    assert {entry["words"] for entry in entries} == {"the same (95 %: +0.0000 to +0.0000), no more than noise"}
    assert set(found["scores"]) == {"pixels", "em"}


@pytest.mark.parametrize("three_d", [True, False], ids=["objects", "sections"])
def test_cells_are_compared_section_by_section_or_object_by_object(
    tmp_path: Path, truth: NDArray[Any], three_d: bool
) -> None:
    labels = truth if three_d else each_section(truth)
    there = stored(tmp_path, labels, "t.zarr")
    near, far = np.roll(labels, 1, axis=2), np.roll(labels, 3, axis=2)
    baseline = kept(tmp_path, evaluated(stored(tmp_path, near, "n.zarr"), there, three_d=three_d))
    found = evaluated(stored(tmp_path, far, "f.zarr"), there, three_d=three_d, baseline=baseline).comparison
    assert found is not None
    seg, f1 = found["scores"]["cells"]["seg"], found["scores"]["cells"]["f1"]
    assert (seg["more_than_noise"], seg["gain"] < 0) == (True, True)
    assert f1["more_than_noise"] is (None if three_d else True)
    assert ("not known" in f1["words"]) == three_d


def test_a_baseline_of_something_else_is_refused(tmp_path: Path) -> None:
    paths = stored(tmp_path, VALUES), stored(tmp_path, TRUTH, "t.zarr")
    baseline = kept(tmp_path, evaluated(*paths))
    with pytest.raises(UnetcliError, match=r"b\.json: .* another truth, \S+t\.zarr; expected \S+o\.zarr"):
        evaluated(paths[0], stored(tmp_path, 255 - TRUTH, "o.zarr"), baseline=baseline)
    with pytest.raises(UnetcliError, match=r"region z 0:6, y 0:13, x 0:22; expected z 2:4, y 0:13"):
        evaluated(*paths, baseline=baseline, sections=(2, 4))
    with pytest.raises(UnetcliError, match=r"ignore none; expected 7"):
        evaluated(*paths, baseline=baseline, ignore=7)
    with pytest.raises(UnetcliError, match=r"--baseline \S+missing: no such file"):
        evaluated(*paths, baseline=tmp_path / "missing")
    for text in ("[1", '{"unetcli_evaluate": 7}', "[]", "[" * 100_000):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(
            UnetcliError,
            match=r"--baseline \S+bad\.json: (not JSON|not output of version 1).*; expected output of",
        ):
            evaluated(*paths, baseline=tmp_path / "bad.json")


def test_a_baseline_whose_sums_are_damaged_is_refused(tmp_path: Path) -> None:
    paths = stored(tmp_path, VALUES), stored(tmp_path, TRUTH, "t.zarr")
    output = evaluated(*paths, "em").to_json()
    output["sums"]["em"]["em"]["sums"]["rand"]["zlib"] = "nonsense"
    (tmp_path / "b.json").write_text(json.dumps(output))
    with pytest.raises(UnetcliError, match=r"b\.json: cannot read the sums of em"):
        evaluated(*paths, "em", baseline=tmp_path / "b.json")


@given(hn.arrays(np.float64, hn.array_shapes(max_dims=3, max_side=6), elements=st.floats(-1e6, 1e6)))
def test_sums_travel_as_text(values: NDArray[np.float64]) -> None:
    for array in (values, np.floor(np.abs(values))):
        assert np.array_equal(unpack(json.loads(json.dumps(pack(array)))), array)


def test_output_is_valid_json_and_grows_little_with_sections(tmp_path: Path) -> None:
    several = [np.tile(values, (5, 1, 1)) for values in (VALUES, TRUTH)]
    many = evaluated(stored(tmp_path, several[0]), stored(tmp_path, several[1], "t.zarr"), "pixels", "em")
    sums = len(json.dumps(many.to_json()["sums"], allow_nan=False))
    assert sums / 30 < 4000


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("judged", [1], "judged is [1]; expected an object"),
        ("sums", {"em": 3}, "sums.em is 3; expected an object"),
        ("pixels", "x", 'pixels is "x"; expected an object'),
        ("prediction", {}, "prediction is {}; expected text"),
    ],
    ids=["judged", "sums", "pixels", "prediction"],
)
def test_a_baseline_with_values_of_other_types_is_refused(
    tmp_path: Path, name: str, value: object, message: str
) -> None:
    file = kept(tmp_path, evaluated(stored(tmp_path, VALUES), stored(tmp_path, TRUTH, "t.zarr")))
    file.write_text(json.dumps({**json.loads(file.read_text()), name: value}))
    with pytest.raises(UnetcliError, match=re.escape(f"--baseline {file}: {message}")):
        read_baseline(file)
