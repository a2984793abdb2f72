"""Large evaluations: counted by any executor, resumed, and deleted at the end."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from commands import Command, finished
from helpers import wait_for
from pairs import blobs, evaluated, stored
from places import PLACES, place_of

from unetcli.core.errors import UnetcliError
from unetcli.core.ranges import to_ranges
from unetcli.engine.clusters import job_request
from unetcli.engine.run import RunOptions, launching, prepare
from unetcli.engine.runfolder import RunFolder
from unetcli.engine.worker import StepTask
from unetcli.evaluate import evaluate as evaluate_module
from unetcli.evaluate.blocks import BlockCounter
from unetcli.evaluate.counting import Counts, total_counts
from unetcli.evaluate.evaluate import Unfinished, evaluate_volume
from unetcli.evaluate.request import EvaluateRequest
from unetcli.evaluate.resolve import ResolvedRequest
from unetcli.evaluate.step import EvaluateStep, EvaluationPaths
from unetcli.executors.options import ClusterOptions, VerifyRequest
from unetcli.registry import verify_output

LABELS = blobs(9, 40, 50, seed=1)
FOUND = np.roll(LABELS, 1, axis=2)


@pytest.fixture
def request_(tmp_path: Path) -> EvaluateRequest:
    """Request for an evaluation of 27 blocks in a run folder."""
    return EvaluateRequest(
        prediction=stored(tmp_path, FOUND, chunks=(3, 16, 20)),
        truth=stored(tmp_path, LABELS, "t.zarr"),
        metrics=("pixels", "cells", "voi"),
        block_voxels=960,
        run_folder=tmp_path / "run",
    )


def scores(request: EvaluateRequest, **options: Any) -> dict[str, Any]:
    return json.loads(json.dumps(evaluate_volume(request, **options).scores))  # type: ignore[no-any-return]


def test_a_run_folder_gives_the_same_scores_and_is_deleted(tmp_path: Path, request_: EvaluateRequest) -> None:
    here = evaluated(request_.prediction, request_.truth, *request_.metrics or (), block_voxels=960)
    progress: list[tuple[int, int]] = []
    found = scores(request_, report=lambda *now: progress.append(now))
    assert found == json.loads(json.dumps(here.scores))
    assert progress[-1] == (LABELS.size, LABELS.size)
    assert not (tmp_path / "run").exists()


def test_a_small_evaluation_leaves_nothing_behind(tmp_path: Path) -> None:
    paths = stored(tmp_path, FOUND), stored(tmp_path, LABELS, "t.zarr")
    before = sorted(tmp_path.rglob("*"))
    evaluated(*paths)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_small_evaluation_that_is_stopped_says_so(tmp_path: Path) -> None:
    paths = stored(tmp_path, FOUND, chunks=(1, 40, 50)), stored(tmp_path, LABELS, "t.zarr")
    with pytest.raises(Unfinished, match="counts of a small evaluation are not stored"):
        evaluate_volume(EvaluateRequest(prediction=paths[0], truth=paths[1], block_voxels=2000), stopping=lambda: True)


def test_counts_of_a_large_evaluation_are_stored_next_to_the_prediction(
    tmp_path: Path, request_: EvaluateRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate_module, "MAX_WORK_IN_PROCESS", 1000)
    store = zarr.create_group(tmp_path / "big.zarr")
    store.create_array("labels/found/0", data=FOUND, chunks=(3, 16, 20))
    request = EvaluateRequest(
        prediction=str(tmp_path / "big.zarr/labels/found"), truth=request_.truth, block_voxels=960
    )
    place = tmp_path / "big.zarr.run" / "evaluate"
    with pytest.raises(Unfinished, match="27 of 27 blocks not counted; the same command continues"):
        evaluate_volume(request, stopping=lambda: True)
    assert place.is_dir()
    assert scores(request)["cells"]["seg"] > 0
    assert not place.parent.exists()


def test_the_same_command_continues(tmp_path: Path, request_: EvaluateRequest) -> None:
    asked: list[int] = []

    def stopping() -> bool:
        asked.append(1)
        return len(asked) > 10

    with pytest.raises(Unfinished, match="blocks not counted"):
        evaluate_volume(request_, stopping=stopping)
    done = len(list((tmp_path / "run" / "counts").rglob("*.tables")))
    assert 5 < done < 20
    progress: list[int] = []
    found = scores(request_, report=lambda done, total: progress.append(done))
    assert progress[0] > 0
    assert found == scores(EvaluateRequest(**{**vars_of(request_), "run_folder": None}))


def vars_of(request: EvaluateRequest) -> dict[str, Any]:
    return vars(request)


def test_other_settings_or_data_start_again(tmp_path: Path, request_: EvaluateRequest) -> None:
    with pytest.raises(Unfinished):
        evaluate_volume(request_, stopping=iter([False] * 5 + [True] * 99).__next__)
    counted = len(list((tmp_path / "run" / "counts").rglob("*.tables")))
    assert counted
    other = EvaluateRequest(**{**vars_of(request_), "ignore": 1})
    progress: list[int] = []
    found = scores(other, report=lambda done, total: progress.append(done))
    assert progress[0] == 0
    assert found == scores(EvaluateRequest(**{**vars_of(other), "run_folder": None}))


def step_of(request: EvaluateRequest) -> EvaluateStep:
    """Step of an evaluation, with the run folder of the request."""
    assert request.run_folder
    paths = EvaluationPaths(prediction=request.prediction, truth=request.truth, mask=None, threads=2)
    return EvaluateStep(folder=RunFolder(request.run_folder), plan=ResolvedRequest.of(request).plan, paths=paths)


@pytest.mark.parametrize(
    "place", [pytest.param(name, marks=[pytest.mark.slow] if name != "dask" else []) for name in PLACES]
)
def test_any_executor_counts(
    tmp_path: Path, request: pytest.FixtureRequest, request_: EvaluateRequest, place: str
) -> None:
    evaluation, step = ResolvedRequest.of(request_), step_of(request_)
    with launching(step, RunOptions()):
        prepare(step)
    with place_of(place, request)(tmp_path / "run") as executor:
        failures = executor.run(
            StepTask(EvaluateStep), step.folder.path, to_ranges(np.arange(27)), tick=lambda: None, stopping=bool
        )
    assert not failures
    assert step.ledger.refresh().complete
    kept = (Counts.from_arrays(step.counts.load(number)) for number in range(27))
    counts = total_counts(step.plan, kept)
    expected = total_counts(step.plan, map(BlockCounter(step.plan, evaluation.pair), range(27)))
    there, wanted = counts.to_arrays(), expected.to_arrays()
    assert there.keys() == wanted.keys()
    assert all(np.array_equal(there[name], wanted[name]) for name in there)


@pytest.mark.slow  # jobs on SLURM count in the default tier, above
def test_worker_processes_give_the_same_scores(request_: EvaluateRequest) -> None:
    assert scores(request_, where=ClusterOptions(workers=2)) == scores(request_)


def test_a_damaged_block_is_refused_with_its_place_and_the_others_are_counted(
    tmp_path: Path, request_: EvaluateRequest
) -> None:
    chunk = next(path for path in sorted((tmp_path / "p.zarr").rglob("c/1/1/*")) if path.is_file())
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:-7])
    with pytest.raises(
        UnetcliError, match=r"cannot read z 3:6, y 16:32, .*; scores need every voxel; restore"
    ) as caught:
        evaluate_volume(request_)
    assert not isinstance(caught.value, Unfinished)
    assert counted(tmp_path / "run") == 26
    chunk.write_bytes(whole)
    assert scores(request_)["cells"]["seg"] > 0


def test_values_that_are_not_probabilities_are_refused(tmp_path: Path, request_: EvaluateRequest) -> None:
    values = np.full(LABELS.shape, 2.5, np.float32)
    request = EvaluateRequest(prediction=stored(tmp_path, values, "v.zarr"), truth=request_.truth)
    with pytest.raises(UnetcliError, match=r"v\.zarr: values from 2\.5 to 2\.5; expected probabilities 0 to 1"):
        evaluate_volume(request)


def kill_once_it_counts(words: list[str], folder: Path) -> None:
    before = counted(folder)
    process = Command(*words)
    wait_for(lambda: process.poll() is not None or counted(folder) > before)
    process.kill()
    process.wait()


def counted(folder: Path) -> int:
    """Number of files of counts; folders may be deleted meanwhile."""
    return sum(name.endswith(".tables") for _, _, names in os.walk(folder) for name in names)


def test_an_evaluation_killed_at_any_time_continues_to_the_same_scores(
    tmp_path: Path, request_: EvaluateRequest
) -> None:
    words = ["evaluate", request_.prediction, request_.truth, "--metrics", "pixels,cells,voi", "--json"]
    words += ["--block-voxels", "960", "--run-folder", str(tmp_path / "run")]
    for _ in range(3):
        kill_once_it_counts(words, tmp_path / "run")
    output = json.loads(finished(*words).stdout)
    expected = scores(EvaluateRequest(**{**vars_of(request_), "run_folder": None}))
    assert {metric: output[metric] for metric in expected} == expected


def test_jobs_request_memory_by_block_size(request_: EvaluateRequest) -> None:
    asked, blocks = job_request(ClusterOptions(cluster="slurm"), step_of(request_))
    assert (asked.mem, blocks > 27) == ("2G", True)
    chosen = ClusterOptions(cluster="slurm", mem="9G", blocks_per_job=4)
    asked, blocks = job_request(chosen, step_of(request_))
    assert (asked.mem, blocks) == ("9G", 4)


@pytest.mark.by_default("misnamed-repair", "torn-", "gone-repair")
@pytest.mark.parametrize("repair", [False, True], ids=["", "repair"])
@pytest.mark.parametrize("how", ["torn", "gone", pytest.param("of another block", marks=pytest.mark.slow), "misnamed"])
def test_damaged_counts_are_found_by_verify_and_counted_again(
    tmp_path: Path, request_: EvaluateRequest, how: str, repair: bool
) -> None:
    with pytest.raises(Unfinished):
        evaluate_volume(request_, stopping=iter([False] * 12 + [True] * 99).__next__)
    first, second, *_ = sorted((tmp_path / "run").rglob("*.tables"))
    if how == "gone":
        first.unlink()
    elif how == "misnamed":
        first.write_bytes(first.read_bytes().replace(b'"confusions/counts"', b'"confusions/countz"'))
    else:
        first.write_bytes(first.read_bytes()[:-9] if how == "torn" else second.read_bytes())
    verify = VerifyRequest(output=request_.prediction, run_folder=tmp_path / "run", repair=repair)
    (found,) = verify_output(verify)
    assert found.damaged[0].place == "z 0:3, y 0:16, x 0:20"
    assert (len(found.damaged), found.sound) == (1, False)
    assert scores(request_) == scores(EvaluateRequest(**{**vars_of(request_), "run_folder": None}))
