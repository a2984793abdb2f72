"""predict in independent processes: each block is computed once, and the last process finishes, despite kills."""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from commands import Command
from helpers import grey, read_receipts, wait_for, write_model, write_zarr

from unetcli.core.errors import UnetcliError
from unetcli.core.lock import InUse, hold
from unetcli.engine import shares
from unetcli.engine.run import RunOptions, RunOutcome, launching, prepare
from unetcli.engine.runfolder import RunFolder
from unetcli.predict import resolve, run
from unetcli.predict.request import PredictRequest
from unetcli.predict.run import close_run, predict_share, predict_volume, resolve_step
from unetcli.predict.step import PredictStep
from unetcli.volumes.image import marker

FOLDER, STORE = Path("big.pred.zarr.run/predict"), Path("big.pred.zarr")
SECTIONS = 11


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def request_(model: Path) -> PredictRequest:
    """Make a request with one block per section."""
    write_zarr(Path("big.zarr"), grey(SECTIONS, 40, 50), chunks=(1, 32, 32))
    return PredictRequest(volume="big.zarr", tile=68, device="cpu")


def start(*words: str) -> Command:
    """Start the command without waiting; its messages go to a file."""
    return Command("-q", "predict", "big.zarr", "--device", "cpu", *words, talk=Path(f"{secrets.token_hex(4)}.txt"))


def said(process: Command, code: int) -> str:
    """Wait for a process to end with the given exit code, and return its messages."""
    returned = process.wait()
    errors = process.talk.read_text()
    assert returned == code, errors
    return errors.strip()


def endless(sections: int = 100_000) -> None:
    """Make a volume of more sections than any test waits for; it takes no disk space."""
    zarr.create_array("big.zarr", shape=(sections, 60, 60), chunks=(1, 60, 60), dtype="uint8", overwrite=True)


def computed() -> list[int]:
    return sorted(receipt.block for receipt in read_receipts(FOLDER / "receipts"))


def voxels(path: Path | str = STORE) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.asarray(zarr.open_array(f"{path}/0", mode="r")[...])


def complete() -> bool:
    return bool((marker(STORE) or {}).get("complete"))


def array_element(
    monkeypatch: pytest.MonkeyPatch, index: int, first: int, last: int, count: int, step: int = 1
) -> None:
    """Set the environment of an element of a job array."""
    values = {"ID": index, "MIN": first, "MAX": last, "COUNT": count, "STEP": step}
    for name, value in values.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))


def test_three_shares_started_at_once_do_each_block_once_and_the_last_closes(request_: PredictRequest) -> None:
    for share in [start("--tile", "68", "--share", f"{number}/3") for number in range(3)]:
        said(share, 0)
    assert complete()
    assert computed() == list(range(SECTIONS))
    assert not list(FOLDER.glob("share-*.lock"))
    assert not list(Path().rglob("*.partial"))
    predict_volume(replace(request_, output=Path("single.zarr")))
    assert np.array_equal(voxels(), voxels("single.zarr"))


def test_a_share_takes_the_choices_that_another_froze_just_before(
    request_: PredictRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, real = replace(request_, tile=None), shares.run_share

    def late(step: PredictStep, *arguments: Any) -> Any:
        monkeypatch.setattr(run, "run_share", real)
        monkeypatch.setattr(resolve, "cpu_tile", lambda *_: 60)
        predict_share(request, (0, 2))
        return real(step, *arguments)

    monkeypatch.setattr(resolve, "cpu_tile", lambda *_: 68)
    monkeypatch.setattr(run, "run_share", late)
    assert predict_share(request, (1, 2)).tile == [1, 60, 60]
    assert complete()
    with pytest.raises(UnetcliError, match=r"tile .*68.* \(was .*60"):
        predict_share(request_, (1, 2))


def test_each_share_reports_its_own_blocks(request_: PredictRequest) -> None:
    Path("big.zarr/c/9/0/0").write_bytes(b"damaged")
    first, second = predict_share(request_, (0, 2)), predict_share(request_, (1, 2))
    assert (first.blocks, first.computed, first.finished, first.complete) == (5, 5, True, False)
    assert (second.blocks, second.computed, second.finished) == (6, 5, False)
    assert [aside["block"] for aside in second.set_aside] == [9]
    again = predict_share(request_, (0, 2))
    assert (again.found_done, again.computed, again.set_aside) == (5, 0, [])


def test_an_array_s_elements_are_its_shares_and_two_of_them_can_be_redone(
    request_: PredictRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in (0, 1, 2, 4, 5, 6):
        array_element(monkeypatch, index, 0, 7, 8)
        predict_share(request_, None)
    assert not complete()
    before = computed()
    for index in (3, 7):  # sbatch --array=3,7
        array_element(monkeypatch, index, 3, 7, 2)
        summary = predict_share(request_, None)
        assert summary.computed == summary.blocks > 0
    assert complete()
    assert computed() == list(range(SECTIONS))
    assert len(before) == SECTIONS - 1 - 2  # share 3 has one block, share 7 two


def test_elements_may_start_anywhere_and_leave_steps(request_: PredictRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in (10, 15, 20):
        array_element(monkeypatch, index, 10, 20, 3, step=5)
        predict_share(request_, None)
    assert complete()
    assert computed() == list(range(SECTIONS))
    array_element(monkeypatch, 16, 10, 20, 3, step=5)
    with pytest.raises(UnetcliError, match="array element 16, but this run was divided into the elements 10-20:5"):
        predict_share(request_, None)


@pytest.mark.parametrize(
    ("element", "message"),
    [
        (None, r"\$SLURM_ARRAY_TASK_ID is not set; outside of a SLURM array"),
        ((3, 3, 7, 2), "is incomplete"),
        ((2, 0, 7, 5), "is incomplete"),
    ],
    ids=str,
)
def test_an_array_that_does_not_say_how_many_shares_there_are_is_refused(
    request_: PredictRequest,
    monkeypatch: pytest.MonkeyPatch,
    element: tuple[int, int, int, int] | None,
    message: str,
) -> None:
    if element:
        array_element(monkeypatch, *element)
    with pytest.raises(UnetcliError, match=message):
        predict_share(request_, None)
    assert computed() == []
    array_element(monkeypatch, 0, 0, 1, 2)  # nothing was frozen
    assert predict_share(request_, None).blocks == 5


def test_the_number_of_shares_is_the_first_one_s(request_: PredictRequest) -> None:
    predict_share(request_, (1, 3))
    with pytest.raises(UnetcliError, match="--share 0/4: this run was divided into 3 shares; use --share I/3"):
        predict_share(request_, (0, 4))
    assert predict_share(replace(request_, overwrite=True), (0, 4)).blocks == 2


def test_more_shares_than_blocks_leave_some_with_nothing(request_: PredictRequest) -> None:
    blocks = [predict_share(request_, (number, 13)).blocks for number in range(13)]
    assert sum(blocks) == SECTIONS
    assert min(blocks) == 0
    assert complete()


def test_no_other_process_computes_a_share_that_is_running(request_: PredictRequest) -> None:
    endless()
    share = start("--share", "1/2")
    wait_for(computed)  # the launcher's lock and its guard are released by then
    os.kill(share.pid, signal.SIGSTOP)  # stays alive until it is killed
    for words in (["--share", "1/2"], []):
        refused = said(start(*words), 1)
        assert len(refused.splitlines()) == 1, refused
        assert f"pid {share.pid}" in refused
    os.kill(share.pid, signal.SIGKILL)
    share.wait()
    before = len(computed())
    other = start("--share", "1/2")
    wait_for(lambda: len(computed()) > before)
    other.send_signal(signal.SIGTERM)
    said(other, 3)
    assert not (FOLDER / "share-1.lock").exists()


def test_of_two_launchers_from_a_fresh_start_one_wins(request_: PredictRequest) -> None:
    endless()
    both = [start(), start()]
    wait_for(lambda: any(process.poll() is not None for process in both))
    loser, winner = sorted(both, key=lambda process: process.poll() is None)
    message = said(loser, 1)
    assert f"pid {winner.pid}" in message
    assert len(message.splitlines()) == 1
    wait_for(lambda: len(computed()) > 0)
    winner.send_signal(signal.SIGTERM)
    said(winner, 3)
    assert len(set(computed())) == len(computed())


@pytest.mark.parametrize(("kills", "sections"), [(1, 12), pytest.param(8, 24, marks=pytest.mark.slow)])
def test_killed_shares_are_redone_to_the_same_bytes(tmp_path: Path, kills: int, sections: int) -> None:
    write_model(tmp_path / "model", depth=3, base_channels=8)
    write_zarr(Path("big.zarr"), grey(sections, 300, 300), chunks=(1, 128, 128))
    predict_volume(PredictRequest(volume="big.zarr", device="cpu", output=Path("single.zarr")))
    chance = random.Random(kills)
    for _ in range(kills):
        shares = [start("--share", f"{number}/3") for number in range(3)]
        known = len(computed()) if FOLDER.exists() else 0
        wait_for(lambda known=known: len(computed()) > known or complete())  # type: ignore[misc]
        time.sleep(chance.uniform(0, 0.3))
        for share in shares:
            share.kill()
            share.wait()
    done = computed()
    for share in [start("--share", f"{number}/3") for number in range(3)]:
        said(share, 0)
    assert complete()
    assert set(computed()) == set(range(sections))
    redone = [block for block in range(sections) if block not in done]
    assert computed() == sorted(done + redone)  # a block with a receipt is not recomputed
    assert np.array_equal(voxels(), voxels("single.zarr"))
    assert not list(STORE.rglob("*.partial"))


def test_closing_marks_what_is_complete_and_nothing_else(request_: PredictRequest) -> None:
    with pytest.raises(UnetcliError, match="nothing to close"):
        close_run(request_)
    assert not STORE.exists()
    predict_share(request_, (0, 2))
    summary = close_run(request_)
    assert (summary.complete, summary.computed, complete()) == (False, 0, False)
    predict_share(request_, (1, 2))
    text = (STORE / "zarr.json").read_text()
    (STORE / "zarr.json").write_text(text.replace('"complete": true', '"complete": false'))  # killed while closing
    assert close_run(request_).complete
    assert close_run(request_).complete
    assert complete()


def test_a_launcher_may_finish_what_shares_began_and_the_other_way_round(request_: PredictRequest) -> None:
    predict_share(request_, (0, 2))
    summary = predict_volume(request_)
    assert (summary.found_done, summary.complete) == (5, True)
    assert predict_share(request_, (1, 2)).found_done == 6


def spoil(sections: range) -> list[Path]:
    """Replace chunks by links to themselves: reading fails even for root."""
    chunks = [Path(f"big.zarr/c/{section}/0/1") for section in sections]
    for chunk in chunks:
        chunk.rename(f"{chunk}.sound")
        chunk.symlink_to(chunk.name)
    return chunks


def test_shares_stopped_by_equal_failures_continue_once_the_cause_is_gone(
    request_: PredictRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = spoil(range(SECTIONS))
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "17")
    for index in range(3):
        array_element(monkeypatch, index, 0, 2, 3)
        with pytest.raises(UnetcliError, match="first 3 blocks all failed with the same error"):
            predict_share(request_, None)
    failures = "".join(path.read_text() for path in (FOLDER / "failures").glob("*.jsonl"))
    assert len(failures.splitlines()) == 3  # later elements of the same array start no block
    for chunk in chunks:
        Path(f"{chunk}.sound").replace(chunk)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "18")
    for index in range(3):
        array_element(monkeypatch, index, 0, 2, 3)
        assert predict_share(request_, None).finished
    assert complete()


def test_take_over_breaks_no_lock_of_a_share_that_sets_up(
    request_: PredictRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict_share(request_, (0, 2))
    monkeypatch.setattr(shares, "WAIT_SECONDS", 0.5)
    with hold(RunFolder(FOLDER).lock), pytest.raises(InUse):
        predict_share(replace(request_, take_over=True), (1, 2))


def test_the_last_share_finishes_by_the_plan_that_holds(
    request_: PredictRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict_share(replace(request_, levels=2), (1, 2))
    finish = shares.finish_if_last

    def after_another_asked(step: PredictStep, options: RunOptions, stopping: Callable[[], bool]) -> RunOutcome | None:
        other = resolve_step(replace(request_, levels=2))
        with launching(other, options, wait=5):
            prepare(other)
        return finish(step, options, stopping)

    monkeypatch.setattr(shares, "finish_if_last", after_another_asked)
    assert predict_share(replace(request_, levels=3), (0, 2)).complete
    assert PredictStep.open(RunFolder(FOLDER)).plan.levels == 2
    image = json.loads(Path("big.pred.zarr/zarr.json").read_text())["attributes"]["ome"]["multiscales"][0]
    assert [entry["path"] for entry in image["datasets"]] == ["0", "1"]
    assert Path("big.pred.zarr/1/zarr.json").exists()


def test_to_close_what_is_not_done_changes_nothing(request_: PredictRequest) -> None:
    predict_share(request_, (0, 2))
    before = (FOLDER / "plan.json").read_text()
    assert not close_run(replace(request_, levels=3)).complete
    assert (FOLDER / "plan.json").read_text() == before
