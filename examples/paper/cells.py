"""Table 2 of the paper with a small network: cells of two sets of the cell tracking challenge.

    python examples/paper/cells.py DATA [--output cells] [--minutes 60]

DATA holds ``dic_hela`` and ``phc_psc``. For each set, a network is trained on the first frames and selected by the
next, which also select the method of labelling and its threshold. All scores are of the last frames. The same command
continues an interrupted run. Writes ``cells.json`` and ``cells.md`` to the results, and a picture of each set to the
output.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from experiment import SETS, DataSet, Experiment, at_once, markdown, ranged, training_parser_of, value

from unetcli.volumes.opening import open_volume

METHODS = {
    "components": ("--method", "components"),
    "watershed of distance": ("--method", "watershed", "--landscape", "distance"),
    "watershed of probability": ("--method", "watershed", "--landscape", "probability"),
}
MEASURES = {"seg": "SEG", "det": "DET", "f1": "F1 at IoU 0.5"}
PUBLISHED = {
    "PhC-U373": {
        "U-Net (the paper)": 0.9203,
        "second of 2015": 0.83,
        "KTH-SE (2014)": 0.7953,
        "IMCB-SG (2014)": 0.2669,
    },
    "DIC-HeLa": {
        "U-Net (the paper)": 0.7756,
        "second of 2015": 0.46,
        "KTH-SE (2014)": 0.4607,
        "IMCB-SG (2014)": 0.2935,
    },
}
"""Mean intersection over union (SEG) on the hidden movies: Table 2 of Ronneberger, Fischer and Brox (2015)."""


def main() -> None:
    """Train what is not trained, score what is not scored, and write the table."""
    parser = training_parser_of(__doc__, "cells")
    parser.add_argument("--minutes", type=float, help="train for about this many minutes instead of --steps")
    given = parser.parse_args()
    experiment = Experiment.of(given, "cells")
    length = ["--minutes", given.minutes] if given.minutes else ["--steps", given.steps]
    at_once(partial(run, experiment, given.data, length), ["HeLa", "PSC"], given.jobs)
    for name in experiment.results:
        draw(experiment, given.data, name, experiment.output / f"{name.lower()}.png")
    experiment.write(table(experiment.results))


def run(experiment: Experiment, data: Path, length: list[Any], name: str) -> None:
    """Train on one set, then label and score it."""
    chosen, stem = SETS[name], experiment.output / name
    words = [*chosen.training_words(data), "--select", "seg", *experiment.network, *length]
    trained = experiment.json("train", *words, "--output", stem, *experiment.on)
    found = label_and_score(experiment, data, chosen, stem)
    experiment.keep(name, {**found, "steps": trained["steps"], "seconds": trained["seconds"]})


def label_and_score(experiment: Experiment, data: Path, chosen: DataSet, stem: Path) -> dict[str, Any]:
    """Scores of the test frames of a model in the folder ``stem``, labelled by what is best on the selection frames."""
    for part in ("select", "test"):
        words = [data / chosen.images, "--model", stem, "--sections", ranged(getattr(chosen, part))]
        experiment.unetcli("predict", *words, "--output", f"{stem}.{part}.zarr", *experiment.on)
    labels = data / chosen.labels
    smallest = ["--min-size", smallest_object(data, chosen) // 2]
    tried = {}
    for method, words in METHODS.items():
        threshold = label(experiment, f"{stem}.select.zarr", *words, *smallest, "--auto-threshold-from", labels)
        tried[method] = score(experiment, f"{stem}.select.zarr", labels) | {"threshold": threshold}
    best = max(tried, key=lambda method: tried[method]["seg"])
    chose = {"method": best, "threshold": tried[best]["threshold"], "seg_of_selection": tried[best]["seg"]}
    label(experiment, f"{stem}.test.zarr", *METHODS[best], *smallest, "--threshold", chose["threshold"])
    return chose | score(experiment, f"{stem}.test.zarr", labels)


def label(experiment: Experiment, store: str, *words: Any) -> float:
    """Label a prediction, and return the threshold."""
    return float(experiment.json("label", store, "--name", "cells", "--overwrite", *words)["threshold"])


def score(experiment: Experiment, store: str, truth: Path) -> dict[str, Any]:
    """Scores of labelled objects, with their intervals."""
    found = experiment.json("evaluate", f"{store}/labels/cells", truth, "--metrics", "cells")["cells"]
    return {key: found[key] for measure in MEASURES for key in (measure, f"{measure}_interval") if key in found}


def smallest_object(data: Path, chosen: DataSet) -> int:
    """Pixels of the smallest object in the labels of the training sections."""
    labels = open_volume(data / chosen.labels)
    sections = [labels.read(box) for box in labels.sections(*chosen.train).planes()]
    return int(min(np.unique(section[section > 0], return_counts=True)[1].min() for section in sections))


def draw(experiment: Experiment, data: Path, name: str, picture: Path) -> None:
    """Draw the outlines of the labelled objects over the first test frame."""
    chosen, objects = SETS[name], experiment.output / f"{name}.test.zarr/labels/cells"
    words = [data / chosen.images, "--overlay", objects, "--section", chosen.test[0], "--output", picture]
    experiment.unetcli("show", *words)


def table(found: dict[str, dict[str, Any]]) -> str:
    """The rows of this experiment, then those of the paper."""
    head = ["", "labelling", "threshold", *MEASURES.values(), "steps", "minutes"]
    ours = [
        [
            f"{name} {ranged(SETS[name].test)}",
            row["method"],
            f"{row['threshold']:.2f}",
            *(value(row, measure, 3) for measure in MEASURES),
            f"{row['steps']}",
            f"{row['seconds'] / 60:.0f}",
        ]
        for name, row in found.items()
    ]
    theirs = [
        [f"{name}, {team}, hidden movies", "", "", f"{seg:.4f}", "", "", "", ""]
        for name, teams in PUBLISHED.items()
        for team, seg in teams.items()
    ]
    return markdown(head, [*ours, *theirs])


if __name__ == "__main__":
    main()
