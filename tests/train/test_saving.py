"""The saved model: damaged or gone, it is made again from a checkpoint of its step, or the loss is reported."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from train.scenes import TINY, Stop, leave_pictures_out, log_rows, write_discs

from unetcli.core.errors import UnetcliError, collected_warnings
from unetcli.model.file import read_header
from unetcli.train.folder import TrainingFolder
from unetcli.train.train import summarise, train_model

SHORT = replace(TINY, steps=4, validate_every=4)
MODEL = Path("model", "model.safetensors")


@pytest.fixture(autouse=True)
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The saved model of a finished training in the current folder; its best step is its last one."""
    monkeypatch.chdir(tmp_path)
    leave_pictures_out(monkeypatch)
    write_discs(tmp_path)
    train_model(SHORT)
    assert [row["best"] for row in log_rows()] == [True]
    return MODEL.read_bytes()


def damage_model() -> None:
    MODEL.write_bytes(MODEL.read_bytes()[:-100])


def poison_model() -> None:
    content = MODEL.read_bytes()
    MODEL.write_bytes(content[:-4] + np.float32(np.nan).tobytes())


@pytest.mark.parametrize("harm", [MODEL.unlink, damage_model, poison_model], ids=["gone", "torn", "a NaN"])
@pytest.mark.parametrize("previous", [False, True], ids=["last checkpoint", "previous checkpoint"])
def test_a_lost_model_is_made_again_from_the_checkpoint_of_its_step(
    finished: bytes, harm: object, previous: bool
) -> None:
    if previous:
        Path("model", "checkpoint.pt").replace("model/checkpoint.previous.pt")
    harm()  # type: ignore[operator]
    assert summarise(TrainingFolder(Path("model"))).finished is False
    assert train_model(SHORT).found_finished
    assert MODEL.read_bytes() == finished


def test_a_model_that_no_checkpoint_can_replace_is_reported() -> None:
    make_the_first_validation_the_best()
    MODEL.unlink()
    reason = r"model\.safetensors: the saved model is gone, and no checkpoint is of its step 1; a larger --steps"
    with pytest.raises(UnetcliError, match=reason) as caught:
        train_model(SHORT)
    assert "--overwrite trains again" in str(caught.value)


def test_a_training_that_goes_on_saves_the_best_model_from_then_on() -> None:
    make_the_first_validation_the_best()
    MODEL.unlink()
    with collected_warnings() as warnings:
        done = train_model(replace(SHORT, steps=6))
    (warning,) = warnings
    assert "the saved model is gone, and no checkpoint is of its step 1" in warning
    assert "the best of the validations from step 4 on is saved" in warning
    assert (done.best_step, read_header(MODEL).provenance["step"]) == (6, 6)


def test_a_continued_training_keeps_the_versions_of_its_first_call(finished: bytes) -> None:
    stored = json.loads(Path("model/training.json").read_text())
    assert read_header(MODEL).provenance["revision"] == stored["made_with"]["revision"]
    train_model(replace(SHORT, output=Path("other")), signals=Stop(3))
    stored = json.loads(Path("other/training.json").read_text())
    del stored["checksum"]
    Path("other/training.json").write_text(json.dumps(stored | {"made_with": {"unetcli": "0.0.1", "revision": "abc"}}))
    train_model(replace(SHORT, output=Path("other")))
    provenance = read_header(Path("other/model.safetensors")).provenance
    assert (provenance["unetcli"], provenance["revision"]) == ("0.0.1", "abc")


def make_the_first_validation_the_best() -> None:
    """Let the log say that the saved model is of step 1, of which there is no checkpoint."""
    rows = [row | {"step": 1} for row in log_rows()]
    Path("model/log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
