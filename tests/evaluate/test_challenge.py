from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from pairs import blobs, each_section, evaluated, stored

from unetcli.core.errors import UnetcliError
from unetcli.evaluate.evaluate import evaluate_volume
from unetcli.evaluate.request import EvaluateRequest
from unetcli.executors.options import ClusterOptions

FRAMES = each_section(blobs(4, 40, 50, seed=2))
FOUND = np.roll(FRAMES, 1, axis=2)


def write(folder: Path, name: str, frames: NDArray[Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for time, frame in enumerate(frames):
        tifffile.imwrite(folder / f"{name}{time:03d}.tif", frame)


@pytest.fixture
def truth(tmp_path: Path) -> str:
    write(tmp_path / "01_GT" / "SEG", "man_seg", FRAMES)
    write(tmp_path / "01_GT" / "TRA", "man_track", FRAMES)
    return str(tmp_path / "01_GT")


@pytest.fixture
def result(tmp_path: Path) -> str:
    write(tmp_path / "01_RES", "mask", FOUND)
    return str(tmp_path / "01_RES")


def test_folders_and_volumes_of_the_same_frames_score_the_same(tmp_path: Path, truth: str, result: str) -> None:
    folders = evaluated(result, truth)
    times = {"dimension_names": list("tyx")}
    volumes = evaluated(stored(tmp_path, FOUND, **times), stored(tmp_path, FRAMES, "t.zarr", **times))
    mixed = evaluated(volumes.request.prediction, truth)
    assert folders.metrics == ("cells", "voi")
    for found in (folders, mixed):
        for metric, scores in volumes.scores.items():
            assert {name: found.scores[metric][name] for name in scores if "interval" not in name} == {
                name: value for name, value in scores.items() if "interval" not in name
            }
    assert [section.name for section in folders.sections] == [f"frame {n}" for n in range(4)]
    assert folders.sections[2].scores["cells"]["seg"] == volumes.sections[2].scores["cells"]["seg"]


def test_frames_can_be_chosen(truth: str, result: str) -> None:
    found = evaluated(result, truth, "cells", sections=(1, 3))
    assert [section.place for section in found.sections] == [(1,), (2,)]
    images = found.images(found.sections[1])
    assert np.array_equal(images.reference, FRAMES[2])
    assert images.labels is not None
    assert np.array_equal(images.labels, FOUND[2])
    with pytest.raises(UnetcliError, match=r"--sections 3:9: .* has sections 0:4"):
        evaluated(result, truth, sections=(3, 9))


def test_components_of_probabilities_are_scored(tmp_path: Path, truth: str) -> None:
    values = (FRAMES > 0).astype(np.float32) * np.float32(0.7)
    prediction = stored(tmp_path, values, dimension_names=list("tyx"))
    found = evaluated(prediction, truth)
    assert (found.kind, found.scores["cells"]["seg"], found.thresholds) == ("probability", 1, {"objects": 0.5})
    assert evaluated(prediction, truth, threshold=0.8).scores["cells"]["seg"] == 0


def test_scores_that_need_a_complete_truth_are_withheld_for_a_partial_one(tmp_path: Path, result: str) -> None:
    partial = np.where(FRAMES == 1, 0, FRAMES)
    write(tmp_path / "01_GT" / "SEG", "man_seg", partial)
    write(tmp_path / "01_GT" / "TRA", "man_track", FRAMES)
    found = evaluated(result, str(tmp_path / "01_GT"))
    assert found.scores["cells"]["seg"] > 0
    for metric, name in (("cells", "precision"), ("cells", "f1"), ("voi", "split"), ("voi", "adapted_rand_error")):
        assert found.scores[metric][name] is None
        assert "partial" in found.scores[metric][f"{name}_reason"]
    assert "the truth is incomplete" in found.notes[0]


def test_markers_alone_give_det(tmp_path: Path, result: str) -> None:
    write(tmp_path / "01_GT" / "TRA", "man_track", FRAMES)
    found = evaluated(result, str(tmp_path / "01_GT"))
    assert found.metrics == ("cells",)
    assert found.scores["cells"]["det"] > 0
    assert found.scores["cells"]["seg"] is None


def test_a_later_result_is_compared_with_an_earlier_one(tmp_path: Path, truth: str, result: str) -> None:
    (tmp_path / "b.json").write_text(json.dumps(evaluated(result, truth, "cells").to_json()))
    write(tmp_path / "02_RES", "mask", FRAMES)
    found = evaluated(str(tmp_path / "02_RES"), truth, "cells", baseline=tmp_path / "b.json").comparison
    assert found is not None
    assert found["scores"]["cells"]["seg"]["words"].startswith("better by ")


@pytest.mark.parametrize(
    "options", [{"roi": ((0, 2),)}, {"mask": "m"}, {"level": 1}, {"three_d": True}, {"run_folder": Path("r")}], ids=str
)
def test_options_of_volumes_are_refused(truth: str, result: str, options: dict[str, Any]) -> None:
    with pytest.raises(UnetcliError, match=f"--{next(iter(options)).replace('_', '-')}: .* folder of frames"):
        evaluated(result, truth, **options)


def test_a_volume_is_no_truth_of_a_folder(tmp_path: Path, result: str) -> None:
    with pytest.raises(UnetcliError, match="expected a folder 01_GT or 01_ST"):
        evaluated(result, stored(tmp_path, FRAMES))


def test_clusters_and_other_metrics_are_refused(truth: str, result: str) -> None:
    with pytest.raises(UnetcliError, match=r"--metrics em: .* expected cells, voi"):
        evaluated(result, truth, "em")
    with pytest.raises(UnetcliError, match="omit --cluster and --workers"):
        evaluate_volume(EvaluateRequest(prediction=result, truth=truth), where=ClusterOptions(workers=2))
