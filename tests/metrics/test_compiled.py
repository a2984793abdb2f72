from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import unetcli

PACKAGE = Path(unetcli.__file__).parent
THIN = """
import sys
import unetcli.metrics.em
assert "numba" not in sys.modules
import numpy as np
from unetcli.metrics.thinning import thin
print(thin(np.array([[1, 0, 2]], np.int32)).tolist())
"""


def run(path: Path, **places: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(path)} | {name: str(place) for name, place in places.items()}
    done = subprocess.run([sys.executable, "-c", THIN], env=environment, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def test_machine_code_is_kept_and_a_damaged_file_of_it_costs_only_time(tmp_path: Path) -> None:
    assert run(PACKAGE.parent, NUMBA_CACHE_DIR=tmp_path) == "[[1, 0, 2]]\n"
    kept = list(tmp_path.rglob("*.nb?"))
    assert {file.suffix for file in kept} == {".nbi", ".nbc"}
    for file in kept:
        file.write_bytes(b"torn")
    assert run(PACKAGE.parent, NUMBA_CACHE_DIR=tmp_path) == "[[1, 0, 2]]\n"


def test_without_any_folder_to_write_it_works_as_well(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "unetcli", ignore=shutil.ignore_patterns("__pycache__"))
    for file in (tmp_path / "unetcli" / "metrics" / "__pycache__", tmp_path / "cache"):
        file.touch()  # a file where a folder would be: nobody can write into it, not even root
    below = dict.fromkeys(("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "HOME"), tmp_path / "cache" / "below")
    assert run(tmp_path, **below) == "[[1, 0, 2]]\n"
    assert not list(tmp_path.rglob("*.nb?"))
