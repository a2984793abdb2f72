from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from train.test_settings import CONFIG

from unetcli.core.errors import UnetcliError
from unetcli.train.folder import TrainingFolder


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
    with pytest.raises(UnetcliError, match=r"training\.json: damaged; --overwrite starts anew"):
        folder.frozen()


def test_one_of_another_version_is_refused(folder: TrainingFolder) -> None:
    folder.config.write_text(json.dumps({"version": 1, "config": {}, "steps": 3}))
    with pytest.raises(UnetcliError, match="version 1; --overwrite starts anew"):
        folder.frozen()


def test_a_torn_line_of_the_log_is_left_out(folder: TrainingFolder) -> None:
    for step in (10, 20, 30):
        folder.append_log({"step": step, "best": True})
    with folder.log.open("a") as file:
        file.write('{"step": 40, "be')
    assert [row["step"] for row in folder.rows()] == [10, 20, 30]
    folder.trim_log(20)
    assert folder.log.read_text() == '{"step": 10, "best": true}\n{"step": 20, "best": true}\n'


def test_forgetting_leaves_nothing_of_ours_and_all_that_is_not(folder: TrainingFolder) -> None:
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
    folder.forget()
    assert [path.name for path in folder.path.iterdir()] == ["notes.txt"]
