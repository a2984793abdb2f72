"""Memory depends on the block, not on the volume."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import PEAK, write_prediction
from label.maps import blobs

MEASURE = f"""
{PEAK}
import sys
from unetcli.label.request import LabelRequest
from unetcli.label.run import label_volume
summary = label_volume(LabelRequest(prediction=sys.argv[1], method=sys.argv[2], block_voxels=2**18))
assert summary.complete
print(peak() // 2**20)
"""


def peak_megabytes(place: Path, sections: int, method: str) -> int:
    """Peak memory of labelling this many sections of 256 kB, in a separate process."""
    section = blobs((512, 512), 8)
    values = np.stack([np.roll(section, 7 * number) for number in range(sections)])
    write_prediction(place / f"{sections}.zarr", values, (1, 256, 256))
    command = [sys.executable, "-c", MEASURE, f"{sections}.zarr", method]
    done = subprocess.run(command, cwd=place, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["components", "watershed"])
def test_4_and_96_sections_need_the_same_memory(tmp_path: Path, method: str) -> None:
    small, large = peak_megabytes(tmp_path, 4, method), peak_megabytes(tmp_path, 96, method)
    print(f"peak: {small} MB for 1 MB, {large} MB for 24")
    assert large < small + 12
