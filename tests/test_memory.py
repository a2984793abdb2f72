"""Memory does not grow with the volume."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import zarr
from helpers import write_model

MEASURE = """
import resource, sys
from pathlib import Path
from unetcli.config import PredictRequest
from unetcli.runs.prediction import predict_volume
summary = predict_volume(PredictRequest(volume=sys.argv[1], model=Path("model"), device="cpu"))
assert summary.complete
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def peak_megabytes(place: Path, sections: int) -> int:
    """Peak memory of predicting that many sections of 16 MB, in a process of its own."""
    name = f"big{sections}.zarr"
    array = zarr.create_array(place / name, shape=(sections, 2048, 2048), chunks=(1, 512, 512), dtype="float32")
    section = np.random.default_rng(0).normal(size=(2048, 2048)).astype(np.float32)
    for number in range(sections):
        array[number] = np.roll(section, number)
    command = [sys.executable, "-c", MEASURE, name]
    done = subprocess.run(command, cwd=place, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.split()[-1])


def test_64_megabytes_and_1_gigabyte_need_the_same_memory(tmp_path: Path) -> None:
    write_model(tmp_path / "model", depth=1, base_channels=1, dtype="float32")
    small, large = peak_megabytes(tmp_path, 4), peak_megabytes(tmp_path, 64)
    print(f"peak: {small} MB for 64 MB of input, {large} MB for 1 GB")
    assert large < small + 64
