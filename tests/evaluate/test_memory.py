"""Memory depends on the block and the contingency table, not on the size of the volume."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from helpers import PEAK
from pairs import blobs

MEASURE = f"""
{PEAK}
import sys
from unetcli.evaluate.evaluate import evaluate_volume
from unetcli.evaluate.request import EvaluateRequest
names = dict(prediction=sys.argv[1], truth="t-" + sys.argv[1])
found = evaluate_volume(EvaluateRequest(**names, three_d=sys.argv[2] == "3", block_voxels=2**19))
assert found.scores["cells"]["reference_objects"] > 0
print(peak() // 2**20)
"""


def peak_megabytes(place: Path, sections: int, dimensions: int) -> int:
    """Peak memory of a process that evaluates sections of 4 MB (32-bit labels), in MB."""
    name = f"big{sections}.zarr"
    if not (place / name).exists():
        tile = np.tile(blobs(256, 256, seed=1, dtype="uint32"), (4, 4))
        for prefix in ("", "t-"):
            shape = (sections, 1024, 1024)
            array = zarr.create_array(place / f"{prefix}{name}", shape=shape, chunks=(1, 512, 512), dtype="uint32")
            for number in range(sections):
                array[number] = np.roll(tile, number if prefix else number + 1, axis=1)
    command = [sys.executable, "-c", MEASURE, name, str(dimensions)]
    done = subprocess.run(command, cwd=place, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.split()[-1])


@pytest.mark.parametrize("dimensions", [3, pytest.param(2, marks=pytest.mark.slow)])
def test_12_and_48_sections_need_the_same_memory(tmp_path: Path, dimensions: int) -> None:
    """The large pair of volumes has 403 MB."""
    small, large = (peak_megabytes(tmp_path, sections, dimensions) for sections in (12, 48))
    print(f"peak: {small} MB for 101 MB, {large} MB for 403 MB")
    assert large < small + 16
