"""Kills at chosen system calls: see :mod:`kills`."""

from __future__ import annotations

from pathlib import Path

import pytest
from kills import CASES, TOTAL, Bench, run_all

QUICK = {"show": 1, "weights": 2, "label watershed --ctc": 1}
"""Number of kills of the default tests, which leave the commands with tests of their own to the slow ones."""


def test_a_command_killed_at_a_system_call_ends_in_the_same_bytes_and_leaves_no_draft(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for name, number in QUICK.items():
        for position in bench.positions(name, number):
            assert bench.kill(name, position) == [], f"{name}, killed before call {position}"


@pytest.mark.slow
def test_many_kills_over_all_commands(tmp_path: Path) -> None:
    table = run_all(tmp_path, list(CASES), TOTAL)
    assert {name: counts["wrong"] for name, counts in table.items()} == dict.fromkeys(CASES, 0)
    assert sum(counts["kills"] for counts in table.values()) >= TOTAL
