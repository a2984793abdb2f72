from __future__ import annotations

import os
import subprocess
import sys

import pytest

SHOW = """
import os
from unetcli.core.process import keep_freed_memory, prepare
print(keep_freed_memory())
prepare()
print(os.environ.get("GOMP_SPINCOUNT"))
"""


def seen(**chosen: str) -> list[str]:
    """What a process sets up for itself, given what the user chose."""
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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_large_tensors_are_mapped_once() -> None:
    """Page faults of tensors of 40 MB, made and freed: a property, not a time."""
    environment = {n: v for n, v in os.environ.items() if not n.startswith("MALLOC_")}

    def faults(word: str) -> int:
        command = [sys.executable, "-c", FAULTS, word]
        return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    assert faults("kept") * 5 < faults("default")
