"""Tests of the contract that all executors fulfil.

Each executor is started once for all of its tests; a check after it has ended shows that it leaves nothing behind.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from helpers import wait_for
from places import PLACES, begun, done, nothing_left, place_of, run

from unetcli.executors.contract import Executor

SEPARATE = ("local", "existing")
"""Executors with separate worker processes, of which the others continue if one dies; for SLURM see tests/slurm."""
BOUND = ("in-process", "local", "existing")
"""Executors whose workers end with the launcher; SLURM jobs continue, and the next call attaches to them."""
BRIEF = ("in-process", "local")
"""Executors for which all tests run by default; for the others all but the first are marked slow."""


@pytest.fixture(scope="module")
def executor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    place, folder = place_of(request.param, request), tmp_path_factory.mktemp(request.param)
    (folder / "run" / "logs").mkdir(parents=True)
    with nothing_left(folder), place(folder / "run") as found:
        yield found


def on(*places: str, brief: tuple[str, ...] = BRIEF) -> pytest.MarkDecorator:
    """Run a test with these executors; those that are not in ``brief`` are marked slow."""
    marked: list[Any] = [name if name in brief else pytest.param(name, marks=pytest.mark.slow) for name in places]
    return pytest.mark.parametrize("executor", marked, indirect=True, scope="module")


@pytest.fixture
def meanwhile() -> Callable[[Callable[[], None]], None]:
    """Runs a function in a thread during the test."""

    def start(work: Callable[[], None]) -> None:
        threading.Thread(target=work, daemon=True).start()

    return start


@on(*PLACES)
def test_a_second_run_skips_finished_blocks(executor: Executor, folder: Path) -> None:
    assert run(executor, folder, ((0, 20),)) == []
    assert run(executor, folder, ((0, 40),)) == []
    assert done(folder) == dict.fromkeys(range(40), 1)


@on(*PLACES)
def test_every_block_is_done_once(executor: Executor, folder: Path) -> None:
    assert run(executor, folder, ((3, 90), (100, 131), (500, 501))) == []
    assert done(folder) == dict.fromkeys([*range(3, 90), *range(100, 131), 500], 1)


@on(*PLACES)
def test_an_empty_range_of_blocks_succeeds(executor: Executor, folder: Path) -> None:
    assert run(executor, folder, ()) == []


@on(*PLACES, brief=("local",))
def test_progress_is_shown_while_a_block_takes_long(executor: Executor, folder: Path) -> None:
    (folder / "slow").write_text("4")
    ticks: list[float] = []
    run(executor, folder, ((0, 1),), tick=lambda: ticks.append(time.monotonic()))
    gaps = [later - earlier for earlier, later in pairwise(ticks)]
    assert len(ticks) >= 3
    assert max(gaps) < 4


@on(*BOUND)
def test_blocks_in_progress_are_finished_on_a_request_to_stop(executor: Executor, folder: Path) -> None:
    (folder / "slow").write_text("0.2")
    assert run(executor, folder, ((0, 1000),), stopping=lambda: len(done(folder)) >= 4) == []
    first = done(folder)
    assert set(begun(folder)) == set(first)
    assert 4 <= len(first) < 100
    (folder / "slow").unlink()
    assert run(executor, folder, ((0, 100),)) == []
    assert done(folder) == dict.fromkeys(set(range(100)) | set(first), 1)


@on(*PLACES)
def test_hosts_to_avoid_are_used_if_there_is_no_other(executor: Executor, folder: Path) -> None:
    assert run(executor, folder, ((0, 10),), avoid=(socket.gethostname(), "elsewhere")) == []
    assert done(folder) == dict.fromkeys(range(10), 1)


@on(*SEPARATE)
def test_a_block_that_fails_is_reported_and_the_others_are_done(executor: Executor, folder: Path) -> None:
    for block in (17, 150):
        (folder / f"raise-{block}").touch()
    failures = run(executor, folder, ((0, 200),))
    assert done(folder) == dict.fromkeys(set(range(200)) - {17, 150}, 1)
    assert sorted(failure.reason for failure in failures) == [
        "ValueError: block 150 has to fail",
        "ValueError: block 17 has to fail",
    ]
    assert {failure.job for failure in failures} == {"block 17", "block 150"}
    assert {failure.host for failure in failures} == {socket.gethostname()}


@on(*SEPARATE)
@pytest.mark.parametrize("way", [pytest.param("exit", marks=pytest.mark.slow), "kill"])
def test_a_block_that_kills_its_worker_is_the_only_one_lost(executor: Executor, folder: Path, way: str) -> None:
    (folder / f"{way}-17").touch()
    failures = run(executor, folder, ((0, 100),))
    assert done(folder) == dict.fromkeys(set(range(100)) - {17}, 1)
    assert [failure.job for failure in failures] == ["block 17"]
    assert "its worker" in failures[0].reason


@on(*SEPARATE)
def test_all_blocks_are_done_though_workers_are_killed(
    executor: Executor, folder: Path, meanwhile: Callable[[Callable[[], None]], None]
) -> None:
    (folder / "slow").write_text("0.05")

    def kill_some() -> None:
        for blocks in (5, 40, 80):
            wait_for(lambda blocks=blocks: len(done(folder)) >= blocks)  # type: ignore[misc]
            newest = max(folder.glob("begun-*"), key=lambda path: path.stat().st_mtime)
            os.kill(int(newest.read_text().split()[-1]), signal.SIGKILL)

    meanwhile(kill_some)
    assert run(executor, folder, ((0, 120),)) == []
    assert done(folder) == dict.fromkeys(range(120), 1)
    assert sum(map(len, begun(folder).values())) <= 120 + 3  # at most the blocks in progress


def test_an_error_of_the_only_worker_is_raised(folder: Path) -> None:
    from unetcli.executors.contract import InProcess

    (folder / "raise-1").touch()
    with pytest.raises(ValueError, match="has to"):
        run(InProcess(), folder, ((0, 3),))
