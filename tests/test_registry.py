"""Tests of status and verify for all steps of a store (prediction, levels, labels, evaluation), with real runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from commands import Command
from helpers import grey, wait_for, write_prediction, write_zarr
from label.maps import blobs

from unetcli.core.errors import UnetcliError
from unetcli.engine.runfolder import LABEL, RunFolder, claim
from unetcli.engine.status import STATES, StageStatus, Status, Watcher
from unetcli.engine.workers import read_beats
from unetcli.evaluate.evaluate import Unfinished, evaluate_volume
from unetcli.evaluate.request import EvaluateRequest
from unetcli.label.request import LabelRequest
from unetcli.label.run import label_volume
from unetcli.predict.request import PredictRequest
from unetcli.predict.run import predict_volume
from unetcli.registry import steps_of

OUTPUT = "big.pred.zarr"
CLI = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNETCLI_MODEL", raising=False)


def looks() -> dict[str, Status]:
    """A look at each step of the output."""
    return {step.name: Watcher(step).status() for step in steps_of(OUTPUT)}


def stages(found: Status) -> dict[str, int]:
    """Blocks done, by stage; the numbers of all others have to add up."""
    counted: list[StageStatus | Status] = [*found.stages, found]
    for stage in counted:
        assert sum(getattr(stage, state) for state in STATES) == stage.blocks
    assert sum(stage.blocks for stage in found.stages) == found.blocks
    return {stage.name: stage.done for stage in found.stages}


def stop_after(calls: int) -> Callable[[], bool]:
    answers = iter([False] * calls)
    return lambda: next(answers, True)


def label(stopping: Callable[[], bool] = bool, **options: object) -> None:
    label_volume(LabelRequest(**{"prediction": OUTPUT, "block_voxels": 1500, **options}), stopping=stopping)  # type: ignore[arg-type]


def small() -> None:
    """Prediction with 27 blocks to label and one level to build."""
    write_prediction(OUTPUT, blobs((3, 75, 90), 2, seed=7), (1, 16, 16), levels=2)


def at_work(name: str) -> bool:
    """Return whether a worker has reported finished blocks and has others left."""
    return any(beat.blocks and beat.blocks_left for beat in read_beats(Path(f"{OUTPUT}.run/{name}/workers")).values())


def test_labels_are_shown_stage_by_stage() -> None:
    small()
    done_by_stage = []
    for calls in (5, 40, 10**6):
        label(stopping=stop_after(calls))
        (found,) = looks().values()
        done_by_stage.append(stages(found))
        assert (found.step, found.command, found.output) == ("instances", "label", f"{OUTPUT}/labels/instances")
        assert (found.complete, found.workers, found.failures) == (calls == 10**6, 0, [])
    assert 0 < done_by_stage[0]["find"] < 27
    assert done_by_stage[0]["merge"] == 0
    assert (done_by_stage[1]["find"], done_by_stage[1]["merge"], done_by_stage[1]["level"]) == (27, 1, 0)
    assert 0 < done_by_stage[1]["number"] < 27
    assert done_by_stage[2] == {"find": 27, "merge": 1, "number": 27, "level": done_by_stage[2]["level"]}
    assert done_by_stage[2]["level"] > 0
    assert found.seconds_left == 0.0


def test_a_worker_of_labels_is_counted_in_its_stage_and_a_killed_one_is_named() -> None:
    write_prediction(OUTPUT, blobs((40, 300, 310), 3), (1, 128, 128), levels=2)
    worker = Command("label", OUTPUT, "--block-voxels", "17000")
    wait_for(lambda: at_work("instances"))
    worker.send_signal(signal.SIGSTOP)  # keeps it alive
    (found,) = looks().values()
    stages(found)
    assert (found.workers, found.hosts, found.failures) == (1, 1, [])
    (busy,) = [stage for stage in found.stages if stage.running]
    assert busy.running == found.running > 0
    assert all(stage.done == stage.blocks for stage in found.stages[: found.stages.index(busy)])
    assert found.voxels_per_second > 0
    worker.kill()
    worker.wait()
    (after,) = looks().values()
    assert (after.workers, after.running, after.missing) == (0, 0, after.blocks - after.done)
    (failure,) = after.failures
    assert failure.reason.startswith("killed, used ")


def test_a_block_that_cannot_be_labelled_is_named(unetcli: CLI) -> None:
    small()
    os.truncate(f"{OUTPUT}/0/c/1/2/3", 9)
    with pytest.raises(UnetcliError, match="labels need every voxel"):
        label()
    (found,) = looks().values()
    assert (found.failed, stages(found)["find"]) == (
        2,
        25,
    )  # the block of that chunk, and its neighbour that reads across the border
    assert {failure.place[:12] for failure in found.failures if failure.place} == {"find: z 1:2,"}
    assert [stage.failed for stage in found.stages][1:] == [0] * (len(found.stages) - 1)
    done = unetcli("status", OUTPUT)
    assert "cannot read z 1:2" in done.stdout
    assert "the same label command continues" in done.stdout


def test_all_steps_of_a_store_are_shown_or_the_requested_one(unetcli: CLI) -> None:
    write_zarr(Path("big.zarr"), grey(3, 150, 170), chunks=(1, 150, 170))
    predict_volume(PredictRequest(volume="big.zarr", device="cpu", levels=3))
    label(stopping=stop_after(1), name="cells")
    label(name="instances")
    report = json.loads(unetcli("status", OUTPUT, "--json").stdout)
    assert (report["step"], report["complete"], report["done"]) == ("predict", True, report["blocks"])
    assert [(other["step"], other["complete"]) for other in report["others"]] == [
        ("cells", False),
        ("instances", True),
    ]
    shown = unetcli("status", OUTPUT).stdout
    assert f"{OUTPUT}  complete" in shown
    assert f"{OUTPUT}/labels/cells  labels  not running" in shown
    for words in (
        [f"{OUTPUT}/labels/cells"],
        [OUTPUT, "--step", "cells"],
        [OUTPUT, "--run-folder", f"{OUTPUT}.run/cells"],
    ):
        report = json.loads(unetcli("status", *words, "--json").stdout)
        assert (report["step"], report["others"]) == ("cells", [])
    done = unetcli("status", OUTPUT, "--step", "nuclei")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "no step nuclei; " in done.stderr
    assert done.stderr.endswith(" has predict, cells, instances\n")


def test_an_evaluation_is_shown_until_it_has_reported_its_scores(unetcli: CLI) -> None:
    small()
    truth = np.asarray(zarr.open_array(f"{OUTPUT}/0", mode="r")[...]) > 127
    write_zarr(Path("t.zarr"), truth.astype(np.uint8), chunks=(1, 16, 16))
    request = EvaluateRequest(
        prediction=OUTPUT,
        truth="t.zarr",
        metrics=("pixels",),
        block_voxels=900,
        run_folder=Path(f"{OUTPUT}.run/evaluate"),
    )
    with pytest.raises(Unfinished):
        evaluate_volume(request, stopping=stop_after(10))
    found = looks()["evaluate"]
    assert 5 < stages(found)["count"] < found.blocks
    assert (found.command, found.output, found.complete) == ("evaluate", OUTPUT, False)
    assert "the same evaluate command continues" in unetcli("status", OUTPUT).stdout
    watcher = Watcher(steps_of(OUTPUT)[0])
    assert not watcher.status(wait=False).complete
    evaluate_volume(request)
    last = watcher.status(wait=False)
    assert (last.complete, last.done, last.voxels_done, last.seconds_left) == (True, found.blocks, found.voxels, 0.0)
    with pytest.raises(UnetcliError, match="is no run folder"):
        steps_of(OUTPUT)


def test_an_evaluation_whose_launcher_was_killed_is_shown() -> None:
    values = blobs((6, 50, 60), 2)
    write_prediction(OUTPUT, values, (1, 50, 60))
    write_zarr(Path("t.zarr"), (values > 127).astype(np.uint8), chunks=(1, 50, 60))
    words = ["--metrics", "pixels,em", "--block-voxels", "3000", "--run-folder", f"{OUTPUT}.run/evaluate"]
    assert Command("evaluate", OUTPUT, "t.zarr", *words, killed_after=2).wait() == -signal.SIGKILL
    found = looks()["evaluate"]
    assert found.done == 2
    assert [failure.reason[:7] for failure in found.failures] == ["killed,"]


def test_watching_labels_ends_when_they_are_complete() -> None:
    small()
    label(stopping=stop_after(5))
    talk = Path("talk.txt")
    watching = Command("status", "--watch", OUTPUT, talk=talk)
    wait_for(lambda: talk.exists() and "\n" in talk.read_text())
    first = talk.read_text().splitlines()[0]
    assert first.startswith("instances: 3 of ") or "(find " in first
    assert "not running" in first
    label()
    assert watching.wait() == 0
    assert talk.read_text().endswith("blocks done; complete\n")


def test_an_unreadable_plan_does_not_hide_the_others(caplog: pytest.LogCaptureFixture) -> None:
    small()
    label()
    broken = Path(f"{OUTPUT}.run/broken")
    claim(broken, LABEL)
    (broken / "paths.json").write_text("{}")
    for text in ("{", '{"format": 99}', "[]", '{"unetcli_plan": 2}'):
        (broken / "plan.json").write_text(text)
        assert [step.name for step in steps_of(OUTPUT)] == ["instances"]
    assert "version 99" in caplog.text
    (broken / "plan.json").write_text('{"format": 99}')
    shutil.rmtree(f"{OUTPUT}.run/instances")
    with pytest.raises(UnetcliError, match=r"broken/plan\.json: .*plan of version 99; this unetcli reads"):
        steps_of(OUTPUT)


def test_a_worker_of_the_levels_is_counted() -> None:
    write_zarr(Path("big.zarr"), grey(3, 150, 170), chunks=(1, 150, 170))
    predict_volume(PredictRequest(volume="big.zarr", device="cpu", levels=3))
    (beat,) = read_beats(RunFolder.of(Path(OUTPUT)).workers).values()
    assert beat.blocks == looks()["predict"].blocks == 3 + stages(looks()["predict"])["level 1"]


def test_missing_labels_are_reported_and_do_not_hide_the_others(unetcli: CLI) -> None:
    write_zarr(Path("big.zarr"), grey(3, 150, 170), chunks=(1, 150, 170))
    request = PredictRequest(volume="big.zarr", device="cpu")
    predict_volume(request)
    label()
    predict_volume(replace(request, overwrite=True))
    found = looks()
    assert (found["predict"].complete, found["predict"].gone) == (True, False)
    assert (found["instances"].complete, found["instances"].gone) == (False, True)
    assert "the same label command computes it again" in unetcli("status", OUTPUT).stdout
    done = unetcli("verify", OUTPUT)
    assert (done.returncode, done.stdout) == (0, f"{OUTPUT}: 3 of 3 blocks are intact\n")
    assert "labels/instances: deleted; the same label command" in done.stderr
    assert unetcli("verify", OUTPUT, "--step", "instances").returncode == 1
    shutil.rmtree(OUTPUT)
    assert looks()["predict"].gone


@pytest.mark.parametrize("name", ["big.pred.zarr", "plain"])
def test_a_store_in_a_folder_named_labels_does_not_count_as_labels(name: str) -> None:
    Path("labels").mkdir()
    small()
    label()
    Path(OUTPUT).rename(f"labels/{name}")
    Path(f"{OUTPUT}.run").rename(f"labels/{name}.run")
    for output in (f"labels/{name}", f"labels/{name}/labels/instances", f"labels/{name}/"):
        (found,) = steps_of(output)
        assert (found.name, str(found.output)) == ("instances", f"labels/{name}/labels/instances")
