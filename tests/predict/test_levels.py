"""Coarser levels as stages of predict: frozen, resumable, with their own receipts, and added to a finished output."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from helpers import grey, read_receipts, write_model, write_zarr

import unetcli.engine.run as running
import unetcli.planning.pyramid_plan as sizes
from unetcli.core.errors import UnetcliError
from unetcli.core.ranges import to_ranges
from unetcli.engine import clusters, worker
from unetcli.engine.levels import halved
from unetcli.engine.receipts import UNUSABLE, read_failures
from unetcli.engine.run import RunOptions, launching, prepare
from unetcli.engine.runfolder import RunFolder
from unetcli.engine.worker import StepTask
from unetcli.engine.workers import Heartbeat
from unetcli.executors.contract import JobFailure
from unetcli.planning import planner
from unetcli.predict.request import PredictRequest
from unetcli.predict.run import predict_volume, resolve_step
from unetcli.predict.step import PredictStep
from unetcli.volumes.opening import open_volume

OUTPUT = Path("big.pred.zarr")
FOLDER = RunFolder(Path("big.pred.zarr.run/predict"))
REQUEST = PredictRequest(volume="big.zarr", model=Path("model"), device="cpu")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a model, and a complete output of five sections without coarser levels."""
    folder = tmp_path_factory.mktemp("levels")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(planner, "CHUNK", 64)
        write_model(Path("model"))
        write_zarr(Path("big.zarr"), grey(5, 88, 75), chunks=(1, 44, 38))
        predict_volume(REQUEST)
    return folder


@pytest.fixture(autouse=True)
def request_(tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> PredictRequest:
    """Request to add levels to a copy of the output; blocks are so small that there are several stages of levels."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(planner, "CHUNK", 64)
    monkeypatch.setattr(sizes, "BLOCK_VOXELS", 64)
    monkeypatch.setattr(sizes, "BLOCK_CHUNKS", 1)
    monkeypatch.setattr(sizes, "SMALL_VOXELS", 64)
    return replace(REQUEST, levels=5)


def step() -> PredictStep:
    opened = PredictStep.open(FOLDER)
    opened.ledger.refresh()
    return opened


def begin(request: PredictRequest) -> PredictStep:
    """Prepare a run as a launcher does before the first block."""
    begun = resolve_step(request)
    with launching(begun, RunOptions()):
        prepare(begun)
    return begun


def files() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in OUTPUT.rglob("*") if path.is_file()}


def shown() -> int:
    return len(zarr.open_group(OUTPUT, mode="r").attrs["ome"]["multiscales"][0]["datasets"])


def receipts() -> list[int]:
    n = step().plan.blocks
    return sorted(receipt.block - n for receipt in read_receipts(FOLDER.receipts) if receipt.block >= n)


def test_levels_added_later_are_listed_once_all_their_blocks_have_valid_receipts(request_: PredictRequest) -> None:
    full = files()
    assert predict_volume(request_).complete
    made = step()
    assert len(made.levels.stages) > 1
    assert receipts() == list(range(made.levels.blocks))
    assert all(made.read_back(number) == made.ledger.checksum(number) for number in range(made.blocks))
    assert files().items() >= {path: data for path, data in full.items() if path.startswith(f"{OUTPUT}/0")}.items()
    values = open_volume(OUTPUT).read(open_volume(OUTPUT).whole())[0]
    for level in range(1, 5):
        values = halved(values)
        assert np.array_equal(zarr.open_array(OUTPUT / str(level), mode="r")[...], values)
    assert shown() == 5


def test_levels_stopped_often_have_the_same_bytes_and_no_block_is_built_twice(
    request_: PredictRequest,
) -> None:
    predict_volume(request_)
    whole, count = files(), len(receipts())
    for level in range(1, 5):
        shutil.rmtree(OUTPUT / str(level))
    begin(request_)  # notices that the levels are missing
    before = len(receipts())
    for _ in range(count):
        begun = begin(request_)
        todo = begun.pending()
        begun.prepare_stage(begun.stage_of(int(todo[0])))
        answers = iter([False])
        assert StepTask(PredictStep)(str(FOLDER.path), to_ranges(todo), lambda: next(answers, True)) == 1  # noqa: B023
    assert len(receipts()) - before == count
    assert predict_volume(request_).complete
    assert files() == whole


def test_beginning_again_touches_nothing(request_: PredictRequest) -> None:
    predict_volume(request_)
    before = files()
    assert len(begin(request_).pending()) == 0
    assert files() == before


def test_a_rerun_without_the_option_keeps_the_levels(request_: PredictRequest) -> None:
    predict_volume(request_)
    before = files()
    assert predict_volume(replace(request_, levels=1)).complete
    assert (files(), shown()) == (before, 5)


def test_another_number_of_levels_hides_the_existing_ones_until_it_is_complete(request_: PredictRequest) -> None:
    predict_volume(request_)
    fewer = replace(request_, levels=3)
    assert len(begin(fewer).pending()) > 0
    assert shown() == 1
    assert predict_volume(fewer).complete
    assert shown() == 3


def test_levels_of_a_recomputed_block_are_built_again(request_: PredictRequest) -> None:
    predict_volume(request_)
    before = files()
    file = next(iter(sorted(FOLDER.receipts.glob("*.txt"))))
    lines = file.read_text().splitlines(keepends=True)
    lost = next(line for line in lines if line.split()[0] == "0" and line.split()[2] == "done")
    file.write_text("".join(line for line in lines if line != lost))
    begun = begin(request_)
    missing = set(begun.ledger.refresh().missing.tolist())
    assert missing == {0, *(begun.plan.blocks + n for n in begun.levels.dependents(begun.plan.grid.box(0)))}
    assert len(missing) > len(begun.levels.stages)
    worker._opened.cache_clear()  # as in a process that has not seen the lost receipt
    assert predict_volume(request_).complete
    assert files() == before


def test_a_damaged_chunk_of_full_resolution_fails_only_its_block_and_names_the_place(request_: PredictRequest) -> None:
    chunk = next(path for path in sorted((OUTPUT / "0" / "c" / "2").rglob("*")) if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-7])
    summary = predict_volume(replace(request_, levels=2))
    assert (summary.complete, summary.levels_missing) == (False, 1)
    (failure,) = read_failures(FOLDER.failures)
    assert [failure.block] == step().ledger.missing.tolist()
    assert failure.kind == UNUSABLE
    assert "big.pred.zarr/0: cannot read z 2:3" in failure.reason


class Failing:
    """An executor whose jobs all fail."""

    def run(self, *words: Any, **options: Any) -> list[JobFailure]:
        return [JobFailure(job="7", host="n1", reason="killed", final=True)]


def test_failed_jobs_of_the_levels_are_named(request_: PredictRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "executor_for", lambda where, step: nullcontext(Failing()))
    summary = predict_volume(request_)
    assert (summary.finished, summary.complete) == (False, False)
    assert summary.levels_missing == step().levels.blocks
    assert summary.failed_jobs == ["job 7 on n1: killed"]
    assert "1 job failed; the same command continues" in summary.sentence


def test_the_plan_does_not_change_while_a_worker_uses_it(
    request_: PredictRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the receipts of that worker would count for other blocks."""
    predict_volume(request_)
    monkeypatch.setattr(clusters, "SECONDS_TO_FINISH", 0.1)
    before = FOLDER.plan_file.read_text()
    with Heartbeat(FOLDER.workers, 1), pytest.raises(UnetcliError, match="in use by 1 worker of an earlier launch"):
        predict_volume(replace(request_, levels=3))
    assert FOLDER.plan_file.read_text() == before
    assert predict_volume(replace(request_, levels=3)).complete


def test_damaged_metadata_of_a_level_are_written_again(request_: PredictRequest) -> None:
    predict_volume(request_)
    before = files()
    (OUTPUT / "1" / "zarr.json").write_text("{")
    assert predict_volume(request_).complete
    assert files() == before
