"""Heartbeats: one small file per process for any number of calls; the last one reports how the worker ended."""

from __future__ import annotations

import json
import mmap
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from helpers import wait_for

from unetcli.core.errors import UnetcliError
from unetcli.core.memory import memory_bytes, memory_limit
from unetcli.engine import workers as heartbeat
from unetcli.engine.workers import ENDED, FAILED, WORKING, Beat, Heartbeat, read_beats


def only(folder: Path) -> Beat:
    (beat,) = read_beats(folder).values()
    return beat


def test_the_counter_grows_while_the_worker_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr(heartbeat, "MEMORY_POLL_SECONDS", 0.01)
    with Heartbeat(tmp_path, 3):
        first = only(tmp_path)
        assert first.state == WORKING
        wait_for(lambda: only(tmp_path).counter > first.counter + 2)
    assert only(tmp_path).state == ENDED
    assert not only(tmp_path).holder.is_gone()


def test_a_process_keeps_one_file_however_often_it_is_called(tmp_path: Path) -> None:
    counters = []
    for call in range(3):
        with Heartbeat(tmp_path, 5) as beat:
            assert only(tmp_path).blocks_left == 5
            beat.done(100)
            beat.set_aside()
        counters.append(only(tmp_path).counter)
        assert only(tmp_path).blocks == call + 1
    assert counters == sorted(set(counters))
    assert (only(tmp_path).voxels, only(tmp_path).set_aside, only(tmp_path).blocks_left) == (300, 3, 0)
    with Heartbeat(tmp_path, 4):
        assert only(tmp_path).blocks_left == 4  # blocks of an earlier call do not count


def test_calls_at_the_same_time_have_a_file_each(tmp_path: Path) -> None:
    with Heartbeat(tmp_path, 1), Heartbeat(tmp_path, 1):
        assert len(read_beats(tmp_path)) == 2
    with Heartbeat(tmp_path, 1), Heartbeat(tmp_path, 1):
        assert len(read_beats(tmp_path)) == 2


def test_no_block_is_lost_in_counting_while_beats_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 0.0)
    monkeypatch.setattr(heartbeat, "MEMORY_POLL_SECONDS", 0.0)
    with Heartbeat(tmp_path, 4000) as beat:
        threads = [threading.Thread(target=lambda: [beat.done(2) for _ in range(1000)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (only(tmp_path).blocks, only(tmp_path).voxels) == (4000, 8000)


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (UnetcliError("host a: no GPU"), FAILED, "host a: no GPU"),
        (ValueError("two\nlines"), FAILED, "ValueError: two lines"),
        (KeyboardInterrupt(), ENDED, ""),
    ],
    ids=["user", "bug", "interrupt"],
)
def test_the_last_beat_says_how_it_ended(tmp_path: Path, error: BaseException, state: str, reason: str) -> None:
    def fail() -> None:
        with Heartbeat(tmp_path, 1):
            raise error

    with pytest.raises(type(error)):
        fail()
    assert (only(tmp_path).state, only(tmp_path).reason) == (state, reason)


def test_the_first_finished_block_is_reported_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 1e9)
    with Heartbeat(tmp_path, 2) as beat:
        beat.done(7)
        wait_for(lambda: only(tmp_path).voxels == 7)
        assert only(tmp_path).voxels_per_second > 0


def test_memory_that_comes_near_the_limit_is_reported_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 1e9)
    monkeypatch.setenv("SLURM_MEM_PER_NODE", str(memory_bytes() // 2**20 + 400))
    with Heartbeat(tmp_path, 1):
        assert not only(tmp_path).near_limit
        with mmap.mmap(-1, 400 * 2**20) as ballast:  # new memory: the heap may reuse freed memory
            ballast.write(b"x" * len(ballast))
            wait_for(lambda: only(tmp_path).near_limit)
            assert memory_bytes() > len(ballast)


@pytest.mark.parametrize(
    ("environment", "limit"),
    [
        ({"SLURM_MEM_PER_NODE": "2048"}, 2**31),
        ({"SLURM_MEM_PER_CPU": "1024", "SLURM_CPUS_ON_NODE": "4"}, 2**32),
    ],
    ids=["node", "cpu"],
)
def test_the_limit_is_the_scheduler_s(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], limit: int) -> None:
    for name in ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert memory_limit() == limit


def test_beats_are_whole_whenever_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 0.0)
    monkeypatch.setattr(heartbeat, "MEMORY_POLL_SECONDS", 0.0)
    with Heartbeat(tmp_path, 1):
        for _ in range(500):
            for path in tmp_path.glob("*.json"):
                json.loads(path.read_text())
            assert len(read_beats(tmp_path)) == 1
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def test_the_last_heartbeat_of_a_killed_worker_stays(tmp_path: Path) -> None:
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom unetcli.engine.workers import Heartbeat\n"
        "with Heartbeat(Path(sys.argv[1]), 3) as beat:\n"
        "    print('working', flush=True)\n    time.sleep(600)\n"
    )
    worker = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    with worker.stdout:
        assert worker.stdout.readline() == "working\n"
    assert not only(tmp_path).holder.is_gone()
    worker.kill()
    worker.wait()
    assert only(tmp_path).state == WORKING
    assert only(tmp_path).holder.is_gone()


def test_a_folder_that_is_gone_ends_no_work(tmp_path: Path) -> None:
    folder = tmp_path / "workers"
    folder.mkdir()
    with Heartbeat(folder, 1) as beat:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        beat.done(1)
    assert read_beats(folder) == {}


@pytest.mark.parametrize("junk", ["", "{", "[]", "{}", '{"holder": {}}', '{"holder": null}'], ids=repr)
def test_files_that_are_no_heartbeats_are_skipped(tmp_path: Path, junk: str) -> None:
    with Heartbeat(tmp_path, 1):
        (tmp_path / "other.json").write_text(junk)
        assert len(read_beats(tmp_path)) == 1


def test_without_a_scheduler_the_kernel_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU"):
        monkeypatch.delenv(name, raising=False)
    limit = memory_limit()
    assert limit is None or limit > memory_bytes()


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_MEM_PER_CPU": "1024", "SLURM_CPUS_ON_NODE": "x"},
        {"SLURM_MEM_PER_NODE": "9" * 30},
        {"SLURM_MEM_PER_CPU": "²"},
    ],
    ids=str,
)
def test_odd_variables_of_the_scheduler_are_ignored(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    for name in ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    without = memory_limit()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert memory_limit() == without


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"holder": 3}', "\0" * 50, "[" * 100_000])
def test_a_damaged_heartbeat_is_none(tmp_path: Path, content: str) -> None:
    with Heartbeat(tmp_path, 1):
        pass
    (tmp_path / "other.json").write_text(content)
    assert only(tmp_path).state == ENDED
