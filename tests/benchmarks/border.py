"""The raise of the loss weight against one distance transform per cell: seconds, ratio and peak memory.

    python tests/benchmarks/border.py [--plain-cells 300] [--large]

The plain way computes a full-size Euclidean distance transform for each cell and keeps the two smallest per pixel,
which is kinder to it than sorting a stack of them all: that would be as many images of 8 bytes a pixel. With many cells
it is timed on the first ``--plain-cells`` of them and scaled. Real sections where the data lie (``$UNETCLI_DATA``, else
``../shared/data``); ``--large`` adds sections of 4096 pixels.
"""

from __future__ import annotations

import argparse
import os
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from scipy import ndimage

from unetcli.training.border import border_raise, cells_of
from unetcli.training.targets import TruthRules, classes_of

Labels = NDArray[np.integer]


def round_cells(side: int, count: int) -> Labels:
    """Cells around random places, as far as half way to the next, many of which touch."""
    random = np.random.default_rng(0)
    seeds = np.zeros((side, side), np.uint16)
    seeds[tuple(random.integers(0, side, (2, count)))] = np.arange(1, count + 1)
    distance, nearest = ndimage.distance_transform_edt(seeds == 0, return_indices=True)
    return np.where(distance < 0.55 * side / np.sqrt(count), seeds[tuple(nearest)], 0)


def rings(side: int, count: int) -> Labels:
    """Cells around each other: the box around each is the whole image."""
    y, x = np.indices((side, side)) - side / 2
    turn, between = np.divmod(np.hypot(y, x), side / 2 / count)
    return np.where((between > 0.2 * side / 2 / count) & (turn < count), turn + 1, 0).astype(np.uint16)


def plain_raise(cells: NDArray[np.int32], numbers: Labels, rules: TruthRules) -> NDArray[np.float64]:
    """Eq. 2's second term as one writes it down, for the cells of these numbers."""
    nearest, second = np.full((2, *cells.shape), np.inf)
    for number in numbers:
        distance = ndimage.distance_transform_edt(cells != number)
        np.minimum(second, np.maximum(nearest, distance), out=second)
        np.minimum(nearest, distance, out=nearest)
    return rules.w0 * np.exp(-((nearest + second) ** 2) / (2 * rules.sigma**2))


def cases(large: bool) -> Iterator[tuple[str, str, Labels]]:
    """Name, kind of truth and labels."""
    yield "1024 x 1024, 300 round cells", "instances", round_cells(1024, 300)
    yield "1024 x 1024, 5000 round cells", "instances", round_cells(1024, 5000)
    yield "1024 x 1024, 5 rings", "instances", rings(1024, 5)
    data = Path(os.environ.get("UNETCLI_DATA") or Path(__file__).parents[3] / "shared" / "data")
    if data.is_dir():
        yield "ISBI 2012, 512 x 512", "binary", tifffile.imread(data / "isbi2012" / "train-labels.tif", key=3)
        yield "HeLa, 512 x 512", "instances", tifffile.imread(data / "dic_hela" / "01-labels.tif", key=40)
        yield "PSC, 576 x 720", "instances", tifffile.imread(data / "phc_psc" / "01-labels.tif", key=29)
    if large:
        yield "4096 x 4096, 5000 round cells", "instances", round_cells(4096, 5000)
        yield "4096 x 4096, 5 rings", "instances", rings(4096, 5)


def measured(work: Callable[[], Any], repeats: int) -> tuple[float, float, Any]:
    """Least seconds of several runs, peak memory in MB of another, and the result."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - started)
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return min(seconds), peak, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plain-cells", type=int, default=300, help="time the plain way on so many cells at most")
    parser.add_argument("--large", action="store_true", help="sections of 4096 pixels too (minutes)")
    chosen = parser.parse_args()
    print(f"{'':<30} {'cells':>6} {'ours s':>8} {'peak MB':>8} {'plain s':>9} {'ratio':>7} {'difference':>11}")
    for name, truth, labels in cases(chosen.large):
        rules = TruthRules(truth=truth)
        classes = classes_of(labels, rules)
        seconds, peak, raised = measured(lambda: border_raise(labels, classes, rules), 3)  # noqa: B023 - called here
        cells = cells_of(labels, classes, rules)
        numbers = np.arange(1, cells.max() + 1)
        looked = numbers[: chosen.plain_cells]
        started = time.perf_counter()
        plain = plain_raise(cells, looked, rules)
        plain_seconds = (time.perf_counter() - started) * len(numbers) / len(looked)
        difference = "scaled"
        if len(looked) == len(numbers):
            difference = f"{np.abs(raised - np.where(classes == 0, plain, 0)).max():.1e}"
        figures = f"{seconds:>8.3f} {peak:>8.0f} {plain_seconds:>9.1f} {plain_seconds / seconds:>7.0f}"
        print(f"{name:<30} {len(numbers):>6} {figures} {difference:>11}", flush=True)


if __name__ == "__main__":
    main()
