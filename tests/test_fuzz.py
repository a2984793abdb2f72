"""Damaged files and odd options end with a documented exit code and a short message, and harm nothing.

The cases are generated from their numbers; ``python tests/fuzz.py --cases 10000 --state FOLDER`` runs more of them.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path

import fuzz
import pytest
from fuzzing.cases import BUG, HANG, Bench, Hang, alarm, faults_of, left_behind

CASES, PARTS = 300, 6


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Undamaged files, which are built once for all processes of the tests."""
    own = tmp_path_factory.getbasetemp()  # with xdist, each process has a folder in that of the session
    shared = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "fuzz"
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


@pytest.mark.parametrize(
    ("code", "errors", "faults"),
    [
        (1, "unetcli: a.zarr: no such file or folder\n", []),
        (BUG, "Traceback (most recent call last):\n", ["exit code 70"]),
        (HANG, "", ["hang"]),
        (0, "Traceback (most recent call last):\n", ["traceback"]),
        (1, "line\n" * 50, ["50 lines"]),
        (1, "x" * 9000, ["a line of 9000 letters"]),
        (3, "unetcli: \x1b]0;title\x07\n", ["control characters"]),
    ],
    ids=["refused", "bug", "hang", "traceback", "many lines", "long line", "escape"],
)
def test_the_fuzz_test_sees_faults(code: int, errors: str, faults: list[str]) -> None:
    assert list(faults_of(code, "", errors)) == faults


def test_the_fuzz_test_sees_what_a_refused_command_leaves(tmp_path: Path) -> None:
    for name in ("raw.zarr", "out.zarr", "raw.zarr/x.0123456789abcdef.partial"):
        (tmp_path / name).mkdir()
    assert left_behind(1, tmp_path, {"raw.zarr"}) == ["left out.zarr", "left x.0123456789abcdef.partial"]
    assert not left_behind(0, tmp_path, {"raw.zarr"})


def test_the_fuzz_test_ends_a_command_that_hangs() -> None:
    with pytest.raises(Hang, match="still running"), alarm(0.05):
        time.sleep(20)


def test_the_fuzz_test_runs_no_case_twice(tmp_path: Path) -> None:
    """A worker would be started, and fail without files, if a case were missing."""
    (tmp_path / fuzz.RESULTS).write_text("".join(json.dumps({"number": number}) + "\n" for number in range(3)))
    fuzz.supervise(tmp_path, [0, 2])
    assert [found["number"] for found in fuzz.read(tmp_path)] == [0, 1, 2]
