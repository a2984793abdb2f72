"""Benchmark of labelling: merging many objects, and finding them. Run by hand:

    python tests/benchmarks/labelling.py merge --objects 10000000 [--method watershed]
    python tests/benchmarks/labelling.py find [--method watershed] [--three-d]

``merge`` writes the tables of a volume of equal blocks to a temporary folder, and merges them from there as a run does.
The block is labelled once, with the objects that cross its faces, and its tables are shifted. Peak memory is that of a
process that does nothing else. ``find`` measures voxels per second of one core on blobs.
"""

from __future__ import annotations

import argparse
import math
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unetcli.engine.levels import Arrays
from unetcli.label.finding import find_objects
from unetcli.label.merging import LabelFiles, merge
from unetcli.label.plan import LabelPlan, Settings

SIDE = 512
"""Side of a square block."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["merge", "find"])
    parser.add_argument("--objects", type=int, default=10**7)
    parser.add_argument("--method", default="components")
    parser.add_argument("--three-d", action="store_true")
    options = parser.parse_args()
    if options.what == "merge":
        measure_merging(options.objects, options.method)
    else:
        measure_finding(options.method, options.three_d)


def blobs(shape: tuple[int, ...], sigma: float, wrap: bool = False) -> NDArray[np.uint8]:
    """Probability map of blobs; about half of it is foreground."""
    noise = np.random.default_rng(2015).standard_normal(shape).astype(np.float32)
    smooth = ndimage.gaussian_filter(noise, sigma, mode="wrap" if wrap else "reflect")
    return (255 * np.clip(0.5 + smooth / smooth.std() / 4, 0, 1)).astype(np.uint8)


def plan_of(shape: tuple[int, ...], block: tuple[int, ...], **settings: Any) -> LabelPlan:
    return LabelPlan(
        axes="zyx"[-len(shape) :],
        shape=shape,
        chunks=block,
        write_chunks=block,
        block_shape=block,
        zarr_format=3,
        levels=1,
        voxel_size=(1.0,) * len(shape),
        settings=Settings(**settings),
        automatic=False,
        prediction="",
        intensity=None,
    )


def shifted(base: Arrays, by: tuple[int, int], side: int) -> Arrays:
    """Shift the tables of the middle one of 3 x 3 blocks by ``by``, in a square volume with this side."""
    moved = dict(base)
    for name in ("first", "names", "order"):
        if name in base:
            y, x = np.divmod(base[name], 3 * SIDE)
            moved[name] = (y + by[0]) % side * side + (x + by[1]) % side
    for name in ("start", "stop"):
        moved[name] = base[name] + np.array(by)
    moved["places"] = base["places"] + base["size"][:, None] * np.array(by)
    return moved


def measure_merging(objects: int, method: str) -> None:
    tile = blobs((SIDE, SIDE), 2.2, wrap=True)
    settings = {"method": method, "threshold": 0.6, "reach": 16, "depth": 0.5}
    small = plan_of((3 * SIDE, 3 * SIDE), (SIDE, SIDE), **settings)
    volume = np.tile(tile, (3, 3))
    base = find_objects(small, 4, lambda box: volume[box.slices], lambda box: volume[box.slices])
    del base["labels"]
    across = math.ceil((objects / len(base["size"])) ** 0.5)
    plan = plan_of((across * SIDE, across * SIDE), (SIDE, SIDE), **settings)
    with tempfile.TemporaryDirectory() as place:
        files = LabelFiles(Path(place))
        for piece in range(plan.pieces):
            row, column = plan.grid.place(piece)
            files.tables.save(piece, shifted(base, ((row - 1) * SIDE, (column - 1) * SIDE), across * SIDE))
        before, started = peak(), time.perf_counter()
        merged = merge(plan, files.tables.load)
        seconds = time.perf_counter() - started
        print(f"{plan.pieces} blocks, {len(merged.numbers)} provisional objects -> {merged.count} ({method})")
        print(f"merged in {seconds:.1f} s; peak memory {peak() / 2**30:.2f} GiB ({before / 2**30:.2f} before)")
        started = time.perf_counter()
        files.save_merged(merged, plan.axes, 1 / 255)
        print(f"tables written in {time.perf_counter() - started:.1f} s; peak memory {peak() / 2**30:.2f} GiB")


def measure_finding(method: str, three_d: bool) -> None:
    shape = (160, 160, 160) if three_d else (1, 2048, 2048)
    values = blobs(shape, 6 if three_d else 8)
    plan = plan_of(shape, shape, method=method, three_d=three_d, connectivity=6 if three_d else 4)
    for _ in range(2):  # the first also loads compiled code
        started = time.perf_counter()
        found = find_objects(plan, 0, lambda box: values[box.slices], lambda box: values[box.slices])
        seconds = time.perf_counter() - started
    print(
        f"{method}, {shape}: {len(found['size'])} objects, {values.size / seconds / 1e6:.1f} Mvoxels/s; "
        f"peak memory {peak() / values.size:.0f} bytes a voxel"
    )


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
