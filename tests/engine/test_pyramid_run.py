"""The pyramid as a step of a run: frozen, resumable, with receipts of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from helpers import grey, write_zarr

import unetcli.planning.pyramid_plan as sizes
from unetcli.core.ranges import to_ranges
from unetcli.engine import prediction
from unetcli.engine.prediction import predict_volume
from unetcli.engine.pyramid import halved
from unetcli.engine.pyramid_run import PyramidRun, build_blocks
from unetcli.engine.receipts import read_receipts
from unetcli.engine.runfolder import RunFolder
from unetcli.engine.troubles import UNUSABLE, read_troubles
from unetcli.executors.contract import JobFailure
from unetcli.predict.request import PredictRequest
from unetcli.volumes.opening import open_volume
from unetcli.volumes.output import Output

OUTPUT = Path("big.pred.zarr")
FOLDER = Path("big.pred.zarr.run/pyramid")


@pytest.fixture(autouse=True)
def _predicted(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A complete output of five sections, and blocks so small that there are several stages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sizes, "BLOCK_VOXELS", 64)
    monkeypatch.setattr(sizes, "BLOCK_CHUNKS", 1)
    monkeypatch.setattr(sizes, "SMALL_VOXELS", 64)
    write_zarr(Path("big.zarr"), grey(5, 700, 600), chunks=(1, 350, 300))
    predict_volume(PredictRequest(volume="big.zarr", model=model, device="cpu"))


def begun(levels: int | None = 5) -> PyramidRun:
    predicted = RunFolder.of(OUTPUT)
    plan = predicted.plan()
    assert plan is not None
    finest = predicted.ledger(plan.blocks).refresh()
    return PyramidRun.begin(RunFolder(FOLDER), Output(OUTPUT, plan), predicted.places(), levels, finest)


def make(run: PyramidRun, stopping: Callable[[], bool] = bool) -> int:
    """All stages in turn, as long as that leads anywhere."""
    ledger, made = run.ledger(), 0
    while len(todo := run.pending(ledger)):
        finished = build_blocks(str(run.folder.path), to_ranges(todo), stopping)
        made += finished
        if not finished:
            break
    return made


def files() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in OUTPUT.rglob("*") if path.is_file()}


def test_a_pyramid_shows_once_all_its_blocks_have_receipts_that_hold() -> None:
    run = begun()
    assert len(run.pyramid.plan.stages) > 1
    assert not run.close(run.ledger())
    assert make(run) == run.pyramid.plan.blocks
    assert run.close(run.ledger())
    receipts = {receipt.block: receipt for receipt in read_receipts(run.folder.receipts)}
    assert sorted(receipts) == list(range(run.pyramid.plan.blocks))
    assert all(run.pyramid.checksum(number) == receipt.checksum for number, receipt in receipts.items())
    values = open_volume(OUTPUT).read(open_volume(OUTPUT).whole())[0]
    for level in range(1, 5):
        values = halved(values)
        assert np.array_equal(zarr.open_array(OUTPUT / str(level), mode="r")[...], values)
    assert len(zarr.open_group(OUTPUT, mode="r").attrs["ome"]["multiscales"][0]["datasets"]) == 5


def test_stopped_again_and_again_it_comes_out_the_same_and_nothing_is_made_twice() -> None:
    make(run := begun())
    run.close(run.ledger())
    whole, receipts = files(), len(list(read_receipts(run.folder.receipts)))
    for level in range(1, 5):
        for path in sorted((OUTPUT / str(level)).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (OUTPUT / str(level)).rmdir()
    made = 0
    for _ in range(receipts):
        answers = iter([False])
        made += build_one(begun(), lambda: next(answers, True))  # noqa: B023 - called at once
    run = begun()
    assert (made, make(run)) == (receipts, 0)
    assert run.close(run.ledger())
    assert files() == whole


def build_one(run: PyramidRun, stopping: Callable[[], bool]) -> int:
    return build_blocks(str(run.folder.path), to_ranges(run.pending(run.ledger())), stopping)


def test_beginning_again_touches_nothing() -> None:
    make(run := begun())
    run.close(run.ledger())
    before = files()
    again = begun()
    assert len(again.pending(again.ledger())) == 0
    assert files() == before


def test_other_voxels_or_other_levels_hide_what_was_made() -> None:
    make(run := begun())
    run.close(run.ledger())
    fewer = begun(levels=3)
    assert len(fewer.pending(fewer.ledger())) > 0
    assert len(zarr.open_group(OUTPUT, mode="r").attrs["ome"]["multiscales"][0]["datasets"]) == 1
    make(fewer)
    assert fewer.close(fewer.ledger())
    receipts = next(iter(RunFolder.of(OUTPUT).receipts.glob("*.txt")))
    receipts.write_text("".join(receipts.read_text().splitlines(keepends=True)[:-1]))  # a block was made anew
    changed = begun(levels=3)
    assert len(changed.pending(changed.ledger())) > 0
    assert len(zarr.open_group(OUTPUT, mode="r").attrs["ome"]["multiscales"][0]["datasets"]) == 1


def test_a_damaged_chunk_below_fails_its_block_with_the_place_and_no_other() -> None:
    chunk = next(path for path in sorted((OUTPUT / "0" / "c" / "2").rglob("*")) if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-7])
    run = begun(levels=2)
    assert make(run) == run.pyramid.plan.blocks - 1
    assert not run.close(run.ledger())
    troubles = list(read_troubles(run.folder.troubles))
    assert {trouble.block for trouble in troubles} == set(run.pending(run.ledger()))
    trouble = troubles[0]
    assert trouble.kind == UNUSABLE
    assert "big.pred.zarr/0: cannot read z 2:3" in trouble.reason


class Failing:
    """An executor none of whose jobs comes to anything."""

    def run(self, *words: Any, **options: Any) -> list[JobFailure]:
        return [JobFailure(job="7", host="n1", reason="killed", final=True)]


def test_jobs_that_fail_at_the_levels_are_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction, "executor_for", lambda where, run: nullcontext(Failing()))
    summary = predict_volume(PredictRequest(volume="big.zarr", model=model, device="cpu", levels=5))
    assert (summary.finished, summary.complete) == (False, False)
    assert summary.levels_missing == begun().pyramid.plan.blocks
    assert summary.failed_jobs == ["job 7 on n1: killed"]
    assert "1 jobs failed; the same command continues" in summary.sentence
