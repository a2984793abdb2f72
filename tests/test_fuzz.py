"""Damaged files and odd options end with a documented exit code and a short message, and harm nothing.

The cases are generated from their numbers; ``python tests/fuzz.py --cases 10000 --state FOLDER`` runs more of them.
"""

from __future__ import annotations

import fcntl

import pytest
from fuzzing.cases import Bench

CASES, PARTS = 300, 6


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Undamaged files, which are built once for all processes of the tests."""
    shared = tmp_path_factory.getbasetemp().parent / "fuzz"
    shared.mkdir(exist_ok=True)
    with (shared / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        found = Bench(shared)
        found.prepare()
    return found


@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_files_and_odd_options_end_in_one_line_and_harm_nothing(bench: Bench, part: int) -> None:
    faulty = [found for number in range(part, CASES, PARTS) if (found := bench.case(number)).faults]
    assert not faulty, "\n".join(map(str, faulty))
