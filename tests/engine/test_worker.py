"""Errors in a worker: damaged data, too little memory, full disks; with real files, limits and mounts."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from commands import Command
from helpers import grey, read_receipts, wait_for, write_model, write_zarr
from plus_one import PlusOne, add_one

from unetcli.core.errors import UnetcliError
from unetcli.engine import worker
from unetcli.engine.receipts import FAILED, UNUSABLE, read_failures
from unetcli.engine.step import BlockResult
from unetcli.engine.worker import StepTask
from unetcli.predict.request import PredictRequest
from unetcli.predict.run import predict_volume
from unetcli.predict.step import PredictStep

FOLDER = Path("big.pred.zarr.run/predict")
SECTIONS = 6


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def request_(model: Path) -> PredictRequest:
    """Make a request with one block per section."""
    write_zarr(Path("big.zarr"), grey(SECTIONS, 40, 50), chunks=(1, 32, 32))
    return PredictRequest(volume="big.zarr", tile=68, device="cpu")


def make_unreadable(section: int) -> Path:
    """Replace a chunk by a link to itself: the file system reports an error even to root."""
    chunk = Path(f"big.zarr/c/{section}/0/1")
    chunk.rename(f"{chunk}.sound")
    chunk.symlink_to(chunk.name)
    return chunk


def mend(chunk: Path) -> None:
    Path(f"{chunk}.sound").replace(chunk)


def stored(path: str = "big.pred.zarr") -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in Path(path, "0").rglob("*") if f.is_file()}


def computed() -> list[int]:
    return sorted(receipt.block for receipt in read_receipts(FOLDER / "receipts"))


def test_a_failed_block_is_tried_once_more_then_set_aside_and_the_rest_goes_on(request_: PredictRequest) -> None:
    make_unreadable(2)
    summary = predict_volume(request_)
    assert (summary.complete, summary.computed) == (False, SECTIONS - 1)
    assert [(aside["block"], aside["place"]) for aside in summary.set_aside] == [(2, "z 2:3, y 0:40, x 0:50")]
    failures = list(read_failures(FOLDER / "failures"))
    assert [(failure.block, failure.kind) for failure in failures] == [(2, FAILED)] * 2
    assert "symbolic links" in failures[0].reason
    assert "\n" not in failures[0].reason
    assert "Traceback" in failures[0].traceback
    assert "volume.py" in failures[0].traceback


def test_a_block_that_fails_once_is_computed_in_a_retry(
    request_: PredictRequest, caplog: pytest.LogCaptureFixture
) -> None:
    predict_volume(replace(request_, output=Path("sound.zarr")))
    chunk = make_unreadable(2)

    class Mending(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "retrying" in record.getMessage():
                mend(chunk)

    log, handler = logging.getLogger("unetcli.engine.run"), Mending()
    caplog.set_level(logging.INFO, "unetcli")
    log.addHandler(handler)
    try:
        summary = predict_volume(request_)
    finally:
        log.removeHandler(handler)
    assert (summary.complete, summary.computed, summary.set_aside) == (True, SECTIONS, [])
    assert stored() == stored("sound.zarr")


@pytest.mark.parametrize("large", [{2}, {0, 1}, {0, 5}], ids=str)
def test_blocks_that_need_too_much_memory_are_set_aside_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, large: set[int]
) -> None:
    add = PlusOne._add

    def adding(step: PlusOne, number: int) -> BlockResult:
        if number in large:
            np.empty(2**60, np.uint8)
        return add(step, number)

    monkeypatch.setattr(PlusOne, "_add", adding)
    write_zarr(Path("in.zarr"), grey(SECTIONS, 8, 8), (1, 8, 8))
    outcome = add_one("in.zarr", Path("out.zarr"))
    assert not outcome.complete
    assert [each.block for each in outcome.set_aside] == sorted(large)
    assert outcome.set_aside[0].place == f"z {min(large)}:{min(large) + 1}, y 0:8, x 0:8"
    assert outcome.set_aside[0].reason.startswith("not enough memory (Unable to allocate 1.00 EiB")
    assert "--block-voxels" in outcome.set_aside[0].reason
    large.clear()
    assert add_one("in.zarr", Path("out.zarr")).complete


@pytest.mark.parametrize("sections", [1, 2, SECTIONS])
def test_a_run_of_which_no_block_fits_into_memory_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, sections: int
) -> None:
    monkeypatch.setattr(PlusOne, "_add", lambda step, number: np.empty(2**60, np.uint8))
    write_zarr(Path("in.zarr"), grey(sections, 8, 8), (1, 8, 8))
    with pytest.raises(UnetcliError, match=r"not enough memory \(Unable to allocate 1\.00 EiB.*--block-voxels"):
        add_one("in.zarr", Path("out.zarr"))


def test_damage_is_not_tried_again(request_: PredictRequest) -> None:
    for section in (0, 1, 2, 3):  # more than would stop a run if the host were the cause
        Path(f"big.zarr/c/{section}/0/0").write_bytes(b"damaged")
    summary = predict_volume(request_)
    assert [aside["block"] for aside in summary.set_aside] == [0, 1, 2, 3]
    assert [failure.kind for failure in read_failures(FOLDER / "failures")] == [UNUSABLE] * 4
    assert summary.computed == SECTIONS - 4


def test_the_first_blocks_failing_equally_stop_the_run_until_the_next_launch(
    request_: PredictRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "STOP_POLL_SECONDS", 0)
    chunks = [make_unreadable(section) for section in range(SECTIONS)]
    with pytest.raises(UnetcliError, match="first 3 blocks all failed with the same error") as caught:
        predict_volume(request_)
    assert "\n" not in str(caught.value)
    assert len(list(read_failures(FOLDER / "failures"))) == 3
    assert "Traceback" in (FOLDER / "stop").read_text()
    for chunk in chunks:
        mend(chunk)
    assert StepTask(PredictStep)(str(FOLDER), ((0, SECTIONS),)) == 0  # another worker starts no block
    assert predict_volume(request_).complete
    assert not (FOLDER / "stop").exists()


def test_equal_failures_stop_no_host_that_has_finished_blocks(request_: PredictRequest) -> None:
    for section in (1, 2, 3, 4):
        make_unreadable(section)
    first = predict_volume(request_)  # in the retry, all blocks fail with the same error
    again = predict_volume(request_)
    assert (first.computed, again.computed) == (2, 0)
    assert (
        [aside["block"] for aside in first.set_aside] == [aside["block"] for aside in again.set_aside] == [1, 2, 3, 4]
    )


def test_finished_blocks_are_not_recomputed_and_a_run_started_over_is_noticed(request_: PredictRequest) -> None:
    predict_volume(request_)
    folder = str(FOLDER.absolute())  # launchers pass absolute paths
    assert StepTask(PredictStep)(folder, ((0, SECTIONS),)) == 0
    predict_volume(replace(request_, overwrite=True), stopping=lambda: True)
    assert StepTask(PredictStep)(folder, ((1, 2), (3, 5))) == 3  # in a process that has read the earlier receipts
    assert computed() == [1, 3, 4]


LIMITED = """
import resource
from pathlib import Path
from unetcli.core.process import prepare
prepare()
import torch
from unetcli.predict.request import PredictRequest
from unetcli.predict.run import predict_volume
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 390 * 2**20,) * 2)
summary = predict_volume(PredictRequest(volume="wide.zarr", output=Path("tight.zarr"), tile=996, device="cpu"))
assert summary.complete, summary.set_aside
"""


@pytest.mark.slow
def test_too_little_memory_means_smaller_tiles_and_the_same_result(tmp_path: Path) -> None:
    write_model(tmp_path / "model", base_channels=16)
    write_zarr(Path("wide.zarr"), grey(1, 790, 780), chunks=(1, 256, 256))  # one tile of 996
    free = PredictRequest(volume="wide.zarr", output=Path("free.zarr"), tile=996, device="cpu")
    assert predict_volume(free).complete
    # Freed memory does not count, because the limit is on address space.
    environment = os.environ | {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "1048576"}
    command = [sys.executable, "-W", "ignore", "-c", LIMITED]
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "out of memory" in done.stderr
    names = "free.zarr", "tight.zarr"
    wide, narrow = ({r.tile for r in read_receipts(Path(f"{name}.run/predict/receipts"))} for name in names)
    assert wide == {996}
    assert max(narrow) < 996
    free, tight = (np.asarray(zarr.open_array(f"{name}/0", mode="r")[...]).astype(int) for name in names)
    assert np.abs(free - tight).max() <= 1


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    """Mount a small file system."""
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def remount(place: Path, option: str) -> bool:
    return subprocess.run(["mount", "-o", f"remount,{option}", place], capture_output=True, check=False).returncode == 0


def remount_under(process: Command, place: Path) -> bool:
    """Make a disk read-only, unless the process has a file there open for writing. The process is stopped meanwhile."""
    process.send_signal(signal.SIGSTOP)
    try:
        return remount(place, "ro")
    finally:
        process.send_signal(signal.SIGCONT)


Cli = Callable[..., subprocess.CompletedProcess[str]]


def test_a_full_disk_gets_one_line_and_the_same_command_continues(tmp_path: Path, model: Path, unetcli: Cli) -> None:
    write_zarr(Path("big.zarr"), grey(8, 128, 128), chunks=(1, 128, 128))
    words = ("predict", "big.zarr", "--dtype", "float32", "--device", "cpu", "--tile", "132", "--json", "-o")
    assert unetcli(*words, "whole.zarr").returncode == 0
    with small_disk(tmp_path / "disk", "300k") as disk:
        for _ in range(2):  # while the disk is full
            full = unetcli("-q", *words, disk / "out.zarr")
            assert full.returncode == 1, full.stderr
            assert len(full.stderr.strip().splitlines()) == 1, full.stderr
            assert f"{disk}/out.zarr: cannot write" in full.stderr
            assert "No space left" in full.stderr
        assert remount(disk, "size=8m")
        done = unetcli(*words, disk / "out.zarr")
        assert done.returncode == 0, done.stderr
        summary = json.loads(done.stdout)
        assert summary["complete"]
        assert 0 < summary["found_done"] < 8
        assert stored(str(disk / "out.zarr")) == stored("whole.zarr")
        assert not list(disk.rglob("*.partial"))


@pytest.mark.slow
def test_a_disk_that_becomes_read_only_gets_one_line_and_the_same_command_continues(
    tmp_path: Path, unetcli: Cli
) -> None:
    write_model(tmp_path / "model", depth=3, base_channels=8)
    write_zarr(Path("big.zarr"), grey(90, 250, 250), chunks=(1, 250, 250))  # receipts of a second are written together
    words = ["predict", "big.zarr", "--dtype", "float32", "--device", "cpu", "-o"]
    assert unetcli(*words, "whole.zarr").returncode == 0
    with small_disk(tmp_path / "disk", "64m") as disk:
        process = Command("-q", *words, disk / "out.zarr", talk=Path("talk.txt"))
        receipts = disk / "out.zarr.run/predict/receipts"
        wait_for(lambda: list(receipts.glob("*.txt")) and remount_under(process, disk))
        code = process.wait()
        said = process.talk.read_text()
        assert code == 1, said
        assert len(said.strip().splitlines()) == 1, said
        assert f"{disk}/out.zarr: cannot write" in said
        assert "Read-only file system" in said
        before = len(list(read_receipts(receipts)))
        again = unetcli("-q", *words, disk / "out.zarr")
        assert (again.returncode, len(again.stderr.strip().splitlines())) == (1, 1), again.stderr
        assert remount(disk, "rw")
        done = unetcli(*words, disk / "out.zarr", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["found_done"] == before
        assert stored(str(disk / "out.zarr")) == stored("whole.zarr")
        assert not list(disk.rglob("*.partial"))
