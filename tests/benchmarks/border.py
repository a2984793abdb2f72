"""The raise of the loss weight against one distance transform per cell: seconds, ratio, peak memory and difference.

    python tests/benchmarks/border.py [--plain-cells 300] [--large]

The plain way is eq. 2 as one writes it down: a full-size Euclidean distance transform for each cell, all stacked (8
bytes a pixel and cell) and sorted. The lean way is kinder to it: of these transforms it keeps the two smallest. With
many cells both are timed on the first ``--plain-cells`` of them and scaled, the plain way's memory likewise. Seconds
are the processor's. The difference is the largest wherever the exponential exceeds 1e-6. Real sections where the data
lie (``$UNETCLI_DATA``, else ``../shared/data``); ``--large`` adds sections of 4096 pixels, where no stack of many
cells is made.
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

from unetcli.train.border import border_weights, cells_of
from unetcli.train.settings import NEGLIGIBLE, TruthRules
from unetcli.train.targets import classes_of

Labels = NDArray[np.integer]
STACK_BYTES = 2**32
"""A larger stack is not made: its memory is calculated, not measured."""


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


def distances(cells: NDArray[np.int32], numbers: Labels) -> Iterator[NDArray[np.float64]]:
    """To each of these cells, from every pixel."""
    for number in numbers:
        yield ndimage.distance_transform_edt(cells != number)


def plain_sum(cells: NDArray[np.int32], numbers: Labels) -> NDArray[np.float64]:
    """d1 + d2 from a sorted stack of all distances."""
    stack = np.empty((len(numbers), *cells.shape))
    for place, distance in enumerate(distances(cells, numbers)):
        stack[place] = distance
    stack.sort(axis=0)
    return stack[0] + stack[1] if len(stack) > 1 else np.full(cells.shape, np.inf)


def lean_sum(cells: NDArray[np.int32], numbers: Labels) -> NDArray[np.float64]:
    """d1 + d2 from the two smallest distances."""
    nearest, second = np.full((2, *cells.shape), np.inf)
    for distance in distances(cells, numbers):
        np.minimum(second, np.maximum(nearest, distance), out=second)
        np.minimum(nearest, distance, out=nearest)
    return nearest + second


def difference(raised: NDArray[np.float32], both: NDArray[np.float64], wanted: Any, rules: TruthRules) -> float:
    """The largest one to w0 exp(-(d1 + d2)^2 / (2 sigma^2)), where the exponential exceeds ``NEGLIGIBLE``."""
    exponential = np.exp(-(both**2) / (2 * rules.sigma**2))
    seen = wanted & (exponential > NEGLIGIBLE)
    return float(np.abs(raised - rules.w0 * exponential)[seen].max(initial=0))


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
    """Least processor seconds of several runs, peak memory in MB of the last, and the result."""
    seconds = []
    for _ in range(repeats):
        tracemalloc.start()  # counts what NumPy takes, whole arrays: it costs no time that shows
        started = time.process_time()
        result = work()
        seconds.append(time.process_time() - started)
        peak = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
    return min(seconds), peak, result


def row(truth: str, labels: Labels, plain_cells: int) -> str:
    """Figures of one section."""
    rules = TruthRules(truth=truth)
    classes = classes_of(labels, rules)
    cells = cells_of(labels, classes, rules)
    numbers = np.arange(1, cells.max() + 1)
    looked = numbers[:plain_cells]
    scale = len(numbers) / len(looked)
    seconds, peak, raised = measured(lambda: border_weights(cells_of(labels, classes, rules), classes, rules), 3)
    lean_s, lean_mb, both = measured(lambda: lean_sum(cells, looked), 1)
    lean = f"{lean_s * scale:>8.1f} {lean_mb:>8.0f} {lean_s * scale / seconds:>6.0f}"
    plain = f"{'':>8} {8 * cells.size * len(numbers) / 2**20:>8.0f} {'':>6}"
    if 8 * cells.size * len(looked) < STACK_BYTES:
        plain_s, plain_mb, both = measured(lambda: plain_sum(cells, looked), 1)
        plain = f"{plain_s * scale:>8.1f} {plain_mb * scale:>8.0f} {plain_s * scale / seconds:>6.0f}"
    off = f"{difference(raised, both, classes == 0, rules):.1e}" if scale == 1 else "scaled"
    return f"{len(numbers):>6} {seconds:>7.3f} {peak:>6.0f} {lean} {plain} {off:>11}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plain-cells", type=int, default=300, help="time the other ways on so many cells at most")
    parser.add_argument("--large", action="store_true", help="sections of 4096 pixels too (minutes)")
    chosen = parser.parse_args()
    way = f"{'s':>8} {'peak MB':>8} {'ratio':>6}"
    print(f"{'':<30} {'':>6} {'ours':<14} {'   lean':<24} {'   plain':<24}")
    print(f"{'':<30} {'cells':>6} {'s':>7} {'MB':>6} {way} {way} {'difference':>11}")
    for name, truth, labels in cases(chosen.large):
        print(f"{name:<30} {row(truth, labels, chosen.plain_cells)}", flush=True)


if __name__ == "__main__":
    main()
