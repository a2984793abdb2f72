"""Memory of a prediction does not grow with the volume."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from helpers import PEAK, write_model

MEASURE = """
import sys
from pathlib import Path
from unetcli.predict.request import PredictRequest
from unetcli.predict.run import predict_volume
summary = predict_volume(PredictRequest(volume=sys.argv[1], model=Path("model"), device="cpu"))
assert summary.complete
print(peak() // 2**20)
"""


def peak_megabytes(place: Path, sections: int, side: int) -> int:
    """Peak memory of predicting some square sections in a separate process, in MiB."""
    name = f"big{sections}.zarr"
    shape, chunks = (sections, side, side), (1, 512, 512)
    array = zarr.create_array(place / name, shape=shape, chunks=chunks, dtype="float32", compressors=None)
    section = np.random.default_rng(0).normal(size=(side, side)).astype(np.float32)
    for number in range(sections):
        array[number] = np.roll(section, number)
    command = [sys.executable, "-c", PEAK + MEASURE, name]
    done = subprocess.run(command, cwd=place, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "few", "many", "more"),
    [(1024, 8, 32, 32), (2048, 4, 64, 64)],
    ids=["32 and 128 MB", "64 MB and 1 GB"],
)
def test_a_larger_volume_needs_the_same_memory(tmp_path: Path, side: int, few: int, many: int, more: int) -> None:
    """At most ``more`` MiB are allowed: a third of the additional input, or less."""
    write_model(tmp_path / "model", depth=1, base_channels=1, dtype="float32")
    small, large = peak_megabytes(tmp_path, few, side), peak_megabytes(tmp_path, many, side)
    print(f"peak: {small} MB for {few} sections of {side} x {side}, {large} MB for {many}")
    assert large < small + more
