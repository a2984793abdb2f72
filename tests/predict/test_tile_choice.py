"""The tile that ``--tile auto`` takes on a CPU: the largest that fits the memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers import SETTINGS

from unetcli.core.geometry import Architecture
from unetcli.planning.estimate import device_bytes
from unetcli.planning.planner import KNOWN_TO_FIT, LARGEST_TILE, largest_tile
from unetcli.predict import resolve
from unetcli.predict.resolve import cpu_tile

FULL, SMALL = Architecture(), Architecture(depth=3, base_channels=16)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Memory of a machine with four cores, in GB, which a test can change."""
    sizes = {"total": 64.0, "free": 60.0}
    monkeypatch.setattr(resolve, "usable_cores", lambda: 4)
    monkeypatch.setattr(resolve, "total_memory", lambda: int(sizes["total"] * 1e9))
    monkeypatch.setattr(resolve, "available_memory", lambda: (sizes["free"] * 1e9, "free on this machine"))
    return sizes


def test_with_much_memory_it_is_the_largest(memory: dict[str, float]) -> None:
    settings = replace(SETTINGS, threads=4)
    for architecture in (FULL, SMALL):
        assert cpu_tile(architecture, settings) == largest_tile(architecture.footprint(), LARGEST_TILE)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("total", "free", "threads"), [(16, 15, 4), (64, 8, 4), (64, 60, 1)])
def test_it_fits_the_part_of_a_worker_and_the_next_one_does_not(
    memory: dict[str, float], total: float, free: float, threads: int, precision: str
) -> None:
    memory.update(total=total, free=free)
    room = threads / 4 * min(total / 4, free / 2) * 1e9
    found = cpu_tile(FULL, replace(SETTINGS, threads=threads, precision=precision))
    assert KNOWN_TO_FIT < found < LARGEST_TILE or precision == "bfloat16"
    assert device_bytes(FULL, found, "cpu", precision) <= room
    assert found > LARGEST_TILE - 16 or device_bytes(FULL, found + 16, "cpu", precision) > room


def test_with_little_memory_it_is_the_one_of_before(memory: dict[str, float]) -> None:
    memory.update(free=0.5)
    assert cpu_tile(FULL, replace(SETTINGS, threads=4)) == largest_tile(FULL.footprint(), KNOWN_TO_FIT)
