from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from unetcli.core.errors import UnetcliError
from unetcli.core.lock import Holder, hold, job_id

HOLDING = """
import sys, time
from pathlib import Path
from unetcli.core.lock import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""
RACING = """
import os, sys, time
from pathlib import Path
from unetcli.core.errors import UnetcliError
from unetcli.core.lock import hold
lock, turns = Path(sys.argv[1]), int(sys.argv[2])
while turns:
    try:
        with hold(lock):
            os.close(os.open(lock.with_name("alone"), os.O_CREAT | os.O_EXCL))
            time.sleep(0.001)
            os.unlink(lock.with_name("alone"))
            turns -= 1
    except UnetcliError:
        time.sleep(0.0002)
"""


@contextmanager
def another_holder(lock: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", HOLDING, str(lock)], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def held_by(lock: Path, **changes: object) -> Holder:
    """Write a lock file as another process would have left it."""
    holder = replace(Holder.myself(), **changes)  # type: ignore[arg-type]
    lock.write_text(json.dumps(asdict(holder)))
    return holder


def test_a_lock_exists_only_while_held(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    for _ in range(2):
        with hold(lock):
            assert json.loads(lock.read_text())["pid"] == os.getpid()
        assert not lock.exists()


def test_a_lock_is_released_when_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), hold(tmp_path / "lock"):
        raise ZeroDivisionError
    assert not (tmp_path / "lock").exists()


def test_a_refusal_names_the_holder(tmp_path: Path) -> None:
    with another_holder(lock := tmp_path / "lock") as first:
        before = lock.read_text()
        host = json.loads(before)["host"]
        with pytest.raises(UnetcliError, match=rf"host {host}, pid {first.pid}, .*--take-over"), hold(lock):
            pass
        assert lock.read_text() == before


def test_a_process_cannot_hold_a_lock_twice(tmp_path: Path) -> None:
    with (
        hold(tmp_path / "lock"),
        pytest.raises(UnetcliError, match=f"pid {os.getpid()}"),
        hold(tmp_path / "lock"),
    ):
        pass


@pytest.mark.parametrize("reaped", [True, False], ids=["gone", "zombie"])
def test_the_lock_of_a_killed_process_is_taken(tmp_path: Path, reaped: bool) -> None:
    with another_holder(lock := tmp_path / "lock") as first:
        os.kill(first.pid, signal.SIGKILL)
        if reaped:
            first.wait()
        else:
            os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)
        assert lock.exists()
        with hold(lock):
            assert json.loads(lock.read_text())["pid"] == os.getpid()


def test_a_reused_pid_is_not_taken_for_the_holder(tmp_path: Path) -> None:
    held_by(lock := tmp_path / "lock", started="1", nonce="of an earlier process")
    with hold(lock):
        assert json.loads(lock.read_text())["started"] != "1"


def test_a_lock_from_before_the_machine_started_is_taken(tmp_path: Path) -> None:
    held_by(lock := tmp_path / "lock", boot="another", nonce="n")
    with hold(lock):
        pass


@pytest.mark.parametrize(
    "changes",
    [{"host": "node17"}, {"host": "node17", "boot": "another"}, {"namespace": "pid:[1]", "started": "1"}],
    ids=["other host", "other host, other boot", "other container"],
)
def test_a_lock_of_another_host_or_container_is_kept(tmp_path: Path, changes: dict[str, object]) -> None:
    holder = held_by(lock := tmp_path / "lock", job="17_3", nonce="n", **changes)
    with pytest.raises(UnetcliError, match=rf"host {holder.host}, pid {holder.pid}, job 17_3"), hold(lock):
        pass
    with hold(lock, take_over=True):
        assert json.loads(lock.read_text())["nonce"] != "n"
    assert not lock.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": "a"}'])
def test_a_lock_file_that_names_nobody_is_taken(tmp_path: Path, text: str) -> None:
    (lock := tmp_path / "lock").write_text(text)
    with hold(lock):
        assert json.loads(lock.read_text())["pid"] == os.getpid()


def test_a_holder_whose_lock_was_taken_over_does_not_remove_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with hold(lock):
        successor = held_by(lock, nonce="successor")
    assert json.loads(lock.read_text()) == asdict(successor)


def test_one_of_many_processes_holds_the_lock_at_a_time(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RACING, str(tmp_path / "lock"), "40"]
    racers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    errors = [racer.communicate(timeout=120)[1] for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 4, errors
    assert not (tmp_path / "lock").exists()


def test_one_of_many_processes_breaks_the_lock_of_a_dead_one(tmp_path: Path) -> None:
    held_by(tmp_path / "lock", started="1", nonce="n")
    command = [sys.executable, "-c", RACING, str(tmp_path / "lock"), "1"]
    racers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(6)]
    errors = [racer.communicate(timeout=120)[1] for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 6, errors


@pytest.mark.parametrize(
    ("environment", "job"),
    [
        ({}, "-"),
        ({"SLURM_JOB_ID": "21"}, "21"),
        ({"SLURM_JOB_ID": "22", "SLURM_ARRAY_JOB_ID": "21", "SLURM_ARRAY_TASK_ID": "0"}, "21_0"),
    ],
    ids=["no job", "job", "array"],
)
def test_job_ids_have_the_form_that_slurm_uses(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], job: str
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert job_id() == job
