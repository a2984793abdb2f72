"""Checkpoints: whole or not at all, two of them, and what happens where the last one is damaged."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from unetcli.core.errors import UnetcliError
from unetcli.train.folder import Checkpoint, TrainingFolder


def checkpoint(step: int) -> Checkpoint:
    network = {"weight": torch.arange(1000.0) + step, "bias": torch.zeros(0)}
    return Checkpoint(
        config={"seed": 1, "sections": [[0, 5]]},
        step=step,
        network=network,
        optimizer={"state": {0: {"exp_avg": torch.full((3, 3), 0.1)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        averaged=None,
        best=0.25,
        looks_since_best=3,
        pending=[0.5, 0.25],
        seconds=12.5,
    )


@pytest.fixture
def folder(tmp_path: Path) -> TrainingFolder:
    """With the checkpoints of steps 10 and 20."""
    folder = TrainingFolder(tmp_path)
    for step in (10, 20):
        checkpoint(step).save(folder.checkpoint, folder.previous)
    return folder


def steps(folder: TrainingFolder) -> list[int]:
    return [Checkpoint.load(path).step for path in (folder.previous, folder.checkpoint)]


def test_it_comes_back_as_it_was_saved(folder: TrainingFolder) -> None:
    found, saved = Checkpoint.load(folder.checkpoint), checkpoint(20)
    assert torch.equal(found.network["weight"], saved.network["weight"])
    assert torch.equal(found.optimizer["state"][0]["exp_avg"], saved.optimizer["state"][0]["exp_avg"])
    for name in ("config", "step", "averaged", "best", "looks_since_best", "pending", "seconds"):
        assert getattr(found, name) == getattr(saved, name)


def test_the_last_two_are_kept_and_nothing_else(folder: TrainingFolder) -> None:
    assert steps(folder) == [10, 20]
    checkpoint(30).save(folder.checkpoint, folder.previous)
    assert steps(folder) == [20, 30]
    assert len(list(folder.path.iterdir())) == 2


def test_a_save_that_fails_changes_nothing(folder: TrainingFolder) -> None:
    unsaveable = replace(checkpoint(30), config={"seed": lambda: 1})
    with pytest.raises(Exception, match="pickle"):
        unsaveable.save(folder.checkpoint, folder.previous)
    assert steps(folder) == [10, 20]
    assert len(list(folder.path.iterdir())) == 2


def damage(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    place = content.index(np.float32(20 + 500).tobytes())  # amid the weights
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
    folder: TrainingFolder, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    damage(folder.checkpoint, how)
    with caplog.at_level(logging.WARNING):
        found = folder.load_checkpoint()
    assert found is not None
    assert found.step == 10
    assert "checkpoint.pt: damaged checkpoint" in caplog.text
    assert "checkpoint.previous.pt" in caplog.text


def test_a_damaged_one_never_takes_the_place_of_a_good_one(folder: TrainingFolder) -> None:
    """Killed between the renames of the next save, what is left must still do."""
    damage(folder.checkpoint, "cut")
    assert folder.load_checkpoint() is not None
    checkpoint(15).save(folder.checkpoint, folder.previous)
    assert steps(folder) == [10, 15]


def test_killed_between_the_two_renames_the_one_before_is_taken(folder: TrainingFolder) -> None:
    folder.checkpoint.rename(folder.previous)
    found = folder.load_checkpoint()
    assert found is not None
    assert found.step == 20


def test_both_damaged_is_one_line_that_says_what_to_do(folder: TrainingFolder) -> None:
    for path in (folder.checkpoint, folder.previous):
        path.write_bytes(b"damaged")
    with pytest.raises(
        UnetcliError, match=r"checkpoint\.\w*\.?pt: damaged checkpoint; --overwrite starts anew"
    ) as caught:
        folder.load_checkpoint()
    assert "\n" not in str(caught.value)


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert TrainingFolder(tmp_path).load_checkpoint() is None


def test_one_of_another_version_is_refused(folder: TrainingFolder) -> None:
    torch.save({"version": 99}, folder.checkpoint)
    folder.previous.unlink()
    with pytest.raises(UnetcliError, match="another version"):
        folder.load_checkpoint()


def test_no_code_is_run_when_one_is_read(folder: TrainingFolder) -> None:
    torch.save({"version": 2, "network": Path("x")}, folder.checkpoint)
    with pytest.raises(UnetcliError, match="damaged checkpoint"):
        Checkpoint.load(folder.checkpoint)
