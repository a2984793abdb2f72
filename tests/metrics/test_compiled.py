from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import unetcli

PACKAGE = Path(unetcli.__file__).parent
LOOP = """
import numpy as np
from unetcli.metrics.compiled import compiled

@compiled("int64(int64[::1])")
def total(values):
    result = 0
    for n in range(values.size):
        result += values[n]
    return result

print(total(np.array([1, 2, 4])))
"""


def run(folder: Path, **places: Path) -> str:
    """What a program with a compiled loop prints; numba keeps machine code for functions that lie in files."""
    program = folder / "program.py"
    program.write_text(LOOP)
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)} | {name: str(at) for name, at in places.items()}
    done = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def test_machine_code_is_kept_and_a_damaged_file_of_it_costs_only_time(tmp_path: Path) -> None:
    assert run(tmp_path, NUMBA_CACHE_DIR=tmp_path / "cache") == "7\n"
    kept = list((tmp_path / "cache").rglob("*.nb?"))
    assert {file.suffix for file in kept} == {".nbi", ".nbc"}
    for file in kept:
        file.write_bytes(b"torn")
    assert run(tmp_path, NUMBA_CACHE_DIR=tmp_path / "cache") == "7\n"


def test_without_any_folder_to_write_it_works_as_well(tmp_path: Path) -> None:
    for file in (tmp_path / "__pycache__", tmp_path / "cache"):
        file.touch()  # a file where a folder would be: nobody can write into it, not even root
    below = dict.fromkeys(("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "HOME"), tmp_path / "cache" / "below")
    assert run(tmp_path, **below) == "7\n"
    assert not list(tmp_path.rglob("*.nb?"))


def test_numba_is_not_imported_before_a_measure_needs_it() -> None:
    program = "import sys, unetcli.metrics.em; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
