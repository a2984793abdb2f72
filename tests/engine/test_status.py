"""status, from files alone, with real workers and real kills."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from commands import Command
from helpers import grey, wait_for, write_zarr

from unetcli.core.errors import UnetcliError
from unetcli.engine.receipts import DONE, Receipt
from unetcli.engine.runfolder import RunFolder
from unetcli.engine.status import STATES, Watcher, host_timings
from unetcli.engine.worker import StepTask
from unetcli.engine.workers import read_beats
from unetcli.executors.slurm.watch import OVER, RUNNING, WAITING, JobState
from unetcli.predict.request import PredictRequest
from unetcli.predict.run import predict_volume
from unetcli.predict.step import PredictStep
from unetcli.predict.stores import Paths
from unetcli.registry import steps_of

OUTPUT = "big.pred.zarr"
KEYS = ["blocks", "done", "running", "failed", "missing", "voxels_per_second", "seconds_left", "failures"]
REMOTE = """
import socket, sys, time
from pathlib import Path
from unetcli.engine import workers as heartbeat
socket.gethostname = lambda: "node7"
heartbeat.HEARTBEAT_SECONDS = heartbeat.MEMORY_POLL_SECONDS = 0.1
with heartbeat.Heartbeat(Path(sys.argv[1]), 4) as beat:
    beat.done(10**6)
    time.sleep(600)
"""
"""A worker that appears to run on another machine: neither its host nor its pid can be checked."""


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNETCLI_MODEL", raising=False)


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start Python processes, and kill those that are left at the end."""
    started = []

    def run(*words: str, **environment: str) -> subprocess.Popen[bytes]:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        started.append(subprocess.Popen([sys.executable, *words], env=os.environ | environment, **quiet))  # type: ignore[call-overload]
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


def watcher(output: str, **options: Any) -> Watcher:
    """Follow the first step of an output."""
    return Watcher(steps_of(output)[0], **options)


def long_volume() -> None:
    """Make a volume of enough sections to keep workers busy; it takes no disk space."""
    zarr.create_array("big.zarr", shape=(100_000, 130, 130), chunks=(1, 130, 130), dtype="uint8")


def some_progress() -> bool:
    """Return whether a worker has reported finished blocks and has others left."""
    return any(beat.blocks and beat.blocks_left for beat in read_beats(RunFolder.of(Path(OUTPUT)).workers).values())


def stopped_run(blocks: int = 1) -> RunFolder:
    """Compute some of the 6 blocks of a small run; the worker ends normally."""
    write_zarr(Path("big.zarr"), grey(6, 70, 90), chunks=(1, 70, 90))
    asked: list[int] = []
    predict_volume(
        PredictRequest(volume="big.zarr", device="cpu"), stopping=lambda: asked.append(1) or len(asked) > blocks
    )  # type: ignore[func-returns-value]
    return RunFolder.of(Path(OUTPUT))


def test_a_complete_run_has_nothing_left_and_no_failures() -> None:
    write_zarr(Path("big.zarr"), grey(3, 70, 90))
    summary = predict_volume(PredictRequest(volume="big.zarr", device="cpu"))
    found = watcher(OUTPUT).status()
    assert (found.blocks, found.done, found.complete, found.seconds_left) == (summary.blocks, summary.blocks, True, 0.0)
    assert (found.running, found.failed, found.missing, found.failures) == (0, 0, 0, [])
    assert found.voxels == found.voxels_done == 3 * 70 * 90


def test_a_run_that_was_stopped_in_good_order_has_missing_blocks_but_no_failure() -> None:
    stopped_run()
    found = watcher(OUTPUT).status()
    assert 0 < found.done < found.blocks == found.done + found.missing
    assert (found.workers, found.failures, found.seconds_left, found.complete) == (0, [], None, False)


def test_without_a_run_folder_one_line_says_where_it_was_sought(
    unetcli: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = unetcli("status", "nothing.zarr")
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert "nothing.zarr.run/predict" in done.stderr
    assert "--run-folder" in done.stderr


def test_a_run_folder_elsewhere_is_named(unetcli: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    stopped_run().path.rename("elsewhere")
    done = unetcli("status", OUTPUT, "--run-folder", "elsewhere", "--json")
    assert json.loads(done.stdout)["blocks"] == 6


def test_a_running_worker_is_counted_and_a_killed_one_is_named() -> None:
    long_volume()
    worker = Command("predict", "big.zarr")
    wait_for(some_progress)
    worker.send_signal(signal.SIGSTOP)  # stays alive until it is killed
    found = watcher(OUTPUT).status()
    assert (found.workers, found.hosts, found.failures) == (1, 1, [])
    assert found.running > 0
    assert found.voxels_per_second > 0
    assert found.seconds_left == pytest.approx((found.voxels - found.voxels_done) / found.voxels_per_second, rel=0.01)
    worker.kill()
    worker.wait()
    after = watcher(OUTPUT).status()
    assert (after.workers, after.running, after.missing) == (0, 0, after.blocks - after.done)
    (failure,) = after.failures
    assert failure.reason.startswith("killed, used ")
    assert failure.block is None


def test_every_block_is_in_one_state() -> None:
    folder = stopped_run()
    values = grey(6, 70, 90).astype(np.float32)
    values[3] = np.nan
    write_zarr(Path("nan.zarr"), values, chunks=(1, 70, 90))
    predict_volume(PredictRequest(volume="nan.zarr", normalise="volume", device="cpu"))
    for output in (OUTPUT, "nan.pred.zarr"):
        found = watcher(output).status()
        assert sum(getattr(found, state) for state in STATES) == found.blocks == 6
    assert (found.done, found.failed, [failure.block for failure in found.failures]) == (5, 1, [3])
    assert found.failures[0].place == "z 3:4, y 0:70, x 0:90"
    assert "not finite" in found.failures[0].reason
    assert folder.path.is_dir()


def test_after_a_kill_near_the_memory_limit_more_memory_is_suggested() -> None:
    long_volume()
    limit = {"SLURM_MEM_PER_NODE": "256", "SLURM_JOB_ID": "4711"}  # less than torch needs
    worker = Command("predict", "big.zarr", environment=limit)
    wait_for(some_progress)
    worker.kill()
    worker.wait()
    (failure,) = watcher(OUTPUT).status().failures
    assert failure.job == "4711"
    assert failure.reason.startswith("killed, probably out of memory, ")
    assert failure.reason.endswith(" of 0.2 GB: raise --mem")


def test_a_worker_that_failed_says_why() -> None:
    folder = stopped_run()
    folder.write_paths(replace(folder.read_paths(Paths), device="cuda:99"))
    with pytest.raises(UnetcliError):
        StepTask(PredictStep)(str(folder.path), ((0, 6),))
    (failure,) = watcher(OUTPUT).status().failures
    assert "--device cuda:99: not available" in failure.reason


def test_of_other_hosts_only_a_counter_that_changes_says_alive(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    folder = stopped_run()
    worker = start("-c", REMOTE, str(folder.workers))
    wait_for(lambda: any(beat.holder.host == "node7" and beat.voxels for beat in read_beats(folder.workers).values()))
    found = watcher(OUTPUT, patience=60).status()
    assert (found.workers, found.silent, found.running, found.failures) == (1, 0, 3, [])
    assert found.voxels_per_second > 0
    worker.kill()
    worker.wait()
    for file in folder.workers.iterdir():
        os.utime(file, (4e9, 4e9))  # a recent file time does not count
    found = watcher(OUTPUT, patience=1).status()
    assert (found.workers, found.silent, found.running) == (0, 1, 0)
    (failure,) = found.failures
    assert failure.host == "node7"
    assert failure.reason.startswith("no heartbeat for 1 s: killed, or its host is lost")


def test_a_first_status_without_waiting_reports_no_worker_as_lost(
    start: Callable[..., subprocess.Popen[bytes]],
) -> None:
    folder = stopped_run()
    start("-c", REMOTE, str(folder.workers))
    wait_for(lambda: any(beat.holder.host == "node7" for beat in read_beats(folder.workers).values()))
    watching = watcher(OUTPUT)
    first = watching.status(wait=False)
    assert (first.workers, first.silent, first.failures) == (0, 1, [])
    wait_for(lambda: watching.status(wait=False).workers == 1)


def test_the_scheduler_takes_precedence_over_heartbeats(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    folder = stopped_run()
    start("-c", REMOTE, str(folder.workers), SLURM_JOB_ID="12")
    wait_for(lambda: any(beat.holder.host == "node7" for beat in read_beats(folder.workers).values()))
    asked: list[set[str]] = []
    found = watcher(
        OUTPUT, scheduler=lambda jobs: asked.append(set(jobs)) or {"12": JobState(OVER, "cancelled")}
    ).status()  # type: ignore[func-returns-value]
    assert asked == [{"12"}]
    assert [failure.reason for failure in found.failures] == ["cancelled"]
    found = watcher(OUTPUT, scheduler=lambda jobs: {"12": JobState(RUNNING)}).status()
    assert (found.workers, found.failures) == (1, [])
    found = watcher(OUTPUT, scheduler=lambda jobs: {"12": JobState(WAITING, "Priority")}).status()
    assert (found.workers, found.queued, found.queued_for, found.failures) == (0, 1, "Priority", [])


def test_a_job_that_was_requeued_has_not_failed(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    folder = stopped_run()
    for life in ("0", "1"):
        worker = start("-c", REMOTE, str(folder.workers), SLURM_JOB_ID="12", SLURM_RESTART_COUNT=life)
        wait_for(
            lambda life=life: any(
                beat.holder.restarts == int(life) and beat.voxels for beat in read_beats(folder.workers).values()
            )
        )
        if life == "0":
            worker.kill()
            worker.wait()
    found = watcher(OUTPUT, patience=2).status()
    assert (found.workers, found.failures) == (1, [])


def test_hosts_are_timed_by_their_last_blocks_the_slowest_first(tmp_path: Path) -> None:
    receipt = Receipt(
        block=0,
        attempt=1,
        state=DONE,
        checksum="a1" * 16,
        tile=572,
        read_seconds=1.0,
        forward_seconds=2.0,
        write_seconds=1.0,
        device="cuda",
        host="fast",
        job="1",
    )
    slow = replace(receipt, host="slow-2", read_seconds=9.0)
    once_slow = replace(receipt, forward_seconds=1000.0)
    (tmp_path / "fast-1-ab.txt").write_text(once_slow.to_line() * 500 + receipt.to_line() * 500)
    (tmp_path / "slow-2-1-ab.txt").write_text(slow.to_line() + replace(slow, tile=0, read_seconds=0.0).to_line())
    timings = host_timings(tmp_path, {"fast": 1000, "slow-2": 2})
    assert [(timing.host, timing.blocks, timing.seconds_per_block) for timing in timings] == [
        ("slow-2", 2, 12.0),
        ("fast", 1000, 4.0),
    ]


def test_the_json_begins_with_what_scripts_rely_on(unetcli: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    stopped_run()
    done = unetcli("status", OUTPUT, "--json")
    assert done.returncode == 0
    assert list(json.loads(done.stdout))[: len(KEYS)] == KEYS


def test_the_picture_fits_80_columns(unetcli: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    folder = stopped_run()
    folder.write_paths(replace(folder.read_paths(Paths), device="cuda:99"))
    with pytest.raises(UnetcliError):
        StepTask(PredictStep)(str(folder.path), ((0, 6),))
    shown = on_terminal("status", OUTPUT)
    assert "not running" in shown
    assert "not available" in shown
    assert max(len(line) for line in shown.splitlines()) <= 80


def on_terminal(*words: str, interrupt_at: str = "", code: int = 0) -> str:
    """Return what a command shows on a terminal of 80 columns until it ends, or is interrupted, with that exit code."""
    master, slave = pty.openpty()
    environment = {"COLUMNS": "80", "NO_COLOR": "1", "TERM": "xterm" if interrupt_at else "dumb"}
    process = Command(*words, talk=Path(os.ttyname(slave)), environment=environment)
    shown = b""
    while True:
        ended = process.poll() is not None  # asked first, so that no output is missed
        if select.select([master], [], [], 0.1)[0]:
            shown += os.read(master, 4096)
        elif ended:
            break
        if interrupt_at and interrupt_at.encode() in shown:
            process.send_signal(signal.SIGINT)
            interrupt_at = ""
    os.close(master)
    os.close(slave)
    assert process.returncode == code
    return shown.decode()


def test_watching_ends_when_all_is_done() -> None:
    stopped_run()
    talk = Path("talk.txt")
    watching = Command("status", "--watch", OUTPUT, talk=talk)
    wait_for(lambda: talk.exists() and "not running" in talk.read_text())
    predict_volume(PredictRequest(volume="big.zarr", device="cpu"))
    assert watching.wait() == 0
    assert talk.read_text().splitlines()[1:] == ["6 of 6 blocks done; complete"]


def test_watching_on_a_terminal_ends_quietly_upon_ctrl_c() -> None:
    stopped_run()
    shown = on_terminal("status", "--watch", OUTPUT, interrupt_at="not running", code=130)
    assert "Traceback" not in shown
    assert "missing" in shown
