"""Seconds per section of each part of the EM measures, on ISBI 2012 sections at all levels, and of the whole.

    python tests/benchmarks/em.py [--sections 5] [--threads 1]

Three maps against the true labels: noise around them (many splits and merges), a blurred image (no network at all),
and the labels smoothed a little (a good network). Needs the real data (``$UNETCLI_DATA``, else ``../shared/data``).
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from scipy import ndimage

from unetcli.metrics import em
from unetcli.metrics.contingency import Cells, Information, Overlap, PairCounts, components, thin
from unetcli.metrics.em_counts import LEVELS, WARPING_LEVELS, above, section_counts
from unetcli.metrics.warping import classify, warp

Section = tuple[NDArray[np.float32], NDArray[np.bool_]]


def isbi(sections: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Images and interior; the 25 sections again from the start where more are asked for."""
    data = Path(os.environ.get("UNETCLI_DATA") or Path(__file__).parents[3] / "shared" / "data") / "isbi2012"
    chosen = np.arange(sections) % 25
    images, labels = (tifffile.imread(data / f"train-{name}.tif")[chosen] for name in ("volume", "labels"))
    return images, labels > 0


def maps(images: NDArray[np.uint8], interior: NDArray[np.bool_]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Probabilities of interior, (z, y, x) each."""
    random = np.random.default_rng(0)
    soft = ndimage.gaussian_filter(interior.astype(np.float32), (0, 1.5, 1.5))
    yield "noisy labels", np.clip(soft + random.normal(0, 0.25, soft.shape), 0, 1).astype(np.float32)
    grey = ndimage.gaussian_filter(images.astype(np.float32), (0, 2, 2))
    yield "blurred image", (grey - grey.min()) / np.float32(np.ptp(grey))
    yield "smoothed labels", np.clip(soft, 0, 1)


def rand(cells: Cells, segments: NDArray[np.int32]) -> tuple[PairCounts, PairCounts]:
    overlap = Overlap.of(cells, segments)
    return overlap.pairs, overlap.different_pairs


def rand_and_information(cells: Cells, segments: NDArray[np.int32]) -> tuple[PairCounts, Information]:
    overlap = Overlap.of(cells, segments)
    return overlap.pairs, overlap.information


def parts(probability: NDArray[np.float32], interior: NDArray[np.bool_]) -> dict[str, float]:
    """Seconds for one section at all levels, by part."""
    spent: dict[str, float] = {}

    def timed(name: str, work: Callable[..., Any], *given: Any) -> Any:
        start = time.perf_counter()
        result = work(*given)
        spent[name] = spent.get(name, 0) + time.perf_counter() - start
        return result

    cells = timed("cells", Cells.of, interior)
    for level in LEVELS:
        proposal = above(probability, level)
        segments = timed("segments", components, proposal)
        timed("rand", rand, cells, segments)
        thinned = timed("thinning", thin, segments)
        timed("v_rand, v_info", rand_and_information, cells, thinned)
        if level in WARPING_LEVELS:
            warped = timed("warping", warp, probability, interior, proposal, level)
            timed("classification", classify, warped)
    return spent


def main() -> None:
    options = argparse.ArgumentParser(description="Times the EM measures.")
    options.add_argument("--sections", type=int, default=5)
    options.add_argument("--threads", type=int, default=1)
    chosen = options.parse_args()
    images, interior = isbi(chosen.sections)
    start = time.perf_counter()
    section_counts(np.zeros((8, 8), np.float32), np.eye(8, dtype=bool))
    print(f"first call, with import of numba and what it compiles or loads: {time.perf_counter() - start:.2f} s")
    for name, probability in maps(images, interior):
        start = time.perf_counter()
        with ThreadPoolExecutor(chosen.threads) as pool:
            counts = list(pool.map(section_counts, probability, interior))
        wall = (time.perf_counter() - start) / len(interior)
        found = em.scores(counts)
        print(f"\n{name}: {wall:.3f} s per section on {chosen.threads} threads, so 30 take {30 * wall:.1f} s")
        spent = [parts(p, i) for p, i in zip(probability, interior, strict=True)]
        for part in spent[0]:
            print(f"  {part:<16}{np.mean([s[part] for s in spent]):8.4f} s")
        print("  " + ", ".join(f"{key} {found[key]:.6f}" for key in em.MEASURES))


if __name__ == "__main__":
    main()
