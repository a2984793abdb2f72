"""The saved model of a training is calibrated; the network that trains on is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from helpers import write_zarr
from train.scenes import Stop, log_rows

from unetcli.core.records import decoded
from unetcli.evaluate.evaluate import evaluate_volume
from unetcli.evaluate.request import EvaluateRequest
from unetcli.model.calibration import LIKELIHOOD, LOSS_WEIGHTS, Calibration
from unetcli.model.file import load_network, read_header
from unetcli.predict.request import PredictRequest
from unetcli.predict.run import predict_volume
from unetcli.train.folder import Checkpoint
from unetcli.train.request import TrainRequest
from unetcli.train.train import train_model

MODEL = Path("model/model.safetensors")
RAW = Path("raw/model.safetensors")


def without(request: TrainRequest) -> TrainRequest:
    return replace(request, output=Path("raw"), calibrate=False)


@pytest.fixture
def both(request_: TrainRequest) -> Calibration:
    """Calibration of a finished training; ``raw`` holds the same training without calibration.

    Two sections are held out, because one has fewer than 1,000 pixels of foreground.
    """
    calibrated = replace(request_, validation=(6, 8))
    for request in (calibrated, without(calibrated)):
        train_model(request)
    found = read_header(MODEL).calibration
    assert found is not None
    return found


def test_only_the_last_layer_of_the_saved_model_differs_and_by_the_calibration(both: Calibration) -> None:
    saved, raw = load_network(MODEL).state_dict(), load_network(RAW).state_dict()
    differing = {name for name in saved if not np.array_equal(saved[name], raw[name])}
    assert differing == {"head.weight", "head.bias"}
    assert saved["head.weight"].numpy() == pytest.approx(both.scale * raw["head.weight"].numpy(), rel=1e-6)
    expected = both.scale * raw["head.bias"].numpy() + np.array(both.shift)
    assert saved["head.bias"].numpy() == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_what_trains_on_is_not_calibrated(both: Calibration) -> None:
    states = [Checkpoint.load(Path(folder, "checkpoint.pt")) for folder in ("model", "raw")]
    for name, values in states[0].network.items():
        assert np.array_equal(values, states[1].network[name])
    assert both.method == LIKELIHOOD


def test_the_header_says_what_was_fitted_on_what(both: Calibration) -> None:
    header = read_header(MODEL)
    assert (both.sections, both.pixels, both.by_loss_weights) == (((6, 8),), 2 * 64 * 72, ())
    assert header.provenance["validation_used_for"] == ["selection", "calibration"]
    assert both.error_after is not None
    assert both.error_before is not None
    assert both.error_after < both.error_before
    raw = read_header(RAW)
    assert raw.calibration is None
    assert raw.provenance["validation_used_for"] == ["selection"]


def test_the_errors_in_the_header_are_those_that_evaluate_finds(both: Calibration, tmp_path: Path) -> None:
    for model, error in ((MODEL, both.error_after), (RAW, both.error_before)):
        output = tmp_path / f"{model.parent}-scores.zarr"
        predict_volume(
            PredictRequest(
                volume="raw.zarr", model=model, output=output, sections=(6, 8), dtype="float32", device="cpu"
            )
        )
        scores = evaluate_volume(EvaluateRequest(prediction=str(output), truth="labels.zarr")).scores
        assert scores["pixels"]["calibration_error"] == pytest.approx(error, abs=2e-3)


def test_stopped_and_continued_saves_the_same_model(request_: TrainRequest) -> None:
    request = replace(request_, validate_every=10, validation=(6, 8))
    train_model(request)
    other = replace(request, output=Path("other"))
    train_model(other, signals=Stop(14))
    train_model(other)
    assert Path("other/model.safetensors").read_bytes() == MODEL.read_bytes()
    MODEL.unlink()
    train_model(request)
    assert Path("other/model.safetensors").read_bytes() == MODEL.read_bytes()


def test_without_held_out_sections_the_loss_weights_are_undone(request_: TrainRequest) -> None:
    for name in ("raw", "labels"):
        write_zarr(Path(f"one-{name}.zarr"), zarr.open_array(f"{name}.zarr", mode="r")[0])
    train_model(replace(request_, pair=(("one-raw.zarr", "one-labels.zarr"),), steps=3, w0=0.0))
    header, truth = read_header(MODEL), zarr.open_array("one-labels.zarr", mode="r")[...] > 0
    assert header.calibration is not None
    assert (header.calibration.method, header.calibration.sections) == (LOSS_WEIGHTS, ())
    weights = truth.size / 2 / np.array([(~truth).sum(), truth.sum()])  # w_c: every class has the same total weight
    low, high = header.calibration.shift
    assert high - low == pytest.approx(np.log(weights[0]) - np.log(weights[1]), abs=1e-4)
    assert header.provenance["validation_used_for"] == []


def test_partial_annotation_is_calibrated_by_the_loss_weights(request_: TrainRequest) -> None:
    train_model(replace(request_, partial=12, steps=3))
    header = read_header(MODEL)
    assert header.calibration is not None
    assert header.calibration.method == LOSS_WEIGHTS
    assert header.provenance["validation_used_for"] == ["selection"]


def test_each_validation_logs_its_calibration_and_the_kept_one_is_in_the_header(request_: TrainRequest) -> None:
    train_model(replace(request_, validate_every=10))
    rows = log_rows()
    assert all(row["reliability"].keys() == {"pixels", "probability", "right"} for row in rows)
    kept = [row for row in rows if row["best"]][-1]
    assert decoded(Calibration, kept["calibration"]) == read_header(MODEL).calibration
    assert sum(kept["reliability"]["pixels"]) == 64 * 72


def test_a_calibrated_network_is_as_independent_of_tiles_as_any(both: Calibration, tmp_path: Path) -> None:
    assert both.scale > 1  # differences of logits are enlarged
    maps = []
    for tile in (28, 60):
        output = tmp_path / f"{tile}.zarr"
        predict_volume(
            PredictRequest(volume="raw.zarr", model=MODEL, output=output, tile=tile, dtype="float32", device="cpu")
        )
        maps.append(np.asarray(zarr.open_array(output / "0", mode="r")))
    assert np.ptp(maps[0]) > 0.5
    assert np.abs(maps[0] - maps[1]).max() < 2e-5
