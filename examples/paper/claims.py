"""Test the paper's claims about augmentation and border weights with a small network: train, predict and score.

    python examples/paper/claims.py DATA [--output claims] [--seeds 1] [--steps 1500] [--jobs 2]

DATA holds images and labels of the data sets in ``SETS`` as TIFF stacks. Each set is trained on four times: with and
without augmentation, with and without the higher weights between close objects; nothing else differs. The network is
small (depth 3, 16 channels). Model and threshold are selected on the selection sections; scores are of the test
sections, which are used for nothing else. An interrupted call continues where it stopped. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from experiment import SETS, Experiment, ranged
from numpy.typing import NDArray
from scipy import ndimage

from unetcli.metrics.cells import seg_sums
from unetcli.metrics.contingency import Cells, Overlap, PairCounts, components
from unetcli.metrics.em_counts import above
from unetcli.volumes.opening import open_volume

THRESHOLDS = tuple(n / 20 for n in range(1, 20))


@dataclass(frozen=True)
class Run:
    """One training run and its settings."""

    name: str
    augment: bool
    border: bool
    seed: int

    @property
    def folder(self) -> str:
        words = (self.name, "augment" if self.augment else "plain", "border" if self.border else "even", str(self.seed))
        return "-".join(words).lower()


def main() -> None:
    """Finish the runs that are not done, then print the scores of all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--output", type=Path, default=Path("claims"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--jobs", type=int, default=2, help="number of simultaneous trainings, on one thread each")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    every = itertools.product(range(options.seeds), SETS, (True, False), (True, False))
    runs = [Run(name, augment, border, seed) for seed, name, augment, border in every]
    with ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(lambda run: result_of(run, options.data, options.output, options.steps), runs))
    print("\n".join(table(results)))


def result_of(run: Run, data: Path, output: Path, steps: int) -> dict[str, Any]:
    """Scores of a run, from its file if it is done."""
    file = output / f"{run.folder}.json"
    if not file.exists():
        found = {**asdict(run), **trained(run, data, output, steps), **scores(run, data, output)}
        file.write_text(json.dumps(found, indent=1))
        print(f"{run.folder}: done", file=sys.stderr, flush=True)
    values: dict[str, Any] = json.loads(file.read_text())
    return values


def trained(run: Run, data: Path, output: Path, steps: int) -> dict[str, Any]:
    """Train or continue training, predict, and return the summary of train."""
    chosen, folder = SETS[run.name], output / run.folder
    words = ["train", *chosen.training_words(data), "--output", folder, "--steps", steps]
    words += ["--depth", 3, "--base-channels", 16, "--recipe", "fast", "--seed", run.seed]
    words += [] if run.augment else ["--no-augment"]
    words += ["--w0", 10 if run.border else 0]  # the default depends on the data
    summary = Experiment.json(*words)
    sections = ranged((chosen.select[0], chosen.test[1]))
    words = [data / chosen.images, "--model", folder, "--output", f"{folder}.zarr", "--sections", sections]
    Experiment.unetcli("predict", *words)
    return {name: summary[name] for name in ("steps", "seconds", "best_step")}


def scores(run: Run, data: Path, output: Path) -> dict[str, Any]:
    """Scores on the test sections, at the threshold that is best on the selection sections."""
    chosen = SETS[run.name]
    pairs = list(sections(run, data, output))
    count = chosen.select[1] - chosen.select[0]
    error = rand_error if chosen.truth == "binary" else negative_seg
    best = min(THRESHOLDS, key=lambda threshold: error(pairs[:count], threshold))
    test = pairs[count:]
    wrong = sum(np.count_nonzero(above(p, best) != (t > 0)) for p, t in test) / sum(t.size for _, t in test)
    both = [(above(p, best), t > 0) for p, t in test]
    iou = sum(np.count_nonzero(a & b) for a, b in both) / sum(np.count_nonzero(a | b) for a, b in both)
    found = {"threshold": best, "pixel_disagreement": wrong, "iou": iou}
    value = error(test, best)
    return found | ({"rand_error": value} if chosen.truth == "binary" else {"seg": -value})


def sections(run: Run, data: Path, output: Path) -> Iterator[tuple[NDArray[np.float32], NDArray[Any]]]:
    """Probability and truth of each selection section, then of each test section."""
    chosen = SETS[run.name]
    predicted, labels = open_volume(output / f"{run.folder}.zarr"), open_volume(data / chosen.labels)
    for number, box in enumerate(labels.sections(chosen.select[0], chosen.test[1]).planes()):
        place = predicted.sections(number, number + 1)
        probability = predicted.read(place).reshape(labels.extent[-2:]).astype(np.float32) / np.float32(255)
        yield probability, labels.read(box).reshape(labels.extent[-2:])


def rand_error(pairs: list[tuple[NDArray[np.float32], NDArray[Any]]], threshold: float) -> float:
    """Foreground-restricted Rand error of the EM challenge at one threshold."""
    counts = PairCounts(0, 0, 0)
    for probability, truth in pairs:
        counts += Overlap.of(Cells.of(truth > 0), components(above(probability, threshold))).pairs
    return 1 - (counts.f_score or 0.0)


def negative_seg(pairs: list[tuple[NDArray[np.float32], NDArray[Any]]], threshold: float) -> float:
    """Negative SEG of the connected components above a threshold; lower is better."""
    found = [seg_sums(truth, ndimage.label(above(probability, threshold))[0]) for probability, truth in pairs]
    return -sum(total for total, _ in found) / sum(objects for _, objects in found)


def table(results: list[dict[str, Any]]) -> list[str]:
    """Markdown table of the mean scores over the seeds, with the value of each seed if there are several."""
    lines = ["| set | augmentation | border weights | pixel disagreement | IoU | SEG | Rand error | minutes |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for name, augment, border in itertools.product(SETS, (True, False), (True, False)):
        rows = [r for r in results if (r["name"], r["augment"], r["border"]) == (name, augment, border)]
        cells = [averaged(rows, score) for score in ("pixel_disagreement", "iou", "seg", "rand_error")]
        minutes = f"{np.mean([row['seconds'] for row in rows]) / 60:.1f}"
        used = ["yes" if chosen else "no" for chosen in (augment, border)]
        lines.append(f"| {name} | {' | '.join([*used, *cells, minutes])} |")
    return lines


def averaged(rows: list[dict[str, Any]], score: str) -> str:
    values = [row[score] for row in rows if score in row]
    if not values:
        return ""
    each = f" ({', '.join(f'{value:.4f}' for value in values)})" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{each}"


if __name__ == "__main__":
    main()
