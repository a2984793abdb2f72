"""SEG of ways to find touching cells, on probability maps made from the truth of DIC-HeLa. Run by hand:

    PYTHONPATH=tests python tests/benchmarks/thresholds.py DATA [--every 4]

DATA holds ``dic_hela/01-labels.tif``. The maps are low at the borders of cells and have smooth noise. SEG is pooled
over every n-th section. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tifffile
from label.maps import life_like
from numpy.typing import NDArray
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.segmentation import watershed

from unetcli.label.objects import label_section
from unetcli.label.watershed import separate_section
from unetcli.metrics.cells import seg_sums

Pair = tuple[NDArray[np.uint8], NDArray[np.integer]]
Method = Callable[[NDArray[np.uint8]], NDArray[np.integer]]
THRESHOLDS = [n / 20 for n in range(1, 20)]
SOFTNESS = 2.5


def seg(pairs: Sequence[Pair], method: Method) -> float:
    sums = np.array([seg_sums(truth, method(probability)) for probability, truth in pairs])
    return float(sums[:, 0].sum() / sums[:, 1].sum())


def components_above(threshold: float) -> Method:
    return lambda probability: label_section(probability, threshold)


def f_score(pairs: Sequence[Pair], threshold: float) -> float:
    found = np.concatenate([(probability > 255 * threshold).ravel() for probability, _ in pairs])
    truth = np.concatenate([truth.ravel() > 0 for _, truth in pairs])
    return float(2 * (found & truth).sum() / (found.sum() + truth.sum()))


def from_maxima(probability: NDArray[np.uint8], distance: int) -> NDArray[np.integer]:
    """The usual recipe of scikit-image: a watershed from maxima of the distance to the background."""
    foreground = probability > 127
    depth = ndimage.distance_transform_edt(foreground)
    markers = np.zeros(foreground.shape, np.int32)
    peaks = peak_local_max(depth, min_distance=distance, labels=ndimage.label(foreground)[0])
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    flooded: NDArray[np.int32] = watershed(-depth, markers, mask=foreground)
    return flooded


def rows(pairs: Sequence[Pair]) -> Iterator[tuple[str, float | str, str]]:
    best_f = max(THRESHOLDS, key=lambda threshold: f_score(pairs, threshold))
    segs = {threshold: seg(pairs, components_above(threshold)) for threshold in THRESHOLDS}
    best = max(segs, key=segs.__getitem__)
    yield "components, threshold with the best pixel F score", best_f, f"{segs[best_f]:.2f}"
    yield "components, threshold with the best SEG", best, f"{segs[best]:.2f}"
    yield "watershed of the distance", 0.5, f"{seg(pairs, separate_section):.2f}"
    of_map = seg(pairs, lambda probability: separate_section(probability, landscape="probability", depth=0.1))
    yield "watershed of the probability", 0.5, f"{of_map:.2f}"
    distances = (3, 5, 10, 15, 20)
    usual = [seg(pairs, lambda probability, d=distance: from_maxima(probability, d)) for distance in distances]  # type: ignore[misc]
    name = "scikit-image's watershed from maxima of the distance, `min_distance` 3 to 20"
    yield name, 0.5, f"{min(usual):.2f} to {max(usual):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--every", type=int, default=4)
    chosen = parser.parse_args()
    truths = tifffile.imread(chosen.data / "dic_hela/01-labels.tif")[:: chosen.every]
    pairs = [(life_like(truth, SOFTNESS, seed=number), truth) for number, truth in enumerate(truths)]
    print(f"{len(pairs)} sections\n\n| method | threshold | SEG |\n|---|---|---|")
    for name, threshold, score in rows(pairs):
        print(f"| {name} | {threshold} | {score} |", flush=True)


if __name__ == "__main__":
    main()
