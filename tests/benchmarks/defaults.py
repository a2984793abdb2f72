"""Whole predictions with the defaults of a CPU, and in float32 with tiles of 700, taken in turn.

    python tests/benchmarks/defaults.py [--sides 1024 1536] [--rounds 2] [--depth 4] [--base-channels 64]

Prints the seconds of each call, and those of the processor, which other programs change less.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from unetcli.core.process import prepare

prepare()

import numpy as np  # noqa: E402
from scipy import ndimage  # noqa: E402

from unetcli import api  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers import write_model, write_zarr  # noqa: E402

SETTINGS: dict[str, dict[str, Any]] = {
    "float32, tile 700": {"precision": "float32", "tile": 700},
    "bfloat16, tile 700": {"precision": "bfloat16", "tile": 700},
    "bfloat16, tile auto": {"precision": "bfloat16"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[1024, 1536], help="pixels of the image along y and x")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--base-channels", type=int, default=64)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / "model", depth=given.depth, base_channels=given.base_channels)
        for side in given.sides:
            volume = write_zarr(Path(folder) / f"{side}.zarr", smooth(side), (1, 512, 512))
            for number in range(given.rounds):
                for name, settings in SETTINGS.items():
                    wall, processor = timed(volume, model, Path(folder) / "out.zarr", settings)
                    print(f"{side}, round {number + 1}, {name}: {wall:.1f} s, processor {processor:.1f} s", flush=True)


def smooth(side: int) -> np.ndarray:
    """A section of blurred noise, (1, side, side), uint8."""
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(1, side, side)), (0, 2, 2))
    return ((noise - noise.min()) / np.ptp(noise) * 255).astype(np.uint8)


def timed(volume: Path, model: Path, output: Path, settings: dict[str, Any]) -> tuple[float, float]:
    """Seconds of a prediction, and those of the processor."""
    wall, processor = time.perf_counter(), time.process_time()
    api.predict(str(volume), model=str(model), output=str(output), device="cpu", overwrite=True, **settings)
    return time.perf_counter() - wall, time.process_time() - processor


if __name__ == "__main__":
    main()
