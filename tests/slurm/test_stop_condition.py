"""Tests of when a job stops before its next block, with a clock that the tests control."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from unetcli.executors.slurm.worker import StopCondition


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def restored() -> Iterator[None]:
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("block_seconds", [0.5, 20, 100])
def test_blocks_are_begun_as_long_as_they_fit_with_certainty(block_seconds: float) -> None:
    clock = Clock()
    condition = StopCondition(seconds_left=600, clock=clock)
    while not condition.stopping():
        clock.now += block_seconds
    assert 0 < clock.now <= 600 - 2 * block_seconds
    assert clock.now >= 600 - 4 * block_seconds - 15
    assert condition.stopped


def test_the_first_block_is_always_begun() -> None:
    assert not StopCondition(seconds_left=1).stopping()


def test_without_a_limit_only_a_signal_stops(restored: None) -> None:
    clock = Clock()
    condition = StopCondition(seconds_left=None, clock=clock)
    condition.listen()
    for _ in range(1000):
        assert not condition.stopping()
        clock.now += 3600
    os.kill(os.getpid(), signal.SIGTERM)
    assert condition.stopping()
    assert condition.stopping()


def test_a_warning_of_preemption_stops_the_job_and_one_of_the_time_limit_does_not(restored: None) -> None:
    clock = Clock()
    early, late = StopCondition(seconds_left=3600, clock=clock), StopCondition(seconds_left=120, clock=clock)
    for condition, stops in ((early, True), (late, False)):
        condition.listen()
        assert not condition.stopping()
        os.kill(os.getpid(), signal.SIGUSR2)
        assert condition.stopping() is stops
