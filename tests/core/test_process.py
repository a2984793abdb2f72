from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import unetcli
from unetcli.core.process import usable_cores

SHOW = """
import os
from unetcli.core.process import keep_freed_memory, prepare
print(keep_freed_memory())
prepare()
print(os.environ.get("GOMP_SPINCOUNT"))
"""


def seen(**chosen: str) -> list[str]:
    """Settings that a process makes for itself, given those that the user chose."""
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "UNETCLI_MALLOC")
    kept = {n: v for n, v in os.environ.items() if n not in names and not n.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", SHOW], env=kept | chosen, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_the_user_s_own_choices_hold() -> None:
    assert seen() == ["True", "10000"]
    assert seen(MALLOC_ARENA_MAX="4") == ["False", "10000"]
    assert seen(UNETCLI_MALLOC="0", GOMP_SPINCOUNT="7") == ["False", "7"]
    assert seen(OMP_WAIT_POLICY="active") == ["True", "None"]


FAULTS = """
import resource, sys
if sys.argv[1] == "kept":
    from unetcli.core.process import prepare
    prepare()
import torch
def run():
    for _ in range(16):
        torch.empty(10 * 2**20).fill_(1)
run()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
run()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_large_tensors_are_mapped_once() -> None:
    """Counts page faults of tensors of 40 MB that are created and freed; unlike a time, the count is stable."""
    environment = {n: v for n, v in os.environ.items() if not n.startswith("MALLOC_")}

    def faults(word: str) -> int:
        command = [sys.executable, "-c", FAULTS, word]
        return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    assert faults("kept") * 5 < faults("default")


def test_a_system_without_cpu_affinity_counts_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # as on macOS
    assert usable_cores() == os.cpu_count()


PACKAGE = Path(unetcli.__file__).parent
LOOP = """
import numpy as np
from unetcli.core.process import compiled

@compiled("int64(int64[::1])")
def total(values):
    result = 0
    for n in range(values.size):
        result += values[n]
    return result

print(total(np.array([1, 2, 4])))
"""


def run(folder: Path, **places: Path) -> str:
    """Output of a program with a compiled loop, run from a file, as numba caches only functions in files."""
    program = folder / "program.py"
    program.write_text(LOOP)
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)} | {name: str(at) for name, at in places.items()}
    done = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def test_compiled_code_is_cached_and_a_damaged_cache_costs_only_time(tmp_path: Path) -> None:
    assert run(tmp_path, NUMBA_CACHE_DIR=tmp_path / "cache") == "7\n"
    kept = list((tmp_path / "cache").rglob("*.nb?"))
    assert {file.suffix for file in kept} == {".nbi", ".nbc"}
    for file in kept:
        file.write_bytes(b"torn")
    assert run(tmp_path, NUMBA_CACHE_DIR=tmp_path / "cache") == "7\n"


def test_loops_are_compiled_without_a_writable_cache_folder(tmp_path: Path) -> None:
    for file in (tmp_path / "__pycache__", tmp_path / "cache"):
        file.touch()  # a file in place of a folder, so that not even root can write into it
    below = dict.fromkeys(("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "HOME"), tmp_path / "cache" / "below")
    assert run(tmp_path, **below) == "7\n"
    assert not list(tmp_path.rglob("*.nb?"))


def test_numba_is_not_imported_before_a_measure_needs_it() -> None:
    program = "import sys, unetcli.metrics.em; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
