"""The frozen configuration, and checkpoints: written atomically, with a previous one in case the last is damaged."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from train.test_settings import CONFIG

from unetcli.core.errors import UnetcliError
from unetcli.train.folder import Checkpoint, TrainingFolder


@pytest.fixture
def folder(tmp_path: Path) -> TrainingFolder:
    (folder := TrainingFolder(tmp_path)).freeze(CONFIG, 100)
    return folder


def test_what_is_frozen_comes_back(folder: TrainingFolder) -> None:
    assert folder.frozen() == (CONFIG, 100)
    folder.require_same(CONFIG)


def test_another_configuration_is_refused_naming_all_that_differs(folder: TrainingFolder) -> None:
    with pytest.raises(UnetcliError, match=r"holds another training: .*tile 60 \(was 44\).*seed 7") as caught:
        folder.require_same(replace(CONFIG, tile=60, seed=7))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 2}', '{"version": 2, "config": {}, "steps": 3}'])
def test_a_damaged_configuration_is_one_line(folder: TrainingFolder, content: str) -> None:
    folder.config.write_text(content)
    with pytest.raises(UnetcliError, match=r"training\.json: .+; --overwrite starts over"):
        folder.frozen()


def test_one_of_another_version_is_refused(folder: TrainingFolder) -> None:
    folder.config.write_text(json.dumps({"version": 1, "config": {}, "steps": 3}))
    with pytest.raises(UnetcliError, match="version 1; this unetcli reads version 2; --overwrite starts over"):
        folder.frozen()


def test_a_torn_line_of_the_log_is_left_out(folder: TrainingFolder) -> None:
    for step in (10, 20, 30):
        folder.append_log({"step": step, "best": True})
    with folder.log.open("a") as file:
        file.write('{"step": 40, "be')
    assert [row["step"] for row in folder.rows()] == [10, 20, 30]
    folder.trim_log(20)
    assert folder.log.read_text() == '{"step": 10, "best": true}\n{"step": 20, "best": true}\n'


def test_clearing_removes_the_training_and_leaves_other_files(folder: TrainingFolder) -> None:
    for path in (
        folder.checkpoint,
        folder.previous,
        folder.damaged,
        folder.log,
        folder.model,
        folder.curves,
        folder.samples,
    ):
        path.write_text("ours")
    for inner in (folder.predictions, folder.tensorboard):
        inner.mkdir()
        (inner / "a").write_text("ours")
    (folder.path / "notes.txt").write_text("mine")
    folder.clear()
    assert [path.name for path in folder.path.iterdir()] == ["notes.txt"]


def checkpoint(step: int) -> Checkpoint:
    network = {"weight": torch.arange(1000.0) + step, "bias": torch.zeros(0)}
    return Checkpoint(
        config={"seed": 1, "sections": [[0, 5]]},
        step=step,
        network=network,
        optimizer={"state": {0: {"exp_avg": torch.full((3, 3), 0.1)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        averaged=None,
        best=0.25,
        validations_since_best=3,
        pending=[0.5, 0.25],
        seconds=12.5,
    )


@pytest.fixture
def filled(tmp_path: Path) -> TrainingFolder:
    """Folder with the checkpoints of steps 10 and 20."""
    folder = TrainingFolder(tmp_path)
    for step in (10, 20):
        checkpoint(step).save(folder.checkpoint, folder.previous)
    return folder


def steps(folder: TrainingFolder) -> list[int]:
    return [Checkpoint.load(path).step for path in (folder.previous, folder.checkpoint)]


def test_it_comes_back_as_it_was_saved(filled: TrainingFolder) -> None:
    found, saved = Checkpoint.load(filled.checkpoint), checkpoint(20)
    assert torch.equal(found.network["weight"], saved.network["weight"])
    assert torch.equal(found.optimizer["state"][0]["exp_avg"], saved.optimizer["state"][0]["exp_avg"])
    for name in ("config", "step", "averaged", "best", "validations_since_best", "pending", "seconds"):
        assert getattr(found, name) == getattr(saved, name)


def test_the_last_two_are_kept_and_nothing_else(filled: TrainingFolder) -> None:
    assert steps(filled) == [10, 20]
    checkpoint(30).save(filled.checkpoint, filled.previous)
    assert steps(filled) == [20, 30]
    assert len(list(filled.path.iterdir())) == 2


def test_a_save_that_fails_changes_nothing(filled: TrainingFolder) -> None:
    unsaveable = replace(checkpoint(30), config={"seed": lambda: 1})
    with pytest.raises(Exception, match="pickle"):
        unsaveable.save(filled.checkpoint, filled.previous)
    assert steps(filled) == [10, 20]
    assert len(list(filled.path.iterdir())) == 2


def damage(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    place = content.index(np.float32(20 + 500).tobytes())  # in the weights
    if how == "cut":
        del content[len(content) // 2 :]
    elif how == "empty":
        content.clear()
    elif how == "bit":
        content[place] ^= 1
    else:
        content[place : place + 40] = bytes(40)
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("how", ["cut", "empty", "bit", "zeros"])
def test_a_damaged_last_one_falls_back_to_the_one_before_with_a_warning(
    filled: TrainingFolder, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    damage(filled.checkpoint, how)
    with caplog.at_level(logging.WARNING):
        found = filled.load_checkpoint()
    assert found is not None
    assert found.step == 10
    assert "checkpoint.pt: damaged checkpoint" in caplog.text
    assert "checkpoint.previous.pt" in caplog.text


def test_a_damaged_one_never_takes_the_place_of_a_good_one(filled: TrainingFolder) -> None:
    """If the next save is killed between its renames, a readable checkpoint is left."""
    damage(filled.checkpoint, "cut")
    assert filled.load_checkpoint() is not None
    checkpoint(15).save(filled.checkpoint, filled.previous)
    assert steps(filled) == [10, 15]


def test_killed_between_the_two_renames_the_one_before_is_taken(filled: TrainingFolder) -> None:
    filled.checkpoint.rename(filled.previous)
    found = filled.load_checkpoint()
    assert found is not None
    assert found.step == 20


def test_both_damaged_is_one_line_that_says_what_to_do(filled: TrainingFolder) -> None:
    for path in (filled.checkpoint, filled.previous):
        path.write_bytes(b"damaged")
    with pytest.raises(
        UnetcliError, match=r"checkpoint\.\w*\.?pt: damaged checkpoint; --overwrite starts over"
    ) as caught:
        filled.load_checkpoint()
    assert "\n" not in str(caught.value)


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert TrainingFolder(tmp_path).load_checkpoint() is None


def test_a_checkpoint_of_another_version_is_refused(filled: TrainingFolder) -> None:
    torch.save({"version": 99}, filled.checkpoint)
    filled.previous.unlink()
    with pytest.raises(UnetcliError, match="another version"):
        filled.load_checkpoint()


def test_no_code_is_run_when_one_is_read(filled: TrainingFolder) -> None:
    torch.save({"version": 2, "network": Path("x")}, filled.checkpoint)
    with pytest.raises(UnetcliError, match="damaged checkpoint"):
        Checkpoint.load(filled.checkpoint)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.pop("best"), "no best"),
        (lambda values: values.update(step="20"), 'step is "20"; expected a whole number'),
        (lambda values: values.update(pending=[None]), "pending[0] is null; expected a number"),
        (lambda values: values.update(network=[]), "network is []; expected an object"),
        (lambda values: values.update(more=1), "unknown key more"),
    ],
    ids=["a key less", "text", "null", "a list", "a key more"],
)
def test_a_checkpoint_with_other_keys_or_types_falls_back_to_the_one_before(
    filled: TrainingFolder, change: Callable[[dict[str, Any]], Any], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    values = torch.load(filled.checkpoint, weights_only=True)
    change(values)
    torch.save(values, filled.checkpoint)
    found = filled.load_checkpoint()
    assert found is not None
    assert found.step == 10
    assert f"checkpoint.pt: damaged checkpoint ({message})" in caplog.text


def test_a_checkpoint_that_does_not_fit_the_network_falls_back_to_the_one_before(
    filled: TrainingFolder, caplog: pytest.LogCaptureFixture
) -> None:
    def restore(checkpoint: Checkpoint) -> None:
        if checkpoint.step == 20:
            raise RuntimeError("size mismatch\nfor weight")

    found = filled.load_checkpoint(restore)
    assert found is not None
    assert found.step == 10
    assert (
        "checkpoint.pt: checkpoint of another network (size mismatch for weight); --overwrite starts over"
        in caplog.text
    )


def test_zero_bytes_and_other_text_in_the_log_are_left_out(folder: TrainingFolder) -> None:
    """A power cut leaves zero bytes where the last line was to be."""
    folder.append_log({"step": 10, "best": True})
    with folder.log.open("ab") as file:
        file.write(
            b'\0\0\0{"step": 20, "best": false}\n{"step": 25, "best": 1}\n\xff{\n[1]\n{"best": true}\n{}\n' + bytes(9)
        )
    assert [row["step"] for row in folder.rows()] == [10, 20]


def test_an_unknown_recipe_is_named(folder: TrainingFolder) -> None:
    values = json.loads(folder.config.read_text())
    values["config"]["recipe"] = "x"
    del values["checksum"]
    folder.config.write_text(json.dumps(values))
    with pytest.raises(UnetcliError, match=r"training\.json: --recipe x: expected .*; --overwrite starts over"):
        folder.frozen()


def test_a_changed_configuration_is_found_by_its_checksum(folder: TrainingFolder) -> None:
    folder.config.write_text(folder.config.read_text().replace('"steps": 100', '"steps": 99'))
    with pytest.raises(UnetcliError, match=r"training\.json: damaged: its checksum is .*; --overwrite starts over"):
        folder.frozen()


def test_a_row_whose_reliability_diagram_is_torn_is_left_out(folder: TrainingFolder) -> None:
    diagram = {"pixels": [3, 4], "probability": [0.1, 0.9], "right": [0.2, 0.8]}
    folder.append_log({"step": 1, "best": True, "reliability": diagram})
    folder.append_log({"step": 2, "best": True, "reliability": {**diagram, "right": [0.2]}})
    assert [row["step"] for row in folder.rows()] == [1]
