"""Signs of life: readable at any moment, growing while a worker lives, saying how it ended."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from unetcli import heartbeat
from unetcli.heartbeat import ENDED, WORKING, Heartbeat, memory_bytes, memory_limit, read_beats
from unetcli.lock import Holder


def only(folder: Path) -> heartbeat.Beat:
    beats = list(read_beats(folder).values())
    assert len(beats) == 1
    return beats[0]


def wait_for_counter(folder: Path, counter: int) -> heartbeat.Beat:
    deadline = time.monotonic() + 60
    while (beat := only(folder)).counter < counter:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return beat


def test_a_beat_tells_who_what_and_how_much(tmp_path: Path) -> None:
    with Heartbeat(tmp_path, 7) as beat:
        assert only(tmp_path).state == WORKING
        beat.done(100)
        beat.done(50)
    last = only(tmp_path)
    assert (last.state, last.assigned, last.blocks, last.voxels) == (ENDED, 7, 2, 150)
    assert last.holder.pid == Holder.myself().pid
    assert last.memory_bytes > 2**20
    assert last.voxels_per_second > 0


def test_a_worker_that_raised_has_ended_too(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Heartbeat(tmp_path, 1):
        raise ZeroDivisionError
    assert only(tmp_path).state == ENDED


def test_the_counter_grows_while_a_block_takes_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "SECONDS", 0.01)
    with Heartbeat(tmp_path, 1):
        first = only(tmp_path).counter
        assert wait_for_counter(tmp_path, first + 3).seconds > 0


def test_beats_are_whole_whenever_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "SECONDS", 0.0)
    with Heartbeat(tmp_path, 1):
        for _ in range(500):
            for path in tmp_path.glob("*.json"):
                json.loads(path.read_text())
            assert len(read_beats(tmp_path)) == 1
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def test_no_finished_block_is_lost_between_two_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "SECONDS", 0.0)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with Heartbeat(tmp_path, 1) as beat:
            workers = [threading.Thread(target=lambda: [beat.done(2) for _ in range(2000)]) for _ in range(2)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
    finally:
        sys.setswitchinterval(interval)
    assert (only(tmp_path).blocks, only(tmp_path).voxels) == (4000, 8000)


def test_a_killed_worker_leaves_its_last_words(tmp_path: Path) -> None:
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom unetcli.heartbeat import Heartbeat\n"
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
def test_what_is_no_beat_is_passed_over(tmp_path: Path, junk: str) -> None:
    with Heartbeat(tmp_path, 1):
        (tmp_path / "other.json").write_text(junk)
        assert len(read_beats(tmp_path)) == 1


@pytest.mark.parametrize(
    ("environment", "limit"),
    [
        ({"SLURM_MEM_PER_NODE": "4000"}, 4000 * 2**20),
        ({"SLURM_MEM_PER_CPU": "500", "SLURM_CPUS_ON_NODE": "8"}, 4000 * 2**20),
        ({"SLURM_MEM_PER_CPU": "500"}, 500 * 2**20),
        ({"SLURM_MEM_PER_NODE": "4000", "SLURM_MEM_PER_CPU": "1"}, 4000 * 2**20),
    ],
    ids=str,
)
def test_the_scheduler_s_word_is_the_limit(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], limit: int
) -> None:
    for name in ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert memory_limit() == limit


def test_without_a_scheduler_the_kernel_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU"):
        monkeypatch.delenv(name, raising=False)
    limit = memory_limit()
    assert limit is None or limit > memory_bytes()
