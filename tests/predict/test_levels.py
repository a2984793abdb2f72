"""Coarser levels as stages of predict: frozen, resumable, with receipts of their own; added to a finished output."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from helpers import grey, write_zarr

import unetcli.engine.run as running
import unetcli.planning.pyramid_plan as sizes
from unetcli.core.errors import UnetcliError
from unetcli.core.ranges import to_ranges
from unetcli.engine import clusters, worker
from unetcli.engine.levels import halved
from unetcli.engine.receipts import UNUSABLE, read_failures, read_receipts
from unetcli.engine.run import RunOptions, launching, prepare
from unetcli.engine.runfolder import RunFolder
from unetcli.engine.worker import StepTask
from unetcli.engine.workers import Heartbeat
from unetcli.executors.contract import JobFailure
from unetcli.predict.request import PredictRequest
from unetcli.predict.run import predict_volume, resolve_step
from unetcli.predict.step import PredictStep
from unetcli.volumes.opening import open_volume

OUTPUT = Path("big.pred.zarr")
FOLDER = RunFolder(Path("big.pred.zarr.run/predict"))


@pytest.fixture(autouse=True)
def request_(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> PredictRequest:
    """A complete output of five sections, and blocks so small that there are several stages of levels."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sizes, "BLOCK_VOXELS", 64)
    monkeypatch.setattr(sizes, "BLOCK_CHUNKS", 1)
    monkeypatch.setattr(sizes, "SMALL_VOXELS", 64)
    write_zarr(Path("big.zarr"), grey(5, 700, 600), chunks=(1, 350, 300))
    request = PredictRequest(volume="big.zarr", model=model, device="cpu")
    predict_volume(request)
    return replace(request, levels=5)


def step() -> PredictStep:
    opened = PredictStep.open(FOLDER)
    opened.ledger.refresh()
    return opened


def begin(request: PredictRequest) -> PredictStep:
    """The run as a launcher has it before the first block."""
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


def test_levels_added_later_show_once_all_their_blocks_have_receipts_that_hold(request_: PredictRequest) -> None:
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


def test_stopped_again_and_again_they_come_out_the_same_and_nothing_is_made_twice(request_: PredictRequest) -> None:
    predict_volume(request_)
    whole, count = files(), len(receipts())
    for level in range(1, 5):
        shutil.rmtree(OUTPUT / str(level))
    begin(request_)  # notices that they are gone
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


def test_who_says_nothing_of_levels_keeps_those_that_there_are(request_: PredictRequest) -> None:
    predict_volume(request_)
    before = files()
    assert predict_volume(replace(request_, levels=1)).complete
    assert (files(), shown()) == (before, 5)


def test_another_number_of_levels_hides_what_was_made(request_: PredictRequest) -> None:
    predict_volume(request_)
    fewer = replace(request_, levels=3)
    assert len(begin(fewer).pending()) > 0
    assert shown() == 1
    assert predict_volume(fewer).complete
    assert shown() == 3


def test_levels_of_a_block_that_is_computed_again_are_made_again(request_: PredictRequest) -> None:
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


def test_a_damaged_chunk_below_fails_its_block_with_the_place_and_no_other(request_: PredictRequest) -> None:
    chunk = next(path for path in sorted((OUTPUT / "0" / "c" / "2").rglob("*")) if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-7])
    summary = predict_volume(replace(request_, levels=2))
    assert (summary.complete, summary.levels_missing) == (False, 1)
    (failure,) = read_failures(FOLDER.failures)
    assert [failure.block] == step().ledger.missing.tolist()
    assert failure.kind == UNUSABLE
    assert "big.pred.zarr/0: cannot read z 2:3" in failure.reason


class Failing:
    """An executor none of whose jobs comes to anything."""

    def run(self, *words: Any, **options: Any) -> list[JobFailure]:
        return [JobFailure(job="7", host="n1", reason="killed", final=True)]


def test_jobs_that_fail_at_the_levels_are_named(request_: PredictRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "executor_for", lambda where, step: nullcontext(Failing()))
    summary = predict_volume(request_)
    assert (summary.finished, summary.complete) == (False, False)
    assert summary.levels_missing == step().levels.blocks
    assert summary.failed_jobs == ["job 7 on n1: killed"]
    assert "1 jobs failed; the same command continues" in summary.sentence


def test_the_plan_stays_while_a_worker_is_at_work_by_it(
    request_: PredictRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its receipts would count for other blocks."""
    predict_volume(request_)
    monkeypatch.setattr(clusters, "SECONDS_TO_FINISH", 0.1)
    before = FOLDER.plan_file.read_text()
    with Heartbeat(FOLDER.workers, 1), pytest.raises(UnetcliError, match="1 workers of an earlier launch are still at"):
        predict_volume(replace(request_, levels=3))
    assert FOLDER.plan_file.read_text() == before
    assert predict_volume(replace(request_, levels=3)).complete


def test_damaged_metadata_of_a_level_are_made_again(request_: PredictRequest) -> None:
    predict_volume(request_)
    before = files()
    (OUTPUT / "1" / "zarr.json").write_text("{")
    assert predict_volume(request_).complete
    assert files() == before
