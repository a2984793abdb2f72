"""Shares, hours of workers, and the weakest link of a run."""

from __future__ import annotations

import math

import pytest
from helpers import SETTINGS, SOURCES
from hypothesis import given
from hypothesis import strategies as st

from unetcli.core.geometry import Architecture, Box
from unetcli.planning.estimate import Estimate, StoredInput, estimate
from unetcli.planning.planner import Input, make_plan
from unetcli.planning.timing import (
    STARTUP_SECONDS,
    Rates,
    blocks_per_share,
    forward_seconds,
    seconds_per_block,
    share_count,
    timing,
    traffic,
)

CHUNK = StoredInput(chunks=(1, 1024, 1024), bytes_per_voxel=1, chunk_bytes=2**20)


def petabyte() -> Estimate:
    """Estimate for the paper's network on 10^5 sections of 10^5 x 10^5 voxels of one byte."""
    extent = (100_000, 100_000, 100_000)
    source = Input(axes="zyx", extent=extent, chunks=CHUNK.chunks, bytes_per_voxel=1)
    return estimate(
        make_plan(source, Box.of_shape(extent), Architecture(), 2236, SETTINGS, SOURCES), Architecture(), CHUNK
    )


PETABYTE = petabyte()


@given(st.floats(1e-4, 1e4), st.floats(0.1, 300))
def test_start_up_costs_at_most_two_percent_of_a_share_and_no_shorter_share_would_do(
    block: float, start: float
) -> None:
    count = blocks_per_share(block, start)
    assert start / (start + count * block) <= 0.02 + 1e-9
    assert count == 1 or start / (start + (count - 1) * block) > 0.02 - 1e-9


@given(st.integers(1, 10**8), st.integers(1, 10**5), st.none() | st.integers(1, 5000), st.none() | st.integers(1, 999))
def test_there_are_never_more_shares_than_blocks(
    blocks: int, least: int, workers: int | None, forced: int | None
) -> None:
    count = share_count(blocks, least, workers, forced)
    assert 1 <= count <= blocks
    if forced:
        assert math.ceil(blocks / count) <= forced
    elif count > (workers or 1):
        assert blocks // count >= least


def test_slow_reading_limits_a_gpu_and_adds_to_the_time_of_a_cpu() -> None:
    quick = Rates(tile_seconds=0.05, origin="test")
    slow = Rates(tile_seconds=0.05, read_bytes_per_second=1e6, write_bytes_per_second=1e9, origin="test")
    e, forward = PETABYTE, forward_seconds(PETABYTE, quick) / PETABYTE.blocks
    read, written = e.input_bytes / 1e6 / e.blocks, e.output_bytes / 1e9 / e.blocks
    assert seconds_per_block(e, quick, "cuda") == seconds_per_block(e, quick, "cpu") == pytest.approx(forward)
    assert seconds_per_block(e, slow, "cuda") == pytest.approx(max(forward, read, written))
    assert seconds_per_block(e, slow, "cpu") == pytest.approx(forward + read + written)


def test_without_rates_there_are_shares_but_no_hours() -> None:
    times = timing(PETABYTE, SETTINGS, None, workers=1000, forced=None)
    assert times.seconds_per_block is times.worker_seconds is None
    assert 1000 <= times.shares <= 20_000


def test_a_petabyte_on_a_thousand_gpus_is_limited_by_file_operations() -> None:
    times = timing(PETABYTE, SETTINGS, Rates(tile_seconds=0.05, origin="test"), workers=1000, forced=None)
    assert times.worker_seconds is not None
    assert times.shares * STARTUP_SECONDS < 0.02 * times.worker_seconds
    found = traffic(PETABYTE, 1000, times.worker_seconds)
    reported = found.to_dict()
    assert found.network_seconds == pytest.approx(times.worker_seconds / 1000)
    assert reported["write_bytes_per_second"] == pytest.approx(10**15 / found.network_seconds)
    assert reported["read_bytes"] >= 10**15
    assert reported["file_operations"] == PETABYTE.input_chunks + 2 * PETABYTE.output_files
    assert reported["receipts_bytes"] == 110 * PETABYTE.blocks
    assert reported["receipts_per_second"] == pytest.approx(PETABYTE.blocks / found.network_seconds)
    assert reported["weakest_link"] == "file operations"
    assert reported["seconds"] == pytest.approx(reported["file_operations"] / 20_000)


def test_slow_gpus_are_the_weakest_link() -> None:
    times = timing(PETABYTE, SETTINGS, Rates(tile_seconds=5.0, origin="test"), workers=1000, forced=None)
    found = traffic(PETABYTE, 1000, times.worker_seconds)
    assert found.network_is_weakest
    assert found.to_dict()["weakest_link"] == "network"
    assert found.seconds == found.network_seconds


def test_without_rates_the_file_system_alone_is_assessed() -> None:
    found = traffic(PETABYTE, 1000, None)
    reported = found.to_dict()
    assert (found.network_is_weakest, reported["seconds"], reported["read_bytes_per_second"]) == (None, None, None)
    assert reported["weakest_link"] == "file operations"
    assert reported["least_seconds"]["writing"] == pytest.approx(10**15 / 50e9)
